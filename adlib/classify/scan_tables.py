"""Tables of classified scans, from their records, and the words of a classification."""

from collections.abc import Collection, Iterable
from itertools import chain, count
from typing import Any

import pandas as pd

COVERAGE = 0.9
STAGES = (
    "reading the file",
    "aligning, extracting the brain, measuring tissues",
    "comparing with the training cohort",
    "classifying slices",
)
VOLUME_LABELS = {
    "hippocampus_ml": "hippocampus",
    "ventricles_ml": "ventricles",
    "gm_ml": "grey matter",
    "wm_ml": "white matter",
    "icv_ml": "intracranial",
}

Record = dict[str, Any]


def format_ml(value: float) -> str:
    """A volume with its significant digits: 6.4, 42.1, 1430.

    Parameters
    ----------
    value : float
        ml.

    Returns
    -------
    str
    """
    return f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def unique_name(name: str, taken: Collection[str]) -> str:
    """The name, with the first free number from 2 on if it is taken.

    Parameters
    ----------
    name : str
    taken : collection of str

    Returns
    -------
    str
    """
    return next(free for free in chain([name], (f"{name}_{n}" for n in count(2))) if free not in taken)


def scan_table(records: Iterable[Record], truth: dict[str, str] | None = None) -> pd.DataFrame:
    """One row per scan: predicted class, prediction set, probabilities, volumes and percentiles.

    Parameters
    ----------
    records : iterable of dict
        From `as_record`.
    truth : dict of str to str, optional
        Diagnosis by scan name; adds the column ``diagnosis``.

    Returns
    -------
    DataFrame
        Indexed by ``scan``.
    """
    records, rows = list(records), []
    for record in records:
        diagnosis = {} if truth is None else {"diagnosis": truth.get(record["name"], "unknown")}
        percentiles = {f"{name} percentile": value for name, value in record["percentiles"].items()}
        volumes = {name: value for name, value in record["volumes"].items() if name.endswith(("_ml", "nbv"))}
        rows.append(
            {**diagnosis, "predicted": record["predicted"] or "none"}
            | {"set": " or ".join(record["set"]), **_probabilities(record), "slices": record["agreement"]}
            | {"quality control": record["verdict"], **volumes, **percentiles}
        )
    return pd.DataFrame(rows, pd.Index([record["name"] for record in records], name="scan")).round(3)


def summary_table(records: Iterable[Record]) -> pd.DataFrame:
    """Number of scans, mean, standard deviation and range of probabilities and volumes; empty without scans.

    Parameters
    ----------
    records : iterable of dict
        From `as_record`.

    Returns
    -------
    DataFrame
        Columns count, mean, std, min and max.
    """
    rows = [_probabilities(record) | record["volumes"] for record in records]
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).astype(float).agg(["count", "mean", "std", "min", "max"]).T.round(2)
    return table.astype({"count": int})


def summaries(records: Iterable[Record]) -> dict[str, pd.DataFrame]:
    """A `summary_table` of the classified scans of each model, by title; none of a single scan.

    Parameters
    ----------
    records : iterable of dict
        From `as_record`.

    Returns
    -------
    dict of str to DataFrame
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record["predicted"]:
            groups.setdefault(record["model"]["name"], []).append(record)
    return {
        f"Summary of {len(group)} classified scans, {name}": summary_table(group)
        for name, group in groups.items()
        if len(group) > 1
    }


def _probabilities(record: Record) -> dict[str, float]:
    return {f"p({name})": value for name, value in record["probabilities"].items()}
