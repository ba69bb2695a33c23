"""OASIS-3 becomes a listing: scans and clinical visits are matched by their days since entry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adlib.sources.oasis import rating_label
from adlib.study.exec_params import EVERY_CORE, Pool
from adlib.study.records import StudyError
from adlib.study.source_params import Oasis3Source
from adlib.study.user_tables import numbers, read_user_table

_SCAN = re.compile(r"(?P<subject>OAS3\d{4})_(?:ses(?:s)?-)?(?:MR_)?d(?P<days>\d+).*?(?:_run-(?P<run>\d+))?_T1w\.nii")
_DAYS = re.compile(r"_d(\d+)$")
_SEXES = {"1": "M", "2": "F", "1.0": "M", "2.0": "F"}
_DAYS_PER_YEAR = 365.25


def list_scans(source: Oasis3Source, _folder: Path, *, pool: Pool = EVERY_CORE) -> list[dict[str, Any]]:
    """List every T1w image; its diagnosis is the Clinical Dementia Rating of the visit nearest in days.

    A scan without a visit inside the window has an empty diagnosis. Of several runs of a session the first is used,
    the others are listed with that reason.

    Parameters
    ----------
    source : Oasis3Source
    _folder, pool : path, Pool
        Not used.

    Returns
    -------
    list of dict
        Rows by `records.LISTING`.

    Raises
    ------
    StudyError
        If there is no image or no clinical table.

    References
    ----------
    LaMontagne et al. 2019, doi:10.1101/2019.12.13.19014902.
    """
    root = Path(source.root)
    named = [(path, found) for path in sorted(root.rglob("*_T1w.nii*")) if (found := _SCAN.search(path.name))]
    if not named:
        raise StudyError(f"no sub-OAS3*_ses-d*_T1w.nii.gz under {root}; is it an OASIS-3 download?")
    visits, people = _tables(root)
    rows = [_describe(path, found, visits, people, source) for path, found in named]
    _leave_out_repeats(rows)
    return rows


def _tables(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clinical visits (subject, days, cdr, age) and people (sex, age at entry), recognised by their columns."""
    visits, people = [], []
    for path in sorted(root.rglob("*.csv")):
        table = read_user_table(path)
        table.columns = [re.sub(r"[^a-z0-9]", "", str(name).lower()) for name in table.columns]
        table = table.rename(columns={"oasisid": "subject", "cdrtot": "cdr", "gender": "sex", "mf": "sex"})
        if {"subject", "cdr"} <= set(table):
            visits.append(_visits(table, path))
        if {"subject", "sex"} <= set(table):
            people.append(_people(table, path))
    if not visits:
        raise StudyError(f"no csv under {root} has a subject (OASISID or Subject) and a CDR (CDRTOT or cdr) column")
    empty = pd.DataFrame({"subject": [], "sex": [], "entry": []})
    people_table = pd.concat(people or [empty], ignore_index=True).drop_duplicates("subject")
    return pd.concat(visits, ignore_index=True), people_table.set_index("subject")


def _visits(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    label = next((name for name in table if table[name].astype(str).str.contains(r"_d\d+$").any()), None)
    if "daystovisit" in table:
        days = numbers(table, "daystovisit", path)
    elif label:
        days = pd.to_numeric(table[label].str.extract(_DAYS, expand=False))
    else:
        raise StudyError(f"{path} has no days_to_visit and no session label that ends in _d0000 to match scans by")
    age = next((name for name in ("ageatvisit", "age") if name in table), None)
    found = {"subject": table["subject"], "days": days, "cdr": numbers(table, "cdr", path)}
    return pd.DataFrame(found | {"age": numbers(table, age, path) if age else np.nan}).dropna(subset=["days", "cdr"])


def _people(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    entry = numbers(table, "ageatentry", path) if "ageatentry" in table else np.nan
    return pd.DataFrame({"subject": table["subject"], "sex": table["sex"].replace(_SEXES), "entry": entry})


def _describe(
    path: Path, found: re.Match[str], visits: pd.DataFrame, people: pd.DataFrame, source: Oasis3Source
) -> dict[str, Any]:
    subject, days = found["subject"], int(found["days"])
    session = f"sub-{subject}_ses-d{found['days']}"
    row = {
        "participant_id": f"sub-{subject}",
        "session_id": f"ses-d{found['days']}",
        "scan_id": session + (f"_run-{found['run']}" if found["run"] else "") + "_T1w",
        "path": str(path),
        "site": "OASIS-3",
        "label_source": f"Clinical Dementia Rating nearest the scan, within {source.window_days} days",
    }
    person = people.loc[subject] if subject in people.index else pd.Series(dtype=object)
    row |= {"sex": person.get("sex")}
    if pd.notna(person.get("entry")):
        row["age"] = round(person["entry"] + days / _DAYS_PER_YEAR, 2)
    visits = visits[visits["subject"] == subject]
    away = (visits["days"] - days).abs()
    if len(visits) and away.min() <= source.window_days:
        visit = visits.loc[away.idxmin()]
        row["diagnosis"] = rating_label(visit["cdr"], source.cdr_labels)
        if "age" not in row and pd.notna(visit["age"]):
            row["age"] = round(visit["age"] + (days - visit["days"]) / _DAYS_PER_YEAR, 2)
    return row


def _leave_out_repeats(rows: list[dict[str, Any]]) -> None:
    seen = set()
    for row in rows:
        session = row["participant_id"], row["session_id"]
        if session in seen:
            row["excluded"] = "another run of the session is used"
        seen.add(session)
