"""Baselines of the network: chance, metadata, age and sex, volumes, and grey-matter maps, on the same splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from adlib.audit.acquisition import acquisition_encoder, acquisition_facts, with_facts
from adlib.evaluation.grey_matter import grey_matter_rows, has_maps
from adlib.study.params import StudyParams
from adlib.study.records import PREDICTIONS, check_table
from adlib.training.splits import fold_numbers

AGE_SEX = ("age", "female")
COMPONENTS = 50  # of the grey-matter maps
CALIBRATION_FOLDS = 3


@dataclass(frozen=True)
class Baseline:
    """A classifier without a network.

    Attributes
    ----------
    name : str
    inputs : DataFrame
        One row per scan, in the order of the scans.
    model : callable
        Makes an unfitted scikit-learn classifier from the training scans' participants and labels.
    """

    name: str
    inputs: pd.DataFrame
    model: Callable[[pd.DataFrame], BaseEstimator]


def predict_baselines(
    manifest: pd.DataFrame, features: pd.DataFrame, splits: pd.DataFrame, params: StudyParams
) -> pd.DataFrame:
    """Fit every baseline on the training scans of each fold and predict the others.

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
    baselines = make_baselines(scans, params)
    parts = []
    for number in fold_numbers(splits):
        split = splits[splits["fold"] == number].set_index("participant_id")["split"]
        table = scans.assign(split=scans["participant_id"].map(split)).dropna(subset=["split"])
        parts += [_predicted(one, number, table, params) for one in baselines]
    return check_table(pd.concat(parts, ignore_index=True), PREDICTIONS, "baselines")


def make_baselines(scans: pd.DataFrame, params: StudyParams) -> list[Baseline]:
    """The baselines that this study has inputs for.

    Volumes enter a logistic regression as they are and as shares of the intracranial volume; metadata, the facts about
    an acquisition that no brain is needed for, enter one as categories and numbers. Grey-matter maps, where the study
    has them, are reduced by principal components and separated by a linear support vector machine.

    Parameters
    ----------
    scans : DataFrame
        One row per scan: manifest, features and acquisition facts.
    params : StudyParams

    Returns
    -------
    list of Baseline

    References
    ----------
    Klöppel et al. 2008, doi:10.1093/brain/awm319 (support vector machine on grey-matter maps).
    """
    found = [Baseline("majority", scans[["scan_id"]], lambda _: DummyClassifier(strategy="prior"))]
    facts = acquisition_facts(scans)
    if facts.shape[1]:
        found.append(Baseline("metadata", facts, _metadata_model))
    for name, columns in feature_sets(scans).items():
        found.append(Baseline(name, scans[list(columns)], _regression))
    derivatives = params.folder / "derivatives"
    if not params.input.flat and has_maps(scans, derivatives):
        maps = pd.DataFrame(grey_matter_rows(scans, derivatives, params.pool), index=scans.index)
        found.append(Baseline("grey_matter_svm", maps, _map_model))
    return found


def feature_sets(scans: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Columns of each baseline of demographics and volumes.

    Parameters
    ----------
    scans : DataFrame
        One row per scan.

    Returns
    -------
    dict of str to tuple of str
        Only columns that the study has and that vary; baselines without any are left out.
    """
    volumes = tuple(n for n in scans.columns if (n.endswith("_ml") and not n.startswith("qc_")) or n == "nbv")
    sets = {
        "age_sex": AGE_SEX,
        "brain_fraction": ("nbv",),
        "volumes": volumes,
        "age_sex_volumes": AGE_SEX + volumes,
    }
    usable = {
        name: tuple(c for c in columns if c in scans and scans[c].nunique() > 1) for name, columns in sets.items()
    }
    return {name: columns for name, columns in usable.items() if columns}


def _joined(manifest: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    usable = features[features["qc_verdict"] != "fail"]
    own = manifest.columns.difference(features.columns).tolist()
    scans = with_facts(usable.merge(manifest[["scan_id", *own]], on="scan_id"))
    scans["female"] = scans["sex"].str.upper().str.startswith("F").astype(float)
    if "icv_ml" in scans:
        parts = [n for n in scans.columns if n.endswith("_ml") and n not in ("icv_ml", "brain_ml") and n[:3] != "qc_"]
        for name in parts:
            scans[name.replace("_ml", "_share_ml")] = scans[name] / scans["icv_ml"]
    return scans


def _regression(_: pd.DataFrame) -> BaseEstimator:
    regression = LogisticRegression(max_iter=5000, class_weight="balanced", C=0.3)
    return make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), regression)


def _metadata_model(_: pd.DataFrame) -> BaseEstimator:
    return make_pipeline(acquisition_encoder(), LogisticRegression(max_iter=5000, class_weight="balanced"))


def _map_model(train: pd.DataFrame) -> BaseEstimator:
    """The machine's scores become probabilities by Platt's method, on folds of whole participants."""
    components = min(COMPONENTS, len(train) // 2)
    machine = make_pipeline(
        PCA(components, svd_solver="full"), StandardScaler(), SVC(kernel="linear", C=0.01, class_weight="balanced")
    )
    cutter = StratifiedGroupKFold(CALIBRATION_FOLDS)
    folds = list(cutter.split(train, train["diagnosis"], train["participant_id"]))
    return CalibratedClassifierCV(machine, cv=folds, ensemble=False)


def _predicted(baseline: Baseline, fold: int, table: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    train, rest = table[table["split"] == "train"], table[table["split"] != "train"]
    model = baseline.model(train).fit(baseline.inputs.loc[train.index], train["diagnosis"])
    p = pd.DataFrame(
        np.asarray(model.predict_proba(baseline.inputs.loc[rest.index])), columns=list(model.classes_), index=rest.index
    )
    p = p.reindex(columns=params.classes, fill_value=0.0).add_prefix("p_")
    known = rest[["participant_id", "session_id", "scan_id", "split"]]
    return known.assign(run=baseline.name, fold=fold, slice=0, truth=rest["diagnosis"], temperature=1.0).join(p)
