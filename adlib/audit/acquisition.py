"""Acquisition facts of scans: site, scanner, sequence, voxels and date, as a table and as numbers for a classifier."""

import re

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer, make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from adlib.sources.adni_tables import phase_name
from adlib.sources.image_files import SEPARATOR

COHORT = ("cohort",)
PHASE = ("phase",)
SLICES = ("slice_count", "slice_index")
SEQUENCE = ("series_description", "echo_time_ms", "repetition_time_ms", "inversion_time_ms")
IMAGE_QUALITY = ("qc_snr", "qc_edge", "qc_ghost", "qc_air", "qc_wrap", "qc_jump")  # of noise, motion and artefacts
_SCANNER = ("site", "manufacturer", "model", "field_strength_T", "orientation", "dtype", "matrix")
_VOXELS = ("voxel_x_mm", "voxel_y_mm", "voxel_z_mm", "acquisition_year")
ACQUISITION = (*COHORT, *PHASE, *SLICES, *SEQUENCE, *_SCANNER, *_VOXELS)
_SERIES_PHASE = r"ADNI[\s_-]?(1/GO|GO|[1-4])(?![A-Za-z0-9])"  # with a number: others use ADNI's sequence
_STATED_INDEX, _LAST_INDEX = r"slice[-_ ]?(\d+)[^/]*$", r"[-_./](\d{2,3})$"
_RARE = 5  # scans; rarer categories count as one


def with_facts(scans: pd.DataFrame) -> pd.DataFrame:
    """Add acquisition year, in-plane matrix, slice count, slice index and cohort, the columns that a manifest may lack.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.MANIFEST`.

    Returns
    -------
    DataFrame
        ``slice_index`` is that of the source or of the file's name, NaN where neither has it.
    """
    sizes = scans["shape"].str.extract(r"^(\d+x\d+)(?:x(\d+))?")
    year = pd.to_datetime(scans["acquisition_date"], errors="coerce", format="mixed").dt.year
    index = scans.get("slice_index", pd.Series(np.nan, scans.index))
    return scans.assign(
        cohort=scans.get("cohort"),
        acquisition_year=year.astype(float),
        matrix=sizes[0].astype(object),
        slice_count=sizes[1].astype(float),
        slice_index=pd.to_numeric(index, errors="coerce").fillna(_named_index(scans)),
    )


def _named_index(scans: pd.DataFrame) -> pd.Series:
    """Slice index from the name of a 2-D image, or of the first of several: after the word slice, or at the end.

    A number at the end counts if the rest of the path tells participants apart; otherwise it numbers the images.
    """
    first = scans["path"].str.split(SEPARATOR, regex=False).str[0]
    flat = (first != scans["path"]) | scans["shape"].str.fullmatch(r"\d+x\d+(x1)?").eq(True)
    stem = first.where(flat).str.replace(r"(\.nii)?\.\w+$", "", regex=True)
    stated = stem.str.extract(_STATED_INDEX, flags=re.I)[0]
    last = stem.str.extract(_LAST_INDEX)[0]
    rest = stem.str.replace(r"\d+$", "", regex=True)
    if 2 * rest[last.notna()].nunique() < scans.loc[last.notna(), "participant_id"].nunique():
        last = None
    return pd.to_numeric(stated if last is None else stated.fillna(last))


def with_phase(scans: pd.DataFrame) -> pd.DataFrame:
    """Fill the phase, where it is empty, from the name of the visit or the series, such as ``ADNI2 Screening``.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.
    """
    visit = scans["session_id"].str.removeprefix("ses-").map(phase_name, na_action="ignore")
    series = "ADNI" + scans["series_description"].str.extract(_SERIES_PHASE)[0]
    return scans.assign(phase=scans["phase"].fillna(visit).fillna(series))


def first_scans(manifest: pd.DataFrame) -> pd.DataFrame:
    """The first scan of each participant, with the columns of `with_facts`.

    Parameters
    ----------
    manifest : DataFrame
        Schema `records.MANIFEST`.
    """
    first = manifest.sort_values(["session_id", "scan_id"], kind="stable").drop_duplicates("participant_id")
    return with_facts(first)


def acquisition_facts(manifest: pd.DataFrame) -> pd.DataFrame:
    """The columns of `ACQUISITION` that vary among the scans, one row for each scan.

    Parameters
    ----------
    manifest : DataFrame
        Schema `records.MANIFEST`.
    """
    scans = with_facts(manifest)
    return scans[[name for name in ACQUISITION if scans[name].nunique() > 1]]


def acquisition_encoder() -> ColumnTransformer:
    """An unfitted transformer of facts into numbers: categories one-hot, numbers standardised, gaps filled."""
    one_hot = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=_RARE, sparse_output=False)
    numbers = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    words = make_pipeline(SimpleImputer(strategy="constant", fill_value="missing"), one_hot)
    return make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")), (words, make_column_selector(dtype_exclude="number"))
    )
