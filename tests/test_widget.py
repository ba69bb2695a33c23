"""The form classifies what it is given, keeps no uploaded bytes, and reports faults in words."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest

from adlib import model_file, predict, widget
from adlib.params import InputParams, PreprocessParams, load_params
from adlib.preprocess.pipeline import Preprocessed
from adlib.records import MANIFEST, PREDICTIONS, TISSUE_MAPS, StudyError, read_table, write_table

CLASSES = ("CN", "MCI", "LMCI", "AD")
SECRET = b"bytes of somebody's head"


def prediction_of(name: str, probabilities=(0.1, 0.2, 0.3, 0.4), icv: float = 1400.0) -> predict.Prediction:
    """A prediction with a ball for a brain."""
    grid = np.indices((61, 73, 61)) - np.array([30, 42, 24]).reshape(3, 1, 1, 1)
    mask = (grid**2).sum(axis=0) < 20**2
    affine = np.diag([3.0, 3, 3, 1])
    affine[:3, 3] = [-90, -126, -72]
    features = {"icv_ml": icv, "ventricles_ml": 30.0}
    prepared = Preprocessed(
        name, mask * 1.0, mask, np.stack([mask * 0.2, mask * 0.8, mask * 0.0], -1), mask * 50.0, affine, np.eye(4),
        features, {}, "pass", (), ("a step",),
    )  # fmt: skip
    card = model_file.ModelCard(
        "phantom", CLASSES, True, InputParams(), PreprocessParams(), 1.0,
        {"volumes": {"icv_ml": {label: [1450.0, 100.0] for label in CLASSES}}}, "random", "", "", 0,
    )  # fmt: skip
    values = dict(zip(CLASSES, probabilities, strict=True))
    return predict.Prediction(name, "AD", values, np.array([probabilities]), prepared, card)


@pytest.fixture
def app(monkeypatch):
    """The form with a classifier that reads the file's content as its answer's name."""

    def answer(path, classifier, stage):
        stage("reading the file")
        if "bad" in str(path):
            raise StudyError("<b>bad</b> is no scan; copy it again")
        assert not Path(path).exists() or Path(path).read_bytes() == SECRET
        return prediction_of(Path(path).name)

    monkeypatch.setattr(widget, "predict_file", answer)
    return widget.App(None, {"sub-01 (AD)": "examples/sub-01.nii.gz"})


def upload(app, *names):
    app.upload.value = [
        {"name": n, "type": "", "size": len(SECRET), "content": memoryview(SECRET), "last_modified": pd.Timestamp.now()}
        for n in names
    ]


def pages(app) -> str:
    """All text that the result area shows."""
    return "".join(
        item.value for box in app.results.children for item in getattr(box, "children", [box]) if hasattr(item, "value")
        and isinstance(item.value, str)
    )  # fmt: skip


def holds(secret: bytes, content) -> bool:
    """Whether a secret stands anywhere in nested containers of bytes."""
    if isinstance(content, bytes | memoryview):
        return secret in bytes(content)
    items = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return any(holds(secret, item) for item in items)


def test_upload_is_classified_and_its_bytes_are_gone(app):
    upload(app, "head.nii.gz")
    assert holds(SECRET, app.upload.get_state())
    app.button.click()
    assert [one.name for one in app.predictions] == ["head.nii.gz"]
    assert app.upload.value == ()
    assert not app.upload.get_state()["value"]
    assert not holds(SECRET, [one.get_state() for one in (*app.box.children, *app.results.children[0].children)])
    assert bytes(app.results.children[0].children[0].value).startswith(b"\x89PNG")
    assert "<td>0.4</td>" in pages(app)
    assert "means nothing about a patient" in pages(app)


def test_example_and_path_are_classified_together(app):
    app.example.value = "examples/sub-01.nii.gz"
    app.path.value = "  /data/other.mgz "
    app.classify()
    assert [one.name for one in app.predictions] == ["other.mgz", "sub-01.nii.gz"]


def test_one_bad_file_does_not_stop_the_others(app):
    upload(app, "bad.nii", "good.nii")
    app.classify()
    assert [one.name for one in app.predictions] == ["good.nii"]
    assert "copy it again" in pages(app)
    assert not app.button.disabled


def test_names_and_messages_are_escaped(app):
    upload(app, "<img src=x onerror=alert(1)>bad.nii")
    app.classify()
    assert "<img" not in pages(app) and "<b>bad" not in pages(app)
    assert "&lt;img" in pages(app)


def test_names_with_folders_stay_in_the_private_folder(app):
    upload(app, "../../evil.nii", "..\\evil.nii", "a:b/c.nii")
    app.classify()
    assert [one.name for one in app.predictions] == ["evil.nii", "evil.nii", "c.nii"]


def test_nothing_chosen_says_so(app):
    app.classify()
    assert "Choose a file" in pages(app)


def test_download_holds_the_whole_record(app):
    upload(app, "head.nii.gz")
    app.classify()
    content = re.search(r"base64,([^\"]+)\"", pages(app))[1]
    assert json.loads(base64.b64decode(content)) == predict.as_record(app.predictions[0])


def test_session_summary_counts_every_scan(app):
    for name in ("a.nii", "b.nii", "c.nii"):
        upload(app, name)
        app.classify()
    assert "All 3 scans" in app.summary.value


def test_summary_is_the_mean_and_range():
    table = widget.summary_table([prediction_of("a", icv=1200.0), prediction_of("b", (0.4, 0.3, 0.2, 0.1), icv=1600.0)])
    assert table.loc["icv_ml"].to_dict() == {"count": 2, "mean": 1400.0, "std": 282.84, "min": 1200.0, "max": 1600.0}
    assert table.loc["p(CN)", "mean"] == 0.25
    assert widget.summary_table([]).empty


def test_tables_show_truth_beside_the_answer():
    table = widget.probability_table([prediction_of("a"), prediction_of("b")], {"a": "CN"})
    assert table["diagnosis"].tolist() == ["CN", "unknown"]
    assert table[[f"p({name})" for name in CLASSES]].sum(axis=1).tolist() == pytest.approx([1, 1])
    assert widget.volume_table([prediction_of("a")]).loc["icv_ml", "a"] == 1400.0


@pytest.fixture
def study(tmp_path):
    """Stored predictions of twelve participants, two scans of the first; fold 0 tests the first eight."""
    params = load_params("params/smoke.yaml", (f"exec.outputs={tmp_path}",))
    people = [(f"sub-{i:02d}", CLASSES[i % 4], "test" if i < 8 else "validation") for i in range(12)]
    scans = [(who, truth, part, "ses-01") for who, truth, part in people] + [("sub-00", "CN", "test", "ses-02")]
    rows = [
        {"run": run, "participant_id": who, "session_id": visit, "scan_id": f"{who}_{visit}", "slice": k, "fold": 0,
         "split": part, "truth": truth, "temperature": 1.0,
         **{f"p_{name}": 0.7 if name == (truth if run == "resnet50" else "CN") else 0.1 for name in CLASSES}}
        for run in ("resnet50", "shuffled_labels") for who, truth, part, visit in scans for k in range(2)
    ]  # fmt: skip
    write_table(pd.DataFrame(rows), params.folder / "predictions.parquet", PREDICTIONS)
    manifest = [
        {"participant_id": who, "session_id": visit, "scan_id": f"{who}_{visit}", "path": f"{who}_{visit}.nii",
         "sha256": "0", "diagnosis": truth}
        for who, truth, _, visit in scans
    ]  # fmt: skip
    write_table(pd.DataFrame(manifest), params.folder / "manifest.tsv", MANIFEST)
    return params


def test_examples_are_unseen_and_cover_the_classes(study):
    examples = predict.example_scans(study)
    assert examples["diagnosis"].tolist() == list(CLASSES)
    assert set(examples["scan_id"]) <= {f"sub-{i:02d}_ses-01" for i in range(8)}
    assert (examples["path"] == examples["scan_id"] + ".nii").all()
    flat = study.model_copy(update={"input": InputParams(plane="three_planes_2d")})
    assert predict.example_scans(flat).empty
    path = study.folder / "manifest.tsv"
    write_table(read_table(path, MANIFEST).assign(space=TISSUE_MAPS), path, MANIFEST)
    assert predict.example_scans(study).empty


def test_stored_answers_are_of_the_network_on_test_scans(study):
    answers = predict.stored_answers(study)
    assert len(answers) == 9
    assert (answers["answer"] == answers["truth"]).all()


def test_form_of_a_study_offers_its_examples(study, monkeypatch):
    classifier = SimpleNamespace(card=prediction_of("x").card)
    monkeypatch.setattr(widget, "find_model", lambda params: Path("any"))
    monkeypatch.setattr(widget.model_file, "load", lambda path: classifier)
    form = widget.classifier_app(study)
    labels = [label for label, _ in form.children[2].options]
    assert labels[1:] == [f"sub-0{i}_ses-01 ({name})" for i, name in enumerate(CLASSES)]
    assert "make lab" in repr(form)
    classifier.card = replace(classifier.card, input=InputParams(plane="three_planes_2d"))
    assert "cannot take a whole head" in widget.classifier_app(study).children[0].value


def test_notebook_is_thin_and_clean():
    notebook = nbformat.read("notebooks/05_interactive_classifier.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(len(cell.source.splitlines()) < 15 for cell in code)
    assert not any(re.search(r"^\s*(def|class) ", cell.source, re.M) for cell in code)
    assert code[0].metadata["tags"] == ["parameters"]
