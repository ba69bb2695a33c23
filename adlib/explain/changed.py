"""Where disease changes the simulated heads: what a map of the phantom is to find."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from adlib import atlas
from adlib.explain.methods import SMOOTHING
from adlib.explain.space import in_slices, slice_voxels
from adlib.model_file import ModelCard
from adlib.sources.phantom_head import FIELD_MM, anatomy, velocity
from adlib.volume import resample

MOST_CHANGED = 0.1  # share of the brain's voxels
TOP = 0.05  # share of the brain's pixels with most attribution
DEFINITION = (
    f"Voxels of the template's brain whose local volume disease changes most: the highest {MOST_CHANGED:.0%} of the "
    "absolute divergence of the disease's velocity field; in the slices, grown by one standard deviation of the maps' "
    f"smoothing ({SMOOTHING:g} pixels). A map's share is that of the {TOP:.0%} of the brain's pixels with most "
    "absolute attribution; chance is the region's share of the brain's pixels."
)


@cache
def changed_voxels(resolution_mm: float) -> np.ndarray:
    """The voxels that disease changes most, (X, Y, Z) bool on ``atlas.template(resolution_mm)``.

    The divergence of a velocity field is the rate at which local volume changes under it. The field is that of the
    template; a person's own shape moves the region by a few mm.
    """
    base = atlas.template(resolution_mm)
    field = velocity("disease")
    divergence = sum(np.gradient(part, FIELD_MM, axis=axis) for axis, part in enumerate(field))
    change = np.abs(resample(divergence.astype(np.float32), anatomy(FIELD_MM).affine, base.mask.shape, base.affine))
    return base.mask & (change >= np.quantile(change[base.mask], 1 - MOST_CHANGED))


def changed_pixels(card: ModelCard) -> tuple[np.ndarray, np.ndarray]:
    """The changed region and the brain at the pixels of a scan's slices, two (S, 3, size, size) bool arrays."""
    resolution, voxels = card.preprocess.resolution_mm, slice_voxels(card)
    brain = in_slices(atlas.template(resolution).mask, voxels)
    reach = np.arange(-int(SMOOTHING), int(SMOOTHING) + 1)
    disc = np.hypot(*np.meshgrid(reach, reach)) <= SMOOTHING
    grown = ndimage.binary_dilation(in_slices(changed_voxels(resolution), voxels), disc[None, None])
    return grown & brain, brain


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
