"""The reference of a model: distances from training scans, bounds of prediction sets, volumes of healthy people."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import nn

from adlib.preprocess.quality import INFINITE, LIMITS, OF_SIZE
from adlib.study.params import StudyParams
from adlib.training.conformal import lowest_probabilities
from adlib.training.folds import Fold
from adlib.training.network import image_features
from adlib.training.pooling import arrays, pool_level
from adlib.training.targets import as_numbers

IMAGE, VOLUMES, QUALITY = "image", "volumes", "quality"
COVERAGES = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
ACCEPTED = 0.98  # share of participants like those held out that the input check accepts
WIDEST = 3.0  # robust standard deviations: the bound never lies nearer, however few participants were held out
LEAST_SPREAD = 0.05  # of a logarithm of distance
LIMIT_SD = 6.0  # a value at its limit of quality is at least so many standard deviations off
NORM_VOLUMES = (
    "hippocampus_ml", "hippocampus_left_ml", "hippocampus_right_ml", "ventricles_ml", "temporal_ml", "gm_ml", "wm_ml",
    "csf_ml", "icv_ml", "nbv",
)  # fmt: skip
HEAD_FREE = ("icv_ml", "nbv")  # volumes that are not adjusted for the size of the head
MOST_AXES = 64  # of the network's features; what lies beyond them counts as noise of one size
STILL = 0.1  # of a typical standard deviation: a value that varies less hardly varies
SMALLEST = 1e-9
FEWEST_HEALTHY = 20
HEALTHY = "CN"
DECADE = 10.0


@dataclass(frozen=True, eq=False)
class FeatureDistribution:
    """A normal distribution whose covariance is shrunk towards equal, independent spreads.

    Attributes
    ----------
    names : tuple of str
        Of the values; empty where they have none.
    mean, sd : (p,) float32
        Each value is taken as its distance from `mean` in units of `sd`.
    axes : (k, p) float32
        Directions of unit length in which training scans differ most.
    variances : (k,) float32
        Along the axes.
    rest : float
        Variance along every other direction.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    axes: np.ndarray
    variances: np.ndarray
    rest: float


def fit_distribution(
    values: np.ndarray, names: tuple[str, ...] = (), least: np.ndarray | None = None
) -> FeatureDistribution:
    """Fit a distribution to training scans.

    Parameters
    ----------
    values : (n, p) float
        One row per scan; not a number where a scan has no such value.
    names : tuple of str
        Of the p values, or empty.
    least : (p,) float, optional
        Smallest standard deviations, by default a tenth of a typical one: a value that happens not
        to vary in training is no reason to refuse a scan in which it does.

    Returns
    -------
    FeatureDistribution

    References
    ----------
    Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4.
    """
    mean = np.nan_to_num(np.nanmean(values, axis=0))
    observed = np.nan_to_num(np.nanstd(values, axis=0))
    least = STILL * np.sqrt(np.mean(observed**2)) if least is None else least
    sd = np.maximum(np.maximum(observed, least), SMALLEST)
    scaled = _scaled(values, mean, sd)
    share = float(ledoit_wolf_shrinkage(scaled, assume_centered=True))
    _, sizes, axes = np.linalg.svd(scaled, full_matrices=False)
    eigenvalues, p = sizes**2 / len(values), values.shape[1]
    level, k = eigenvalues.sum() / p, min(MOST_AXES, len(eigenvalues))
    beyond = eigenvalues[k:].sum() / max(p - k, 1)
    shrunk = (1 - share) * eigenvalues[:k] + share * level
    rest = max((1 - share) * beyond + share * level, SMALLEST)
    return FeatureDistribution(
        names, _single(mean), _single(sd), _single(axes[:k]), _single(np.maximum(shrunk, SMALLEST)), rest
    )


def mahalanobis_distances(values: np.ndarray, fitted: FeatureDistribution) -> np.ndarray:
    """Mahalanobis distance of scans from the training mean, per square root of p; about 1 in training.

    Parameters
    ----------
    values : (n, p) float
        A value that is not a number counts as the mean.
    fitted : FeatureDistribution

    Returns
    -------
    (n,) float64

    References
    ----------
    Lee et al. 2018, arXiv:1807.03888.
    """
    scaled = _scaled(values, fitted.mean, fitted.sd)
    along = scaled @ fitted.axes.T.astype(np.float64)
    left = np.maximum((scaled**2).sum(1) - (along**2).sum(1), 0)
    return np.sqrt(((along**2 / fitted.variances).sum(1) + left / fitted.rest) / scaled.shape[1])


def coordinates(values: np.ndarray, fitted: FeatureDistribution) -> np.ndarray:
    """Coordinates of scans on the axes of a distribution.

    Parameters
    ----------
    values : (n, p) float
        A value that is not a number counts as the mean.
    fitted : FeatureDistribution

    Returns
    -------
    (n, k) float32
        In standard deviations of training scans along each axis.
    """
    along = _scaled(values, fitted.mean, fitted.sd) @ fitted.axes.T.astype(np.float64)
    return _single(along / np.sqrt(fitted.variances))


def farthest(values: np.ndarray, fitted: FeatureDistribution) -> list[tuple[str, float, float, float]]:
    """The most extreme values of a scan: at most three more than two standard deviations from the training mean.

    Parameters
    ----------
    values : (p,) float
    fitted : FeatureDistribution

    Returns
    -------
    list of (str, float, float, float)
        Name, value, training mean and training standard deviation, the most extreme first.
    """
    off = np.abs(_scaled(values[None], fitted.mean, fitted.sd)[0])
    order = [int(k) for k in np.argsort(-off)[:3] if off[k] > 2]
    return [(fitted.names[k], float(values[k]), float(fitted.mean[k]), float(fitted.sd[k])) for k in order]


def _scaled(values: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    return np.nan_to_num((np.asarray(values, np.float64) - mean) / sd, posinf=0.0, neginf=0.0)


def _single(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)


def make_reference(
    fold: Fold,
    network: nn.Module,
    predictions: pd.DataFrame,
    manifest: pd.DataFrame,
    features: pd.DataFrame,
    params: StudyParams,
) -> tuple[dict[str, Any], dict[str, FeatureDistribution]]:
    """The reference with which a single scan is compared.

    Parameters
    ----------
    fold : Fold
    network : nn.Module
        The trained one.
    predictions : DataFrame
        Of the study's network, of an ensemble of all members, with its calibration, as `records.PREDICTIONS`.
    manifest, features : DataFrame
        Of the study, indexed by scan_id.
    params : StudyParams

    Returns
    -------
    reference : dict
        ``sets``: see `set_bounds`; ``norms``: see `healthy_norms`; ``gate``: see `gate_bounds`; ``names`` of the values
        of each distribution. Aggregates only.
    distributions : dict of str to FeatureDistribution
        Of the training scans, see `gate_bounds`.
    """
    trained = fold.table.loc[fold.rows("train"), "scan_id"].unique()
    held_out = fold.table.loc[fold.rows("validation"), "scan_id"].unique()
    values = _scan_values(fold, network, features)
    distributions = {name: _distribution(name, table.loc[trained]) for name, table in values.items() if table.shape[1]}
    people = fold.table.drop_duplicates("scan_id").set_index("scan_id")["participant_id"]
    off = pd.DataFrame(index=held_out)
    for name, fitted in distributions.items():
        off[name] = mahalanobis_distances(values[name].loc[held_out].to_numpy(), fitted)
    reference = {
        "sets": set_bounds(predictions, params.classes, params.input.pooling),
        "norms": healthy_norms(manifest.loc[trained], features.loc[trained]),
        "gate": gate_bounds(off, people.loc[held_out].to_numpy()) if len(held_out) else {},
        "names": {name: list(distribution.names) for name, distribution in distributions.items()},
    }
    return reference, distributions


def _scan_values(fold: Fold, network: nn.Module, features: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Image features, volumes and quality of each training and validation scan."""
    rows = np.concatenate([fold.rows("train"), fold.rows("validation")])
    slice_features = image_features(network, fold.slices[rows])
    image = pd.DataFrame(slice_features).groupby(fold.table["scan_id"].iloc[rows].to_numpy()).mean()
    scans = features.loc[image.index]
    described = [describe(row) for row in scans.to_dict("records")]
    tables = {name: pd.DataFrame([row[name] for row in described], index=scans.index) for name in (VOLUMES, QUALITY)}
    return {IMAGE: image} | {name: table.dropna(axis=1, how="all").astype(float) for name, table in tables.items()}


def describe(measured: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The values of a scan that are compared with training: logarithms of volumes, and quality.

    Parameters
    ----------
    measured : dict
        Volumes, ml, and quality of a scan by name, as in ``features.tsv``.

    Returns
    -------
    dict of str to (dict of str to float)
        ``volumes`` and ``quality``, each by name.
    """
    volumes = {name: measured[name] for name in (*NORM_VOLUMES[:1], *NORM_VOLUMES[3:9]) if name in measured}
    quality = [name for name in LIMITS if name not in OF_SIZE and name in measured]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {name: float(np.log(np.float64(value))) for name, value in volumes.items()}
    return {VOLUMES: logs, QUALITY: {name: measured[name] for name in quality}}


def gate_bounds(off: pd.DataFrame, participants: np.ndarray) -> dict[str, Any]:
    """Distances above which a scan counts as unlike the training cohort.

    Logarithms of distances are compared robustly with those of held-out scans; the largest of a scan decides, so that
    several distributions together refuse no more than `ACCEPTED` promises, and of a participant's scans the largest.

    Parameters
    ----------
    off : (n, distributions) DataFrame
        Distances of held-out scans.
    participants : (n,) array of str

    Returns
    -------
    dict
        ``centre`` and ``spread`` by distribution, of the logarithms; ``threshold``; ``level`` and ``participants``.
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


def set_bounds(predictions: pd.DataFrame, classes: tuple[str, ...], pooling: str) -> dict[str, list[float]]:
    """Lowest probability of each class in the prediction set, by coverage; see `lowest_probabilities`.

    Parameters
    ----------
    predictions : DataFrame
        Schema `records.PREDICTIONS`; only validation rows count.
    classes : tuple of str
    pooling : str
        Method of `pool_slices`.

    Returns
    -------
    dict of str to list of float
        By coverage, such as ``0.9``; empty without validation participants.
    """
    held_out = predictions[predictions["split"] == "validation"]
    if held_out.empty:
        return {}
    y, p, _ = arrays(pool_level(held_out, "subject", classes, pooling), classes)
    return {f"{coverage:g}": lowest_probabilities(y, p, coverage).tolist() for coverage in COVERAGES}


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
    needed = list(table.columns.intersection(["age", "female", "icv_ml"]))
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
    x = np.array([_design(name, *person, centre) for person in people])
    y = table[name].to_numpy(float)
    coefficients, *_ = np.linalg.lstsq(x, y, rcond=None)
    residual = float(np.sqrt(((y - x @ coefficients) ** 2).sum() / (len(y) - x.shape[1])))
    return {"coefficients": [float(value) for value in coefficients], "sd": max(residual, 1e-9)}


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
    percentiles, n = {}, norms["participants"]
    for name, norm in norms["volumes"].items():
        row = _design(name, person["age"], person["sex"], features["icv_ml"], norms["centre"])
        expected = float(np.dot(row, norm["coefficients"]))
        t = (features[name] - expected) / (norm["sd"] * np.sqrt(1 + 1 / n))
        percentiles[name] = float(100 * stats.t.cdf(t, n - len(row)))
    return percentiles


def _distribution(name: str, table: pd.DataFrame) -> FeatureDistribution:
    names = () if name == IMAGE else tuple(table.columns)
    return fit_distribution(table.to_numpy(), names, _least(table) if name == QUALITY else None)


def _least(table: pd.DataFrame) -> np.ndarray:
    """Smallest standard deviations: a share of the way from the training mean to the nearer limit of quality."""
    ends = [[end for end in LIMITS[name].typical if abs(end) != INFINITE] for name in table.columns]
    pairs = zip(table.mean(), ends, strict=True)
    return np.array([min(abs(mean - end) for end in limits) / LIMIT_SD for mean, limits in pairs])
