"""The MNI152 space of the study: T1w, tissue maps and regions on one grid, without any download."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import nibabel as nib
import numpy as np
from nibabel.processing import resample_to_output
from nilearn.datasets import (
    load_mni152_brain_mask,
    load_mni152_gm_template,
    load_mni152_template,
    load_mni152_wm_template,
)
from scipy import ndimage

from adlib.study.records import StudyError

SPACE = "MNI152NLin2009aSym"
REGIONS = ("hippocampus_left", "hippocampus_right", "ventricles", "temporal_lobes")

# Centre line (MNI mm, left side) and radii (mm) of the hippocampus, head to tail: centroids of the coronal sections of
# the Allen Human Reference Atlas 3D 2020 (Ding et al. 2016, doi:10.1002/cne.24080; CC BY 4.0).
_HIPPOCAMPUS = (
    ((-22, -9, -24), 5.0),
    ((-25, -13, -22), 6.8),
    ((-27, -17, -20), 6.8),
    ((-28, -21, -17.5), 6.0),
    ((-28, -25, -14.5), 5.8),
    ((-27, -29, -11.5), 5.8),
    ((-25.5, -33, -7.5), 5.8),
    ((-24, -37, -2), 5.6),
    ((-20.5, -40, 1.5), 4.0),
)


@dataclass(frozen=True)
class Template:
    """The ICBM 2009a symmetric average and its tissue maps (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033).

    Attributes
    ----------
    t1 : (X, Y, Z) float32
        T1-weighted intensity in [0, 1], 0 outside the brain.
    mask : (X, Y, Z) bool
        Brain mask.
    gm, wm : (X, Y, Z) float32
        Tissue probabilities, 0 outside the mask.
    affine : (4, 4) float64
        Voxel indices to MNI152 millimetres, RAS.
    """

    t1: np.ndarray
    mask: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    affine: np.ndarray

    @property
    def csf(self) -> np.ndarray:
        """What grey and white matter leave of the mask, (X, Y, Z) float32."""
        return self.mask - self.gm - self.wm


@cache
def template(resolution_mm: float = 1.0) -> Template:
    """Load the template maps that nilearn carries, on a grid of the given voxel edge.

    Parameters
    ----------
    resolution_mm : float
        Voxel edge in mm, 1 to 10.

    Raises
    ------
    StudyError
        If the voxel edge is not between 1 and 10 mm.
    """
    if not 1.0 <= resolution_mm <= 10.0:
        raise StudyError(f"the template comes at 1 to 10 mm, asked for {resolution_mm} mm")
    likely, affine = _on_grid(load_mni152_brain_mask(resolution=1), resolution_mm)
    mask = likely > 0.5
    t1, gm, wm = (
        np.clip(_on_grid(load(resolution=1), resolution_mm)[0], 0, None) * mask
        for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    )
    excess = np.maximum(gm + wm, 1)
    gm /= excess
    wm /= excess
    return Template(t1, mask, gm, wm, affine)


def _on_grid(image: nib.Nifti1Image, resolution_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Values (X, Y, Z) float32 and affine; one map at a time, since a whole set in double precision fills memory."""
    values, sigma = np.asarray(image.dataobj, dtype=np.float32), 0.5 * np.sqrt(resolution_mm**2 - 1)
    if resolution_mm == 1.0:
        return np.ascontiguousarray(values), image.affine
    if resolution_mm == round(resolution_mm):
        return _thinned(values, sigma, round(resolution_mm)), image.affine @ np.diag([*[resolution_mm] * 3, 1.0])
    smooth = nib.Nifti1Image(ndimage.gaussian_filter(values, sigma), image.affine)
    image = resample_to_output(smooth, (resolution_mm,) * 3, order=1)
    return np.ascontiguousarray(image.dataobj, dtype=np.float32), image.affine


def _thinned(values: np.ndarray, sigma: float, step: int) -> np.ndarray:
    """Every `step`-th voxel of a smoothed map, to its end or beyond; an axis is thinned before the next is smoothed."""
    for axis, length in enumerate(values.shape):
        values = ndimage.gaussian_filter1d(values, sigma, axis)[(slice(None),) * axis + (slice(None, None, step),)]
        beyond = [(0, int(axis == k and (length - 1) % step > 0)) for k in range(3)]
        values = np.pad(values, beyond)
    return values


def coordinates(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """World coordinates of every voxel.

    Parameters
    ----------
    shape : tuple of int
    affine : (4, 4) array
        Voxel indices to world mm.

    Returns
    -------
    (3, X, Y, Z) float32
        In mm.
    """
    grid = np.indices(shape, dtype=np.float32)
    world = np.tensordot(affine[:3, :3].astype(np.float32), grid, axes=1)
    return world + affine[:3, 3].astype(np.float32).reshape(3, 1, 1, 1)


def mni_image(volume: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A NIfTI image whose header names MNI152 as its world, in mm.

    Parameters
    ----------
    volume : (X, Y, Z) array
    affine : (4, 4) array
        Voxel indices to MNI152, RAS mm.
    """
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, "mni")
    image.set_qform(affine, "mni")
    return image


@cache
def region(name: str, resolution_mm: float = 1.0) -> np.ndarray:
    """A region of interest on the grid of `template(resolution_mm)`.

    Regions are geometric (tubes, boxes and planes in MNI152 millimetres, cut by the tissue maps), because no labelled
    atlas can be redistributed here. They locate volume change; they are no substitute for a manual segmentation.

    Parameters
    ----------
    name : str
        One of `REGIONS`.
    resolution_mm : float
        Voxel edge, mm.

    Returns
    -------
    (X, Y, Z) bool

    Raises
    ------
    StudyError
        If the name is unknown.
    """
    if name not in REGIONS:
        raise StudyError(f"unknown region {name!r}; there are {', '.join(REGIONS)}")
    base = template(resolution_mm)
    x, y, z = _axes(base)
    if name.startswith("hippocampus"):
        return _hippocampus(-x if name.endswith("right") else x, y, z) & (base.gm + base.wm > 0.5)
    if name == "ventricles":
        return _ventricles(base, x, y, z)
    below_sylvian_fissure = z < -4 - 0.6 * (y + 10)
    above_cerebellum = z > -48 + 0.9 * np.maximum(0, -15 - y)
    lateral = (np.abs(x) > 20) & (y > -50) & (y < 24)
    return lateral & below_sylvian_fissure & above_cerebellum & (base.gm + base.wm > 0.5)


def _axes(base: Template) -> tuple[np.ndarray, ...]:
    """World coordinates along the three axes of a grid without rotation, mm, each ready to be broadcast."""
    edges, origin = np.diag(base.affine)[:3], base.affine[:3, 3]
    lines = (start + edge * np.arange(n) for start, edge, n in zip(origin, edges, base.mask.shape, strict=True))
    return np.ix_(*(line.astype(np.float32) for line in lines))


def _hippocampus(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), bool)
    for (start, r0), (end, r1) in pairwise(_HIPPOCAMPUS):
        for step in np.linspace(0, 1, 6):
            cx, cy, cz = (1 - step) * np.array(start) + step * np.array(end)
            radius = (1 - step) * r0 + step * r1
            inside |= (x - cx) ** 2 + (y - cy) ** 2 < radius**2 - (z - cz) ** 2
    return inside


def _ventricles(base: Template, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    body = (np.abs(x) > 1) & (np.abs(x) < 26) & (y > -44) & (y < 38) & (z > 1) & (z < 32)
    horns = (np.abs(x) > 14) & (np.abs(x) < 36) & (y > -58) & (y <= -26) & (z > -6) & (z < 26)
    fluid = (base.csf > 0.5) & (body | horns)
    labels, _ = ndimage.label(fluid, np.ones((3, 3, 3)))
    seeds = labels[(np.abs(np.abs(x) - 8) < 3) & (np.abs(y - 8) < 12) & (np.abs(z - 16) < 6) & fluid]
    return np.isin(labels, np.unique(seeds[seeds > 0]))
