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

from adlib.imaging import atlas
from adlib.imaging.volume import block_mean, voxel_sizes
from adlib.preprocess.coarse_search import USUAL, WIDE, brain_centre, coarse_search
from adlib.study.records import StudyError

LEVELS = ((8.0, 6.0, 20), (4.0, 4.0, 15), (4.0, 2.0, 15))  # point distance mm, smoothing mm (sd), iterations
MARGIN_MM = 6.0  # how far beyond the template's brain points are taken
SHIFT_MM = 0.01  # a mean step below this ends a level
OUTLIER = 2.5  # residuals beyond this many robust standard deviations lose weight
DOUBTFUL = 0.5  # share of tissue below which a wider search is tried; real and made heads reach 0.73 to 0.95
NO_TISSUE = 0.35  # below it no brain was found; balls, boxes and limbs reach 0.07, heads in a wrong pose 0.28
STRETCH = (0.6, 1.6)  # of a head against MNI152, along any direction


@dataclass(frozen=True)
class Registration:
    """What was found.

    Attributes
    ----------
    scan_to_mni : (4, 4) float64
        World, RAS mm, to MNI152 mm.
    explained : float
        Share of the intensity variance, in and about the brain, that the model explains.
    tissue : float
        Share of the variance inside the brain, beyond a smooth field, that the tissue maps explain.
    """

    scan_to_mni: np.ndarray
    explained: float
    tissue: float


def register(volume: np.ndarray, affine: np.ndarray, name: str) -> Registration:
    """Find the affine that takes the scan's world to MNI152.

    Where the usual search finds no brain, an impossible one, or one that explains little of the intensities, more
    rotations and scales are tried.

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
        If nothing in the field of view resembles a brain, or what does has an impossible shape.
    """
    small, grid = working_copy(volume, affine)
    found, refusal = [], None
    for tried in (USUAL, WIDE):
        try:
            one = refine(small, grid, coarse_search(small, grid, name, tried), name)
        except StudyError as error:
            refusal = error
            continue
        found.append(one)
        if one.tissue >= DOUBTFUL:
            break
    if not found:
        raise refusal
    return max(found, key=lambda one: one.tissue)


def _check_shape(matrix: np.ndarray, name: str) -> None:
    """Refuse a pose that mirrors, flattens or blows up the head: it fits something that is no brain."""
    stretch = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    if np.linalg.det(matrix[:3, :3]) > 0 and STRETCH[0] <= stretch.min() and stretch.max() <= STRETCH[1]:
        return
    raise StudyError(
        f"{name}: no brain was found in the field of view (what is most like one is {stretch.min():.2f} to "
        f"{stretch.max():.2f} times as large as MNI152's along its axes, expected {STRETCH[0]} to {STRETCH[1]}, not "
        "mirrored); expected a T1-weighted scan of a whole head or brain"
    )


def rigid_part(scan_to_mni: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The turn and shift (4, 4) nearest to an affine, which takes the same point of the scan to `centre` (3,), mm."""
    left, _, right = np.linalg.svd(scan_to_mni[:3, :3])
    turn = left @ right
    origin = np.linalg.solve(scan_to_mni, [*centre, 1.0])[:3]
    return nib.affines.from_matvec(turn, centre - turn @ origin)


def working_copy(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scan at about 2 mm with its brightest voxels levelled, float32, from 0 up, and its affine."""
    small, grid = block_mean(volume, affine, 2.0)
    low, high = np.percentile(small[small > small.min()], (1, 99.5)).astype(np.float32)
    return np.clip(small, low, high) - low, grid


def refine(volume: np.ndarray, affine: np.ndarray, starts: list[np.ndarray], name: str) -> Registration:
    """Least-squares pose, coarse to fine, from the rough one that explains most after the coarsest level.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        From `working_copy`.
    affine : (4, 4) array
    starts : list of (4, 4) array
        MNI152 mm to scan world, RAS mm.
    name : str
        What to call the scan in messages.

    Returns
    -------
    Registration
        Its shares are those of the finest level.

    Raises
    ------
    StudyError
        If what was found has an impossible shape or shows no tissue.
    """
    for edge, smoothing, iterations in LEVELS:
        fit = _Fit(volume, affine, edge, smoothing)
        matrix, explained = max((fit.descend(start, iterations) for start in starts), key=lambda found: found[1])
        starts = [matrix]
    _check_shape(matrix, name)
    tissue = fit.tissue_share(matrix)
    if tissue < NO_TISSUE:
        raise StudyError(
            f"{name}: what lies where the brain should be shows no grey and white matter (they explain {tissue:.0%} of "
            f"its intensities, expected {NO_TISSUE:.0%} or more); expected a T1-weighted scan of a whole head or brain"
        )
    return Registration(np.linalg.inv(matrix), explained, tissue)


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

    def tissue_share(self, matrix: np.ndarray) -> float:
        """Share of the variance inside the brain, beyond a smooth field, that the tissue maps explain."""
        brain = self.basis[:, :3].sum(axis=1) > 0.9
        voxels = nib.affines.apply_affine(self.to_voxel @ matrix, self.points)
        brain &= np.all((voxels >= 0) & (voxels <= self.shape - 1), axis=1)
        values = ndimage.map_coordinates(self.layers[0], voxels[brain].T, order=1, prefilter=False)
        maps = self.basis[brain]
        smooth = np.column_stack([np.ones(len(maps)), _quadratic(self.points[brain])])
        weights = _robust_weights(values - maps @ _least_squares(maps, values, np.ones(len(values))))
        left = [weights @ (values - part @ _least_squares(part, values, weights)) ** 2 for part in (maps, smooth)]
        return float(1 - left[0] / max(left[1], 1e-12))

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
    tissue = 0.7 * gm + wm + 0.3 * csf
    return points, np.column_stack([gm, wm, csf, 1 - gm - wm - csf, tissue[:, None] * _quadratic(points)])


def _quadratic(points: np.ndarray) -> np.ndarray:
    """The nine linear and quadratic terms (N, 9) of positions about the brain's centre."""
    x, y, z = ((points - brain_centre()) / 70).T
    return np.column_stack([x, y, z, x * x, y * y, z * z, x * y, x * z, y * z])
