"""Covariates concatenated to the image features, and auxiliary targets of the training: age and volumes."""

import numpy as np
import pandas as pd

from adlib.study.records import StudyError

SHARES = ("gm_ml", "wm_ml", "csf_ml", "hippocampus_ml", "temporal_ml", "ventricles_ml")


def standardised_covariates(
    table: pd.DataFrame, manifest: pd.DataFrame, train: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, tuple[float, float]]]:
    """Covariates that are concatenated to the image features.

    Parameters
    ----------
    table : DataFrame
        Slices in the order of the array's rows; column scan_id.
    manifest : DataFrame
    train : (n,) int
        Rows whose mean and spread standardise all rows.
    names : tuple of str
        Columns of the manifest.

    Returns
    -------
    covariates : (rows, C) float32
        0 where a value is missing.
    spreads : dict of str to (float, float)
        Mean and standard deviation among training rows.

    Raises
    ------
    StudyError
        If no training scan has a covariate.
    """
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
    """A covariate as numbers.

    Parameters
    ----------
    name : str
        ``age`` or ``sex``.
    values : Series
        As in the manifest.

    Returns
    -------
    (n,) float64
        Years, or 1 for female and 0 for male; not a number where unknown.
    """
    if name != "sex":
        return values.to_numpy(float)
    first = values.astype("string").str.upper().str[0]
    return first.map({"F": 1.0, "M": 0.0}).to_numpy(float, na_value=np.nan)


def auxiliary_targets(
    table: pd.DataFrame, manifest: pd.DataFrame, features: pd.DataFrame, train: np.ndarray
) -> np.ndarray:
    """Standardised age, intracranial volume, brain fraction and volumes as shares of the intracranial volume.

    They guide training only (multi-task learning, Caruana 1997, doi:10.1023/A:1007379606734); a prediction needs
    nothing but the image.

    Parameters
    ----------
    table : DataFrame
        Slices in the order of the array's rows; column scan_id.
    manifest, features : DataFrame
        With whatever of ``age``, ``icv_ml``, ``nbv`` and `SHARES` the study has.
    train : (n,) int
        Rows whose mean and spread standardise all rows.

    Returns
    -------
    (rows, M) float32
        0 where a value is missing; M counts those that some training scan has.
    """
    scans = features.drop(columns=[c for c in features if c in manifest and c != "scan_id"])
    scans = manifest.merge(scans, on="scan_id").set_index("scan_id").loc[table["scan_id"]]
    shares = [scans[name] / scans["icv_ml"] for name in SHARES if name in scans and "icv_ml" in scans]
    columns = [scans[name] for name in ("age", "icv_ml", "nbv") if name in scans] + shares
    present = [values for column in columns if np.isfinite((values := column.to_numpy(float))[train]).any()]
    if not present:
        return np.zeros((len(table), 0), np.float32)
    values = np.stack(present, axis=1)
    mean, spread = np.nanmean(values[train], axis=0), np.nanstd(values[train], axis=0)
    return np.nan_to_num((values - mean) / np.where(spread > 0, spread, 1)).astype(np.float32)
