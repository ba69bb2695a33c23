"""The tables of OASIS-1 and OASIS-2, in the dialects in which they go about."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.study.records import StudyError
from adlib.study.user_tables import numbers, read_user_table

ACKNOWLEDGEMENT = (
    "Data were provided in part by OASIS. OASIS-1 (Cross-Sectional) and OASIS-2 (Longitudinal): principal "
    "investigators D. Marcus, R. Buckner, J. Csernansky, J. Morris; P50 AG05681, P01 AG03991, P01 AG026276, "
    "R01 AG021910, P20 MH071616, U24 RR021382 (Marcus et al. 2007, doi:10.1162/jocn.2007.19.9.1498; 2010, "
    "doi:10.1162/jocn.2009.21407). OASIS-3: P30 AG066444, P50 AG00561, P30 NS09857781, P01 AG026276, P01 AG003991, "
    "R01 AG043434, UL1 TR000448, R01 EB009352 (LaMontagne et al. 2019, doi:10.1101/2019.12.13.19014902)."
)
NO_RATING = "missing"
_NUMBERS = ("age", "cdr", "etiv", "nwbv")


def read_oasis_table(root: Path, pattern: str, key: str) -> pd.DataFrame:
    """The one table of a release, by MRI session.

    Column names lose case and punctuation (``M/F`` and ``M.F`` both become ``mf``), numbers may have decimal commas.

    Parameters
    ----------
    root : path
    pattern : str
        Of the table's file name.
    key : str
        Column, so spelt, that names the session, such as ``OAS1_0001_MR1``.

    Returns
    -------
    DataFrame
        Indexed by `key`, with float columns age, cdr, etiv (ml), nwbv (share) and text column mf.

    Raises
    ------
    StudyError
        If there is not one such table, it lacks a column, or it names a session twice.
    """
    tables = sorted(path for path in root.glob(pattern) if path.is_file())
    if len(tables) != 1:
        raise StudyError(f"expected one {pattern} in {root}, found {[path.name for path in tables]}")
    table = read_user_table(tables[0])
    table.columns = [re.sub(r"[^a-z0-9]", "", str(name).lower()) for name in table.columns]
    missing = [name for name in (key, "mf", *_NUMBERS) if name not in table]
    if missing:
        raise StudyError(f"{tables[0]} lacks columns {missing}; it has {list(table.columns)}")
    table = table.assign(**{name: numbers(table, name, tables[0]) for name in _NUMBERS})
    repeated = table[key].duplicated()
    if repeated.any():
        raise StudyError(
            f"{tables[0]}, line {table.index[repeated][0]}: {table.loc[repeated, key].iloc[0]} comes twice"
        )
    return table.set_index(key)


def visit_facts(visit: pd.Series, labels: dict[str, str]) -> dict[str, Any]:
    """Diagnosis by Clinical Dementia Rating, age, sex and the published volumes of one row of a table.

    ``nbv`` is nWBV, the brain's share of the intracranial volume, and ``icv_ml`` is eTIV.
    """
    return {
        "diagnosis": rating_label(visit["cdr"], labels),
        "label_source": "Clinical Dementia Rating at the visit",
        "age": visit["age"],
        "sex": visit["mf"],
        "nbv": visit["nwbv"],
        "icv_ml": visit["etiv"],
    }


def rating_label(rating: float, labels: dict[str, str]) -> str | None:
    """The class of a Clinical Dementia Rating; ratings that `labels` does not name have none."""
    return labels.get(NO_RATING if pd.isna(rating) else f"{rating:g}")
