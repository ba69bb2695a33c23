"""Study, command line and form give the same probabilities; training scans for comparison."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adlib.classify.model_store import find_model
from adlib.classify.nearest import read_examples, write_examples
from adlib.classify.prediction import predict_file
from adlib.classify.stored_results import example_scans, store_examples, stored_predictions, stored_scores
from adlib.classify.worker import Worker
from adlib.preprocess.cohort_run import preprocess_cohort
from adlib.sources.reading import read_source
from adlib.study.metrics import get_score
from adlib.study.params import dump_params, load_params
from adlib.study.records import MANIFEST, SPLITS, StudyError, file_digest, read_table, write_table
from adlib.training import model_file
from adlib.training.runs import train_study
from adlib.training.slices import build_slices
from adlib.training.splits import make_splits

pytestmark = [pytest.mark.studies, pytest.mark.timeout(900)]
SMALL = (
    "classes=[CN, AD]", "source.severity_mean=[0.1, 1.0]", "evaluate.binary={negative: [CN], positive: [AD]}",
    "source.participants_per_class=5", "source.followup_fraction=0", "splits.validation_fraction=0.3",
    "train.controls=[]", "train.epochs=1", "exec.workers=2", "preprocess.normalise=landmarks",
    "input.positions_mm=[-30.0, -20.0, -10.0]",
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of ten simulated people, through the functions that its notebooks call."""
    params = load_params("params/smoke.yaml", (*SMALL, f"exec.outputs={tmp_path_factory.mktemp('study')}"))
    manifest = write_table(read_source(params), params.folder / "manifest.tsv", MANIFEST)
    preprocess_cohort(manifest, params)
    build_slices(params)
    write_table(make_splits(manifest, params.splits, params.seed), params.folder / "splits.tsv", SPLITS)
    train_study(params)
    (params.folder / "small.yaml").write_text(dump_params(params))
    store_examples(params)
    return params


@pytest.fixture(scope="module")
def without_checks(study):
    """The study's model without distance checks, which so few participants make too narrow."""
    path = study.folder / "without_checks" / "model.safetensors"
    classifier = model_file.load(find_model(study))
    card = vars(classifier.card) | {"reference": classifier.card.reference | {"gate": {}}}
    model_file.save(
        model_file.Classifier(classifier.network, model_file.ModelCard(**card), classifier.distributions), path
    )
    return path


def test_study_command_and_form_agree(study, without_checks, tmp_path):
    scan = example_scans(study).iloc[0]
    row = stored_predictions(study).set_index("scan_id").loc[scan["scan_id"]]
    expected = [row[f"p_{name}"] for name in study.classes]
    command = [sys.executable, "-m", "adlib.predict", scan["path"], "--study", study.folder / "small.yaml"]
    done = subprocess.run([*command, "--model", without_checks, "--out", tmp_path], capture_output=True, text=True)
    printed = list(json.loads(done.stdout)["probabilities"].values())
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    worker = Worker(without_checks, study.classify, home)
    shown = worker.classify(scan["path"], {}, lambda stage: None)
    worker.stop()
    assert list(shown.record["probabilities"].values()) == printed
    np.testing.assert_allclose(printed, expected, rtol=0, atol=1e-6)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_nearest_scan_of_a_training_scan_is_itself(study, without_checks):
    examples = read_examples(find_model(study))
    splits = read_table(study.folder / "splits.tsv", SPLITS)
    trained = set(splits.loc[splits["split"] == "train", "participant_id"])
    assert len(examples.scan_id) == len(trained) and {name.split("_")[0] for name in examples.scan_id} == trained
    manifest = read_table(study.folder / "manifest.tsv", MANIFEST).set_index("scan_id")
    scan = str(examples.scan_id[1])
    result = predict_file(manifest.loc[scan, "path"], model_file.load(without_checks), examples=examples)
    first, second, third = result.nearest
    assert first.distance < 1e-3 < second.distance <= third.distance
    assert [first.scan_id, first.diagnosis, first.age] == [scan, *manifest.loc[scan, ["diagnosis", "age"]]]
    assert first.picture.std() > 10


def test_people_are_shown_only_with_show_training(study, tmp_path):
    model = find_model(study)
    source = load_params("params/bids.yaml", ("source.root=.",)).source
    people = study.model_copy(update={"source": source})
    copy = Path(shutil.copy(model, tmp_path))
    (tmp_path / "examples.npz").write_bytes(b"of an earlier run")
    assert write_examples(people, copy) is None and not (tmp_path / "examples.npz").exists()
    asked = people.model_copy(update={"classify": people.classify.model_copy(update={"show_training": True})})
    assert write_examples(asked, copy) and read_examples(copy) is not None


def test_examples_of_another_model_and_damaged_ones(study, without_checks, tmp_path):
    path = find_model(study).with_name("examples.npz")
    (tmp_path / "other").mkdir()
    other = Path(shutil.copy(without_checks, tmp_path / "other"))
    shutil.copy(path, other.with_name("examples.npz"))
    assert read_examples(other) is None
    before = file_digest(path)
    store_examples(study)
    assert file_digest(path) == before
    copy = Path(shutil.copy(find_model(study), tmp_path))
    (tmp_path / "examples.npz").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StudyError, match="delete it"):
        read_examples(copy)


def test_released_model_is_used_before_the_first_run(tmp_path):
    params = load_params("params/phantom.yaml", (f"exec.outputs={tmp_path}",))
    assert find_model(params).parent.name == "phantom"
    predicted = stored_predictions(params)
    accuracy = get_score(stored_scores(params), "resnet50", "accuracy")
    first = predicted.sort_values("session_id").drop_duplicates("participant_id")
    assert accuracy.point > 0.3 and len(first) >= 100
    scan = example_scans(params).iloc[0]
    result = predict_file(scan["path"], model_file.load(find_model(params)))
    row = predicted.set_index("scan_id").loc[scan["scan_id"]]
    stored = [row[f"p_{k}"] for k in params.classes]  # on another kind of processor, whose sums differ in rounding
    np.testing.assert_allclose(list(result.probabilities.values()), stored, atol=1e-3)
    assert scan["diagnosis"] == row["truth"]
