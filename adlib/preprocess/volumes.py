"""Volumes of tissues and regions, in millilitres of the scan's own space."""

from __future__ import annotations

from functools import cache

import numpy as np

from adlib.imaging import atlas
from adlib.imaging.volume import block_mean, dilated, voxel_ml
from adlib.preprocess.registration import DEMONS_MM, demons_displacement, jacobian_determinant, tissue_image

HIPPOCAMPI_MM = ((-56.0, -62.0, -46.0), (56.0, 22.0, 24.0))  # corners of a box around both, MNI152
VENTRICLES_MARGIN_MM = 8.0


def measure_volumes(
    tissues: np.ndarray, mask: np.ndarray, scan_to_mni: np.ndarray, resolution_mm: float, *, whole_head: bool = False
) -> dict[str, float]:
    """Volumes of tissues and regions, in the scan's own space.

    Parameters
    ----------
    tissues : (X, Y, Z, 3) float32
        GM, WM, CSF fractions on the MNI152 grid.
    mask : (X, Y, Z) bool
        Brain with its fluid.
    scan_to_mni : (4, 4) array
        World to world; its determinant scales MNI152 millilitres to the person's.
    resolution_mm : float
        Voxel edge of the grid.
    whole_head : bool
        The mask was fitted to the inner skull, so that its volume is the intracranial volume.

    Returns
    -------
    dict of str to float
        ``gm_ml, wm_ml, csf_ml``: tissues. ``brain_ml``: GM + WM. ``icv_ml``: intracranial
        volume; the mask of a whole head, else by atlas scaling: the template's mask over the determinant.
        ``hippocampus_ml``: both hippocampi of the template, deformed by a registration of the tissue maps around them
        (tensor-based morphometry); and each side's. The registration is smooth, so that it underestimates differences
        from the template.
        ``ventricles_ml``: CSF near the lateral ventricles. ``temporal_ml``: GM of both temporal lobes.
        ``nbv``: (GM + WM) / icv_ml. ``hippocampus_percent``, ``ventricles_percent``, ``temporal_percent``: regions as
        a share of icv_ml, the proportion method of adjusting for head size, which needs no fit to a cohort.

    References
    ----------
    Buckner et al. 2004, doi:10.1016/j.neuroimage.2004.06.018 (atlas scaling); Hua et al. 2008,
    doi:10.1016/j.neuroimage.2008.07.024 (volumes by tensor-based morphometry); Jack et al. 1989,
    doi:10.1148/radiology.172.2.2748838, and Voevodskaya et al. 2014, doi:10.3389/fnagi.2014.00264 (proportions).
    """
    base = atlas.template(resolution_mm)
    shrunk = float(abs(np.linalg.det(scan_to_mni[:3, :3])))
    unit = voxel_ml(base.affine) / shrunk
    gm, csf = tissues[..., 0], tissues[..., 2]
    grey, white, fluid = (float(total) * unit for total in tissues.sum(axis=(0, 1, 2), dtype=np.float64))
    left, right = (size / shrunk for size in _hippocampi(tissues, resolution_mm))
    intracranial = float(mask.sum() if whole_head else base.mask.sum()) * unit
    regions = {
        "hippocampus": left + right,
        "temporal": float(gm[atlas.region("temporal_lobes", resolution_mm)].sum(dtype=np.float64)) * unit,
        "ventricles": float(csf[_near_ventricles(resolution_mm)].sum(dtype=np.float64)) * unit,
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


@cache
def _near_ventricles(resolution_mm: float) -> np.ndarray:
    """The ventricles with a margin for the few millimetres that affine registration leaves."""
    region = atlas.region("ventricles", resolution_mm)
    return dilated(region, VENTRICLES_MARGIN_MM, atlas.template(resolution_mm).affine)


@cache
def _box(resolution_mm: float) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray, list[np.ndarray]]:
    """The box of the hippocampi in the template.

    Its slices of the template's grid, its affine, the template's `tissue_image` in it at about `DEMONS_MM`, and there
    the tissue of the left and of the right hippocampus, with the white matter on its surface as in manual tracings.
    """
    base = atlas.template(resolution_mm)
    to_voxel = np.linalg.inv(base.affine)
    low, high = (np.rint(to_voxel[:3, :3] @ corner + to_voxel[:3, 3]).astype(int) for corner in HIPPOCAMPI_MM)
    where = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    affine = base.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    fixed = block_mean(tissue_image(base.gm[where], base.wm[where]), affine, DEMONS_MM)[0]
    tissue = base.gm[where] + base.wm[where]
    regions = (tissue * atlas.region(f"hippocampus_{side}", resolution_mm)[where] for side in ("left", "right"))
    return where, affine, fixed, [block_mean(part, affine, DEMONS_MM)[0] for part in regions]


def _hippocampi(tissues: np.ndarray, resolution_mm: float) -> list[float]:
    """Size of the left and of the right hippocampus, ml of the template's space."""
    where, affine, fixed, parts = _box(resolution_mm)
    gm, wm = (tissues[..., k][where] for k in range(2))
    moving, grid = block_mean(tissue_image(gm, wm), affine, DEMONS_MM)
    stretch = jacobian_determinant(demons_displacement(fixed, moving, grid), grid)
    return [float((part * stretch).sum(dtype=np.float64)) * voxel_ml(grid) for part in parts]
