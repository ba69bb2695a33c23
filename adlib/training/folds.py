"""What one training sees: slices, targets, and to which part of the split each slice belongs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from adlib.preprocess.intensity import fit_landmarks
from adlib.study.params import StudyParams
from adlib.study.records import FEATURES, MANIFEST, StudyError, read_table
from adlib.training.auxiliary import auxiliary_targets
from adlib.training.slices import scan_percentiles, to_landmarks

RUN = "resnet50"


@dataclass(frozen=True)
class Fold:
    """What one training sees.

    Attributes
    ----------
    run : str
        ``resnet50`` or the name of a control.
    number : int
    slices : (rows, 3, size, size) float16
        All slices of the study.
    table : DataFrame
        Their names and diagnoses, and the column ``split`` of this fold.
    targets : (rows,) int64
        Class indices of the diagnoses.
    auxiliary : (rows, M) float32
        Standardised age and volumes, predicted beside the class in training; see `auxiliary_targets`.
    landmarks : tuple of float
        The standard scale, fitted on the scans of this fold's training part, that the slices are on; empty for none.
    covariates : (rows, C) float32
        Concatenated to the image features; standardised on training rows, 0 where unknown.
    covariate_stats : dict of str to (float, float)
        Mean and standard deviation in training of each column of `covariates`, by name.
    """

    run: str
    number: int
    slices: np.ndarray
    table: pd.DataFrame
    targets: np.ndarray
    auxiliary: np.ndarray
    landmarks: tuple[float, ...] = ()
    covariates: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    covariate_stats: dict[str, tuple[float, float]] = field(default_factory=dict)

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.table["split"] == split)

    @property
    def scans(self) -> np.ndarray:
        """The scan of each row (rows,), numbered from 0."""
        return pd.factorize(self.table["scan_id"])[0]


def make_fold(number: int, slices: np.ndarray, table: pd.DataFrame, splits: pd.DataFrame, params: StudyParams) -> Fold:
    """Join slices with the split of their participant, its auxiliary targets and its covariates."""
    chosen = splits[splits["fold"] == number].set_index("participant_id")["split"]
    table = table.assign(split=table["participant_id"].map(chosen))
    if table["split"].isna().any():
        name = table.loc[table["split"].isna(), "participant_id"].iloc[0]
        raise StudyError(f"{name} has slices but no split in fold {number}; run step 03 again")
    targets = table["diagnosis"].map({name: k for k, name in enumerate(params.classes)}).to_numpy()
    train = np.flatnonzero(table["split"] == "train")
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST)
    features = read_table(params.folder / "features.tsv", FEATURES)
    auxiliary = auxiliary_targets(table, manifest, features, train)
    covariates, stats = _covariates(table, manifest, train, params.train.covariates)
    standard = ()
    if params.preprocess.normalise == "landmarks" and not params.input.flat:
        own = scan_percentiles(params)
        standard = fit_landmarks(own.loc[table["scan_id"].iloc[train].unique()].to_numpy())
        slices = to_landmarks(slices, table["scan_id"], own, standard)
    return Fold(RUN, number, slices, table, targets, auxiliary, tuple(map(float, standard)), covariates, stats)


def _covariates(
    table: pd.DataFrame, manifest: pd.DataFrame, train: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, tuple[float, float]]]:
    """Standardised covariates (rows, C) float32 and their mean and spread among training rows."""
    scans = manifest.set_index("scan_id").loc[table["scan_id"]]
    columns, spreads = [np.zeros((len(table), 0))], {}
    for name in names:
        values = as_numbers(name, scans[name])
        if not np.isfinite(values[train]).any():
            raise StudyError(f"train.covariates names {name}, which no training scan of the manifest has; leave it out")
        spreads[name] = (float(np.nanmean(values[train])), float(np.nanstd(values[train])) or 1.0)
        columns.append(((values - spreads[name][0]) / spreads[name][1])[:, None])
    return np.nan_to_num(np.concatenate(columns, axis=1)).astype(np.float32), spreads


def as_numbers(name: str, values: pd.Series) -> np.ndarray:
    """A covariate (n,) float64: years, or 1 for female and 0 for male; not a number where unknown."""
    if name != "sex":
        return values.to_numpy(float)
    first = values.astype("string").str.upper().str[0]
    return first.map({"F": 1.0, "M": 0.0}).to_numpy(float, na_value=np.nan)
