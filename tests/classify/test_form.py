"""The form classifies uploads, stores no uploaded bytes, and reports errors."""

import atexit
import base64
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import fake_worker
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from throwaway import alive

from adlib.classify import form, model_store, stored_results
from adlib.classify.input_checks import Check
from adlib.classify.result import Prediction, as_record
from adlib.classify.scan_tables import scan_table, summary_table
from adlib.classify.uploads import PREFIX, Inbox, open_home, safe_name, sweep
from adlib.classify.views import as_csv, as_html, as_json, as_pdf, html
from adlib.classify.worker import Worker
from adlib.preprocess.derivatives import Preprocessed
from adlib.study.params import ClassifyParams, InputParams, PreprocessParams, load_params
from adlib.study.records import MANIFEST, PREDICTIONS, TISSUE_MAPS, StudyError, read_table, write_table
from adlib.training.model_file import ModelCard

CLASSES = ("CN", "MCI", "LMCI", "AD")
SECRET = b"bytes of somebody's head"


def prediction_of(name: str, probabilities=(0.1, 0.2, 0.3, 0.4), icv: float = 1400.0) -> Prediction:
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
    card = ModelCard(
        "phantom", CLASSES, True, InputParams(), PreprocessParams(), 1.0,
        {"volumes": {"icv_ml": {label: [1450.0, 100.0] for label in CLASSES}}}, "random", "", "", 0,
    )  # fmt: skip
    values = dict(zip(CLASSES, probabilities, strict=True))
    return Prediction(name, "AD", values, np.array([probabilities]), prepared, card)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Private folder of a form."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return open_home()


@pytest.fixture
def make_app(home, tmp_path, monkeypatch):
    """Makes forms whose worker process is `fake_worker`."""
    from PIL import Image

    Image.new("RGB", (40, 30), "navy").save(tmp_path / "picture.png")
    (tmp_path / "record.json").write_text(json.dumps(as_record(prediction_of("x"))))
    monkeypatch.setenv("FAKE_RECORD", str(tmp_path / "record.json"))
    monkeypatch.setenv("FAKE_PICTURE", str(tmp_path / "picture.png"))
    made = []

    def make(**limits):
        settings = ClassifyParams(**limits)
        worker = Worker(Path("m.safetensors"), settings, home, target=fake_worker.serve)
        made.append(worker)
        return form.App(worker, Inbox(settings, home), {"sub-01 (AD)": "examples/sub-01.nii.gz"})

    yield make
    for worker in made:
        worker.stop()


@pytest.fixture
def app(make_app):
    return make_app()


def upload(app, *names, content=SECRET):
    """Send files as the page does, in parts."""
    app.upload._take(None, {"files": [{"name": name, "size": len(content)} for name in names]}, [])
    for number in range(len(names)):
        for part in (content[:9], content[9:]):
            app.upload._take(None, {"number": number}, [memoryview(part)])
    app.upload._take(None, {"end": True}, [])


def run(app):
    app.classify()
    if app._thread is not None:
        app._thread.join()


def pages(app) -> str:
    """All text that the result area shows."""
    return "".join(item.value for item in app.shown.children if hasattr(item, "value"))


def names(app) -> list[str]:
    return [result.record["name"] for result in app.results]


def holds(secret: bytes, content) -> bool:
    """Whether nested containers of bytes hold a secret."""
    if isinstance(content, bytes | memoryview):
        return secret in bytes(content)
    items = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return any(holds(secret, item) for item in items)


def descendants(box) -> list:
    """A widget and all below it."""
    return [box, *(widget for child in getattr(box, "children", ()) for widget in descendants(child))]


def left_in(home) -> list[str]:
    """Files in the private folder, without the temporary folder of the worker."""
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path != home / "tmp")


def test_upload_leaves_page_at_once_and_disk_when_done(app, home):
    upload(app, "head.nii.gz")
    assert not app.upload._files
    assert "head.nii.gz" in app.waiting.value
    assert left_in(home) == ["upload-0001", "upload-0001/head.nii.gz"]
    assert not holds(SECRET, [widget.get_state() for widget in descendants(app.box)])
    run(app)
    assert names(app) == ["head"] and app.results[0].record["bytes"] == len(SECRET)
    assert left_in(home) == []
    assert not holds(SECRET, [widget.get_state() for widget in descendants(app.box)])


def test_result_is_shown_with_warning_and_origin(app):
    upload(app, "head.nii.gz")
    run(app)
    assert "<td>0.40</td>" in pages(app) and "Most probable: AD" in pages(app)
    assert "means nothing about a patient" in pages(app) and "ResNet50 of the study" in pages(app)
    assert re.search('<img alt="[^"]+" src="data:image/png', pages(app))
    assert re.search(r"adlib [\d.]+; 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", pages(app))


def test_private_folder_is_removed_with_its_process(home, tmp_path):
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for ends_well in (True, False):
        process = os.fork()
        if not process:
            (open_home() / "head.nii").write_bytes(SECRET)
            if ends_well:
                atexit._run_exitfuncs()
            os._exit(0)
        os.waitpid(process, 0)
        left = [folder for folder in home.parent.iterdir() if folder != home]
        assert len(left) == 1 - ends_well
    other = tmp_path / "temporary" / f"{PREFIX}notes"
    other.mkdir()
    assert sweep() == left
    assert home.exists() and other.exists()


def test_example_is_classified_by_its_button_alone(app):
    app.path.value = "  /data/other.mgz "
    app.samples[0].click()
    app._thread.join()
    assert names(app) == ["sub-01"]
    run(app)
    assert names(app) == ["sub-01", "other"] and not app.path.value


def test_age_and_sex_apply_to_single_scans_only(app):
    app.age.value, app.sex.value = "71,5", 1.0
    upload(app, "a.nii")
    run(app)
    upload(app, "b.nii", "c.nii")
    run(app)
    upload(app, "d.nii")
    run(app)
    assert [result.record["person"] for result in app.results] == [{"sex": 1.0, "age": 71.5}, {}, {}, {}]


def test_age_and_sex_of_a_dicom_header_are_proposed_only(app):
    upload(app, "series.zip")
    deadline = time.monotonic() + 20
    while not app.age.value:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (app.age.value, app.sex.value) == ("63", 0.0) and "are proposed" in app.waiting.value
    app.age.value, app.sex.index = "", 0
    run(app)
    assert app.results[0].record["person"] == {}


@pytest.mark.parametrize("age", ["old", "-3", "400", "nan"])
def test_impossible_age_is_reported_and_upload_waits(app, age):
    upload(app, "a.nii")
    app.age.value = age
    run(app)
    assert "years" in app.stage.value and not app.results
    app.age.value = ""
    run(app)
    assert names(app) == ["a"]


def test_bad_file_does_not_stop_the_others(app, home):
    upload(app, "bad.nii", "good.nii")
    run(app)
    assert names(app) == ["good"]
    assert "copy it again" in pages(app)
    assert not app.button.disabled and app.cancel.disabled and left_in(home) == []


def test_names_and_messages_are_escaped(app):
    upload(app, "<img src=x onerror=alert(1)>bad.nii")
    app._show_waiting(["<script>"])
    assert "<script>" not in app.waiting.value and "<img src=x" not in app.waiting.value
    run(app)
    assert "<img src=x" not in pages(app) and "<b>bad" not in pages(app)
    assert "&lt;img" in pages(app) and "&lt;b&gt;bad" in pages(app)


def test_table_of_several_scans_fills_as_they_come(app):
    shown = []
    app.queue.observe(lambda change: shown.append(re.findall("<td>(.*?)</td>", change["new"])), "value")
    titles = []
    app.upload.observe(lambda change: titles.append(change["new"]), "progress")
    upload(app, "a.nii", "bad.nii", "c.nii")
    run(app)
    assert shown[0] == ["in progress", "waiting", "waiting"] and shown[-2][2] == "in progress"
    assert shown[-1][0].startswith("Most probable: AD") and "is no scan; copy it again" in shown[-1][1]
    assert titles[0].startswith("1 of 3: ") and titles[-2].startswith("3 of 3: ") and titles[-1] == ""


def test_files_of_folders_are_grouped_and_others_left(app):
    upload(app, "study/T1/1.dcm", "study/T1/2.dcm", "study/T2/1.dcm", "study/notes.txt", "study/head.nii")
    assert [scan.name for scan in app.inbox.chosen] == ["study/T1", "study/T2", "study/head.nii"]
    assert [scan.path.name for scan in app.inbox.chosen] == ["T1", "T2", "head.nii"]


def test_names_with_folders_stay_in_private_folder(app, home):
    upload(app, "../../evil.nii", "..\\evil.nii", "a:b/c.nii", "..", "/")
    assert all(scan.path.is_relative_to(home) and scan.path.is_file() for scan in app.inbox.chosen)
    run(app)
    assert names(app)[:3] == ["evil", "evil_2", "c"] and left_in(home) == []


@pytest.mark.parametrize(
    ("name", "safe"),
    [("../a.nii", "a.nii"), ("..", "scan"), (".hidden", "hidden"), ("C:\\x\\b.nii", "b.nii"),
     ("a\x00b\n.nii", "a_b_.nii"),     ("ä" * 300 + ".nii", "_" * 96 + ".nii")],
)  # fmt: skip
def test_safe_names(name, safe):
    assert safe_name(name) == safe


def test_nothing_chosen_message(app):
    run(app)
    assert "Choose or drop a scan first" in pages(app)


def test_cancel_ends_process_and_waiting_scans(app, home):
    upload(app, "slow.nii", "later.nii")
    app.classify()
    deadline = time.monotonic() + 20
    while not (found := list(home.rglob("half-done"))) or not found[0].read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child = int(found[0].read_text())
    process, began = app.worker._process, time.monotonic()
    app.cancel.click()
    app._thread.join()
    assert time.monotonic() - began < 3 and process.exitcode == -signal.SIGKILL
    assert not alive(child)
    assert "cancelled" in pages(app) and not app.results
    assert left_in(home) == [] and not app.button.disabled
    upload(app, "next.nii")
    run(app)
    assert names(app) == ["next"]


def test_next_scan_is_classified_after_a_crash(app, home):
    upload(app, "crash.nii", "good.nii")
    run(app)
    assert "ended unexpectedly" in pages(app) and names(app) == ["good"] and left_in(home) == []


def test_timeout(make_app, home):
    app = make_app(timeout_s=1)
    upload(app, "slow.nii")
    run(app)
    assert "more than 1 s (classify.timeout_s)" in pages(app) and left_in(home) == []


def test_stages_with_expected_seconds(app):
    stages = []
    app.worker.classify("a.nii", {}, lambda stage: stages.append((stage, app.worker.seconds_left(stage))))
    assert [stage for stage, _ in stages] == ["starting", "reading the file", "classifying slices"]
    assert stages[0][1] > stages[1][1] > stages[2][1] > 0
    assert app.worker.expected["classifying slices"] < 1


def test_upload_limits_and_pairs(make_app):
    app = make_app(max_upload_mb=1, max_scans=2)
    upload(app, "big.nii", content=bytes(2**20 + 1))
    assert "expected at most 1 (classify.max_upload_mb)" in app.waiting.value and not app.inbox.chosen
    upload(app, "a.hdr", "a.img", "b.dcm", "c.dcm", "d.nii")
    assert [scan.name for scan in app.inbox.chosen] == ["a.hdr", "DICOM files"]
    assert sorted(path.name for path in app.inbox.chosen[0].path.parent.iterdir()) == ["a.hdr", "a.img"]
    assert sorted(path.name for path in app.inbox.chosen[1].path.iterdir()) == ["b.dcm", "c.dcm"]
    assert "at most 2 scans" in app.waiting.value


def test_table_is_sorted_by_chosen_column(app):
    upload(app, "b.nii", "a.nii", "c.nii")
    run(app)

    def order():
        return re.findall(r"<th>([abc])</th>", app.summary.value)

    assert order() == ["a", "b", "c"] and "Scans read in this session: 3" in app.summary.value
    assert "Summary of 3 classified scans, ResNet50 of the study" in app.summary.value
    app.descending.value = True
    assert order() == ["c", "b", "a"]
    app.sort.value = "icv_ml"
    assert order() == ["b", "a", "c"]


def test_reports_contain_every_scan(app):
    app.explain.value = True
    upload(app, "a.nii", "b.nii")
    run(app)
    records = [result.record for result in app.results]
    assert json.loads(as_json(app.results)) == records
    table = pd.read_csv(BytesIO(as_csv(app.results)))
    assert table["scan"].tolist() == ["a", "b"] and table["p(AD)"].tolist() == [0.4, 0.4]
    page = as_html(app.results).decode()
    assert page.count("data:image/png") == 6 and "means nothing about a patient" in page and "<script" not in page
    assert as_pdf(app.results).startswith(b"%PDF") and as_pdf(app.results).count(b"/Type /Page ") == 6
    app.report.click()
    links = re.findall(r'download="classified_scans\.(\w+)" href="data:[\w/]+;base64,([^"]+)"', app.links.value)
    assert [kind for kind, _ in links] == ["csv", "json", "html", "pdf"]
    assert json.loads(base64.b64decode(links[1][1])) == records


def test_formula_names_are_text_in_csv(app):
    upload(app, "=HYPERLINK(1).nii", "+1.nii")
    run(app)
    assert all(not line.startswith(("=", "+")) for line in as_csv(app.results).decode().splitlines())


def test_old_pictures_are_deleted(app, monkeypatch):
    monkeypatch.setattr(form, "MAX_WITH_PICTURES", 1)
    upload(app, "a.nii", "b.nii")
    run(app)
    assert [bool(result.pictures) for result in app.results] == [False, True]
    assert as_html(app.results).count(b"data:image/png") == 2


def test_refused_scan_shows_reason_and_no_class():
    check = Check("T1w contrast", "failed", "white <matter> is dark", "Use the T1w series", "the contrast is not T1w")
    whole = prediction_of("a")
    refused = replace(whole, predicted=None, probabilities={}, slices=whole.slices[:0], checks=(check,))
    record = as_record(refused)
    shown = html("card", record, {})
    assert "Not classified: the contrast is not T1w" in shown and "Use the T1w series" in shown
    assert "white &lt;matter&gt; is dark" in shown and "✗ failed" in shown
    assert not re.search(r"\b(CN|MCI|LMCI|AD)\b", re.sub('<p class="muted">.*?</p>', "", shown))
    assert scan_table([record])["predicted"].tolist() == ["none"]
    assert summary_table([record]).index.tolist() == ["icv_ml", "ventricles_ml"]


def test_scene_shows_the_chosen_overlay(app):
    app.explain.value = True
    upload(app, "a.nii")
    run(app)
    viewer = app.shown.children[1]
    assert viewer.overlay.options == ("brain mask", "tissues", "evidence", "nothing") and viewer.scene is None
    viewer.turn.value = True
    scene = viewer.scene
    head, evidence = (nib.Nifti1Image.from_bytes(scene.volumes[k].data) for k in (0, 3))
    assert np.array_equal(head.get_fdata(), viewer.view["head"])
    assert np.array_equal(head.affine, viewer.view["affine"]) and evidence.get_fdata()[1, 6, 2] == -127
    for overlay, drawn in (("evidence", 3), ("tissues", 2), ("nothing", None), ("brain mask", 1)):
        viewer.overlay.value = overlay
        assert [volume.opacity > 0 for volume in scene.volumes] == [k in (0, drawn) for k in range(4)]
        assert ("only where slices were cut" in viewer.note.value) == (overlay == "evidence")
    viewer.turn.value = False
    assert viewer.children == (viewer.row, viewer.note) and viewer.scene is None


def test_nearest_training_scans_are_shown(app, tmp_path):
    record = json.loads((tmp_path / "record.json").read_text())
    near = {"scan_id": "sub-<7>", "diagnosis": "MCI", "age": 71.0, "sex": "F", "distance": 0.93}
    for nearest, shown in (([], False), ([near], True)):
        (tmp_path / "record.json").write_text(json.dumps(record | {"nearest": nearest}))
        upload(app, "a.nii")
        run(app)
        page = app.shown.children[0].value
        assert ("sub-&lt;7&gt; (MCI, distance 0.93)" in page) == ("not part of the decision" in page) == shown


def test_every_control_has_a_label(app):
    upload(app, "a.nii")
    run(app)
    controls = [item for item in descendants(app.box) if hasattr(item, "tooltip") and hasattr(item, "description")]
    controls = [item for item in controls if type(item).__name__ not in ("HTML", "IntProgress")]
    assert len(controls) > 10
    assert all(item.description and item.tooltip for item in controls)


def test_summary_table():
    predictions = [prediction_of("a", icv=1200.0), prediction_of("b", (0.4, 0.3, 0.2, 0.1), icv=1600.0)]
    table = summary_table(map(as_record, predictions))
    assert table.loc["icv_ml"].to_dict() == {"count": 2, "mean": 1400.0, "std": 282.84, "min": 1200.0, "max": 1600.0}
    assert table.loc["p(CN)", "mean"] == 0.25
    assert summary_table([]).empty


def test_scan_table():
    table = scan_table([as_record(prediction_of("a")), as_record(prediction_of("b"))], {"a": "CN"})
    assert table["diagnosis"].tolist() == ["CN", "unknown"]
    assert table[[f"p({name})" for name in CLASSES]].sum(axis=1).tolist() == pytest.approx([1, 1])
    assert table.index.tolist() == ["a", "b"] and table.loc["a", "icv_ml"] == 1400.0
    assert scan_table([], {}).filter(regex="p").empty


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
    (params.folder / "model.safetensors").write_bytes(b"weights")
    return params


def test_examples_are_test_scans_of_all_classes(study):
    examples = stored_results.example_scans(study)
    assert examples["diagnosis"].tolist() == list(CLASSES)
    assert set(examples["scan_id"]) <= {f"sub-{i:02d}_ses-01" for i in range(8)}
    assert (examples["path"] == examples["scan_id"] + ".nii").all()
    flat = study.model_copy(update={"input": InputParams(plane="three_planes_2d")})
    assert stored_results.example_scans(flat).empty
    path = study.folder / "manifest.tsv"
    write_table(read_table(path, MANIFEST).assign(space=TISSUE_MAPS), path, MANIFEST)
    assert stored_results.example_scans(study).empty


def test_stored_predictions_are_of_test_scans(study):
    table = stored_results.stored_predictions(study)
    assert len(table) == 9
    assert (table["predicted"] == table["truth"]).all()


def test_form_is_ready_without_a_network():
    code = "import sys, adlib.classify.form; sys.exit(bool({'torch', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_button_says_how_many_scans_it_classifies(app):
    upload(app, "a.nii")
    assert app.button.description == "Classify" and not app.age.disabled
    app.path.value = "b.nii"
    assert app.button.description == "Classify 2 scans" and app.age.disabled and app.sex.disabled


def test_form_offers_examples(study, monkeypatch):
    card = prediction_of("x").card
    monkeypatch.setattr(form, "find_models", lambda params: {"of the study": Path("any")})
    monkeypatch.setattr(form, "read_card", lambda path: card)
    app = form.classifier_app(study)
    labels = [item.description for item in descendants(app) if hasattr(item, "description")]
    assert {f"sub-0{i} ({name})" for i, name in enumerate(CLASSES)} <= set(labels)
    assert "make lab" in repr(app)
    card = replace(card, input=InputParams(plane="three_planes_2d"))
    assert "cannot take a whole head" in form.classifier_app(study).children[0].value


def test_model_of_people_is_the_default_and_examples_take_that_of_the_study(make_app):
    app = make_app()
    people, study = app.worker, Worker(Path("study.safetensors"), app.worker.limits, app.worker.home)
    both = form.App(people, app.inbox, app.examples, {"people": people, "study": study})
    assert both.model in both.more.children and app.model not in app.more.children
    assert both.worker is people
    asked = []
    for name, worker in both.models.items():
        worker.classify = lambda *_, name=name: asked.append(name) or (_ for _ in ()).throw(StudyError("no"))
    both.samples[0].click()
    both._thread.join()
    upload(both, "a.nii")
    run(both)
    both.model.label = "study"
    upload(both, "b.nii")
    run(both)
    assert asked == ["study", "people", "study"]


def test_models_of_a_simulated_study_are_two_where_one_of_people_is_released(monkeypatch, tmp_path):
    params = load_params("params/phantom.yaml", (f"exec.outputs={tmp_path}",))
    monkeypatch.setattr(model_store, "REAL", tmp_path / "none.safetensors")
    assert [*model_store.find_models(params).values()] == [model_store.find_model(params)]
    monkeypatch.setattr(model_store, "REAL", Path(__file__))
    titles = list(model_store.find_models(params))
    assert titles[0].startswith("real people") and titles[1].startswith("simulated heads")
