"""Intensities inside the brain: bias field correction and normalisation.

The landmarks of Nyúl are fitted on training scans, so they are applied to slices, not to the stored image.

References
----------
Nyúl & Udupa 1999, doi:10.1002/(SICI)1522-2594(199912)42:6<1072::AID-MRM11>3.0.CO;2-M.
Nyúl et al. 2000, doi:10.1109/42.836373.
Shah et al. 2011, doi:10.1016/j.media.2010.12.003 (the percentiles).
"""

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from adlib.imaging.volume import block_mean, bounding_box, from_sitk, to_sitk
from adlib.study.records import StudyError

N4_MM = 8.0  # voxel edge of the copy that N4 runs on
N4_ITERATIONS = (25, 25)  # one number per spline level; a third level and more iterations gain nothing on made heads
LANDMARKS = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)  # percentiles of the brain
TOP = 2.0  # the highest landmark in the network's input; the lowest is 0


def bias_field(volume: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Estimate the smooth gain over a head from its brain, by N4 on a coarse copy.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        Intensities from 0 up.
    mask : (X, Y, Z) bool
        Where tissue intensities are to become uniform.
    affine : (4, 4) array

    Returns
    -------
    (X, Y, Z) float32
        Gain, 1 on average inside the mask; divide the volume by it.

    Raises
    ------
    StudyError
        If the brain holds no intensity to correct.

    References
    ----------
    Tustison et al. 2010, doi:10.1109/TMI.2010.2046908.
    """
    small, grid = block_mean(volume, affine, N4_MM)
    inside = block_mean(mask.astype(np.float32), affine, N4_MM)[0] > 0.8
    level = float(np.median(small[inside])) if inside.any() else 0.0
    if not level > 0:
        raise StudyError("the brain region of this scan is empty or black; check its registration figure")
    inside &= small > 0.1 * level
    box = bounding_box(inside, np.ones(3))
    small, inside = small[box], inside[box]
    grid = grid @ nib.affines.from_matvec(np.eye(3), [part.start for part in box])
    log_field = _log_field(np.maximum(small / np.float32(level), np.float32(0.01)), inside, grid)
    log_field = np.clip(log_field - log_field[inside].mean(), -1.5, 1.5)
    return np.exp(_spread(log_field, grid, volume.shape, affine))


def _log_field(volume: np.ndarray, inside: np.ndarray, grid: np.ndarray) -> np.ndarray:
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations(list(N4_ITERATIONS))
    correction.SetConvergenceThreshold(0.001)
    image = to_sitk(volume, grid)
    correction.Execute(image, to_sitk(inside, grid))
    return from_sitk(correction.GetLogBiasFieldAsImage(image)).astype(np.float32)


def _spread(log_field: np.ndarray, grid: np.ndarray, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """The field on the full grid; outside the box it has the values of the box's faces."""
    to_box = np.linalg.inv(grid) @ affine
    for axis, n in enumerate(shape):
        last = log_field.shape[axis] - 1
        positions = np.clip(to_box[axis, axis] * np.arange(n) + to_box[axis, 3], 0, last)
        before = np.minimum(positions.astype(int), last - 1)
        share = (positions - before).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
        log_field = np.take(log_field, before, axis) * (1 - share) + np.take(log_field, before + 1, axis) * share
    return log_field


def brain_zscore(volume: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the brain.

    Parameters
    ----------
    volume : (X, Y, Z) float32
    mask : (X, Y, Z) bool

    Returns
    -------
    offset, scale : float
        For `normalise`.

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
        For `normalise`.

    Raises
    ------
    StudyError
        If there are fewer than 100 voxels of pure white matter.
    """
    pure = volume[wm > 0.95]
    if pure.size < 100:
        raise StudyError(f"only {pure.size} voxels are pure white matter; check its segmentation figure")
    return 0.0, float(np.median(pure))


def white_matter_mode(values: np.ndarray) -> float:
    """The intensity of white matter without a segmentation: the most frequent one above the median.

    Parameters
    ----------
    values : (n,) array
        Intensities of a T1w brain, from 0 up.

    Returns
    -------
    float
    """
    counts, edges = np.histogram(values, bins=128, range=(0, np.percentile(values, 99.5)))
    centres = (edges[1:] + edges[:-1]) / 2
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 3)
    return float(centres[np.where(centres < np.median(values), 0, smooth).argmax()])


def normalise(volume: np.ndarray, mask: np.ndarray, offset: float, scale: float) -> np.ndarray:
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


def brain_percentiles(volume: np.ndarray, mask: np.ndarray) -> list[float]:
    """Intensities of the brain at the percentiles `LANDMARKS`.

    Parameters
    ----------
    volume : (X, Y, Z) float32
    mask : (X, Y, Z) bool

    Returns
    -------
    list of float
    """
    return [float(value) for value in np.percentile(volume[mask], LANDMARKS)]


def fit_landmarks(percentiles: np.ndarray) -> np.ndarray:
    """Fit the standard scale: the mean of the training scans' landmarks, each scan first scaled to 0 to 100.

    Parameters
    ----------
    percentiles : (n, len(LANDMARKS)) array
        `brain_percentiles` of the training scans only.

    Returns
    -------
    (len(LANDMARKS),) float64
        Rises from 0 to 100.

    Raises
    ------
    StudyError
        If there is no scan, or the landmarks of one do not rise.
    """
    percentiles = np.atleast_2d(np.asarray(percentiles, dtype=float))
    if percentiles.shape[0] == 0 or percentiles.shape[1] != len(LANDMARKS):
        raise StudyError(
            f"expected the {len(LANDMARKS)} percentiles of at least one training scan, got {percentiles.shape}"
        )
    for number, row in enumerate(percentiles):
        check_landmarks(row, f"training scan {number}")
    span = percentiles[:, -1:] - percentiles[:, :1]
    return (100 * (percentiles - percentiles[:, :1]) / span).mean(axis=0)


def apply_landmarks(values: np.ndarray, percentiles: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """Map intensities to the standard scale, linearly between landmarks and beyond the outer two.

    Parameters
    ----------
    values : array
        Intensities of one scan.
    percentiles : (len(LANDMARKS),) array
        `brain_percentiles` of the scan.
    standard : (len(LANDMARKS),) array
        From `fit_landmarks`.

    Returns
    -------
    float32 array
        Of the shape of `values`; a rising function of them.

    Raises
    ------
    StudyError
        If landmarks are missing or do not rise.
    """
    percentiles, standard = np.asarray(percentiles, dtype=float), np.asarray(standard, dtype=float)
    check_landmarks(percentiles, "the scan")
    check_landmarks(standard, "the standard scale")
    slopes = np.diff(standard) / np.diff(percentiles)
    piece = np.clip(np.searchsorted(percentiles, values, side="right") - 1, 0, len(slopes) - 1)
    return (standard[piece] + slopes[piece] * (values - percentiles[piece])).astype(np.float32)


def standard_slices(slices: np.ndarray, percentiles: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """Map slices of one scan to the standard scale; exactly 0, the background, stays 0.

    Parameters
    ----------
    slices : array
    percentiles : (len(LANDMARKS),) array
        `brain_percentiles` of the volume of the slices.
    standard : (len(LANDMARKS),) array
        From `fit_landmarks`.

    Returns
    -------
    float32 array
        Of the shape of `slices`; 0 at the lowest landmark, `TOP` at the highest.
    """
    inside, result = slices != 0, np.zeros(slices.shape, np.float32)
    result[inside] = apply_landmarks(slices[inside].astype(np.float32), percentiles, standard) * (TOP / 100)
    return result


def check_landmarks(landmarks: np.ndarray, owner: str) -> None:
    """Check that there is a landmark for each of `LANDMARKS`, in rising order.

    Parameters
    ----------
    landmarks : (len(LANDMARKS),) array
        Intensities.
    owner : str
        Whose landmarks they are, for the message.

    Raises
    ------
    StudyError
        If landmarks are missing or do not rise.
    """
    landmarks = np.asarray(landmarks, dtype=float)
    if landmarks.shape != (len(LANDMARKS),) or not np.all(np.diff(landmarks) > 0):
        raise StudyError(
            f"the intensity landmarks of {owner} are {np.round(landmarks, 3).tolist()}; expected {len(LANDMARKS)} that "
            "rise; a scan stored in too few grey levels cannot be normalised by landmarks"
        )
