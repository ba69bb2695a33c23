"""The simulated cohort: T1w heads with known volumes and severity.

Imports study, imaging, parallel.
Start with `cohort`.
"""
