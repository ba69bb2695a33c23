"""What is known of a scan without its image, as numbers for a classifier."""

from __future__ import annotations

import pandas as pd
from sklearn.compose import ColumnTransformer, make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from adlib.audit.confounds import ACQUISITION, with_facts

RARE = 5  # scans; rarer categories count as one


def acquisition_facts(manifest: pd.DataFrame) -> pd.DataFrame:
    """Those of the audit's facts about phase, sequence, scanner and voxels that vary among the scans."""
    scans = with_facts(manifest)
    return scans[[name for name in ACQUISITION if scans[name].nunique() > 1]]


def acquisition_encoder() -> ColumnTransformer:
    """An unfitted transformer of facts into numbers: categories one-hot, numbers standardised, gaps filled."""
    known = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=RARE, sparse_output=False)
    numbers = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    words = make_pipeline(SimpleImputer(strategy="constant", fill_value="missing"), known)
    return make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")), (words, make_column_selector(dtype_exclude="number"))
    )
