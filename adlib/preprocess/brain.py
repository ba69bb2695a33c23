"""Brain extraction: recognise a brain that comes extracted; otherwise carry the template's mask over and refine it."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from adlib.imaging.atlas import Template, region, template
from adlib.imaging.volume import block_mean, box_about, grown, resample, voxel_ml, voxel_sizes

CONSTANT_SHARE = 0.25  # of the field of view, at least, in a brain that comes extracted
BRAIN_ML = (700.0, 2200.0)
RING_MM = (10.0, 30.0)  # where a head has skull and scalp and an extracted brain has nothing
RING_GRID_MM = 3.0
RING_SHARE = 0.04  # of the ring, at most, that is not background
WORK_MM = 2.0
REACH_MM = 8.0  # tissue is looked for this far beyond the template's brain
CORE_MM = 1.0  # deeper than this inside the template's brain all is brain
OPEN_MM = 3.0  # bridges thinner than twice this (dura, vessels) do not join tissue to the scalp
CLOSE_MM = 6.0  # sulci narrower than twice this belong to the brain
EDGE = 0.35  # of the smoothed mask: below a half, for the fluid between cortex and skull
FLUID_MM = 4.0  # fluid between cortex and skull is looked for this far beyond the smoothed mask
FLUID_BASE_MM = 4.0  # and, at the base of the skull, this far beyond the template's brain
BASE_BELOW_MM = -20.0  # MNI152 height
INNER_SMOOTHING_MM = 0.7
OUTER_SMOOTHING_MM = 1.5
OUTER_EDGE = 0.4  # of the smoothed, grown mask


def foreground(volume: np.ndarray) -> np.ndarray | None:
    """Where a volume differs from its exactly constant background; None if it has no such background.

    Parameters
    ----------
    volume : (X, Y, Z) float32

    Returns
    -------
    (X, Y, Z) bool or None
    """
    ends = [np.moveaxis(volume, axis, 0)[[0, -1]] for axis in range(3)]
    faces = np.concatenate([end.ravel() for end in ends])
    values, counts = np.unique(faces, return_counts=True)
    differs = volume != values[counts.argmax()]
    return differs if 1 - differs.mean() >= CONSTANT_SHARE else None


def is_extracted(volume: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray) -> bool:
    """Tell whether skull and scalp were removed before.

    Three things must hold: the background is one exact value over much of the field of view, the rest has the volume
    of a brain, and the ring around the registered template's brain, where skull and scalp would be, is background.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        The scan, not resampled.
    affine : (4, 4) array
    scan_to_mni : (4, 4) array

    Returns
    -------
    bool
    """
    differs = foreground(volume)
    if differs is None or not BRAIN_ML[0] < differs.sum() * voxel_ml(affine) < BRAIN_ML[1]:
        return False
    base = template(RING_GRID_MM)
    small, grid = block_mean(differs, affine, RING_GRID_MM)
    present = resample(small, grid, base.mask.shape, base.affine, np.linalg.inv(scan_to_mni))
    return bool(present[_ring()].mean() < RING_SHARE)


@cache
def _ring() -> np.ndarray:
    base = template(RING_GRID_MM)
    away = ndimage.distance_transform_edt(~base.mask, sampling=RING_GRID_MM)
    height = base.affine[2, 3] + base.affine[2, 2] * np.arange(base.mask.shape[2])
    return (away > RING_MM[0]) & (away < RING_MM[1]) & (height > -20)


def given_mask(volume: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray, base: Template) -> np.ndarray:
    """Mask of a brain that comes extracted, on the template's grid: all that is not background, holes filled.

    Returns
    -------
    (X, Y, Z) bool
    """
    differs = foreground(volume)
    return carried_mask(np.ones(volume.shape, bool) if differs is None else differs, affine, scan_to_mni, base)


def carried_mask(mask: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray, base: Template) -> np.ndarray:
    """A mask (X, Y, Z) bool on the scan's grid carried to the template's: its largest part, holes filled, bool."""
    small, grid = block_mean(mask.astype(np.float32), affine, voxel_sizes(base.affine).max())
    moved = resample(small, grid, base.mask.shape, base.affine, np.linalg.inv(scan_to_mni)) > 0.5
    return ndimage.binary_fill_holes(_largest(moved))


def refined_mask(volume: np.ndarray, base: Template) -> np.ndarray:
    """Fit the template's brain mask to a registered head by intensity, within a band about its surface.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        Bias-corrected head on the template's grid.
    base : Template

    Returns
    -------
    (X, Y, Z) bool
        Brain with its sulcal and ventricular fluid.
    """
    small, grid = block_mean(volume, base.affine, WORK_MM)
    mask, gm, wm, depth = _working_template(float(voxel_sizes(base.affine)[0]))
    edge = voxel_sizes(grid)
    grey, white = np.median(small[mask & (gm > 0.7)]), np.median(small[mask & (wm > 0.9)])
    tissue = (small > 0.65 * grey) & (small < white + 0.6 * abs(white - grey)) & (depth > -REACH_MM)
    core = depth > CORE_MM
    tissue = grown(_largest(_shrink(tissue | core, OPEN_MM, edge)), OPEN_MM, grid) & (tissue | core)
    closed = _shrink(grown(tissue, CLOSE_MM, grid), CLOSE_MM, edge)
    brain = ndimage.binary_fill_holes((closed | core) & (depth > -REACH_MM))
    soft = ndimage.gaussian_filter(_largest(brain).astype(np.float32), 1.5 / edge)
    surface = resample(soft, grid, volume.shape, base.affine) > EDGE
    return _with_fluid(volume, surface, float(grey), base)


def _with_fluid(volume: np.ndarray, mask: np.ndarray, grey: float, base: Template) -> np.ndarray:
    """Grow a mask through the fluid about it up to the dark inner table of the skull."""
    edge = voxel_sizes(base.affine)
    box = box_about(mask, (FLUID_MM + 2) / edge)
    smooth = ndimage.gaussian_filter(volume[box], INNER_SMOOTHING_MM / edge, truncate=3)
    height = (base.affine[2, 3] + edge[2] * np.arange(volume.shape[2]))[box[2]]
    inner, steps = mask[box], round(FLUID_MM / edge[0])
    ring = ndimage.binary_dilation(inner, iterations=steps) & ~inner
    fluid = np.percentile(volume[region("ventricles", float(edge[0]))], 20)
    bone = np.percentile(smooth[ring & (height > 10)], 10)
    wet = (smooth > 0.5 * (fluid + bone)) & (smooth < 0.5 * (fluid + grey)) & ring
    wet &= (height > BASE_BELOW_MM) | _near(float(edge[0]))[box]
    grown = ndimage.binary_dilation(inner, iterations=steps, mask=wet | inner)
    result = mask.copy()
    result[box] |= ndimage.gaussian_filter(grown.astype(np.float32), OUTER_SMOOTHING_MM / edge, truncate=2) > OUTER_EDGE
    return result


@cache
def _near(resolution_mm: float) -> np.ndarray:
    """Where the template's brain is at most `FLUID_BASE_MM` away."""
    base = template(resolution_mm)
    return grown(base.mask, FLUID_BASE_MM, base.affine)


@cache
def _working_template(resolution_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The template's mask, GM and WM at about `WORK_MM`, and how deep inside its brain each voxel lies, mm."""
    base = template(resolution_mm)
    grid = block_mean(base.gm, base.affine, WORK_MM)[1]
    maps = [block_mean(m, base.affine, WORK_MM)[0] for m in (base.mask.astype(np.float32), base.gm, base.wm)]
    mask, edge = maps[0] > 0.5, voxel_sizes(grid)
    depth = ndimage.distance_transform_edt(mask, sampling=edge) - ndimage.distance_transform_edt(~mask, sampling=edge)
    return mask, *maps[1:], depth


def _shrink(mask: np.ndarray, by_mm: float, edge: np.ndarray) -> np.ndarray:
    """The voxels of a mask that lie deeper in it than a distance, mm."""
    box, result = box_about(mask, np.ones(3)), np.zeros_like(mask)
    result[box] = ndimage.distance_transform_edt(mask[box], sampling=edge) > by_mm
    return result


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
