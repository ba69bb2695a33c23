"""Affine registration of a scan to MNI152: a coarse search that cannot get lost, then least squares.

The scan is explained, point by point of MNI152 space, as a mixture of the template's tissue maps with free intensities
and a smooth bias field; pose and intensities are solved for together by damped Gauss-Newton steps with robust weights.

References
----------
Friston et al. 1995, doi:10.1002/hbm.460030303 (spatial registration by Gauss-Newton with an intensity basis).
Ashburner & Friston 2005, doi:10.1016/j.neuroimage.2005.02.018 (tissue maps as the model of the intensities).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np
from scipy import ndimage

from adlib import atlas
from adlib.preprocess.search import brain_centre, coarse_search
from adlib.volume import block_mean, voxel_sizes

LEVELS = ((8.0, 6.0, 20), (4.0, 4.0, 15), (4.0, 2.0, 15))  # point distance mm, smoothing mm (sd), iterations
MARGIN_MM = 6.0  # how far beyond the template's brain points are taken
SHIFT_MM = 0.01  # a mean step below this ends a level
OUTLIER = 2.5  # residuals beyond this many robust standard deviations lose weight


@dataclass(frozen=True)
class Registration:
    """`scan_to_mni` (4, 4), world RAS mm to MNI152 mm, and the share of intensity variance that the model explains."""

    scan_to_mni: np.ndarray
    explained: float


def register(volume: np.ndarray, affine: np.ndarray, name: str) -> Registration:
    """Find the affine that takes the scan's world to MNI152.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        A head or a brain in canonical orientation.
    affine : (4, 4) array
        Voxel indices to world, RAS mm.
    name : str
        What to call the scan in messages.

    Returns
    -------
    Registration
        With 12 degrees of freedom.

    Raises
    ------
    StudyError
        If no pose puts enough of a brain inside the field of view.
    """
    small, grid = working_copy(volume, affine)
    matrix, explained = refine(small, grid, coarse_search(small, grid, name))
    return Registration(np.linalg.inv(matrix), explained)


def working_copy(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scan at about 2 mm with its brightest voxels levelled, float32, from 0 up, and its affine."""
    small, grid = block_mean(volume, affine, 2.0)
    low, high = np.percentile(small[small > small.min()], (1, 99.5)).astype(np.float32)
    return np.clip(small, low, high) - low, grid


def refine(volume: np.ndarray, affine: np.ndarray, starts: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Least-squares pose, coarse to fine, from the rough one that explains most after the coarsest level.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        From `working_copy`.
    affine : (4, 4) array
    starts : list of (4, 4) array
        MNI152 mm to scan world, RAS mm.

    Returns
    -------
    matrix : (4, 4) float64
        MNI152 mm to scan world, RAS mm.
    explained : float
        Share of the variance explained at the finest level.
    """
    for edge, smoothing, iterations in LEVELS:
        fit = _Fit(volume, affine, edge, smoothing)
        matrix, explained = max((fit.descend(start, iterations) for start in starts), key=lambda found: found[1])
        starts = [matrix]
    return matrix, explained


class _Fit:
    """One resolution level: the smoothed scan, its gradient, and the template's points and basis."""

    def __init__(self, volume: np.ndarray, affine: np.ndarray, edge: float, smoothing: float) -> None:
        smooth = ndimage.gaussian_filter(volume, smoothing / voxel_sizes(affine), truncate=3)
        to_world = np.linalg.inv(affine[:3, :3]).astype(np.float32)
        slopes = np.gradient(smooth)
        self.layers = [smooth, *slopes]
        self.to_world = to_world
        self.to_voxel = np.linalg.inv(affine)
        self.shape = np.array(volume.shape)
        self.points, self.basis = _basis(edge, smoothing)

    def descend(self, matrix: np.ndarray, iterations: int) -> tuple[np.ndarray, float]:
        """Damped Gauss-Newton; a step that explains less is halved, and given up after four halvings."""
        state = self._solve(matrix)
        for _ in range(iterations):
            step = state[1]
            for _ in range(4):
                trial = matrix.copy()
                trial[:3] += step
                new = self._solve(trial)
                if new[0] > state[0]:
                    break
                step = step / 2
            else:
                break
            moved = np.abs(self.points @ step[:, :3].T + step[:, 3]).mean()
            matrix, state = trial, new
            if moved < SHIFT_MM:
                break
        return matrix, state[0]

    def _solve(self, matrix: np.ndarray) -> tuple[float, np.ndarray]:
        """Share of the variance explained at a pose, and the (3, 4) change of pose that least squares asks for."""
        voxels = nib.affines.apply_affine(self.to_voxel @ matrix, self.points)
        inside = np.all((voxels >= 0) & (voxels <= self.shape - 1), axis=1)
        if inside.mean() < 0.3:
            return -1.0, np.zeros((3, 4))
        where = voxels[inside].T
        values, *slopes = (ndimage.map_coordinates(layer, where, order=1, prefilter=False) for layer in self.layers)
        gradient = np.stack(slopes, axis=1) @ self.to_world
        points, basis = self.points[inside], self.basis[inside]
        centred = np.column_stack([points - brain_centre(), np.full(len(points), 50.0)])
        jacobian = (gradient[:, :, None] * centred[:, None, :]).reshape(len(points), 12)
        weights = _robust_weights(values - basis @ _least_squares(basis, values, np.ones(len(values))))
        residual = values - basis @ _least_squares(basis, values, weights)
        mean = np.average(values, weights=weights)
        explained = 1 - (weights @ residual**2) / (weights @ (values - mean) ** 2 + 1e-12)
        both = _least_squares(np.column_stack([basis, -jacobian]), values, weights)
        change = both[basis.shape[1] :].reshape(3, 4)
        change[:, 3] *= 50.0
        change[:, 3] -= change[:, :3] @ brain_centre()
        return float(explained), change


def _least_squares(design: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficients of a weighted linear fit, by normal equations with a trace of ridge."""
    weighted = design * weights[:, None]
    normal = weighted.T @ design
    normal[np.diag_indices_from(normal)] *= 1 + 1e-6
    normal[np.diag_indices_from(normal)] += 1e-12 * np.trace(normal)
    return np.linalg.solve(normal, weighted.T @ values)


def _robust_weights(residual: np.ndarray) -> np.ndarray:
    """Weights of the Geman-McClure kind: 1 for small residuals, falling to 0 for outliers."""
    spread = 1.4826 * np.median(np.abs(residual)) + 1e-12
    return 1 / (1 + (residual / (OUTLIER * spread)) ** 2) ** 2


@cache
def _basis(edge: float, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) in MNI152 mm and what may make up the intensity there (N, B), float64."""
    base = atlas.template(min(edge, 4.0))
    step = round(edge / min(edge, 4.0))
    sigma = smoothing / min(edge, 4.0)
    maps = [ndimage.gaussian_filter(m, sigma) for m in (base.gm, base.wm, base.csf)]
    near = ndimage.distance_transform_edt(~base.mask, sampling=min(edge, 4.0)) <= MARGIN_MM
    picked = np.argwhere(near)
    picked = picked[(picked % step == 0).all(axis=1)]
    points = nib.affines.apply_affine(base.affine, picked)
    gm, wm, csf = (m[tuple(picked.T)].astype(float) for m in maps)
    x, y, z = ((points - brain_centre()) / 70).T
    tissue = 0.7 * gm + wm + 0.3 * csf
    bias = [tissue * term for term in (x, y, z, x * x, y * y, z * z, x * y, x * z, y * z)]
    return points, np.column_stack([gm, wm, csf, 1 - gm - wm - csf, *bias])
