"""The study's source, whichever it is, as a manifest."""

from __future__ import annotations

import pandas as pd

from adlib.params import StudyParams
from adlib.sources import bids, oasis, phantom


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
        Columns of `records.MANIFEST`; diagnosis may still be empty or outside `params.classes`.
    """
    source, workers = params.source, params.exec.workers
    folder = params.folder / "source"
    if source.kind == "oasis2_slices":
        return oasis.read_manifest(source, folder, workers=workers)
    if source.kind == "phantom":
        root = phantom.write_cohort(source, params.classes, params.seed, folder, workers=workers, code=code)
        return bids.read_manifest(phantom.as_bids(root), workers=workers)
    return bids.read_manifest(source, workers=workers)
