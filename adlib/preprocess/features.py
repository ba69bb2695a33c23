"""Volumes of tissues and regions, in millilitres of the person's own head."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from adlib import atlas
from adlib.volume import voxel_ml

SOFT_EDGE_MM = 4.0  # sd of the blur that turns a hippocampus of the atlas into weights
DILATION_MM = {"ventricles": 8.0, "temporal_lobes": 0.0}


def volumes(tissues: np.ndarray, mask: np.ndarray, scan_to_mni: np.ndarray, resolution_mm: float) -> dict[str, float]:
    """Sum tissue fractions over the brain and over regions, back in the scan's own space.

    Parameters
    ----------
    tissues : (X, Y, Z, 3) float32
        GM, WM, CSF fractions on the MNI152 grid.
    mask : (X, Y, Z) bool
        Brain with its fluid.
    scan_to_mni : (4, 4) array
        World to world; its determinant turns MNI152 millilitres into the person's.
    resolution_mm : float
        Voxel edge of the grid, which names the atlas regions.

    Returns
    -------
    dict of str to float
        ``gm_ml, wm_ml, csf_ml``: tissues. ``brain_ml``: the whole brain mask with its fluid. ``icv_ml``: intracranial
        volume by atlas scaling, the template's mask over the determinant, which atrophy and the mask do not move.
        ``hippocampus_ml``: both hippocampi, GM less CSF under soft weights (CSF that replaces a shrunken hippocampus
        counts against it, which GM alone would miss after an affine registration), and each side's.
        ``ventricles_ml``: CSF near the lateral ventricles. ``temporal_ml``: GM of both temporal lobes.
        ``nbv``: (GM + WM) / icv_ml.

    References
    ----------
    Buckner et al. 2004, doi:10.1016/j.neuroimage.2004.06.018 (atlas scaling).
    """
    base = atlas.template(resolution_mm)
    unit = voxel_ml(base.affine) / float(abs(np.linalg.det(scan_to_mni[:3, :3])))
    gm, wm, csf = (tissues[..., k] for k in range(3))
    grey, white, fluid = (float(part.sum(dtype=np.float64)) * unit for part in (gm, wm, csf))
    left, right = (
        max(float(((gm - csf) * _soft(f"hippocampus_{side}", resolution_mm)).sum(dtype=np.float64)), 0.0) * unit
        for side in ("left", "right")
    )
    intracranial = float(base.mask.sum()) * unit
    return {
        "gm_ml": grey,
        "wm_ml": white,
        "csf_ml": fluid,
        "brain_ml": float(mask.sum()) * unit,
        "icv_ml": intracranial,
        "hippocampus_ml": left + right,
        "hippocampus_left_ml": left,
        "hippocampus_right_ml": right,
        "temporal_ml": _within(gm, "temporal_lobes", resolution_mm) * unit,
        "ventricles_ml": _within(csf, "ventricles", resolution_mm) * unit,
        "nbv": (grey + white) / intracranial,
    }


def _within(tissue: np.ndarray, name: str, resolution_mm: float) -> float:
    return float(tissue[_neighbourhood(name, resolution_mm)].sum(dtype=np.float64))


@cache
def _neighbourhood(name: str, resolution_mm: float) -> np.ndarray:
    """A region with a margin, since an affine registration leaves it a few millimetres off."""
    region = atlas.region(name, resolution_mm)
    away = ndimage.distance_transform_edt(~region, sampling=resolution_mm)
    return away <= DILATION_MM[name]


@cache
def _soft(name: str, resolution_mm: float) -> np.ndarray:
    return ndimage.gaussian_filter(atlas.region(name, resolution_mm).astype(np.float32), SOFT_EDGE_MM / resolution_mm)
