"""Scores and baselines of a small made study."""

import numpy as np
import pandas as pd
import pytest

from adlib.evaluation.evaluate import FIRST, check_unseen, evaluate_study, first_sessions, score_run
from adlib.study.metrics import get_score, metric_table, metrics_table, read_metrics
from adlib.study.records import PREDICTIONS, SPLITS, StudyError, read_table
from adlib.training.pooling import pool_level


def test_stored_metrics_are_those_returned_with_their_intervals(study):
    params, results = study
    metrics = metrics_table(results)
    pd.testing.assert_frame_equal(metrics, read_metrics(params.folder))
    for metric in ("balanced_accuracy", "roc_auc_binary"):
        score = get_score(metrics, "resnet50", metric)
        assert score.low <= score.point <= score.high


def test_planted_volumes_are_found_and_age_is_chance(study):
    metrics = metrics_table(study[1])
    assert get_score(metrics, "volumes", "balanced_accuracy").point > 0.9
    age_sex = get_score(metrics, "age_sex", "balanced_accuracy")
    assert age_sex.low < 1 / 3 < age_sex.high
    assert get_score(metrics, "majority", "balanced_accuracy").point == pytest.approx(1 / 3)
    assert get_score(metrics, "majority", "roc_auc_binary").point == 0.5
    assert get_score(metrics, "resnet50 - majority", "balanced_accuracy_difference").low > 0


def test_left_out_scans_and_sources_are_recorded(study):
    _, metrics = study
    assert metrics["left_out"] == [{"scan_id": "sub-001ses-0", "qc_reasons": "truncated file"}]
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


def test_first_sessions_are_scored_alone(study):
    params, results = study
    table = read_table(params.folder / "predictions.parquet", PREDICTIONS).query("run == 'resnet50'")
    first = first_sessions(table)
    assert len(first) < len(table) and set(first["participant_id"]) == set(table["participant_id"])
    assert (first.groupby(["fold", "participant_id"])["session_id"].nunique() == 1).all()
    assert set(first.loc[first["session_id"] != "ses-0", "participant_id"]) == {"sub-001"}  # whose first scan failed
    alone = first.query("split == 'test'")
    expected = score_run(pool_level(alone, "subject", params.classes), "resnet50", FIRST, params)
    stored = [entry for entry in results["entries"] if (entry["run"], entry["level"]) == ("resnet50", FIRST)]
    assert stored == expected
    runs = {entry["run"] for entry in results["entries"] if entry["level"] == FIRST}
    assert {"resnet50", "background", "volumes", "age_sex"} <= runs


def test_what_the_params_accept_stands_in_the_metrics(study):
    _, metrics = study
    assert [finding["check"] for finding in metrics["accepted"]] == ["imbalance"]
