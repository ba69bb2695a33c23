"""Volumes of tissues and regions, in millilitres of the scan's own space."""

import numpy as np

from adlib.imaging import atlas
from adlib.imaging.volume import voxel_ml
from adlib.preprocess.anatomy import HEAD, INTRACRANIAL, Anatomy


def tissue_volumes(tissues: np.ndarray, scan_to_mni: np.ndarray, resolution_mm: float) -> dict[str, float]:
    """Volumes of tissues, in the scan's own space.

    Parameters
    ----------
    tissues : (X, Y, Z, 3) float32
        GM, WM, CSF fractions on the MNI152 grid.
    scan_to_mni : (4, 4) array
        World to world; its determinant scales MNI152 millilitres to the person's.
    resolution_mm : float
        Voxel edge of the grid.

    Returns
    -------
    dict of str to float
        ``gm_ml, wm_ml, csf_ml``; ``brain_ml``: GM + WM; ``temporal_ml``: GM of both temporal lobes.
    """
    unit = _unit_ml(atlas.template(resolution_mm).affine, scan_to_mni)
    grey, white, fluid = (float(total) * unit for total in tissues.sum(axis=(0, 1, 2), dtype=np.float64))
    temporal = tissues[atlas.region("temporal_lobes", resolution_mm), 0].sum(dtype=np.float64)
    return {
        "gm_ml": grey,
        "wm_ml": white,
        "csf_ml": fluid,
        "brain_ml": grey + white,
        "temporal_ml": float(temporal) * unit,
    }


def region_volumes(anatomy: Anatomy, scan_to_mni: np.ndarray) -> dict[str, float]:
    """Volumes of what the networks find, in the scan's own space.

    Parameters
    ----------
    anatomy : Anatomy
    scan_to_mni : (4, 4) array
        World to world.

    Returns
    -------
    dict of str to float
        ``icv_ml``: all inside the skull, also where brain extraction took the fluid away; ``ventricles_ml``: both
        lateral ventricles; ``hippocampus_left_ml``, ``hippocampus_right_ml`` and ``hippocampus_ml``, their sum.
    """
    inside = (1 - anatomy.shares[0] > INTRACRANIAL).sum() * _unit_ml(HEAD.affine(), scan_to_mni)
    sizes = {name: size / _determinant(scan_to_mni) for name, size in anatomy.regions.items()}
    left, right = (sizes[f"hippocampus_{side}"] for side in ("left", "right"))
    return {
        "icv_ml": float(inside),
        "hippocampus_ml": left + right,
        "ventricles_ml": sizes["ventricle_left"] + sizes["ventricle_right"],
        "hippocampus_left_ml": left,
        "hippocampus_right_ml": right,
    }


def of_head_size(volumes: dict[str, float]) -> dict[str, float]:
    """Volumes as shares of the intracranial volume, which need no fit to a cohort.

    Parameters
    ----------
    volumes : dict of str to float
        From `tissue_volumes` and `region_volumes`.

    Returns
    -------
    dict of str to float
        ``nbv``: (GM + WM) / icv_ml; ``hippocampus_percent``, ``ventricles_percent``, ``temporal_percent``.

    References
    ----------
    Jack et al. 1989, doi:10.1148/radiology.172.2.2748838, and Voevodskaya et al. 2014, doi:10.3389/fnagi.2014.00264
    (the proportion method of adjusting for head size).
    """
    whole = volumes["icv_ml"]
    percent = {
        f"{name}_percent": 100 * volumes[f"{name}_ml"] / whole for name in ("hippocampus", "ventricles", "temporal")
    }
    return {"nbv": volumes["brain_ml"] / whole, **percent}


def _unit_ml(affine: np.ndarray, scan_to_mni: np.ndarray) -> float:
    """Volume of a voxel of an MNI152 grid in the scan's own space."""
    return voxel_ml(affine) / _determinant(scan_to_mni)


def _determinant(scan_to_mni: np.ndarray) -> float:
    return float(abs(np.linalg.det(scan_to_mni[:3, :3])))
