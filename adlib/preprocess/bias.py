"""Bias field correction."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from adlib.imaging.volume import block_mean, from_sitk, to_sitk
from adlib.study.records import StudyError

SHRUNK_MM = 8.0
ITERATIONS = (25, 25)  # one number per spline level; a third level and more iterations gain nothing on made heads


def bias_field(volume: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Estimate the smooth gain over a head from its brain, with N4 on a strongly shrunk copy.

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
    small, grid = block_mean(volume, affine, SHRUNK_MM)
    inside = block_mean(mask.astype(np.float32), affine, SHRUNK_MM)[0] > 0.8
    level = float(np.median(small[inside])) if inside.any() else 0.0
    if not level > 0:
        raise StudyError("the brain region of this scan is empty or black; look at the registration picture")
    inside &= small > 0.1 * level
    box, corner = _bounding_box(inside)
    small, inside, grid = small[box], inside[box], grid @ corner
    log_field = _log_field(np.maximum(small / np.float32(level), np.float32(0.01)), inside, grid)
    log_field = np.clip(log_field - log_field[inside].mean(), -1.5, 1.5)
    return np.exp(_spread(log_field, grid, volume.shape, affine))


def _bounding_box(inside: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
    """Slices around the True voxels with one voxel to spare, and the (4, 4) shift of the first voxel."""
    where = np.argwhere(inside)
    low, high = np.maximum(where.min(axis=0) - 1, 0), where.max(axis=0) + 2
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True)), nib.affines.from_matvec(np.eye(3), low)


def _log_field(volume: np.ndarray, inside: np.ndarray, grid: np.ndarray) -> np.ndarray:
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations(list(ITERATIONS))
    correction.SetConvergenceThreshold(0.001)
    image = to_sitk(volume, grid)
    correction.Execute(image, to_sitk(inside, grid))
    return from_sitk(correction.GetLogBiasFieldAsImage(image)).astype(np.float32)


def _spread(log_field: np.ndarray, grid: np.ndarray, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """The field on the full grid; beyond the box it goes on with the values at the box's faces."""
    to_box = np.linalg.inv(grid) @ affine
    axes = [to_box[k, k] * np.arange(n) + to_box[k, 3] for k, n in enumerate(shape)]
    for axis, positions in enumerate(axes):
        log_field = _interpolated(log_field, positions, axis)
    return log_field


def _interpolated(values: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    positions = np.clip(positions, 0, values.shape[axis] - 1)
    before = np.minimum(positions.astype(int), values.shape[axis] - 2)
    share = (positions - before).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
    return np.take(values, before, axis) * (1 - share) + np.take(values, before + 1, axis) * share
