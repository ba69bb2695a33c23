"""From logits of slices to calibrated probabilities of scans and participants, and the bound of prediction sets."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from adlib.training.network import softmax

LEVELS = {
    "slice": ["fold", "participant_id", "session_id", "scan_id", "slice"],
    "scan": ["fold", "participant_id", "session_id", "scan_id"],
    "subject": ["fold", "participant_id"],
}
ATTENTION = "attention"
SMALLEST = 1e-12
PRIOR_SD = 0.5  # of the logarithm of the temperature, and of each bias


def pool_slices(p: np.ndarray, weights: np.ndarray, groups: np.ndarray, method: str) -> np.ndarray:
    """Pool the slices of each scan.

    Parameters
    ----------
    p : (n, K) float64
        Probabilities of slices.
    weights : (n,) float64
        How much each slice counts for ``attention``; they sum to 1 within a scan.
    groups : (n,) int
        The scan of each slice, 0 ... G - 1.
    method : str
        ``mean``; ``maximum``, the greatest probability of each class among the slices; ``vote``, the share of slices
        that decide for a class; ``attention``, the weighted geometric mean, which is the softmax of the weighted sum of
        logits that the network was trained on (Ilse et al. 2018, arXiv:1802.04712).

    Returns
    -------
    (G, K) float64
        Rows sum to 1.
    """
    if method == "maximum":
        pooled = np.zeros((groups.max() + 1, p.shape[1]))
        np.maximum.at(pooled, groups, p)
    elif method == "vote":
        pooled = _sums(np.eye(p.shape[1])[p.argmax(axis=1)], groups)
    elif method == ATTENTION:
        logs = _sums(np.log(np.maximum(p, SMALLEST)) * weights[:, None], groups)
        pooled = np.exp(logs - logs.max(axis=1, keepdims=True))
    else:
        pooled = _sums(p, groups)
    return pooled / pooled.sum(axis=1, keepdims=True)


def within_scan(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Weights of slices: the softmax of their scores within each scan.

    Parameters
    ----------
    scores : (n,) float
    groups : (n,) int
        The scan of each slice, 0 ... G - 1.

    Returns
    -------
    (n,) float64
        They sum to 1 within a scan.
    """
    highest = np.full(groups.max() + 1, -np.inf)
    np.maximum.at(highest, groups, scores)
    raised = np.exp(scores - highest[groups])
    return raised / _sums(raised[:, None], groups)[groups, 0]


def _sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    sums = np.zeros((groups.max() + 1, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums


def pool_level(predictions: pd.DataFrame, level: str, classes: tuple[str, ...], method: str = "mean") -> pd.DataFrame:
    """Calibrate slice probabilities fold by fold, pool them to scans and average scans to participants.

    Parameters
    ----------
    predictions : DataFrame
        One run; columns ``p_<class>`` uncalibrated, ``temperature`` and perhaps ``bias_<class>`` and ``weight``.
    level : str
        ``slice``, ``scan`` or ``subject``. A participant whose diagnosis changes between sessions counts with the one
        of most sessions, the later one at a tie.
    classes : tuple of str
    method : str
        See `pool_slices`.

    Returns
    -------
    DataFrame
        Columns participant_id, truth and ``p_<class>``, one row per item.
    """
    columns = [f"p_{name}" for name in classes]
    table = predictions.assign(**dict(zip(columns, calibrated(predictions, classes).T, strict=True)))
    table = table.sort_values(["participant_id", "session_id", "slice"])
    if level != "slice":
        table = _scans(table, columns, method)
    keys = LEVELS[level]
    pooled = table.groupby(keys, sort=True)[columns].mean().reset_index()
    return pooled.merge(_most_frequent_truth(table, keys), on=keys)


def _scans(table: pd.DataFrame, columns: list[str], method: str) -> pd.DataFrame:
    grouped = table.groupby(LEVELS["scan"], sort=False)
    groups = grouped.ngroup().to_numpy()
    weights = table["weight"].fillna(1.0).to_numpy() if "weight" in table else np.ones(len(table))
    scans = table.drop_duplicates(LEVELS["scan"])
    p = pool_slices(table[columns].to_numpy(float), weights, groups, method)
    return scans.assign(**dict(zip(columns, p.T, strict=True)))


def calibrated(predictions: pd.DataFrame, classes: tuple[str, ...]) -> np.ndarray:
    """Probabilities after each row's temperature and, where it has them, biases.

    Parameters
    ----------
    predictions : DataFrame
        Columns ``p_<class>`` uncalibrated, ``temperature`` and perhaps ``bias_<class>``.
    classes : tuple of str

    Returns
    -------
    (n, K) float64
    """
    p = np.maximum(predictions[[f"p_{name}" for name in classes]].to_numpy(float), SMALLEST)
    bias = predictions.reindex(columns=[f"bias_{name}" for name in classes]).astype(float).fillna(0.0).to_numpy()
    return softmax(np.log(p) / predictions["temperature"].to_numpy()[:, None] + bias)


def uncalibrated(predictions: pd.DataFrame) -> pd.DataFrame:
    """The same predictions with temperature 1 and no biases.

    Parameters
    ----------
    predictions : DataFrame
        Schema `records.PREDICTIONS`.

    Returns
    -------
    DataFrame
        A copy.
    """
    return predictions.drop(columns=predictions.filter(regex="^bias_").columns).assign(temperature=1.0)


def _most_frequent_truth(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The label that most rows of each item have, of equally frequent ones that of the latest row."""
    counted = table.assign(row=np.arange(len(table))).groupby([*keys, "truth"])["row"].agg(["size", "max"])
    return counted.sort_values(["size", "max"]).reset_index().drop_duplicates(keys, keep="last")[[*keys, "truth"]]


def arrays(pooled: pd.DataFrame, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays of a pooled table.

    Parameters
    ----------
    pooled : DataFrame
        From `pool_level`.
    classes : tuple of str

    Returns
    -------
    y : (n,) int
        Class indices of the truth.
    p : (n, K) float64
        Probabilities; rows sum to 1.
    groups : (n,) int
        Participant numbers.
    """
    y = pooled["truth"].map({name: k for k, name in enumerate(classes)}).to_numpy()
    p = pooled[[f"p_{name}" for name in classes]].to_numpy(float)
    groups = np.unique(pooled["participant_id"], return_inverse=True)[1]
    return y, p / p.sum(1, keepdims=True), groups


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
