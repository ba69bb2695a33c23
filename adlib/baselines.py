"""What a network must beat: chance, age and sex, and volumes, on the very same splits."""

from __future__ import annotations

import pandas as pd
from sklearn.dummy import DummyClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from adlib.params import StudyParams
from adlib.records import PREDICTIONS, check_table

AGE_SEX = ("age", "female")


def feature_sets(scans: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Columns of each baseline, by its name; only columns that the study has and that vary are used."""
    volumes = tuple(n for n in scans.columns if (n.endswith("_ml") and not n.startswith("qc_")) or n == "nbv")
    sets = {
        "majority": (),
        "age_sex": AGE_SEX,
        "brain_fraction": ("nbv",),
        "volumes": volumes,
        "age_sex_volumes": AGE_SEX + volumes,
    }
    usable = {
        name: tuple(c for c in columns if c in scans and scans[c].nunique() > 1) for name, columns in sets.items()
    }
    return {name: columns for name, columns in usable.items() if columns or name == "majority"}


def predict_baselines(
    manifest: pd.DataFrame, features: pd.DataFrame, splits: pd.DataFrame, params: StudyParams
) -> pd.DataFrame:
    """Fit every baseline on the training scans of each fold and predict the others.

    Volumes are given to a logistic regression as they are and as a share of the intracranial volume where the study
    has one.

    Parameters
    ----------
    manifest, features, splits : DataFrame
        As stored by the steps before.
    params : StudyParams

    Returns
    -------
    DataFrame
        Schema `records.PREDICTIONS`, one row per validation or test scan, fold and baseline (``run``).
    """
    scans = _joined(manifest, features)
    parts = []
    for number in sorted(splits["fold"].unique()):
        split = splits[splits["fold"] == number].set_index("participant_id")["split"]
        table = scans.assign(split=scans["participant_id"].map(split)).dropna(subset=["split"])
        for name, columns in feature_sets(scans).items():
            parts.append(_predicted(name, list(columns), int(number), table, params))
    return check_table(pd.concat(parts, ignore_index=True), PREDICTIONS, "baselines")


def _joined(manifest: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    usable = features[features["qc_verdict"] != "fail"]
    own = manifest.columns.difference(features.columns).tolist()
    scans = usable.merge(manifest[["scan_id", *own]], on="scan_id")
    scans["female"] = scans["sex"].str.upper().str.startswith("F").astype(float)
    if "icv_ml" in scans:
        parts = [n for n in scans.columns if n.endswith("_ml") and n not in ("icv_ml", "brain_ml") and n[:3] != "qc_"]
        for name in parts:
            scans[name.replace("_ml", "_share_ml")] = scans[name] / scans["icv_ml"]
    return scans


def _model(columns: list[str]) -> Pipeline | DummyClassifier:
    if not columns:
        return DummyClassifier(strategy="prior")
    regression = LogisticRegression(max_iter=5000, class_weight="balanced", C=0.3)
    return make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), regression)


def _predicted(name: str, columns: list[str], fold: int, table: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    train, rest = table[table["split"] == "train"], table[table["split"] != "train"]
    x = columns or ["scan_id"]
    model = _model(columns).fit(train[x], train["diagnosis"])
    p = pd.DataFrame(model.predict_proba(rest[x]), columns=list(model.classes_), index=rest.index)
    p = p.reindex(columns=params.classes, fill_value=0.0).add_prefix("p_")
    known = rest[["participant_id", "session_id", "scan_id", "split"]]
    return known.assign(run=name, fold=fold, slice=0, truth=rest["diagnosis"], temperature=1.0).join(p)
