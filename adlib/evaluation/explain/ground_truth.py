"""Where disease changes the simulated heads: what a map of the phantom is to find."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from adlib.evaluation.explain.attribution import SMOOTHING
from adlib.evaluation.explain.space import in_slices, slice_voxels
from adlib.imaging import atlas
from adlib.imaging.volume import resample
from adlib.phantom.cohort import SCANNERS
from adlib.phantom.head import FIELD_MM, TISSUES, anatomy, velocity
from adlib.training.model_file import ModelCard

MOST_CHANGED = 0.1  # share of the brain's pixels
HEAD_MM = 2.0
TOP = 0.05  # share of the brain's pixels with most attribution
SMOOTHED = f"in the slices, smoothed as the maps are; the {MOST_CHANGED:.0%} of the brain's pixels that change most"
DEFINITIONS = {
    "volume": f"absolute divergence of the disease's velocity field, the rate of change of local volume, {SMOOTHED}",
    "image": f"absolute difference of the average head's T1w with the disease of severity 1 and without, {SMOOTHED}",
}


@cache
def change(of: str, resolution_mm: float) -> np.ndarray:
    """How much disease of severity 1 changes each voxel of the average head.

    A person's own shape moves this by a few mm. The T1w is that of the first of the phantom's scanners.

    Parameters
    ----------
    of : str
        ``volume`` or ``image``, see `DEFINITIONS`.
    resolution_mm : float
        Voxel edge, mm.

    Returns
    -------
    (X, Y, Z) float32
        On ``atlas.template(resolution_mm)``.
    """
    base, field, affine = atlas.template(resolution_mm), velocity("disease"), anatomy(FIELD_MM).affine
    if of == "volume":
        divergence = sum(np.gradient(part, FIELD_MM, axis=axis) for axis, part in enumerate(field))
        return np.abs(resample(divergence.astype(np.float32), affine, base.mask.shape, base.affine))
    head = anatomy(HEAD_MM)
    before = np.tensordot(np.array([SCANNERS[0].contrast[name] for name in TISSUES]), head.tissues, axes=1)
    moved = [resample(part, affine, before.shape, head.affine) / HEAD_MM for part in field]
    after = ndimage.map_coordinates(before, np.indices(before.shape) + moved, order=1)
    return resample(np.abs(after - before).astype(np.float32), head.affine, base.mask.shape, base.affine)


def changed_pixels(card: ModelCard, of: str) -> tuple[np.ndarray, np.ndarray]:
    """The region that disease changes most and the brain at the pixels of a scan's slices.

    Parameters
    ----------
    card : ModelCard
    of : str
        ``volume`` or ``image``, see `DEFINITIONS`.

    Returns
    -------
    changed, brain : (S, 3, size, size) bool
    """
    resolution, voxels = card.preprocess.resolution_mm, slice_voxels(card)
    brain = in_slices(atlas.template(resolution).mask, voxels)
    smooth = ndimage.gaussian_filter(in_slices(change(of, resolution), voxels), (0, 0, SMOOTHING, SMOOTHING))
    return brain & (smooth >= np.quantile(smooth[brain], 1 - MOST_CHANGED)), brain


def ratio_to_chance(values: np.ndarray, changed: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """How often the pixels with most absolute attribution lie in the changed region, against chance.

    Parameters
    ----------
    values : (N, S, 3, size, size) float
        Attribution of N scans.
    changed, brain : (S, 3, size, size) bool
        From `changed_pixels`.

    Returns
    -------
    (N,) float64
        1 is chance; the greatest possible value is that of brain pixels to changed ones.
    """
    inside = np.abs(values[:, brain])
    count = int(np.ceil(TOP * inside.shape[1]))
    top = np.argsort(-inside, axis=1, kind="stable")[:, :count]
    return changed[brain][top].mean(1) / changed[brain].mean()
