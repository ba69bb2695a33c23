"""Sets of classes that hold the truth as often as promised: conformal prediction by participant."""

import numpy as np
import pandas as pd

from adlib.evaluation import scores
from adlib.training.conformal import by_class, lowest_probabilities, rank_for, sets_of
from adlib.training.pooling import arrays

LEVELS = tuple(np.round(np.arange(0.5, 0.96, 0.05), 2))
DRAWS = 4000  # of the range that a curve may lie in by chance


def prediction_sets(
    validation: pd.DataFrame, tested: pd.DataFrame, classes: tuple[str, ...], coverage: float
) -> np.ndarray:
    """The set of each tested participant, bounded by the validation participants of the same fold.

    Parameters
    ----------
    validation, tested : DataFrame
        Pooled participants of one run, as from `adlib.training.pooling.pool_level`.
    classes : tuple of str
        In order of severity.
    coverage : float

    Returns
    -------
    (n, K) bool
        Rows as in `tested`; see `adlib.training.conformal.sets_of`.
    """
    _, p, _ = arrays(tested, classes)
    lowest = np.zeros(p.shape)
    for fold, part in validation.groupby("fold"):
        y, p_validation, _ = arrays(part, classes)
        lowest[tested["fold"] == fold] = lowest_probabilities(y, p_validation, coverage)
    return sets_of(p, lowest)


def set_scores(
    y: np.ndarray, sets: np.ndarray, weights: np.ndarray, classes: tuple[str, ...]
) -> dict[tuple[str, str | None], np.ndarray]:
    """Share of sets that hold the truth and mean number of classes in a set, over all and by true class.

    Parameters
    ----------
    y : (n,) int
    sets : (n, K) bool
    weights : (B, n) float
        As from `adlib.evaluation.scores.cluster_weights`.
    classes : tuple of str

    Returns
    -------
    dict
        (metric, class or None) to (B,) float64; NaN where a weighting has none of the class.
    """
    values = {"coverage": sets[np.arange(len(y)), y], "set_size": sets.sum(1)}
    groups = {None: np.ones(len(y), bool)} | {name: y == k for k, name in enumerate(classes)}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            (metric, name): weights[:, inside] @ value[inside] / weights[:, inside].sum(1)
            for metric, value in values.items()
            for name, inside in groups.items()
        }


def coverage_curve(
    validation: pd.DataFrame, tested: pd.DataFrame, classes: tuple[str, ...], resamples: int, seed: int
) -> pd.DataFrame:
    """Measured coverage at each of `LEVELS`, and its range by chance where participants are exchangeable.

    Chance has two parts: which participants set a bound (the coverage that they lead to is Beta(r, n + 1 - r), r the
    rank) and which are tested (binomial). Folds, and classes with separate bounds, count as independent.

    Parameters
    ----------
    validation, tested : DataFrame
        Pooled participants of one run, from `adlib.training.pooling.pool_level`.
    classes : tuple of str
    resamples : int
        Bootstrap resamples of the tested participants.
    seed : int

    Returns
    -------
    DataFrame
        nominal, coverage, low, high (95 % over tested participants), expected_low, expected_high.

    References
    ----------
    Angelopoulos & Bates 2023, doi:10.1561/2200000101, section 3.2.
    """
    y, _, groups = arrays(tested, classes)
    weights, rng = scores.cluster_weights(groups, resamples, seed), np.random.default_rng(seed)
    rows = []
    for level in LEVELS:
        sets = prediction_sets(validation, tested, classes, level)
        measured = set_scores(y, sets, weights, classes)["coverage", None]
        hits = sum(
            rng.binomial(m, _reached(n, level, rng))
            for fold, part in tested.groupby("fold")
            for n, m in _sizes(validation[validation["fold"] == fold], part, classes, level)
        )
        bounds = [*np.percentile(measured[1:], [2.5, 97.5]), *np.percentile(hits / len(tested), [2.5, 97.5])]
        rows.append([level, measured[0], *bounds])
    return pd.DataFrame(rows, columns=["nominal", "coverage", "low", "high", "expected_low", "expected_high"])


def _sizes(
    validation: pd.DataFrame, tested: pd.DataFrame, classes: tuple[str, ...], level: float
) -> list[tuple[int, int]]:
    """Numbers of participants that set a bound, and of those it is for."""
    known, new = (np.bincount(arrays(table, classes)[0], minlength=len(classes)) for table in (validation, tested))
    if not by_class(arrays(validation, classes)[0], len(classes), level):
        return [(int(known.sum()), int(new.sum()))]
    return list(zip(known.tolist(), new.tolist(), strict=True))


def _reached(n: int, coverage: float, rng: np.random.Generator) -> np.ndarray:
    rank = rank_for(n, coverage)
    return np.ones(DRAWS) if rank > n else rng.beta(rank, n + 1 - rank, DRAWS)
