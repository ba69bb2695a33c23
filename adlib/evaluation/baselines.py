"""Baselines of the network: chance, metadata, quality, age and sex, volumes and grey matter, on the same splits."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from nilearn.image import index_img, resample_img
from nilearn.maskers import NiftiMasker
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
from torchvision.models.resnet import Bottleneck

from adlib.audit.acquisition import IMAGE_QUALITY, acquisition_encoder, acquisition_facts, with_facts
from adlib.imaging import atlas
from adlib.parallel.mapping import map_scans
from adlib.preprocess.derivatives import file_names
from adlib.study.exec_params import Pool
from adlib.study.params import StudyParams
from adlib.study.records import PREDICTIONS, check_table
from adlib.training.network import ResNet50, image_features
from adlib.training.slices import load_slices
from adlib.training.splits import fold_numbers, member_parts
from adlib.training.targets import as_numbers

AGE_SEX = ("age", "female")
COMPONENTS = 50  # of the grey-matter maps
CALIBRATION_FOLDS = 3
VOXEL_MM = 4.0
SMOOTHING_MM = 8.0  # full width at half maximum, as is usual: Klöppel et al. 2008, doi:10.1093/brain/awm319
LEAST_GREY = 0.2  # of the template's map, where a voxel is taken


def predict_baselines(
    manifest: pd.DataFrame, features: pd.DataFrame, splits: pd.DataFrame, params: StudyParams
) -> pd.DataFrame:
    """Fit every baseline on the training scans of each fold and predict the others.

    Where the network is an ensemble that leaves out other participants in each member, so do the baselines to predict
    validation scans; those that predict test scans are fitted on all of the participants that are not tested.

    Volumes enter a logistic regression as they are and as shares of the intracranial volume; metadata, the facts about
    an acquisition that no brain is needed for, enter one as categories and numbers. Grey-matter maps, where the study
    has them, and image features of a network with random weights are reduced by principal components and separated by a
    linear support vector machine.

    Parameters
    ----------
    manifest, features, splits : DataFrame
        As stored by the steps before.
    params : StudyParams

    Returns
    -------
    DataFrame
        Schema `records.PREDICTIONS`, one row per validation or test scan, fold and baseline (``run``).

    References
    ----------
    Klöppel et al. 2008, doi:10.1093/brain/awm319 (support vector machine on grey-matter maps).
    """
    scans = _joined(manifest, features)
    inputs, parts = _inputs(scans, params), []
    for number in fold_numbers(splits):
        for member in splits.loc[splits["fold"] == number, "member"].dropna().sort_values().unique():
            split = member_parts(splits, number, member).replace("test", None)
            parts += _all_predicted(inputs, number, scans, split, params)
        parts += _all_predicted(inputs, number, scans, member_parts(splits, number, 0), params)
    return check_table(pd.concat(parts, ignore_index=True), PREDICTIONS, "baselines")


def _all_predicted(
    inputs: dict[str, pd.DataFrame], fold: int, scans: pd.DataFrame, split: pd.Series, params: StudyParams
) -> list[pd.DataFrame]:
    table = scans.assign(split=scans["participant_id"].map(split)).dropna(subset=["split"])
    return [_predicted(run, inputs[run], fold, table, params) for run in inputs]


def _inputs(scans: pd.DataFrame, params: StudyParams) -> dict[str, pd.DataFrame]:
    """Inputs of the baselines that this study has any for, one row per scan in the order of the scans."""
    inputs = {"majority": scans[["scan_id"]]}
    facts = acquisition_facts(scans)
    if facts.shape[1]:
        inputs["metadata"] = facts
    inputs |= {name: scans[list(columns)] for name, columns in feature_sets(scans).items()}
    if (params.folder / "slices.npy").is_file():
        inputs["untrained_network"] = pd.DataFrame(untrained_features(scans, params), index=scans.index)
    derivatives = params.folder / "derivatives"
    if not params.input.flat and has_maps(scans, derivatives):
        maps = grey_matter_rows(scans, derivatives, params.pool)
        inputs["grey_matter_svm"] = pd.DataFrame(maps, index=scans.index)
    return inputs


def feature_sets(scans: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Columns of each baseline of quality, demographics and volumes.

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
        "quality": IMAGE_QUALITY,
        "age_sex": AGE_SEX,
        "brain_fraction": ("nbv",),
        "volumes": volumes,
        "age_sex_volumes": AGE_SEX + volumes,
    }
    varying = {c for c in (*AGE_SEX, *volumes, *IMAGE_QUALITY, "nbv") if c in scans and scans[c].nunique() > 1}
    usable = {name: tuple(c for c in columns if c in varying) for name, columns in sets.items()}
    return {name: columns for name, columns in usable.items() if columns}


def _joined(manifest: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    usable = features[features["qc_verdict"] != "fail"]
    facts = manifest.columns.difference(features.columns).tolist()
    scans = with_facts(usable.merge(manifest[["scan_id", *facts]], on="scan_id"))
    scans["female"] = as_numbers("sex", scans["sex"])
    if "icv_ml" in scans:
        parts = [n for n in scans.columns if n.endswith("_ml") and n not in ("icv_ml", "brain_ml") and n[:3] != "qc_"]
        for name in parts:
            scans[name.replace("_ml", "_share_ml")] = scans[name] / scans["icv_ml"]
    return scans


def _model(run: str, train: pd.DataFrame) -> BaseEstimator:
    """The unfitted classifier of a baseline, for its training scans."""
    if run == "majority":
        return DummyClassifier(strategy="prior")
    if run == "metadata":
        return make_pipeline(acquisition_encoder(), LogisticRegression(max_iter=5000, class_weight="balanced"))
    if run in ("grey_matter_svm", "untrained_network"):
        return _map_model(train)
    regression = LogisticRegression(max_iter=5000, class_weight="balanced", C=0.3)
    return make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), regression)


def _map_model(train: pd.DataFrame) -> BaseEstimator:
    """The machine's scores become probabilities by Platt's method, on folds of whole participants."""
    components = min(COMPONENTS, len(train) // 2)
    machine = make_pipeline(
        PCA(components, svd_solver="full"), StandardScaler(), SVC(kernel="linear", C=0.01, class_weight="balanced")
    )
    cutter = StratifiedGroupKFold(CALIBRATION_FOLDS)
    folds = list(cutter.split(train, train["diagnosis"], train["participant_id"]))
    return CalibratedClassifierCV(machine, cv=folds, ensemble=False)


def _predicted(run: str, inputs: pd.DataFrame, fold: int, table: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    train, rest = table[table["split"] == "train"], table[table["split"] != "train"]
    model = _model(run, train).fit(inputs.loc[train.index], train["diagnosis"])
    p = pd.DataFrame(model.predict_proba(inputs.loc[rest.index]), columns=list(model.classes_), index=rest.index)
    p = p.reindex(columns=params.classes, fill_value=0.0).add_prefix("p_")
    scans = rest[["participant_id", "session_id", "scan_id", "split"]]
    return scans.assign(run=run, fold=fold, slice=0, truth=rest["diagnosis"], temperature=1.0).join(p)


def untrained_features(scans: pd.DataFrame, params: StudyParams) -> np.ndarray:
    """Image features of each scan by a ResNet50 with random weights: what the architecture alone makes of the slices.

    Parameters
    ----------
    scans : DataFrame
        Column scan_id.
    params : StudyParams
        Of a study whose slices are cut.

    Returns
    -------
    (scans, 2048) float32
        Means over the slices of a scan.
    """
    slices, table = load_slices(params)
    torch.manual_seed(params.seed)
    network = ResNet50(len(params.classes))
    for block in (part for part in network.modules() if isinstance(part, Bottleneck)):
        torch.nn.init.ones_(block.bn3.weight)  # a training begins with blocks that pass their input on unchanged
    features = pd.DataFrame(image_features(network, slices))
    return features.groupby(table["scan_id"].to_numpy()).mean().loc[scans["scan_id"]].to_numpy()


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
    names = scans[["participant_id", "session_id", "scan_id"]].to_dict("records")
    row = partial(_row, derivatives=derivatives)
    return np.stack(map_scans(row, names, pool=pool, label="reading grey-matter maps"))


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
