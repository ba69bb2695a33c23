"""The study's source, whichever it is, as a listing of scans."""

from __future__ import annotations

import pandas as pd

from adlib.phantom import cohort as phantom
from adlib.sources import adni, bids, caps, dicom_tree, folders, oasis, oasis2_slices, oasis3, oasis_vbm
from adlib.study.params import StudyParams
from adlib.study.records import LISTING, check_table

READERS = {
    "adni": adni.read_manifest,
    "bids": bids.read_manifest,
    "caps": caps.read_manifest,
    "dicom": dicom_tree.read_manifest,
    "folders": folders.read_manifest,
    "oasis1": oasis.read_oasis1,
    "oasis2": oasis.read_oasis2,
    "oasis2_slices": oasis2_slices.read_manifest,
    "oasis3": oasis3.read_manifest,
    "oasis_vbm": oasis_vbm.read_manifest,
}


def read_source(params: StudyParams, code: str = "") -> pd.DataFrame:
    """List the scans of the study's source; the phantom source writes its cohort first.

    Parameters
    ----------
    params : StudyParams
    code : str
        Digest of the code that simulates, so that a changed simulator writes a new cohort.

    Returns
    -------
    DataFrame
        Schema `records.LISTING`; participant and diagnosis may still be unknown, diagnosis outside `params.classes`.
    """
    source, pool = params.source, params.pool
    folder = params.folder / "source"
    if source.kind == "phantom":
        root = phantom.write_cohort(source, params.classes, params.seed, folder, pool=pool, code=code)
        source = phantom.as_bids(root)
    listed = check_table(READERS[source.kind](source, folder, pool=pool), LISTING, f"source {source.kind}")
    return check_table(dicom_tree.convert_rows(listed, folder / "nifti", pool=pool), LISTING, "DICOM conversion")
