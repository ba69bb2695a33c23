"""Notebook 02: from a T1w head to MNI152 space, its volumes and its quality.

Imports study, imaging, parallel.
Start with `pipeline` (one scan) and `cohort_run` (all scans).
"""
