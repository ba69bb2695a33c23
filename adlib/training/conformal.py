"""The thresholds of conformal prediction sets, from participants that neither trained the network nor are tested."""

import numpy as np

ENOUGH = (
    10  # participants of a class, in units of the fewest that can exclude it; rounding then costs a tenth of the error
)


def staged(p: np.ndarray) -> np.ndarray:
    """Raise the probability of each class between two more probable ones to the smaller of them.

    Classes are stages in order: all classes above any threshold then lie side by side, and a set has no hole.

    Parameters
    ----------
    p : (n, K) float
        Probabilities of classes in order of severity.

    Returns
    -------
    (n, K) float
        With one mode; the largest value stays.
    """
    return np.minimum(np.maximum.accumulate(p, axis=1), np.maximum.accumulate(p[:, ::-1], axis=1)[:, ::-1])


def lowest_probabilities(y: np.ndarray, p: np.ndarray, coverage: float) -> np.ndarray:
    """The `staged` probability from which each class enters the set: least ambiguous sets.

    The score of a participant is 1 - p(truth), p staged. Among n participants that neither trained the network nor are
    scored, the ceil((n + 1) coverage)-th smallest score bounds that of the next participant with at least the chance
    asked for, whatever the network is worth, as long as all are exchangeable. With `ENOUGH` / (1 - coverage)
    participants of every class each has a separate bound, and the promise holds for each; otherwise one bound serves
    all.

    Written here because it is one order statistic. MAPIE, whose sets are the same but for the stages, wraps a
    scikit-learn classifier and takes its images, where the study has stored probabilities.

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
    (K,) float64
        0 where there are too few participants to promise anything less than all classes.

    References
    ----------
    Sadinle, Lei & Wasserman 2019, doi:10.1080/01621459.2017.1395341; Vovk et al. 2005, doi:10.1007/b106715; Vovk 2012,
    arXiv:1209.2673 (bounds by class).
    """
    known, count = staged(p)[np.arange(len(y)), y], p.shape[1]
    scores = [known[y == k] for k in range(count)] if by_class(y, count, coverage) else [known] * count
    ranks = [rank_for(len(each), coverage) for each in scores]
    pairs = zip(ranks, scores, strict=True)
    return np.array([0.0 if rank > len(each) else np.sort(each)[len(each) - rank] for rank, each in pairs])


def sets_of(p: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """Prediction sets: the most probable class, those from their bound on, and all between.

    Parameters
    ----------
    p : (n, K) float
        Probabilities.
    lowest : (K,) or (n, K) float
        From `lowest_probabilities`.

    Returns
    -------
    (n, K) bool
        None is empty, and none has a hole.
    """
    sets = (staged(p) >= lowest) | (np.arange(p.shape[1]) == p.argmax(1)[:, None])
    return staged(sets)


def by_class(y: np.ndarray, count: int, coverage: float) -> bool:
    """Whether each class has a separate bound, see `lowest_probabilities`.

    Parameters
    ----------
    y : (n,) int
        True classes.
    count : int
        Number of classes.
    coverage : float
    """
    return bool(np.bincount(y, minlength=count).min() >= ENOUGH / (1 - coverage) - 1e-9)


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
