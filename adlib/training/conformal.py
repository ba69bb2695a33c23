"""The threshold of prediction sets, from participants that neither trained the network nor are tested."""

from __future__ import annotations

import numpy as np


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
