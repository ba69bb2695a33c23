"""Calibration on validation participants: temperature and class biases."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from adlib.training.network import softmax
from adlib.training.pooling import ATTENTION, SMALLEST

PRIOR_SD = 0.5  # of the logarithm of the temperature, and of each bias
PARTS = 5  # of the validation participants, each calibrated on the others


def fit_calibration(
    logits: np.ndarray, y: np.ndarray, participants: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """The most probable temperature and class biases: bias-corrected temperature scaling.

    Biases mend what few training scans leave: middle classes that are never the most probable. Each participant counts
    once, however many rows are of them, against a normal prior of standard deviation `PRIOR_SD` about no change at all,
    without which a few dozen participants move five numbers farther than the numbers of other people bear.

    Parameters
    ----------
    logits : (n, K) float64
    y : (n,) int
        True classes.
    participants : (n,) array, optional
        Participant of each row; left out, each row is a participant.

    Returns
    -------
    temperature : float
    bias : (K,) float64
        1 and zeros without any row.

    References
    ----------
    Alexandari, Kundaje & Shrikumar 2020, arXiv:1901.06852; Guo et al. 2017, arXiv:1706.04599.
    """
    if not len(y):
        return 1.0, np.zeros(logits.shape[1])
    people = np.arange(len(y)) if participants is None else np.unique(participants, return_inverse=True)[1]
    weights = 1 / np.bincount(people)[people]

    def loss(values: np.ndarray) -> float:
        p = softmax(logits, float(np.exp(values[0])), values[1:])
        fit = -(weights * np.log(np.maximum(p[np.arange(len(y)), y], 1e-12))).sum()
        return float(fit + 0.5 * ((values / PRIOR_SD) ** 2).sum()) / weights.sum()

    limits = [(np.log(0.1), np.log(10.0)), *[(-3.0, 3.0)] * logits.shape[1]]
    values = minimize(loss, np.zeros(1 + logits.shape[1]), method="L-BFGS-B", bounds=limits).x
    return float(np.exp(values[0])), values[1:]


def calibrate(table: pd.DataFrame, classes: tuple[str, ...], pooling: str) -> pd.DataFrame:
    """Fit the calibration on validation participants, for all others on all of them.

    Each validation participant gets the calibration fitted on the others, of `PARTS` parts of them: whoever bounds the
    prediction sets has not fitted the probabilities that are bounded, as the promise of the sets requires. Where
    attention pools slices, the calibration is fitted on scans, whose logits are what was trained.

    Parameters
    ----------
    table : DataFrame
        Uncalibrated predictions of one fold, schema `records.PREDICTIONS`.
    classes : tuple of str
    pooling : str
        Method of `adlib.training.pooling.pool_slices`.

    Returns
    -------
    DataFrame
        With ``temperature`` and ``bias_<class>``.
    """
    held_out = table[table["split"] == "validation"]
    logits = np.log(np.maximum(held_out[[f"p_{name}" for name in classes]].to_numpy(float), SMALLEST))
    if pooling == ATTENTION:
        weighted = pd.DataFrame(logits * held_out[["weight"]].to_numpy()).groupby(held_out["scan_id"].to_numpy())
        held_out = held_out.drop_duplicates("scan_id").sort_values("scan_id")
        logits = weighted.sum().loc[held_out["scan_id"]].to_numpy()
    y = held_out["truth"].map({name: k for k, name in enumerate(classes)}).to_numpy()
    people = held_out["participant_id"].to_numpy()
    names, columns = np.unique(people), ["temperature", *(f"bias_{name}" for name in classes)]
    part = dict(zip(np.random.default_rng(len(names)).permutation(names), np.arange(len(names)) % PARTS, strict=True))
    parts = np.array([part[name] for name in people])
    table = table.copy()
    temperature, bias = fit_calibration(logits, y, people)
    table[columns] = [temperature, *bias]
    for k in np.unique(parts):
        others = parts != k
        temperature, bias = fit_calibration(logits[others], y[others], people[others])
        rows = (table["participant_id"].map(part) == k) & (table["split"] == "validation")
        table.loc[rows, columns] = [temperature, *bias]
    return table
