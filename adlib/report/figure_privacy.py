"""What each figure shows of people, and which figures a report of a cohort may hold. The one place for this rule."""

from __future__ import annotations

COHORT = "cohort"  # counts, shares, means, histograms, curves: nobody can be picked out
POINTS = "points"  # one mark for each scan or participant, without a name
SCANS = "scans"  # images, or values, of single scans

SHOWS = {
    "01_calibration": POINTS,
    "01_cohort": COHORT,
    "01_confounds": COHORT,
    "01_flow": COHORT,
    "02_input_slices": SCANS,
    "02_mosaic": SCANS,
    "02_qc": COHORT,
    "02_steps": SCANS,
    "02_volumes": POINTS,
    "02_volumes_truth": POINTS,
    "03_curves": COHORT,
    "03_splits": COHORT,
    "04_attribution": COHORT,
    "04_attribution_mni": COHORT,
    "04_conformal": COHORT,
    "04_confusion": COHORT,
    "04_deletion": COHORT,
    "04_failures": SCANS,
    "04_forest": COHORT,
    "04_forest_binary": COHORT,
    "04_leak": COHORT,
    "04_precision_recall": COHORT,
    "04_randomisation": COHORT,
    "04_reliability": COHORT,
    "04_roc": COHORT,
    "04_severity": POINTS,
    "04_subgroups": COHORT,
    "05_answers": POINTS,
}


def shows(name: str) -> str:
    """What a figure shows of people; a figure that is not in `SHOWS` counts as one of single scans."""
    return SHOWS.get(name, SCANS)


def may_show(name: str, simulated: bool) -> bool:
    """Whether a report may hold the figure: every one of simulated heads, of people those of the cohort alone."""
    return simulated or shows(name) == COHORT
