"""Where training scans lie among their values, and how far from them another scan is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.covariance import ledoit_wolf_shrinkage

MOST_AXES = 64  # of the network's 2048 features; what lies beyond them counts as noise of one size
STILL = 0.1  # of a typical standard deviation: a value that varies less hardly varies
SMALLEST = 1e-9


@dataclass(frozen=True, eq=False)
class Space:
    """A normal distribution whose covariance is shrunk towards equal, independent spreads.

    Attributes
    ----------
    names : tuple of str
        What the values are called; empty where they have no names.
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


def fit_space(values: np.ndarray, names: tuple[str, ...] = (), least: np.ndarray | None = None) -> Space:
    """Fit a space to training scans.

    Parameters
    ----------
    values : (n, p) float
        One row per scan; not a number where a scan has no such value.
    names : tuple of str
        Of the p values, or empty.
    least : (p,) float, optional
        The smallest standard deviation to reckon with, by default a tenth of a typical one: a value that happens not
        to vary in training is no reason to refuse a scan in which it does.

    Returns
    -------
    Space

    References
    ----------
    Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4.
    """
    mean = np.nan_to_num(np.nanmean(values, axis=0))
    own = np.nan_to_num(np.nanstd(values, axis=0))
    least = STILL * np.sqrt(np.mean(own**2)) if least is None else least
    sd = np.maximum(np.maximum(own, least), SMALLEST)
    scaled = _scaled(values, mean, sd)
    share = float(ledoit_wolf_shrinkage(scaled, assume_centered=True))
    _, sizes, axes = np.linalg.svd(scaled, full_matrices=False)
    found, p = sizes**2 / len(values), values.shape[1]
    level, k = found.sum() / p, min(MOST_AXES, len(found))
    beyond = found[k:].sum() / max(p - k, 1)
    shrunk = (1 - share) * found[:k] + share * level
    rest = max((1 - share) * beyond + share * level, SMALLEST)
    return Space(names, _single(mean), _single(sd), _single(axes[:k]), _single(np.maximum(shrunk, SMALLEST)), rest)


def distances(values: np.ndarray, space: Space) -> np.ndarray:
    """Mahalanobis distance (n,) float64 of scans (n, p) from the mean, per square root of p; about 1 in training.

    A value that is not a number counts as the mean.

    References
    ----------
    Lee et al. 2018, arXiv:1807.03888.
    """
    scaled = _scaled(values, space.mean, space.sd)
    along = scaled @ space.axes.T.astype(np.float64)
    left = np.maximum((scaled**2).sum(1) - (along**2).sum(1), 0)
    return np.sqrt(((along**2 / space.variances).sum(1) + left / space.rest) / scaled.shape[1])


def coordinates(values: np.ndarray, space: Space) -> np.ndarray:
    """Places (n, k) float32 of scans (n, p) along the axes of a space, in standard deviations of training scans."""
    along = _scaled(values, space.mean, space.sd) @ space.axes.T.astype(np.float64)
    return _single(along / np.sqrt(space.variances))


def farthest(values: np.ndarray, space: Space, count: int = 3) -> list[tuple[str, float, float, float]]:
    """Name, value, training mean and training standard deviation of the values (p,) that are farthest off."""
    off = np.abs(_scaled(values[None], space.mean, space.sd)[0])
    order = [int(k) for k in np.argsort(-off)[:count] if off[k] > 2]
    return [(space.names[k], float(values[k]), float(space.mean[k]), float(space.sd[k])) for k in order]


def _scaled(values: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    return np.nan_to_num((np.asarray(values, np.float64) - mean) / sd, posinf=0.0, neginf=0.0)


def _single(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)
