"""What an answer is held against, made with the model: training cohort, held-out participants, healthy volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from torch import nn

from adlib.preprocess.quality import INFINITE, LIMITS, OF_SIZE
from adlib.study.params import InputParams
from adlib.training.calibration import lowest_probability
from adlib.training.folds import Fold, as_numbers
from adlib.training.mahalanobis import Space, distances, fit_space
from adlib.training.network import image_features
from adlib.training.pooling import arrays, pool_level

IMAGE, VOLUMES, QUALITY = "image", "volumes", "quality"
COVERAGES = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
ACCEPTED = 0.98  # share of participants like those held out that the gate is to let in
WIDEST = 3.0  # robust standard deviations: the bound never lies nearer, however few participants were held out
LEAST_SPREAD = 0.05  # of a logarithm of distance
LIMIT_SD = 6.0  # a value at its limit of quality is at least so many standard deviations off
NORM_VOLUMES = (
    "hippocampus_ml", "hippocampus_left_ml", "hippocampus_right_ml", "ventricles_ml", "temporal_ml", "gm_ml", "wm_ml",
    "csf_ml", "icv_ml", "nbv",
)  # fmt: skip
HEAD_FREE = ("icv_ml", "nbv")  # volumes that are not adjusted for the size of the head
FEWEST_HEALTHY = 20
HEALTHY = "CN"
DECADE = 10.0


def make_reference(
    fold: Fold,
    network: nn.Module,
    predictions: pd.DataFrame,
    manifest: pd.DataFrame,
    features: pd.DataFrame,
    classes: tuple[str, ...],
    params: InputParams,
) -> tuple[dict[str, Any], dict[str, Space]]:
    """All that travels with a model so that a single answer can be judged.

    Parameters
    ----------
    fold : Fold
    network : nn.Module
        The trained one.
    predictions : DataFrame
        Of this network, uncalibrated with its calibration, as `records.PREDICTIONS`.
    manifest, features : DataFrame
        Of the study, indexed by scan_id.
    classes : tuple of str
    params : InputParams

    Returns
    -------
    reference : dict
        ``sets``: see `set_bounds`; ``norms``: see `healthy_norms`; ``gate``: see `gate_bounds`; ``names`` of the values
        of each space. Aggregates only.
    spaces : dict of str to Space
        Of the training scans, see `gate_bounds`.
    """
    trained = fold.table.loc[fold.rows("train"), "scan_id"].unique()
    held_out = fold.table.loc[fold.rows("validation"), "scan_id"].unique()
    values = scan_values(fold, network, features)
    spaces = {name: _space(name, table.loc[trained]) for name, table in values.items() if table.shape[1]}
    people = fold.table.drop_duplicates("scan_id").set_index("scan_id")["participant_id"]
    off = pd.DataFrame({name: distances(values[name].loc[held_out].to_numpy(), spaces[name]) for name in spaces})
    reference = {
        "sets": set_bounds(predictions, classes, params.pooling),
        "norms": healthy_norms(manifest.loc[trained], features.loc[trained]),
        "gate": gate_bounds(off, people.loc[held_out].to_numpy()) if len(held_out) else {},
        "names": {name: list(space.names) for name, space in spaces.items()},
    }
    return reference, spaces


def scan_values(fold: Fold, network: nn.Module, features: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What each training and validation scan is described by, rows by scan_id: by the name of the space."""
    rows = np.concatenate([fold.rows("train"), fold.rows("validation")])
    features_of_slices = image_features(network, fold.slices[rows])
    image = pd.DataFrame(features_of_slices).groupby(fold.table["scan_id"].iloc[rows].to_numpy()).mean()
    own = features.loc[image.index]
    described = [describe(row) for row in own.to_dict("records")]
    tables = {name: pd.DataFrame([one[name] for one in described], index=own.index) for name in (VOLUMES, QUALITY)}
    return {IMAGE: image} | {name: table.dropna(axis=1, how="all").astype(float) for name, table in tables.items()}


def describe(measured: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The values of a scan that are compared with training: logarithms of volumes, and quality.

    Parameters
    ----------
    measured : dict
        Volumes and quality of a scan by name, as in ``features.tsv``.
    """
    volumes = {name: measured[name] for name in (*NORM_VOLUMES[:1], *NORM_VOLUMES[3:9]) if name in measured}
    quality = [name for name in LIMITS if name not in OF_SIZE and name in measured]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {name: float(np.log(np.float64(value))) for name, value in volumes.items()}
    return {VOLUMES: logs, QUALITY: {name: measured[name] for name in quality}}


def gate_bounds(off: pd.DataFrame, participants: np.ndarray) -> dict[str, Any]:
    """From which distance on a scan counts as unlike the training cohort.

    Logarithms of distances are compared robustly with those of held-out scans; the largest of a scan decides, so that
    several spaces together refuse no more than `ACCEPTED` promises, and of a participant's scans the largest.

    Parameters
    ----------
    off : (n, spaces) DataFrame
        Distances of held-out scans.
    participants : (n,) array of str

    Returns
    -------
    dict
        ``centre`` and ``spread`` by space, of the logarithms; ``threshold``; ``level`` and ``participants``.
    """
    logs = np.log(np.maximum(off, 1e-6))
    centre = logs.median()
    spread = (1.4826 * (logs - centre).abs().median()).clip(lower=LEAST_SPREAD)
    largest = ((logs - centre) / spread).max(axis=1).groupby(participants).max().sort_values().to_numpy()
    rank = min(int(np.ceil((len(largest) + 1) * ACCEPTED - 1e-9)), len(largest))
    return {
        "centre": {name: float(value) for name, value in centre.items()},
        "spread": {name: float(value) for name, value in spread.items()},
        "threshold": max(float(largest[rank - 1]), WIDEST),
        "level": ACCEPTED,
        "participants": len(largest),
    }


def set_bounds(predictions: pd.DataFrame, classes: tuple[str, ...], pooling: str) -> dict[str, float]:
    """From which probability on a class enters the set, by the coverage that is promised; see `lowest_probability`."""
    held_out = predictions[predictions["split"] == "validation"]
    if held_out.empty:
        return {}
    y, p, _ = arrays(pool_level(held_out, "subject", classes, pooling), classes)
    return {f"{coverage:g}": lowest_probability(y, p, coverage) for coverage in COVERAGES}


def healthy_norms(manifest: pd.DataFrame, features: pd.DataFrame) -> dict[str, Any]:
    """Volumes of healthy training participants as a linear function of age, sex and size of the head.

    Parameters
    ----------
    manifest, features : DataFrame
        Of training scans, rows alike; the first scan of each participant with `HEALTHY`, age and sex counts.

    Returns
    -------
    dict
        ``age`` (least and greatest), ``centre`` (mean age and intracranial volume), ``participants`` and ``volumes``:
        by name ``coefficients`` of 1, decades of age, female, litres of intracranial volume, and ``sd`` of what is
        left. Empty with fewer than `FEWEST_HEALTHY` participants.
    """
    table = features.assign(
        age=manifest["age"].to_numpy(float), female=as_numbers("sex", manifest["sex"]), who=manifest["participant_id"]
    )
    needed = ["age", "female", *(name for name in ("icv_ml",) if name in table)]
    table = table[(manifest["diagnosis"] == HEALTHY).to_numpy()].dropna(subset=needed).drop_duplicates("who")
    if len(table) < FEWEST_HEALTHY or "icv_ml" not in table:
        return {}
    centre = {name: float(table[name].mean()) for name in ("age", "icv_ml")}
    names = [name for name in NORM_VOLUMES if name in table and table[name].notna().all()]
    return {
        "age": [float(table["age"].min()), float(table["age"].max())],
        "centre": centre,
        "participants": len(table),
        "volumes": {name: _regression(table, name, centre) for name in names},
    }


def _regression(table: pd.DataFrame, name: str, centre: dict[str, float]) -> dict[str, Any]:
    people = zip(table["age"], table["female"], table["icv_ml"], strict=True)
    x = np.array([_design(name, *one, centre) for one in people])
    y = table[name].to_numpy(float)
    found, *_ = np.linalg.lstsq(x, y, rcond=None)
    left = float(np.sqrt(((y - x @ found) ** 2).sum() / (len(y) - x.shape[1])))
    return {"coefficients": [float(value) for value in found], "sd": max(left, 1e-9)}


def _design(name: str, age: float, female: float, icv_ml: float, centre: dict[str, float]) -> list[float]:
    row = [1.0, (age - centre["age"]) / DECADE, female]
    return row if name in HEAD_FREE else [*row, (icv_ml - centre["icv_ml"]) / 1000]


def volume_percentiles(features: dict[str, float], person: dict[str, float], norms: dict[str, Any]) -> dict[str, float]:
    """Place of a person's volumes among healthy participants of that age, sex and size of head, 0 to 100.

    Parameters
    ----------
    features : dict of str to float
        Volumes, ml.
    person : dict of str to float
        ``age`` in years and ``sex``, 1 for female and 0 for male.
    norms : dict
        From `healthy_norms`.

    Returns
    -------
    dict of str to float
        Empty without norms, age or sex, or for an age outside those of the norms.

    References
    ----------
    Crawford & Howell 1998, doi:10.1076/clin.12.4.482.7241 (a single case against a small sample: Student's t);
    Voevodskaya et al. 2014, doi:10.3389/fnagi.2014.00264 (adjustment for intracranial volume by regression).
    """
    if not norms or not {"age", "sex"} <= set(person) or not norms["age"][0] <= person["age"] <= norms["age"][1]:
        return {}
    found, n = {}, norms["participants"]
    for name, norm in norms["volumes"].items():
        row = _design(name, person["age"], person["sex"], features["icv_ml"], norms["centre"])
        expected = float(np.dot(row, norm["coefficients"]))
        t = (features[name] - expected) / (norm["sd"] * np.sqrt(1 + 1 / n))
        found[name] = float(100 * stats.t.cdf(t, n - len(row)))
    return found


def _space(name: str, table: pd.DataFrame) -> Space:
    names = () if name == IMAGE else tuple(table.columns)
    return fit_space(table.to_numpy(), names, _least(table) if name == QUALITY else None)


def _least(table: pd.DataFrame) -> np.ndarray:
    """Smallest standard deviations: a share of the way from the training mean to the nearer limit of quality."""
    ends = [[end for end in LIMITS[name].typical if abs(end) != INFINITE] for name in table.columns]
    pairs = zip(table.mean(), ends, strict=True)
    return np.array([min(abs(mean - end) for end in limits) / LIMIT_SD for mean, limits in pairs])
