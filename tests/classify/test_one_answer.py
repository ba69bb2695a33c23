"""A scan has one answer, whoever asks: the study, the command line, the form; and training scans to compare with."""

import json
import subprocess
import sys

import numpy as np
import pytest

from adlib.classify import model_store as stored
from adlib.classify import prediction as predict
from adlib.classify.nearest import read_examples, write_examples
from adlib.classify.widget.jobs import Worker
from adlib.preprocess.cohort_run import preprocess_cohort
from adlib.sources.reading import read_source
from adlib.study.digests import code_digest
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
    preprocess_cohort(manifest, params, code_digest("adlib.preprocess.cohort_run"))
    build_slices(params)
    write_table(make_splits(manifest, params.splits, params.seed), params.folder / "splits.tsv", SPLITS)
    train_study(params)
    (params.folder / "small.yaml").write_text(dump_params(params))
    stored.keep_examples(params)
    return params


@pytest.fixture(scope="module")
def ungated(study):
    """The study's model without the gate, which so few people leave too narrow for an untrained network's features."""
    path = study.folder / "ungated" / "model.safetensors"
    classifier = model_file.load(stored.find_model(study))
    card = vars(classifier.card) | {"reference": classifier.card.reference | {"gate": {}}}
    model_file.save(model_file.Classifier(classifier.network, model_file.ModelCard(**card), classifier.spaces), path)
    return path


def test_study_command_line_and_form_give_the_same_probabilities(study, ungated, tmp_path):
    scan = stored.example_scans(study).iloc[0]
    row = stored.stored_answers(study).set_index("scan_id").loc[scan["scan_id"]]
    known = [row[f"p_{name}"] for name in study.classes]
    command = [sys.executable, "-m", "adlib.predict", scan["path"], "--study", study.folder / "small.yaml"]
    done = subprocess.run([*command, "--model", ungated, "--out", tmp_path], capture_output=True, text=True)
    told = list(json.loads(done.stdout)["probabilities"].values())
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    worker = Worker(ungated, study.classify, home)
    shown = worker.classify(scan["path"], {}, lambda stage: None)
    worker.stop()
    assert list(shown.record["probabilities"].values()) == told
    np.testing.assert_allclose(told, known, rtol=0, atol=1e-6)
    assert abs(known[0] - known[1]) > 1e-3


def test_scans_have_the_answers_that_the_study_stored(study, ungated):
    answers = stored.stored_answers(study).set_index("scan_id")
    paths = read_table(study.folder / "manifest.tsv", MANIFEST).set_index("scan_id")["path"]
    classifier = model_file.load(ungated)
    assert len(answers) >= 2
    for name, row in answers.tail(2).iterrows():
        found = predict.predict_file(paths[name], classifier).probabilities
        np.testing.assert_allclose(list(found.values()), row[[f"p_{k}" for k in found]].astype(float), atol=1e-6)


def test_the_nearest_of_a_training_scan_is_itself_and_only_training_scans_are_near(study, ungated):
    examples = read_examples(stored.find_model(study))
    splits = read_table(study.folder / "splits.tsv", SPLITS)
    trained = set(splits.loc[splits["split"] == "train", "participant_id"])
    assert len(examples.scan_id) == len(trained) and {name.split("_")[0] for name in examples.scan_id} == trained
    manifest = read_table(study.folder / "manifest.tsv", MANIFEST).set_index("scan_id")
    one = str(examples.scan_id[1])
    found = predict.predict_file(manifest.loc[one, "path"], model_file.load(ungated), examples=examples)
    assert found.nearest[0].scan_id == one and len(found.nearest) == 3
    assert found.nearest[0].distance < 1e-3 < found.nearest[1].distance <= found.nearest[2].distance
    assert found.nearest[0].diagnosis == manifest.loc[one, "diagnosis"]
    assert found.nearest[0].age == manifest.loc[one, "age"]
    assert found.nearest[0].picture.std() > 10


def test_people_are_shown_only_where_the_study_says_so(study, tmp_path):
    model = stored.find_model(study)
    source = load_params("params/bids.yaml", ("source.root=.",)).source
    people = study.model_copy(update={"source": source})
    (tmp_path / "examples.npz").write_bytes(b"of an earlier run")
    assert write_examples(people, model, tmp_path) is None and not (tmp_path / "examples.npz").exists()
    asked = people.model_copy(update={"classify": people.classify.model_copy(update={"show_training": True})})
    assert read_examples(model, write_examples(asked, model, tmp_path)) is not None


def test_examples_of_another_model_are_not_shown_and_damaged_ones_are_told(study, ungated, tmp_path):
    path = stored.find_model(study).with_name("examples.npz")
    assert read_examples(ungated, path) is None
    before = file_digest(path)
    stored.keep_examples(study)
    assert file_digest(path) == before
    (tmp_path / "examples.npz").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StudyError, match="delete it"):
        read_examples(stored.find_model(study), tmp_path / "examples.npz")


def test_before_a_study_was_run_the_released_model_answers_for_it(tmp_path):
    params = load_params("params/phantom.yaml", (f"exec.outputs={tmp_path}"))
    assert stored.find_model(params).parent.name == "phantom"
    answers = stored.stored_answers(params)
    accuracy = get_score(stored.stored_scores(params), "resnet50", "accuracy")
    first = answers.sort_values("session_id").drop_duplicates("participant_id")
    assert accuracy.point > 0.3 and len(first) >= 100
    scan = stored.example_scans(params).iloc[0]
    found = predict.predict_file(scan["path"], model_file.load(stored.find_model(params)))
    row = answers.set_index("scan_id").loc[scan["scan_id"]]
    np.testing.assert_allclose(list(found.probabilities.values()), [row[f"p_{k}"] for k in params.classes], atol=1e-6)
    assert scan["diagnosis"] == row["truth"]
