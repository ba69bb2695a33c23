"""Scores of weighted items, for many weightings at once: the point estimate and its bootstrap by the same code."""

from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy.stats import binomtest

Name = TypeVar("Name", bound=Hashable)
BLOCK = 2**23  # weights held at once, 64 MB
CALIBRATION_BINS = 10  # of equal width


def confusion(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted confusion matrices.

    Parameters
    ----------
    y : (n,) int
        True classes.
    p : (n, K) float
        Probabilities; the largest is the decision.
    weights : (B, n) float
        One weighting of the items per row.

    Returns
    -------
    (B, K, K) float64
        Row: truth, column: decision.
    """
    k = p.shape[1]
    cells = np.zeros((len(y), k * k))
    cells[np.arange(len(y)), y * k + p.argmax(1)] = 1
    return (weights @ cells).reshape(-1, k, k)


def from_confusion(matrix: np.ndarray, classes: tuple[str, ...]) -> dict[tuple[str, str | None], np.ndarray]:
    """Accuracy, balanced accuracy, and precision, recall, specificity and F1 by class and macro.

    A class without true items has no recall and is left out of the averages; a class never decided has precision 0.

    Parameters
    ----------
    matrix : (B, K, K) float
    classes : tuple of str

    Returns
    -------
    dict
        (metric, class or None) to (B,) float64.
    """
    hits = np.diagonal(matrix, axis1=1, axis2=2)
    true, decided, total = matrix.sum(2), matrix.sum(1), matrix.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(true > 0, hits / true, np.nan)
        precision = np.where(decided > 0, hits / decided, np.where(true > 0, 0.0, np.nan))
        f1 = np.where(true > 0, 2 * hits / (true + decided), np.nan)
        rest = total[:, None] - true
        specificity = np.where(rest > 0, (rest - decided + hits) / rest, np.nan)
        accuracy = hits.sum(1) / total
    scores: dict[tuple[str, str | None], np.ndarray] = {
        ("accuracy", None): accuracy,
        ("balanced_accuracy", None): _mean(recall),
    }
    for name, values in (("precision", precision), ("recall", recall), ("specificity", specificity), ("f1", f1)):
        scores[name, "macro"] = _mean(np.where(true > 0, values, np.nan))
        scores |= {(name, label): values[:, k] for k, label in enumerate(classes)}
    return scores


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean (B,) of the numbers in each row of (B, K); NaN without any."""
    with np.errstate(invalid="ignore"):
        return np.nansum(values, 1) / np.isfinite(values).sum(1)


def kappa(matrix: np.ndarray) -> np.ndarray:
    """Cohen's kappa with linear weights, for ordered classes.

    Parameters
    ----------
    matrix : (B, K, K) float
        Confusion matrices; row: truth, column: decision.

    Returns
    -------
    (B,) float64
        NaN where truth and decision are one and the same single class.

    References
    ----------
    Cohen 1968, doi:10.1037/h0026256.
    """
    k = matrix.shape[-1]
    distance = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    total = matrix.sum((1, 2))
    by_chance = matrix.sum(2)[:, :, None] * matrix.sum(1)[:, None, :] / total[:, None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (matrix * distance).sum((1, 2)) / (by_chance * distance).sum((1, 2))


def matthews(matrix: np.ndarray) -> np.ndarray:
    """Matthews' correlation of truth and decision over K classes.

    Parameters
    ----------
    matrix : (B, K, K) float
        Confusion matrices; row: truth, column: decision.

    Returns
    -------
    (B,) float64
        0 where truth or decision is constant.

    References
    ----------
    Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006.
    """
    true, decided, total = matrix.sum(2), matrix.sum(1), matrix.sum((1, 2))
    hits = np.trace(matrix, axis1=1, axis2=2)
    spread = (total**2 - (true**2).sum(1)) * (total**2 - (decided**2).sum(1))
    shared = hits * total - (true * decided).sum(1)
    return np.divide(shared, np.sqrt(spread), out=np.zeros_like(shared), where=spread > 0)


def average_precision(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision: weighted mean of the precision at each threshold, by the recall that it adds.

    Parameters
    ----------
    positive : (n,) bool
    score : (n,) float
        Higher for positives.
    weights : (B, n) float
        One weighting of the items per row.

    Returns
    -------
    (B,) float64
        NaN without positives.
    """
    if not positive.any():
        return np.full(len(weights), np.nan)
    thresholds, hits = _running(positive, -score, weights)
    ends = np.r_[np.flatnonzero(np.diff(thresholds)), len(thresholds) - 1]
    others, false = _running(~positive, -score, weights)
    hits, false = hits[:, 1:][:, ends], false[:, np.searchsorted(others, thresholds[ends], side="right")]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(hits > 0, hits / (hits + false), 0)
        return (np.diff(hits, axis=1, prepend=0) * precision).sum(1) / hits[:, -1]


def _running(chosen: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rising scores (m,) of the chosen items, and the weight (B, m + 1) of the first 0, 1, ... m of them."""
    items = np.flatnonzero(chosen)[np.argsort(score[chosen], kind="stable")]
    sums = np.zeros((len(weights), len(items) + 1))
    np.cumsum(weights[:, items], axis=1, out=sums[:, 1:])
    return score[items], sums


def roc_auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted area under the ROC curve, ties counted half.

    Parameters
    ----------
    positive : (n,) bool
    score : (n,) float
    weights : (B, n) float

    Returns
    -------
    (B,) float64
        NaN where a weighting has no positive or no negative item.
    """
    others, sums = _running(~positive, score, weights)
    below, upto = (sums[:, np.searchsorted(others, score[positive], side)] for side in ("left", "right"))
    up = weights[:, positive]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("ij,ij->i", up, (below + upto) / 2) / (up.sum(1) * sums[:, -1])


def log_loss(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of -log p(truth), probabilities floored at float64's epsilon as scikit-learn does.

    Parameters
    ----------
    y : (n,) int
        True classes.
    p : (n, K) float
        Probabilities.
    weights : (B, n) float
        One weighting of the items per row.

    Returns
    -------
    (B,) float64
    """
    eps = np.finfo(np.float64).eps
    return weights @ -np.log(np.clip(p[np.arange(len(y)), y], eps, 1 - eps)) / weights.sum(1)


def brier(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Brier score: weighted mean squared distance to the one-hot truth, summed over classes.

    Parameters
    ----------
    y : (n,) int
        True classes.
    p : (n, K) float
        Probabilities.
    weights : (B, n) float
        One weighting of the items per row.

    Returns
    -------
    (B,) float64
        0 best, 2 worst.

    References
    ----------
    Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """
    return weights @ ((p - np.eye(p.shape[1])[y]) ** 2).sum(1) / weights.sum(1)


def ranked_probability(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranked probability score for ordered classes: an error by two stages costs more than one by one.

    Parameters
    ----------
    y : (n,) int
        True classes, in their order.
    p : (n, K) float
        Probabilities.
    weights : (B, n) float
        One weighting of the items per row.

    Returns
    -------
    (B,) float64
        Weighted mean squared distance of the cumulative probabilities to those of the truth, over K - 1; 0 best, 1
        worst.

    References
    ----------
    Epstein 1969, doi:10.1175/1520-0450(1969)008<0985:ASSFPF>2.0.CO;2.
    """
    k = p.shape[1]
    distance = p.cumsum(1) - (np.arange(k) >= y[:, None])
    return weights @ (distance[:, :-1] ** 2).sum(1) / (k - 1) / weights.sum(1)


def calibration_error(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of the decision's confidence in equal-width bins.

    Parameters
    ----------
    y : (n,) int
        True classes.
    p : (n, K) float
        Probabilities; the largest is the decision.
    weights : (B, n) float
        One weighting of the items per row.

    Returns
    -------
    (B,) float64

    References
    ----------
    Guo et al. 2017, arXiv:1706.04599.
    """
    confidence, right, bins = p.max(1), p.argmax(1) == y, CALIBRATION_BINS
    member = np.eye(bins)[np.minimum((confidence * bins).astype(int), bins - 1)]
    gaps = weights @ (member * (right - confidence)[:, None])
    return np.abs(gaps).sum(1) / weights.sum(1)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p value that two classifiers are right equally often.

    Parameters
    ----------
    first, second : (n,) bool
        Whether each is right about each participant.

    Returns
    -------
    float
        1 where both are right about the same participants.

    References
    ----------
    McNemar 1947, doi:10.1007/BF02295996.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differ = only_first + only_second
    return float(binomtest(only_first, differ).pvalue) if differ else 1.0


def permutation_p(y: np.ndarray, p: np.ndarray, permutations: int, seed: int) -> float:
    """One-sided p value of the balanced accuracy by permuted labels.

    Parameters
    ----------
    y : (n,) int
        True classes.
    p : (n, K) float
        Probabilities; the largest is the decision.
    permutations : int
    seed : int

    Returns
    -------
    float
        (1 + permutations with as high a balanced accuracy) / (1 + permutations).

    References
    ----------
    Ojala & Garriga 2010, JMLR 11:1833.
    """
    rng, truth = np.random.default_rng(seed), np.eye(p.shape[1])[y]
    share = truth / np.maximum(truth.sum(0), 1)  # (n, K), so that recalls add up by class
    decided = np.eye(p.shape[1])[p.argmax(1)]
    observed = (share * decided).sum()
    permuted = [(share[rng.permutation(len(y))] * decided).sum() for _ in range(permutations)]
    return float((1 + np.sum(np.array(permuted) >= observed - 1e-9)) / (1 + permutations))


def cluster_weights(groups: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap weights of items when whole groups are drawn with replacement.

    Parameters
    ----------
    groups : (n,) int
        Group (participant) of each item, 0 to G - 1.
    resamples, seed : int

    Returns
    -------
    (resamples + 1, n) float64
        First row all ones (the sample itself), then one row per resample. The draw depends on G and the seed only, so
        that two runs on the same participants are resampled together.
    """
    return np.vstack(list(_weight_blocks(groups, resamples, seed)))


def resampled(
    score: Callable[[np.ndarray], dict[Name, np.ndarray]], groups: np.ndarray, resamples: int, seed: int
) -> dict[Name, np.ndarray]:
    """The scores under all weightings of `cluster_weights`, of which no more than `BLOCK` weights are held at once.

    Parameters
    ----------
    score : callable
        From weights (b, n) to named values (b,).
    groups, resamples, seed
        As of `cluster_weights`.

    Returns
    -------
    dict
        Name to (resamples + 1,) float64.
    """
    blocks = [score(weights) for weights in _weight_blocks(groups, resamples, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def resampled_means(values: np.ndarray, scans: pd.DataFrame, resamples: int, seed: int) -> np.ndarray:
    """Mean over scans, of the sample and of resamples of whole participants.

    Parameters
    ----------
    values : (N, ...) float
        One or more values of each scan.
    scans : DataFrame
        participant_id of the N scans.
    resamples, seed : int

    Returns
    -------
    (resamples + 1, ...) float64
        The sample's mean first.
    """
    groups = np.unique(scans["participant_id"], return_inverse=True)[1]
    weights = cluster_weights(groups, resamples, seed)
    return np.tensordot(weights / weights.sum(1, keepdims=True), np.asarray(values, dtype=float), axes=1)


def _weight_blocks(groups: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    rng, count = np.random.default_rng(seed), int(groups.max()) + 1
    rows = max(1, BLOCK // len(groups))
    for start in range(0, resamples + 1, rows):
        stop = min(start + rows, resamples + 1)
        draws = rng.multinomial(count, np.full(count, 1 / count), size=stop - max(start, 1))
        weights = draws[:, groups].astype(float)
        yield weights if start else np.vstack([np.ones((1, len(groups))), weights])
