"""Calibration on validation participants: temperature and class biases, and the threshold of prediction sets."""

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


def lowest_probability(y: np.ndarray, p: np.ndarray, coverage: float) -> float:
    """The probability from which a class enters the set: least ambiguous sets.

    The score of a participant is 1 - p(truth). Among n participants that neither trained the network nor are scored,
    the ceil((n + 1) coverage)-th smallest score bounds that of the next participant with at least the chance asked for,
    whatever the network is worth, as long as all are exchangeable. One bound serves all classes: a bound for each needs
    at least 9 participants of each at 0.9, and made larger sets in simulation.

    Written here because it is one order statistic. MAPIE, whose sets are the same, wraps a scikit-learn classifier and
    takes its images, where the study has stored probabilities.

    Parameters
    ----------
    y : (n,) int
        True classes.
    p : (n, K) float
        Probabilities.
    coverage : float
        Share of sets that are to hold the truth.

    Returns
    -------
    float
        0 where there are too few participants to promise anything less than all classes.

    References
    ----------
    Sadinle, Lei & Wasserman 2019, doi:10.1080/01621459.2017.1395341; Vovk et al. 2005, doi:10.1007/b106715.
    """
    rank = rank_for(len(y), coverage)
    return 0.0 if rank > len(y) else float(np.sort(p[np.arange(len(y)), y])[len(y) - rank])


def rank_for(n: int, coverage: float) -> int:
    """Rank of the score, among sorted scores, that bounds the next one with a given chance.

    Parameters
    ----------
    n : int
        Number of scores.
    coverage : float
        Least chance that the next score is no larger.

    Returns
    -------
    int
        From 1; more than `n` where no score is such a bound.
    """
    return int(np.ceil((n + 1) * coverage - 1e-9))
