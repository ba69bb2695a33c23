"""Scores and baselines of a small made study."""

import numpy as np
import pandas as pd
import pytest

from adlib.evaluation.evaluate import check_unseen, evaluate_study
from adlib.study.metrics import get_score, metric_table, metrics_table, read_metrics
from adlib.study.params import load_params
from adlib.study.records import AUDIT, FEATURES, MANIFEST, PREDICTIONS, SPLITS, StudyError, read_table, write_table
from adlib.training.pooling import pool_level

CLASSES = ("CN", "MCI", "AD")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Ninety participants, some with two sessions; volumes tell the class, the network tells it half-way."""
    rng = np.random.default_rng(4)
    sets = (f"exec.outputs={tmp_path_factory.mktemp('o')}", "evaluate.bootstrap=200")
    params = load_params("params/oasis2_slices.yaml", sets)
    params.folder.mkdir(parents=True)
    rows = []
    for k in range(90):
        for session in range(1 + k % 2):
            stage = k % 3
            rows.append(
                {
                    "participant_id": f"sub-{k:02d}",
                    "session_id": f"ses-{session}",
                    "scan_id": f"sub-{k:02d}_ses-{session}",
                    "diagnosis": CLASSES[stage],
                    "age": rng.normal(72, 6),
                    "sex": rng.choice(["F", "M"]),
                    "nbv": 0.8 - 0.05 * stage + rng.normal(0, 0.01),
                    "icv_ml": rng.normal(1500, 100),
                }
            )
    scans = pd.DataFrame(rows)
    write_table(scans.assign(path="p", sha256="s"), params.folder / "manifest.tsv", MANIFEST)
    finding = {"check": "imbalance", "severity": "stop", "subject": "all", "value": "9", "limit": "4", "meaning": "why"}
    audit = pd.DataFrame([finding | {"decision": "accepted by params"}, finding | {"decision": "go on"}])
    write_table(audit, params.folder / "audit.tsv", AUDIT)
    keys = ["participant_id", "session_id", "scan_id"]
    features = scans[[*keys, "nbv", "icv_ml"]].assign(qc_verdict="pass")
    features.loc[0, ["qc_verdict", "qc_reasons"]] = ["fail", "truncated file"]
    write_table(features, params.folder / "features.tsv", FEATURES)
    people = scans.drop_duplicates("participant_id")[["participant_id", "diagnosis"]]
    parts = np.array(["train", "validation", "test"])[np.arange(90) // 3 % 3]
    write_table(people.assign(fold=0, split=parts), params.folder / "splits.tsv", SPLITS)
    kept = scans.iloc[1:].merge(people.assign(split=parts)[["participant_id", "split"]], on="participant_id")
    kept = kept[kept["split"] != "train"]
    p = rng.dirichlet(np.ones(3), len(kept)) * 0.5 + 0.5 * np.eye(3)[kept["diagnosis"].map(CLASSES.index)]
    table = kept[[*keys, "split"]].assign(truth=kept["diagnosis"], run="resnet50", fold=0, slice=0, temperature=1.3)
    table[[f"p_{c}" for c in CLASSES]] = p
    write_table(table, params.folder / "predictions.parquet", PREDICTIONS)
    (params.folder / "model.safetensors").write_bytes(b"stand-in")
    return params, evaluate_study(params)


def test_stored_metrics_are_those_returned_with_their_intervals(study):
    params, results = study
    metrics = metrics_table(results)
    pd.testing.assert_frame_equal(metrics, read_metrics(params.folder))
    for metric in ("balanced_accuracy", "roc_auc_binary"):
        score = get_score(metrics, "resnet50", metric)
        assert score.low <= score.point <= score.high


def test_the_planted_volume_signal_is_found_and_age_is_chance(study):
    metrics = metrics_table(study[1])
    assert get_score(metrics, "volumes", "balanced_accuracy").point > 0.9
    age_sex = get_score(metrics, "age_sex", "balanced_accuracy")
    assert age_sex.low < 1 / 3 < age_sex.high
    assert get_score(metrics, "majority", "balanced_accuracy").point == pytest.approx(1 / 3)
    assert get_score(metrics, "majority", "roc_auc_binary").point == 0.5
    assert get_score(metrics, "resnet50 - majority", "balanced_accuracy_difference").low > 0


def test_left_out_scans_and_sources_are_recorded(study):
    _, metrics = study
    assert metrics["left_out"] == [{"scan_id": "sub-00_ses-0", "qc_reasons": "truncated file"}]
    assert set(metrics["sources"]) == {
        "manifest.tsv", "features.tsv", "splits.tsv", "predictions.parquet", "model.safetensors",
    }  # fmt: skip
    table = metrics_table(metrics)
    assert np.array(metrics["confusion"]["resnet50"]).sum() == get_score(table, "resnet50", "accuracy").n
    assert metric_table(table, "subject", ("accuracy",)).loc["majority", "accuracy"].startswith("0.3")


def test_metrics_repeat_exactly(study):
    params, metrics = study
    assert evaluate_study(params) == metrics


def test_predictions_of_a_trained_participant_are_refused(study):
    params, _ = study
    splits = read_table(params.folder / "splits.tsv", SPLITS)
    predictions = read_table(params.folder / "predictions.parquet", PREDICTIONS)
    trained = splits.query("split == 'train'")["participant_id"].iloc[0]
    predictions.loc[0, "participant_id"] = trained
    with pytest.raises(StudyError, match=f"leakage: {trained}"):
        check_unseen(predictions, splits)


def test_a_participant_counts_with_the_later_diagnosis_at_a_tie():
    rows = {"participant_id": "a", "scan_id": ["1", "2"], "session_id": ["1", "2"], "truth": ["CN", "AD"], "slice": 0}
    table = pd.DataFrame(rows).assign(fold=0, temperature=1.0, p_CN=[0.9, 0.2], p_AD=[0.1, 0.8])
    pooled = pool_level(table, "subject", ("CN", "AD"))
    assert pooled[["truth", "p_CN"]].iloc[0].tolist() == ["AD", pytest.approx(0.55)]
    assert len(pool_level(table, "scan", ("CN", "AD"))) == 2


def test_what_the_params_accept_stands_in_the_metrics(study):
    _, metrics = study
    assert [finding["check"] for finding in metrics["accepted"]] == ["imbalance"]
