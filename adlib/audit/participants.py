"""Who is in the study: people by class, follow-ups, changing labels, missing ages."""

from __future__ import annotations

import pandas as pd

from adlib.audit.findings import finding, named
from adlib.study.params import AuditParams

IMBALANCE = 4.0


def check_cohort(scans: pd.DataFrame, classes: tuple[str, ...], params: AuditParams) -> list[dict[str, str]]:
    """Count people by class and name what is missing or uneven.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.MANIFEST`.
    classes : tuple of str
    params : AuditParams
    """
    return _counts(scans, classes, params) + _visits(scans) + _ages(scans)


def _counts(scans: pd.DataFrame, classes: tuple[str, ...], params: AuditParams) -> list[dict[str, str]]:
    people = scans.groupby("diagnosis")["participant_id"].nunique().reindex(classes, fill_value=0)
    least = params.min_participants_per_class
    found = [
        finding("participants", "stop" if count < least else "info", str(name), str(count), f">= {least}")
        for name, count in people.items()
    ]
    if people.max() > IMBALANCE * max(people.min(), 1):
        ratio = f"{people.max() / max(people.min(), 1):.1f} : 1"
        found.append(finding("imbalance", "warn", "classes", ratio, f"{IMBALANCE:g} : 1"))
    return found


def _visits(scans: pd.DataFrame) -> list[dict[str, str]]:
    by_person = scans.groupby("participant_id")
    several = by_person["session_id"].nunique()
    several = several[several > 1]
    changed = scans.drop_duplicates("participant_id").set_index("participant_id").loc[several.index]
    labels = by_person["diagnosis"].nunique().loc[several.index]
    changed = changed[labels.to_numpy() > 1]
    found = []
    if len(several):
        found.append(finding("followups", "info", named(several.index), f"{len(several)} participants", "any"))
    if len(changed):
        found.append(finding("label-changes", "info", named(changed.index), f"{len(changed)} participants", "any"))
    return found


def _ages(scans: pd.DataFrame) -> list[dict[str, str]]:
    missing = scans[scans["age"].isna()]
    return [finding("age-missing", "warn", named(missing["scan_id"]), f"{len(missing)} scans")] if len(missing) else []
