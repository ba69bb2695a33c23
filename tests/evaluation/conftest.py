"""A made study of which every number is known: what it is scored on, and its scores."""

import numpy as np
import pandas as pd
import pytest

from adlib.evaluation.evaluate import evaluate_study
from adlib.study.params import load_params
from adlib.study.records import AUDIT, FEATURES, MANIFEST, PREDICTIONS, SPLITS, write_table

CLASSES = ["CN", "MCI", "AD"]
COLUMNS = [f"p_{name}" for name in CLASSES]
KEYS = ["participant_id", "session_id", "scan_id"]
PARTS = np.array(["train", "validation", "test"])


@pytest.fixture(scope="package")
def study(tmp_path_factory):
    """Two folds of 120 participants with one to three scans of three slices; each fold has its own calibration.

    Hippocampi tell the class, the brain fraction and the network tell it half-way, age and sex do not. A scan failed.
    """
    sets = (f"exec.outputs={tmp_path_factory.mktemp('o')}", "evaluate.bootstrap=150")
    params = load_params("params/oasis2_slices.yaml", sets)
    params.folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    scans = pd.DataFrame(
        [(f"sub-{k:03d}", f"ses-{s}", k % 3) for k in range(120) for s in range(1 + k % 4 % 3)],
        columns=["participant_id", "session_id", "stage"],
    )
    stage, count = scans["stage"], len(scans)
    scans["scan_id"] = scans["participant_id"] + scans["session_id"]
    scans["diagnosis"] = np.array(CLASSES)[stage]
    scans["sex"] = np.where(scans["participant_id"].str[-1].astype(int) < 6, "F", "M")
    scans["age"], scans["nbv"] = rng.normal(72, 9, count), 0.8 - 0.04 * stage + rng.normal(0, 0.04, count)
    scans["hippocampus_ml"] = 8 - stage + rng.normal(0, 0.2, count)
    write_table(scans.assign(path="p", sha256="s"), params.folder / "manifest.tsv", MANIFEST)
    finding = {"check": "imbalance", "severity": "stop", "subject": "all", "value": "9", "limit": "4", "meaning": "why"}
    audit = pd.DataFrame([finding | {"decision": "accepted by params"}, finding | {"decision": "go on"}])
    write_table(audit, params.folder / "audit.tsv", AUDIT)
    features = scans[[*KEYS, "nbv", "hippocampus_ml"]].assign(qc_verdict="pass")
    features.loc[1, ["qc_verdict", "qc_reasons"]] = ["fail", "truncated file"]
    write_table(features, params.folder / "features.tsv", FEATURES)
    people = scans.drop_duplicates("participant_id")[["participant_id", "diagnosis"]]
    turn = np.arange(120) // 3 % 4  # a half of the participants trains, a quarter each validates and is tested
    parts = [PARTS[np.select([turn == 2 * fold, turn == 2 * fold + 1], [1, 2])] for fold in (0, 1)]
    splits = pd.concat([people.assign(fold=fold, split=part) for fold, part in enumerate(parts)])
    write_table(splits, params.folder / "splits.tsv", SPLITS)
    rows = scans.drop(index=1, columns="diagnosis").merge(splits.query("split != 'train'"), on="participant_id")
    rows = rows.rename(columns={"diagnosis": "truth"}).merge(pd.DataFrame({"slice": range(3)}), how="cross")
    anatomy = pd.Series(rng.normal(0, 0.8, 120), people["participant_id"])
    reading = rows["stage"] + rows["participant_id"].map(anatomy) + rng.normal(0, 0.7, len(rows))
    p = np.exp(-((reading.to_numpy()[:, None] - np.arange(3)) ** 2))
    rows[COLUMNS] = p / p.sum(1, keepdims=True)
    rows["temperature"] = np.where(rows["fold"] == 0, 1.7, 0.8)
    rows["bias_CN"], rows["bias_MCI"], rows["bias_AD"] = 0.1, np.where(rows["fold"] == 0, 0.4, -0.2), -0.1
    columns = [*PREDICTIONS.columns, *COLUMNS, "temperature", "bias_CN", "bias_MCI", "bias_AD"]
    predictions = pd.concat([rows.assign(run="resnet50"), rows.sample(frac=1, random_state=1).assign(run="background")])
    write_table(predictions[columns], params.folder / "predictions.parquet", PREDICTIONS)
    (params.folder / "model.safetensors").write_bytes(b"stand-in")
    return params, evaluate_study(params)
