"""What an image file says of itself without looking at its pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from adlib.study.records import file_digest


def image_facts(path: Path) -> dict[str, Any]:
    """Digest and header facts of an image file.

    Returns
    -------
    dict
        ``sha256``, ``shape``, voxel edges (mm), ``dtype`` (rgb for colours), ``orientation`` such as RAS, and
        ``affine_fault``: missing, singular, or unstated where a NIfTI header claims no orientation. All but the digest
        are empty where the header cannot be read.
    """
    facts: dict[str, Any] = {"sha256": file_digest(path), "shape": None}
    try:
        image = nib.load(path)
    except Exception:  # any reader fault means the same here: preprocessing will say which
        return facts
    zooms = np.array(image.header.get_zooms()[:3], dtype=float)
    names = ("voxel_x_mm", "voxel_y_mm", "voxel_z_mm")
    edges = {name: round(float(edge), 4) for name, edge in zip(names, zooms, strict=False)}
    dtype = image.get_data_dtype()
    told = {"shape": "x".join(str(n) for n in image.shape), "dtype": "rgb" if dtype.names else str(dtype)}
    return facts | edges | told | _orientation(image)


def _orientation(image: nib.spatialimages.SpatialImage) -> dict[str, Any]:
    affine = image.affine
    if affine is None or not np.isfinite(affine).all():
        return {"affine_fault": "missing"}
    if abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        return {"affine_fault": "singular"}
    axes = {"orientation": "".join(nib.aff2axcodes(affine))}
    header = image.header
    stated = not isinstance(header, nib.Nifti1Header) or header["sform_code"] > 0 or header["qform_code"] > 0
    return axes | ({} if stated else {"affine_fault": "unstated"})
