"""Means over scans with intervals over participants, as entries like those of ``metrics.json``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from adlib.evaluation import scores


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
    weights = scores.cluster_weights(groups, resamples, seed)
    return np.tensordot(weights / weights.sum(1, keepdims=True), np.asarray(values, dtype=float), axes=1)


def entry(values: np.ndarray, scans: pd.DataFrame, resamples: int, seed: int, **names: Any) -> dict[str, Any]:
    """An entry with names, n (scans), participants, point and ci95 (2.5th and 97.5th percentile).

    Parameters
    ----------
    values : (N,) float
    scans, resamples, seed
        See `resampled_means`.
    **names
        What tells the entry from others, such as ``check`` and ``stage``.
    """
    means = resampled_means(values, scans, resamples, seed)
    interval = np.percentile(means[1:], [2.5, 97.5]).tolist()
    counts = {"n": len(scans), "participants": int(scans["participant_id"].nunique())}
    return {**names, **counts, "point": float(means[0]), "ci95": interval}
