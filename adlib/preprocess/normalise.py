"""Intensity normalisation inside the brain."""

from __future__ import annotations

import numpy as np

from adlib.records import StudyError


def brain_zscore(volume: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the brain.

    Parameters
    ----------
    volume : (X, Y, Z) float32
    mask : (X, Y, Z) bool

    Returns
    -------
    offset, scale : float
        For `apply`.

    References
    ----------
    Reinhold et al. 2019, doi:10.1117/12.2513089.
    """
    inside = volume[mask].astype(np.float64)
    return float(inside.mean()), float(inside.std())


def white_matter_peak(volume: np.ndarray, wm: np.ndarray) -> tuple[float, float]:
    """Zero and the intensity of pure white matter, so that white matter becomes 1.

    Parameters
    ----------
    volume : (X, Y, Z) float32
    wm : (X, Y, Z) float32
        White-matter fraction.

    Returns
    -------
    offset, scale : float
        For `apply`.
    """
    pure = volume[wm > 0.95]
    if pure.size < 100:
        raise StudyError(f"only {pure.size} voxels are pure white matter; look at the segmentation picture")
    return 0.0, float(np.median(pure))


def apply(volume: np.ndarray, mask: np.ndarray, offset: float, scale: float) -> np.ndarray:
    """Subtract `offset`, divide by `scale`; exactly 0 outside the mask.

    Parameters
    ----------
    volume : (X, Y, Z) float32
    mask : (X, Y, Z) bool
    offset, scale : float

    Returns
    -------
    (X, Y, Z) float32

    Raises
    ------
    StudyError
        If the shapes differ, the mask is empty, or the brain is constant.
    """
    if volume.shape != mask.shape:
        raise StudyError(f"volume is {volume.shape} but its mask is {mask.shape}; resample the mask first")
    if not mask.any() or not scale > 0:
        raise StudyError("the brain is empty or constant, so its intensities cannot be normalised")
    return np.where(mask, (volume - np.float32(offset)) / np.float32(scale), np.float32(0))
