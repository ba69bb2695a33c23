"""Intensity normalisation inside the brain."""

from __future__ import annotations

import numpy as np

from adlib.study.records import StudyError

REACH = 2.0  # the network's input, from the darkest landmark to the brightest
LANDMARKS = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)  # percentiles of the brain


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
    result = np.zeros(volume.shape, np.float32)
    result[mask] = (volume[mask] - np.float32(offset)) / np.float32(scale)
    return result


def percentiles(volume: np.ndarray, mask: np.ndarray) -> list[float]:
    """Intensities of the brain at `LANDMARKS`: all that landmark normalisation needs to know of a scan.

    Parameters
    ----------
    volume : (X, Y, Z) float32
    mask : (X, Y, Z) bool

    Returns
    -------
    list of float
    """
    return [float(value) for value in np.percentile(volume[mask], LANDMARKS)]


def fit_landmarks(own: np.ndarray) -> np.ndarray:
    """The standard scale: the mean landmarks of the training scans, each first stretched to run from 0 to 100.

    Parameters
    ----------
    own : (n, len(LANDMARKS)) array
        `percentiles` of the training scans, and of no others.

    Returns
    -------
    (len(LANDMARKS),) float64
        Rises from 0 to 100.

    Raises
    ------
    StudyError
        If there is no scan, or the landmarks of one do not rise.

    References
    ----------
    Nyúl & Udupa 1999, doi:10.1002/(SICI)1522-2594(199912)42:6<1072::AID-MRM11>3.0.CO;2-M; Nyúl et al. 2000,
    doi:10.1109/42.836373; Shah et al. 2011, doi:10.1016/j.media.2010.12.003 (the percentiles).
    """
    own = np.atleast_2d(np.asarray(own, dtype=float))
    if own.shape[0] == 0 or own.shape[1] != len(LANDMARKS):
        raise StudyError(f"expected the {len(LANDMARKS)} percentiles of at least one training scan, got {own.shape}")
    for number, row in enumerate(own):
        check_rising(row, f"training scan {number}")
    span = own[:, -1:] - own[:, :1]
    return (100 * (own - own[:, :1]) / span).mean(axis=0)


def apply_landmarks(values: np.ndarray, own: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """Take intensities to the standard scale, in straight pieces between landmarks and on beyond the outer two.

    Parameters
    ----------
    values : array
        Intensities of one scan.
    own : (len(LANDMARKS),) array
        Its `percentiles`.
    standard : (len(LANDMARKS),) array
        From `fit_landmarks`.

    Returns
    -------
    float32 array
        Of the shape of `values`; higher where they are higher.

    Raises
    ------
    StudyError
        If landmarks are missing or do not rise.
    """
    own, standard = np.asarray(own, dtype=float), np.asarray(standard, dtype=float)
    for landmarks, whose in ((own, "the scan"), (standard, "the standard scale")):
        check_rising(landmarks, whose)
    slopes = np.diff(standard) / np.diff(own)
    piece = np.clip(np.searchsorted(own, values, side="right") - 1, 0, len(slopes) - 1)
    return (standard[piece] + slopes[piece] * (values - own[piece])).astype(np.float32)


def standard_slices(slices: np.ndarray, own: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """Take the slices of one scan to the standard scale; exactly 0, the background, stays so.

    Parameters
    ----------
    slices : array
        Cut from the volume of which `own` are the percentiles.
    own, standard : (len(LANDMARKS),) array
        For `apply_landmarks`.

    Returns
    -------
    float32 array
        Of the shape of `slices`; the standard scale from its lowest to its highest landmark runs from 0 to `REACH`.
    """
    inside, result = slices != 0, np.zeros(slices.shape, np.float32)
    result[inside] = apply_landmarks(slices[inside].astype(np.float32), own, standard) * (REACH / 100)
    return result


def check_rising(landmarks: np.ndarray, whose: str) -> None:
    """Raise a `StudyError` unless there is a landmark for each of `LANDMARKS`, each above the one before."""
    landmarks = np.asarray(landmarks, dtype=float)
    if landmarks.shape != (len(LANDMARKS),) or not np.all(np.diff(landmarks) > 0):
        raise StudyError(
            f"the intensity landmarks of {whose} are {np.round(landmarks, 3).tolist()}; expected {len(LANDMARKS)} that "
            "rise; a scan stored in too few grey levels cannot be normalised by landmarks"
        )
