"""Calibration on validation participants: temperature and class biases."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from adlib.training.network import softmax

PRIOR_SD = 0.5  # of the logarithm of the temperature, and of each bias


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

    References
    ----------
    Alexandari, Kundaje & Shrikumar 2020, arXiv:1901.06852; Guo et al. 2017, arXiv:1706.04599.
    """
    people = np.arange(len(y)) if participants is None else np.unique(participants, return_inverse=True)[1]
    weights = 1 / np.bincount(people)[people]

    def loss(values: np.ndarray) -> float:
        p = softmax(logits, float(np.exp(values[0])), values[1:])
        fit = -(weights * np.log(np.maximum(p[np.arange(len(y)), y], 1e-12))).sum()
        return float(fit + 0.5 * ((values / PRIOR_SD) ** 2).sum()) / weights.sum()

    limits = [(np.log(0.1), np.log(10.0)), *[(-3.0, 3.0)] * logits.shape[1]]
    values = minimize(loss, np.zeros(1 + logits.shape[1]), method="L-BFGS-B", bounds=limits).x
    return float(np.exp(values[0])), values[1:]
