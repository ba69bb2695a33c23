"""Findings about a listing of scans; their severity decides whether the study may go on."""

from adlib.audit.checks import CHECKS, Check
from adlib.audit.confounds import associations, metadata_auc
from adlib.audit.findings import AuditStop, enforce
from adlib.audit.fingerprint import pixel_facts
from adlib.audit.run import Audit, run_audit
from adlib.audit.similarity import near_duplicates, recover_groups

__all__ = [
    "CHECKS",
    "Audit",
    "AuditStop",
    "Check",
    "associations",
    "enforce",
    "metadata_auc",
    "near_duplicates",
    "pixel_facts",
    "recover_groups",
    "run_audit",
]
