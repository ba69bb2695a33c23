"""Notebook 01: checks of a listing of scans; the severity of a finding decides whether the study goes on.

Imports study, imaging, parallel, sources.
Start with `run.run_audit`; the texts of all findings are in `advice.yaml`.
"""
