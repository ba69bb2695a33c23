"""Pool calibrated probabilities of slices to scans and participants."""

import numpy as np
import pandas as pd

from adlib.training.network import softmax

LEVELS = {
    "slice": ["fold", "participant_id", "session_id", "scan_id", "slice"],
    "scan": ["fold", "participant_id", "session_id", "scan_id"],
    "subject": ["fold", "participant_id"],
}
ATTENTION = "attention"
SMALLEST = 1e-12


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
