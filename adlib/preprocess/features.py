"""Volumes of tissues and regions, in millilitres of the person's own head."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from adlib import atlas
from adlib.volume import voxel_ml

DILATION_MM = {"hippocampus_left": 4.0, "hippocampus_right": 4.0, "ventricles": 8.0, "temporal_lobes": 0.0}
UNITS = {"nbv": "fraction of the intracranial volume"}  # all others: ml


def volumes(tissues: np.ndarray, mask: np.ndarray, scan_to_mni: np.ndarray, resolution_mm: float) -> dict[str, float]:
    """Sum tissue fractions over the brain and over regions, back in the scan's own space.

    Parameters
    ----------
    tissues : (X, Y, Z, 3) float32
        GM, WM, CSF fractions on the MNI152 grid.
    mask : (X, Y, Z) bool
        Intracranial mask.
    scan_to_mni : (4, 4) array
        World to world; its determinant turns MNI152 millilitres into the person's.
    resolution_mm : float
        Voxel edge of the grid, which names the atlas regions.

    Returns
    -------
    dict of str to float
        ``gm_ml, wm_ml, csf_ml``: tissues; ``brain_ml`` and ``icv_ml``: the whole intracranial mask; ``hippocampus_ml``:
        GM near both hippocampi, and each side's; ``ventricles_ml``: CSF near the lateral ventricles; ``temporal_ml``:
        GM of both temporal lobes; ``nbv``: (GM + WM) / intracranial volume.
    """
    unit = voxel_ml(atlas.template(resolution_mm).affine) / float(abs(np.linalg.det(scan_to_mni[:3, :3])))
    grey, white, fluid = (float(tissues[..., k].sum(dtype=np.float64)) * unit for k in range(3))
    whole = float(mask.sum()) * unit
    left, right, temporal = (
        _within(tissues[..., 0], name, resolution_mm) * unit
        for name in ("hippocampus_left", "hippocampus_right", "temporal_lobes")
    )
    return {
        "gm_ml": grey,
        "wm_ml": white,
        "csf_ml": fluid,
        "brain_ml": whole,
        "icv_ml": whole,
        "hippocampus_ml": left + right,
        "hippocampus_left_ml": left,
        "hippocampus_right_ml": right,
        "temporal_ml": temporal,
        "ventricles_ml": _within(tissues[..., 2], "ventricles", resolution_mm) * unit,
        "nbv": (grey + white) / whole,
    }


def _within(tissue: np.ndarray, name: str, resolution_mm: float) -> float:
    return float(tissue[_neighbourhood(name, resolution_mm)].sum(dtype=np.float64))


@cache
def _neighbourhood(name: str, resolution_mm: float) -> np.ndarray:
    """A region with a margin, since an affine registration leaves it a few millimetres off."""
    region = atlas.region(name, resolution_mm)
    away = ndimage.distance_transform_edt(~region, sampling=resolution_mm)
    return away <= DILATION_MM[name]
