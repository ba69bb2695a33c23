"""Affine registration to MNI152.

It starts from a coarse search of every translation for a grid of rotations and scales. Least squares then
explain the scan, at points of MNI152 space, as a mixture of the template's tissue maps with free intensities and a
smooth bias field; damped Gauss-Newton steps with robust weights solve for pose and intensities together.

References
----------
Padfield 2012, doi:10.1109/TIP.2011.2181402 (masked normalised cross-correlation by FFT).
Friston et al. 1995, doi:10.1002/hbm.460030303 (registration by Gauss-Newton with an intensity basis).
Ashburner & Friston 2005, doi:10.1016/j.neuroimage.2005.02.018 (tissue maps as the model of the intensities).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

import nibabel as nib
import numpy as np
import torch
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation
from torch.nn import functional

from adlib.imaging import atlas
from adlib.imaging.volume import block_mean, resample, voxel_sizes, world_box
from adlib.study.records import StudyError

COARSE_MM = 8.0  # voxel edge of the coarse search
MIN_CORRELATION = 0.2  # with the template; noise reaches 0.14
MIN_OVERLAP = 0.6  # share of the template's brain inside the field of view
LEVELS = ((8.0, 6.0, 20), (4.0, 4.0, 15), (4.0, 2.0, 15))  # point distance mm, smoothing mm (sd), iterations
MARGIN_MM = 6.0  # points are taken up to this distance from the template's brain
MIN_STEP_MM = 0.01  # a level ends at a mean step below this
RIDGE = 1e-6  # on the diagonal of the normal equations, whose columns have unit length
OUTLIER = 2.5  # robust standard deviations from which residuals lose weight
CONTRAST_PASSES = 4  # wide ventricles are many outliers
FIELD_SD_MM = 15.0  # smoothness of a bias field
HEAD_LEVEL = 0.15  # least intensity of the head, over the 98th percentile
DOUBTFUL_TISSUE = 0.5  # share of tissue below which the search is repeated; real and made heads reach 0.73 to 0.95
MIN_TISSUE = 0.31  # below it the scan is refused; balls, boxes and limbs reach 0.07, heads in a wrong pose 0.28
# Poses of the coarse search: degrees of nodding (pitch, which varies most between scans), degrees about the other axes,
# scales, and the scales at which all rotations are tried.
USUAL = ((-30.0, -15.0, 0.0, 15.0, 30.0), (-20.0, 0.0, 20.0), (0.8, 0.9, 1.0, 1.13), (0.85, 1.05))
NODDING, TURNS = (-60.0, -40.0, -20.0, 0.0, 20.0, 40.0, 60.0), (-40.0, -20.0, 0.0, 20.0, 40.0)
WIDE = (NODDING, TURNS, (0.7, 0.8, 0.9, 1.0, 1.13, 1.25), (0.95,))
STRETCH = (0.6, 1.6)  # of a head against MNI152, along any direction


@dataclass(frozen=True)
class Registration:
    """An affine registration and what it shows of the brain.

    Attributes
    ----------
    scan_to_mni : (4, 4) float64
        World, RAS mm, to MNI152 mm.
    tissue : float
        Share of the variance inside the brain, beyond a smooth field, that the tissue maps explain.
    contrast : tuple of float
        Intensities of white less grey matter, and of grey matter less fluid, over that of white matter: about 0.3 and
        0.5 in a T1-weighted scan.
    """

    scan_to_mni: np.ndarray
    tissue: float
    contrast: tuple[float, float]


def register(volume: np.ndarray, affine: np.ndarray, name: str, *, registered: bool = False) -> Registration:
    """Register a scan to MNI152 by an affine with 12 degrees of freedom.

    Where the coarse search yields no brain, a brain of impossible shape, or one whose tissue explains little of the
    intensities, it is repeated without the bias field, with inverted contrast, and with more rotations and scales.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        A head or a brain in canonical orientation.
    affine : (4, 4) array
        Voxel indices to world, RAS mm.
    name : str
        Name of the scan in messages.
    registered : bool
        The scan is in MNI152 space already and only measured.

    Returns
    -------
    Registration

    Raises
    ------
    StudyError
        If nothing in the field of view resembles a brain, or the best match has an impossible shape or shows no tissue.
    """
    small, grid = block_mean(volume, affine, 2.0)
    low, high = np.float32(np.percentile(small, 1)), np.float32(np.percentile(small[small > small.min()], 99.5))
    small = np.clip(small, low, high) - low  # from 0, the background, up to the brightest voxels but a few
    if registered:
        return _judged(_Fit(small, grid, *LEVELS[-1][:2]), np.eye(4), name)
    results, refusal = [], None
    for image, poses in _searches(small, grid):
        try:
            result = _refine(small, grid, _coarse_search(image, grid, name, poses), name)
        except StudyError as error:
            refusal = refusal or error
            continue
        results.append(result)
        if result.tissue >= DOUBTFUL_TISSUE:
            break
    if not results:
        raise refusal
    return max(results, key=lambda result: result.tissue)


def rigid_part(scan_to_mni: np.ndarray) -> np.ndarray:
    """Rotation and translation nearest to an affine; both take the same point of the scan to the brain's centre.

    Parameters
    ----------
    scan_to_mni : (4, 4) array
        World to world, mm.

    Returns
    -------
    (4, 4) float64
    """
    left, _, right = np.linalg.svd(scan_to_mni[:3, :3])
    turn = left @ right
    origin = np.linalg.solve(scan_to_mni, [*_brain_centre(), 1.0])[:3]
    return nib.affines.from_matvec(turn, _brain_centre() - turn @ origin)


def _searches(volume: np.ndarray, affine: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[tuple[float, ...], ...]]]:
    """Images for the coarse search and its poses, the likely ones first.

    Only this search needs the contrast of the template, which has dark fluid as T1-weighted scans have.
    """
    yield volume, USUAL
    flat = _flattened(volume, affine)
    yield flat, USUAL
    yield np.clip(np.float32(np.percentile(flat, 99)) - flat, 0, None) * (flat > HEAD_LEVEL), USUAL
    yield volume, WIDE


def _flattened(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Intensities over their mean in the surroundings, without the background."""
    sigma = FIELD_SD_MM / voxel_sizes(affine)
    head = (volume > HEAD_LEVEL * np.percentile(volume, 98)).astype(np.float32)
    share, total = (ndimage.gaussian_filter(part, sigma, truncate=3) for part in (head, volume * head))
    return np.where(share > 0.05, volume / np.maximum(total / np.maximum(share, 0.05), 1e-12), 0).astype(np.float32)


def _refine(volume: np.ndarray, affine: np.ndarray, starts: list[np.ndarray], name: str) -> Registration:
    """Least-squares pose, coarse to fine, from the start (MNI152 to scan) that shows most tissue at the coarsest level.

    The explained variance does not compare starts: a collapsed pose covers little, of which much is explained.
    """
    for edge, smoothing, iterations in LEVELS:
        fit = _Fit(volume, affine, edge, smoothing)
        fitted = [fit.descend(start, iterations) for start in starts]
        starts = [max(fitted, key=lambda matrix: (not _fault(matrix), fit.tissue(matrix)[0]))]
    if fault := _fault(starts[0]):
        raise StudyError(
            f"{name}: no brain was found in the field of view ({fault}); expected a T1-weighted scan of a whole head "
            "or brain"
        )
    return _judged(fit, starts[0], name)


def _judged(fit: _Fit, matrix: np.ndarray, name: str) -> Registration:
    tissue, contrast = fit.tissue(matrix)
    if tissue < MIN_TISSUE:
        raise StudyError(
            f"{name}: the brain region shows no grey and white matter (tissue explains {tissue:.0%} of its intensity "
            f"variance, expected {MIN_TISSUE:.0%} or more); expected a T1-weighted scan of a whole head or brain"
        )
    return Registration(np.linalg.inv(matrix), tissue, contrast)


def _fault(matrix: np.ndarray) -> str:
    """How a pose mirrors, flattens or inflates the head; empty where it does not."""
    low, *_, high = np.linalg.svd(matrix[:3, :3], compute_uv=False)[::-1]
    if np.linalg.det(matrix[:3, :3]) > 0 and STRETCH[0] <= low and high <= STRETCH[1]:
        return ""
    return (
        f"the best match is {low:.2f} to {high:.2f} times as large as MNI152 along its axes, expected {STRETCH[0]} to "
        f"{STRETCH[1]}, not mirrored"
    )


@dataclass(frozen=True)
class _State:
    """What a `_Fit` finds at a pose: the share of the variance explained, which points the field of view holds, and,
    of these, the places in voxels, the intensities and the robust weights.
    """

    explained: float
    inside: np.ndarray
    voxels: np.ndarray
    values: np.ndarray
    weights: np.ndarray


class _Fit:
    """One resolution level: the smoothed scan, its gradient, and the template's points and basis."""

    def __init__(self, volume: np.ndarray, affine: np.ndarray, edge: float, smoothing: float) -> None:
        smooth = ndimage.gaussian_filter(volume, smoothing / voxel_sizes(affine), truncate=3)
        self.image = torch.from_numpy(smooth)[None]
        self.slopes = torch.from_numpy(np.stack(np.gradient(smooth)))
        self.to_world = np.linalg.inv(affine[:3, :3]).astype(np.float32)
        self.to_voxel = np.linalg.inv(affine)
        self.shape = np.array(volume.shape)
        self.points, self.basis = _basis(edge, smoothing)

    def descend(self, matrix: np.ndarray, iterations: int) -> np.ndarray:
        """Damped Gauss-Newton; a step that explains less is halved, at most four times."""
        state = self._explain(matrix)
        for _ in range(iterations):
            step = self._change(state)
            for _ in range(4):
                trial = matrix.copy()
                trial[:3] += step
                new = self._explain(trial)
                if new.explained > state.explained:
                    break
                step = step / 2
            else:
                break
            moved = np.abs(self.points @ step[:, :3].T + step[:, 3]).mean()
            matrix, state = trial, new
            if moved < MIN_STEP_MM:
                break
        return matrix

    def tissue(self, matrix: np.ndarray) -> tuple[float, tuple[float, float]]:
        """`Registration.tissue` and `Registration.contrast` at a pose."""
        voxels, inside = self._placed(matrix)
        brain = inside & (self.basis[:, :3].sum(axis=1) > 0.9)
        values, maps = _sampled(self.image, voxels[brain])[0], self.basis[brain]
        smooth = np.column_stack([np.ones(len(maps)), _quadratic_terms(self.points[brain])])
        _, weights = _robust_fit(maps, values)
        left = [weights @ (values - part @ _least_squares(part, values, weights)) ** 2 for part in (maps, smooth)]
        if not left[1] > 1e-12:
            return 0.0, (0.0, 0.0)
        seen = values > 0
        grey, white, fluid = (float(c) for c in _robust_fit(maps[seen], values[seen], CONTRAST_PASSES)[0][:3])
        unit = max(abs(white), 1e-9)
        return float(1 - left[0] / left[1]), ((white - grey) / unit, (grey - fluid) / unit)

    def _placed(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The points at a pose in voxels (N, 3), and which of them the field of view holds."""
        voxels = nib.affines.apply_affine(self.to_voxel @ matrix, self.points)
        return voxels, np.all((voxels >= 0) & (voxels <= self.shape - 1), axis=1)

    def _explain(self, matrix: np.ndarray) -> _State:
        """The share of the variance explained at a pose."""
        voxels, inside = self._placed(matrix)
        if inside.mean() < 0.3:
            return _State(-1.0, inside, *np.empty((3, 0)))
        voxels, basis = voxels[inside], self.basis[inside]
        values = _sampled(self.image, voxels)[0]
        coefficients, weights = _robust_fit(basis, values)
        mean = np.average(values, weights=weights)
        left = weights @ (values - basis @ coefficients) ** 2
        return _State(float(1 - left / (weights @ (values - mean) ** 2 + 1e-12)), inside, voxels, values, weights)

    def _change(self, state: _State) -> np.ndarray:
        """The (3, 4) least-squares change of pose."""
        if state.explained == -1.0:
            return np.zeros((3, 4))
        gradient = _sampled(self.slopes, state.voxels).T @ self.to_world
        centred = np.column_stack([self.points - _brain_centre(), np.full(len(self.points), 50.0)])[state.inside]
        jacobian = (gradient[:, :, None] * centred[:, None, :]).reshape(len(centred), 12)
        design = np.column_stack([self.basis[state.inside], -jacobian])
        change = _least_squares(design, state.values, state.weights)[-12:].reshape(3, 4)
        change[:, 3] *= 50.0
        change[:, 3] -= change[:, :3] @ _brain_centre()
        return change


def _sampled(layers: torch.Tensor, voxels: np.ndarray) -> np.ndarray:
    """Trilinear samples (C, N) float32 of layers (C, X, Y, Z) at N places (N, 3) inside their grid, in voxels."""
    unit = 2 * voxels[:, ::-1] / (np.array(layers.shape[:0:-1]) - 1) - 1
    grid = torch.from_numpy(unit.astype(np.float32))[None, None, None]
    return functional.grid_sample(layers[None], grid, padding_mode="border", align_corners=True)[0, :, 0, 0].numpy()


def _least_squares(design: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Coefficients of a weighted linear fit, by normal equations of columns of unit length with a trace of ridge."""
    if weights is not None:
        root = np.sqrt(weights)
        design, values = design * root[:, None], values * root
    normal = design.T @ design
    length = np.sqrt(np.diag(normal))
    length[length == 0] = 1
    normal = normal / length / length[:, None] + RIDGE * np.eye(len(length))
    return np.linalg.solve(normal, design.T @ values / length) / length


def _robust_fit(design: np.ndarray, values: np.ndarray, passes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Linear fit in which outliers of the pass before lose weight (Geman & McClure): coefficients and weights."""
    weights = np.ones(len(values))
    coefficients = _least_squares(design, values)
    for _ in range(passes):
        residual = values - design @ coefficients
        spread = 1.4826 * np.median(np.abs(residual)) + 1e-12
        weights = 1 / (1 + (residual / (OUTLIER * spread)) ** 2) ** 2
        coefficients = _least_squares(design, values, weights)
    return coefficients, weights


@cache
def _basis(edge: float, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) in MNI152 mm and the basis of the intensity there (N, B), float64."""
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
    return points, np.column_stack([gm, wm, csf, 1 - gm - wm - csf, tissue[:, None] * _quadratic_terms(points)])


def _quadratic_terms(points: np.ndarray) -> np.ndarray:
    """Linear and quadratic terms of positions about the brain's centre, which model a smooth field."""
    x, y, z = ((points - _brain_centre()) / 70).T
    return np.column_stack([x, y, z, x * x, y * y, z * z, x * y, x * z, y * z])


def _coarse_search(
    volume: np.ndarray, affine: np.ndarray, name: str, poses: tuple[tuple[float, ...], ...]
) -> list[np.ndarray]:
    """The best translation of the template's brain at each scale, with the best rotation at a similar scale.

    A small template fits inside a large head and a large one around a small head, so scales are not compared here:
    `_refine` follows each and takes the one that shows most tissue.

    Returns
    -------
    list of (4, 4) float64
        MNI152 mm to scan world, RAS mm; one for each scale.
    """
    image, inside, corner = _coarse_scan(volume, affine)
    search = _MaskedCorrelation(image, inside)
    pitches, others, scales, rotation_scales = poses
    turns = list(product(pitches, others, others))
    scores = {scale: [search.best(turn, scale)[0] for turn in turns] for scale in rotation_scales}
    rotations = {scale: turns[int(np.argmax(each))] for scale, each in scores.items()}
    matches = []
    for scale in scales:
        rotation = rotations[min(rotations, key=lambda near, scale=scale: abs(near - scale))]  # type: ignore[misc]
        matches.append((rotation, scale, *search.best(rotation, scale)))
    top = max(score for _, _, score, _ in matches)
    if not top > MIN_CORRELATION:
        raise StudyError(
            f"{name}: no brain was found in the field of view (best correlation with MNI152 {max(top, 0):.2f}); "
            "expected a T1-weighted scan of a whole head or brain"
        )
    return [_matrix(rotation, scale, corner + COARSE_MM * shift) for rotation, scale, _, shift in matches]


def _matrix(rotation: tuple[float, float, float], scale: float, centre: np.ndarray) -> np.ndarray:
    """The (4, 4) transform that rotates and scales the template and puts its brain's centre at a world position."""
    turn = scale * Rotation.from_euler("xyz", rotation, degrees=True).as_matrix()
    return nib.affines.from_matvec(turn, centre - turn @ _brain_centre())


class _MaskedCorrelation:
    """Correlate poses of the template with one scan, over all translations at once."""

    def __init__(self, image: np.ndarray, inside: np.ndarray) -> None:
        template = _posed((0.0, 0.0, 0.0), 1.0)[0].shape
        self.shape = [fft.next_fast_len(n + t // 2 + 1, real=True) for n, t in zip(inside.shape, template, strict=True)]
        self.scan = [fft.rfftn(part, self.shape) for part in (inside, image * inside, image**2 * inside)]

    def best(self, rotation: tuple[float, float, float], scale: float) -> tuple[float, np.ndarray]:
        """Highest correlation, and the template's centre there in voxels of the scan's coarse grid."""
        image, mask = _posed(rotation, scale)
        f_mask, f_image, f_square = (
            np.conj(fft.rfftn(part, self.shape)) for part in (mask, image * mask, image**2 * mask)
        )
        count, scan, square = (self._back(part * f_mask) for part in self.scan)
        tmpl, tmpl_square = (self._back(self.scan[0] * part) for part in (f_image, f_square))
        product_ = self._back(self.scan[1] * f_image)
        n = np.maximum(count, 1)
        spread = np.maximum(square - scan**2 / n, 0) * np.maximum(tmpl_square - tmpl**2 / n, 0)
        score = (product_ - scan * tmpl / n) / np.sqrt(spread + 1e-3 * spread.max())
        score[count < MIN_OVERLAP * mask.sum()] = -1
        where = np.array(np.unravel_index(np.argmax(score), score.shape))
        half = (np.array(image.shape) - 1) / 2
        wrapped = where - np.where(where + half > np.array(self.shape) - half / 2, self.shape, 0)
        return float(score.max()), wrapped + half

    def _back(self, spectrum: np.ndarray) -> np.ndarray:
        return fft.irfftn(spectrum, self.shape)


def _coarse_scan(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scan on a world-aligned coarse grid, its field of view there, and the first voxel's world position."""
    low, high = world_box(volume.shape, affine)
    shape = tuple(int(n) for n in np.ceil((high - low) / COARSE_MM).astype(int) + 1)
    grid = nib.affines.from_matvec(np.diag([COARSE_MM] * 3), low)
    mean, mean_affine = block_mean(volume, affine, 4.0)
    smooth = ndimage.gaussian_filter(mean, 0.8)
    image = resample(smooth, mean_affine, shape, grid, outside=-1.0)
    inside = (image >= 0).astype(np.float32)
    top = float(image.max()) or 1.0
    return np.maximum(image, 0) / np.float32(top), inside, low


@lru_cache(maxsize=128)
def _posed(rotation: tuple[float, float, float], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The rotated, scaled template on a coarse cube around its brain's centre: image and mask, float32."""
    base = atlas.template(4.0)
    reach = 13
    grid = nib.affines.from_matvec(np.diag([COARSE_MM] * 3), [-COARSE_MM * reach] * 3)
    world = np.linalg.inv(_matrix(rotation, scale, np.zeros(3)))
    image, mask = (resample(part, base.affine, (2 * reach + 1,) * 3, grid, world) for part in _smooth_template())
    return image, (mask > 0.5).astype(np.float32)


@cache
def _smooth_template() -> tuple[np.ndarray, np.ndarray]:
    """The template at 4 mm, smoothed, and a wide mask of its brain, float32."""
    base = atlas.template(4.0)
    near = ndimage.binary_dilation(base.mask, iterations=2)
    return ndimage.gaussian_filter(base.t1, 0.8), near.astype(np.float32)


@cache
def _brain_centre() -> np.ndarray:
    base = atlas.template(4.0)
    return nib.affines.apply_affine(base.affine, np.argwhere(base.mask).mean(axis=0))
