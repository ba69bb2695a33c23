"""Coarse search for the brain: every translation at once, for a grid of rotations and scales.

References
----------
Padfield 2012, doi:10.1109/TIP.2011.2181402 (masked normalised cross-correlation by FFT).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

import nibabel as nib
import numpy as np
from scipy import fft, ndimage

from adlib.imaging import atlas
from adlib.imaging.volume import block_mean, resample, world_box
from adlib.study.records import StudyError

COARSE_MM = 8.0
MIN_CORRELATION = 0.2  # noise reaches 0.14
MIN_OVERLAP = 0.6  # share of the template's brain that must lie inside the field of view


@dataclass(frozen=True)
class Poses:
    """Rotations and scales to try.

    Attributes
    ----------
    pitches : tuple of float
        Degrees about the left-right axis: nodding varies most between scans.
    turns : tuple of float
        Degrees about each of the other two axes.
    scales : tuple of float
        Of the template's brain.
    pose_scales : tuple of float
        Scales at which all rotations are tried: the best one differs where a bright scalp misleads.
    """

    pitches: tuple[float, ...]
    turns: tuple[float, ...]
    scales: tuple[float, ...]
    pose_scales: tuple[float, ...]


USUAL = Poses((-30.0, -15.0, 0.0, 15.0, 30.0), (-20.0, 0.0, 20.0), (0.8, 0.9, 1.0, 1.13), (0.85, 1.05))
WIDE = Poses(
    (-60.0, -40.0, -20.0, 0.0, 20.0, 40.0, 60.0),
    (-40.0, -20.0, 0.0, 20.0, 40.0),
    (0.7, 0.8, 0.9, 1.0, 1.13, 1.25),
    (0.95,),
)


def coarse_search(volume: np.ndarray, affine: np.ndarray, name: str, tried: Poses = USUAL) -> list[np.ndarray]:
    """The best translation of the template's brain at each scale, with the best rotation at a similar scale.

    A small template fits inside a large head and a large one around a small head, so the scales are not weighed
    against each other here; `register` follows each and keeps the one that explains the scan best.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        Intensities from 0 up.
    affine : (4, 4) array
    name : str
        What to call the scan in messages.
    tried : Poses

    Returns
    -------
    list of (4, 4) float64
        MNI152 mm to scan world, RAS mm; one for each of the scales tried.

    Raises
    ------
    StudyError
        If nothing in the field of view resembles a brain.
    """
    image, inside, corner = _coarse_scan(volume, affine)
    search = _MaskedCorrelation(image, inside)
    poses = {scale: _best_pose(search, scale, tried) for scale in tried.pose_scales}
    found = []
    for scale in tried.scales:
        pose = poses[min(tried.pose_scales, key=lambda near, scale=scale: abs(near - scale))]
        found.append((pose, scale, *search.best(pose, scale)))
    top = max(score for _, _, score, _ in found)
    if not top > MIN_CORRELATION:
        raise StudyError(
            f"{name}: no brain was found in the field of view (best correlation with MNI152 {max(top, 0):.2f}); "
            "expected a T1-weighted scan of a whole head or brain"
        )
    return [_matrix(pose, scale, corner + COARSE_MM * shift) for pose, scale, _, shift in found]


def _best_pose(search: _MaskedCorrelation, scale: float, tried: Poses) -> tuple[float, float, float]:
    return max(product(tried.pitches, tried.turns, tried.turns), key=lambda pose: search.best(pose, scale)[0])


def _matrix(pose: tuple[float, float, float], scale: float, centre: np.ndarray) -> np.ndarray:
    """The (4, 4) transform that turns and scales the template and puts its brain's centre at a world position."""
    turn = scale * _rotation(pose)
    return nib.affines.from_matvec(turn, centre - turn @ brain_centre())


class _MaskedCorrelation:
    """Correlate poses of the template with one scan, over all translations at once."""

    def __init__(self, image: np.ndarray, inside: np.ndarray) -> None:
        template = _posed((0.0, 0.0, 0.0), 1.0)[0].shape
        self.shape = [fft.next_fast_len(n + t // 2 + 1, real=True) for n, t in zip(inside.shape, template, strict=True)]
        self.scan = [fft.rfftn(part, self.shape) for part in (inside, image * inside, image**2 * inside)]

    def best(self, pose: tuple[float, float, float], scale: float) -> tuple[float, np.ndarray]:
        """Highest correlation and where the template's centre then lies, in voxels of the scan's coarse grid."""
        image, mask = _posed(pose, scale)
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
    """The scan on a world-aligned coarse grid, where it has values, and the world position of the first voxel."""
    low, high = world_box(volume.shape, affine)
    shape = tuple(int(n) for n in np.ceil((high - low) / COARSE_MM).astype(int) + 1)
    grid = np.diag([COARSE_MM, COARSE_MM, COARSE_MM, 1.0])
    grid[:3, 3] = low
    mean, mean_affine = block_mean(volume, affine, 4.0)
    smooth = ndimage.gaussian_filter(mean, 0.8)
    image = resample(smooth, mean_affine, shape, grid, outside=-1.0)
    inside = (image >= 0).astype(np.float32)
    top = float(image.max()) or 1.0
    return np.maximum(image, 0) / np.float32(top), inside, low


@lru_cache(maxsize=128)
def _posed(pose: tuple[float, float, float], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The template's brain in a pose, on a coarse cube about its centre: image and mask, float32."""
    base = atlas.template(4.0)
    reach = 13
    grid = np.diag([COARSE_MM] * 3 + [1.0])
    grid[:3, 3] = -COARSE_MM * reach
    world = np.eye(4)
    world[:3, :3] = np.linalg.inv(scale * _rotation(pose))
    world[:3, 3] = brain_centre()
    near = ndimage.binary_dilation(base.mask, iterations=2)
    image = resample(ndimage.gaussian_filter(base.t1, 0.8), base.affine, (2 * reach + 1,) * 3, grid, world)
    mask = resample(near.astype(np.float32), base.affine, (2 * reach + 1,) * 3, grid, world)
    return image, (mask > 0.5).astype(np.float32)


@cache
def brain_centre() -> np.ndarray:
    base = atlas.template(4.0)
    return nib.affines.apply_affine(base.affine, np.argwhere(base.mask).mean(axis=0))


def _rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Rotation (3, 3) about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
