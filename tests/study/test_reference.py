"""The comparison with the reference: honest reruns pass, another result is named."""

import json

import numpy as np
import pandas as pd
import pytest

from adlib.study import reference
from adlib.study.params import load_params
from adlib.study.records import write_json

PEOPLE = [f"sub-{number:02}" for number in range(40)]


def entry(run, metric, point):
    return {"run": run, "level": "subject", "metric": metric, "class": None, "n": 40, "point": point, "ci95": None}


@pytest.fixture
def study(tmp_path):
    """Params of a finished study, and a root whose published reference is equal to it."""
    params = load_params("params/smoke.yaml", (f"exec.outputs={tmp_path / 'outputs'}",))
    folder, rng = params.folder, np.random.default_rng(0)
    folder.mkdir(parents=True)
    scans = pd.DataFrame({"participant_id": PEOPLE, "scan_id": PEOPLE, "diagnosis": ["CN", "AD"] * 20})
    tables = {
        "manifest.tsv": scans.assign(path="here", sha256="0", age=rng.normal(70, 8, 40)),
        "splits.tsv": scans[["participant_id", "diagnosis"]].assign(fold=0, split=["train", "test"] * 20),
        "features.tsv": scans.assign(qc_verdict="pass", gm_ml=rng.normal(600, 50, 40)),
        "audit.tsv": pd.DataFrame({"check": ["sites"], "severity": ["info"], "subject": ["CN"], "meaning": ["words"]}),
    }
    facts = pd.DataFrame({"column": ["age", "site"], "measure": ["eta", "Cramér's V"]})
    tables["confounds.tsv"] = facts.assign(association=rng.random(2), p_holm=rng.random(2))
    for name, table in tables.items():
        table.to_csv(folder / name, sep="\t", index=False)
    tested = tables["splits.tsv"].merge(scans).query("split == 'test'").rename(columns={"diagnosis": "truth"})
    predictions = pd.concat([tested.assign(run=run) for run in ("resnet50", "shuffled_labels")])
    predictions.to_parquet(folder / "predictions.parquet")
    scores = [
        entry("resnet50", "balanced_accuracy", 0.458),
        entry("shuffled_labels", "balanced_accuracy", 0.27),
        entry("age_sex", "balanced_accuracy", 0.33),
        entry("resnet50 - age_sex", "balanced_accuracy_difference", 0.128),
    ]
    write_json({"study": "smoke", "entries": scores}, folder / "metrics.json")
    write_json({"params": params.model_dump(mode="json")}, folder / "provenance.json")
    reference.accept(params, tmp_path)
    main = pd.DataFrame(
        [{**scores[0], "mean": 0.46, "tolerance": 0.04}, {**scores[1], "mean": 0.26, "tolerance": 0.05}]
    )
    main.assign(**{"class": ""}).to_csv(tmp_path / reference.TOLERANCES, sep="\t", index=False)
    return params, tmp_path


def change_score(folder, run, point):
    content = json.loads((folder / "metrics.json").read_text())
    for item in content["entries"]:
        item["point"] = point if item["run"] == run else item["point"]
    write_json(content, folder / "metrics.json")


def change_table(folder, name, column, change):
    table = pd.read_csv(folder / name, sep="\t")
    table[column] = change(table[column])
    table.to_csv(folder / name, sep="\t", index=False)


def test_the_same_study_passes_in_20_lines(study):
    verdict = reference.compare(*study)
    assert verdict.same and len(verdict.lines) <= 20


@pytest.mark.parametrize(
    ("name", "column", "change"),
    [
        ("manifest.tsv", "path", lambda column: "elsewhere"),
        ("audit.tsv", "meaning", lambda column: "other words"),
        ("features.tsv", "gm_ml", lambda column: column * 1.0001),
    ],
)
def test_paths_sentences_and_rounding_decide_nothing(study, name, column, change):
    change_table(study[0].folder, name, column, change)
    assert reference.compare(*study).same


@pytest.mark.parametrize(("point", "same"), [(0.49, True), (0.38, False)])
def test_a_main_result_decides_by_its_tolerance(study, point, same):
    params, _ = study
    change_score(params.folder, "resnet50", point)
    verdict = reference.compare(*study)
    assert verdict.same == same and ("ANOTHER RESULT" in verdict.lines[0]) != same


@pytest.mark.parametrize(
    ("run", "point", "same"), [("age_sex", 0.331, True), ("age_sex", 0.38, False), ("resnet50 - age_sex", 0.3, True)]
)
def test_scores_without_network_are_equal_to_rounding(study, run, point, same):
    change_score(study[0].folder, run, point)
    assert reference.compare(*study).same == same


@pytest.mark.parametrize(
    ("name", "column", "change", "words"),
    [
        ("splits.tsv", "split", lambda column: column.shift(1, fill_value="test"), "DIFFERS in split"),
        ("manifest.tsv", "diagnosis", lambda column: column.shift(1, fill_value="CN"), "DIFFERS in diagnosis"),
        ("features.tsv", "gm_ml", lambda column: column * 1.05, "DIFFERS in gm_ml"),
        ("features.tsv", "scan_id", lambda column: column.where(column != "sub-03", "sub-99"), "OTHER ROWS"),
        ("audit.tsv", "severity", lambda column: "stop", "DIFFERS in severity"),
    ],
)
def test_tables_before_training_are_equal(study, name, column, change, words):
    params, _ = study
    change_table(params.folder, name, column, change)
    verdict = reference.compare(*study)
    assert not verdict.same and any(words in line for line in verdict.lines)


@pytest.mark.parametrize(
    "change",
    [lambda table: table.iloc[::2], lambda table: table.assign(truth="CN")],
    ids=["participants", "labels"],
)
def test_predictions_are_of_held_out_participants(study, change):
    params, _ = study
    path = params.folder / "predictions.parquet"
    change(pd.read_parquet(path)).to_parquet(path)
    verdict = reference.compare(*study)
    assert not verdict.same and any("DIFFER from splits.tsv" in line for line in verdict.lines)


def test_params_are_equal_but_for_training_seed_and_workers(study):
    params, root = study
    outputs = f"exec.outputs={params.exec.outputs}"
    halved = load_params("params/smoke.yaml", (outputs, "train.epochs=1"))
    verdict = reference.compare(halved, root)
    assert not verdict.same and any("DIFFER in train.epochs" in line for line in verdict.lines)
    honest = load_params("params/smoke.yaml", (outputs, "train.seed=5", "exec.workers=1"))
    assert reference.compare(honest, root).same


def test_without_tolerances_the_interval_of_the_reference_decides(study):
    params, root = study
    (root / reference.TOLERANCES).unlink()
    content = json.loads((root / "figures" / "metrics.json").read_text())
    for item in content["entries"]:
        item["ci95"] = [item["point"] - 0.06, item["point"] + 0.06]
    write_json(content, root / "figures" / "metrics.json")
    verdict = reference.compare(params, root)
    assert verdict.same and "does not exist" in verdict.lines[-1]
    change_score(params.folder, "resnet50", 0.38)
    assert not reference.compare(params, root).same
