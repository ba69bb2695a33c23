"""What a network learns besides the diagnosis: age and volumes, so that few scans teach it to measure a brain."""

from __future__ import annotations

import numpy as np
import pandas as pd

SHARES = ("gm_ml", "wm_ml", "csf_ml", "hippocampus_ml", "temporal_ml", "ventricles_ml")


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
    known = [values for column in columns if np.isfinite((values := column.to_numpy(float))[train]).any()]
    if not known:
        return np.zeros((len(table), 0), np.float32)
    values = np.stack(known, axis=1)
    mean, spread = np.nanmean(values[train], axis=0), np.nanstd(values[train], axis=0)
    return np.nan_to_num((values - mean) / np.where(spread > 0, spread, 1)).astype(np.float32)
