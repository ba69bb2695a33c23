"""Smoothed grey-matter maps, one row of voxels per scan, as voxel-based morphometry provides them."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.image import index_img, resample_img
from nilearn.maskers import NiftiMasker

from adlib.imaging import atlas
from adlib.parallel.mapping import map_scans
from adlib.preprocess.derivatives import file_names
from adlib.study.exec_params import Pool

VOXEL_MM = 4.0
SMOOTHING_MM = 8.0  # full width at half maximum, as is usual: Klöppel et al. 2008, doi:10.1093/brain/awm319
LEAST_GREY = 0.2  # of the template's map, where a voxel is taken


def grey_matter_rows(scans: pd.DataFrame, derivatives: Path, pool: Pool) -> np.ndarray:
    """The grey-matter fractions of each scan in MNI152 space, smoothed, at the template's grey voxels.

    Parameters
    ----------
    scans : DataFrame
        Columns participant_id, session_id and scan_id; each preprocessed to `derivatives`.
    derivatives : path
    pool : Pool

    Returns
    -------
    (scans, voxels) float32
    """
    rows = map_scans(
        partial(_row, derivatives=derivatives),
        scans[["participant_id", "session_id", "scan_id"]].to_dict("records"),
        pool=pool,
        label="reading grey-matter maps",
    )
    return np.stack(rows)


def has_maps(scans: pd.DataFrame, derivatives: Path) -> bool:
    """Whether every scan has tissue maps, which scans of 2-D slices do not.

    Parameters
    ----------
    scans : DataFrame
        Columns participant_id, session_id and scan_id.
    derivatives : path

    Returns
    -------
    bool
    """
    return all(file_names(scan, derivatives)["tissues"].is_file() for scan in scans.to_dict("records"))


def _row(scan: dict[str, Any], derivatives: Path) -> np.ndarray:
    grey, base = index_img(nib.load(file_names(scan, derivatives)["tissues"]), 0), atlas.template(VOXEL_MM)
    coarse = resample_img(grey, base.affine, base.gm.shape, force_resample=True, copy_header=True)
    return _masker().transform(coarse).ravel().astype(np.float32)


@cache
def _masker() -> NiftiMasker:
    base = atlas.template(VOXEL_MM)
    grey = nib.Nifti1Image((base.gm > LEAST_GREY).astype(np.uint8), base.affine)
    return NiftiMasker(grey, smoothing_fwhm=SMOOTHING_MM, standardize=None).fit()
