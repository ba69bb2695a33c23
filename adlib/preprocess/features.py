"""Volumes of tissues and regions, in millilitres of the person's own head."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from adlib import atlas
from adlib.volume import voxel_ml

SOFT_EDGE_MM = 6.0  # sd of the blur that turns a hippocampus of the atlas into weights
DILATION_MM = {"ventricles": 8.0, "temporal_lobes": 0.0}


def volumes(
    tissues: np.ndarray, mask: np.ndarray, scan_to_mni: np.ndarray, resolution_mm: float, *, whole_head: bool = False
) -> dict[str, float]:
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
    whole_head : bool
        The mask was fitted to the inner skull of a head; not that of a brain extracted elsewhere.

    Returns
    -------
    dict of str to float
        ``gm_ml, wm_ml, csf_ml``: tissues. ``brain_ml``: GM + WM. ``icv_ml``: intracranial
        volume; the mask of a whole head, else by atlas scaling: the template's mask over the determinant.
        ``hippocampus_ml``: both hippocampi, GM less CSF under soft weights (CSF that replaces a shrunken hippocampus
        counts against it, which GM alone would miss after an affine registration), scaled so that the template
        measures as its own region; and each side's.
        ``ventricles_ml``: CSF near the lateral ventricles. ``temporal_ml``: GM of both temporal lobes.
        ``nbv``: (GM + WM) / icv_ml. ``hippocampus_percent``, ``ventricles_percent``, ``temporal_percent``: regions as
        a share of icv_ml, the proportion method of adjusting for head size, which needs no fit to a cohort.

    References
    ----------
    Buckner et al. 2004, doi:10.1016/j.neuroimage.2004.06.018 (atlas scaling); Jack et al. 1989,
    doi:10.1148/radiology.172.2.2748838, and Voevodskaya et al. 2014, doi:10.3389/fnagi.2014.00264 (proportions).
    """
    base = atlas.template(resolution_mm)
    unit = voxel_ml(base.affine) / float(abs(np.linalg.det(scan_to_mni[:3, :3])))
    gm, wm, csf = (tissues[..., k] for k in range(3))
    grey, white, fluid = (float(part.sum(dtype=np.float64)) * unit for part in (gm, wm, csf))
    left, right = (
        max(float(((gm - csf) * _soft(f"hippocampus_{side}", resolution_mm)).sum(dtype=np.float64)), 0.0) * unit
        for side in ("left", "right")
    )
    intracranial = float(mask.sum() if whole_head else base.mask.sum()) * unit
    regions = {
        "hippocampus": left + right,
        "temporal": _within(gm, "temporal_lobes", resolution_mm) * unit,
        "ventricles": _within(csf, "ventricles", resolution_mm) * unit,
    }
    return {
        "gm_ml": grey,
        "wm_ml": white,
        "csf_ml": fluid,
        "brain_ml": grey + white,
        "icv_ml": intracranial,
        **{f"{name}_ml": size for name, size in regions.items()},
        "hippocampus_left_ml": left,
        "hippocampus_right_ml": right,
        "nbv": (grey + white) / intracranial,
        **{f"{name}_percent": 100 * size / intracranial for name, size in regions.items()},
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
    """Weights under which GM less CSF of the template itself comes to the GM inside the region."""
    base, region = atlas.template(resolution_mm), atlas.region(name, resolution_mm)
    weights = ndimage.gaussian_filter(region.astype(np.float32), SOFT_EDGE_MM / resolution_mm)
    return weights * (base.gm[region].sum() / ((base.gm - base.csf) * weights).sum())
