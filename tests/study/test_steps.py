"""A step's key changes with what can change its results, and with nothing else; reasons are said in words."""

import hashlib
import json
import os
from dataclasses import replace

import pytest
from throwaway import write_notebook

from adlib.study.code_digest import notebook_digests, package_versions
from adlib.study.params import load_params
from adlib.study.records import LOST, StudyError, flat
from adlib.study.steps import GIVEN, SALT, SOURCE, STEPS, WEIGHTS, Step, StepState
from adlib.study.tree import path_digest

STEP = Step(
    "02_preprocessing", ("preprocess", "source.kind"), ("manifest.tsv", SOURCE), ("features.tsv",), ("derivatives",)
)


@pytest.fixture
def state(project):
    """The step as it stands after a run."""
    return finished(project)


def finished(project, *settings):
    state = open_state(project, *settings)
    folder = state.params.folder
    for name in ("manifest.tsv", "features.tsv", "source/a.nii", "derivatives/b.nii", "figures/02_mosaic.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    state.finish(state.key(), 1.0)
    return state


def open_state(project, *settings):
    settings = (f"exec.outputs={project}/outputs", *settings)
    return StepState(STEP, load_params(project / "params" / "phantom.yaml", settings), project)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_never_run_and_unfinished(project):
    state = open_state(project)
    assert state.why() == "never run"
    finished(project).begin()
    assert state.why() == "the last run did not finish"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import os, time", "import os, time  # the system"),
        ('"""Tiny science."""', '"""Small science."""'),
        ('}\\n", params.folder / name)', '}\\n",\n        params.folder / name)'),
    ],
)
def test_comments_docstrings_and_layout_rerun_nothing(project, state, old, new):
    edit(project / "adlib" / "science.py", old, new)
    assert state.why() is None


def test_a_module_counts_where_it_is_imported(project, state):
    (project / "adlib" / "other.py").write_text("x = 1\n")
    assert state.why() is None
    edit(project / "adlib" / "deep.py", "return value", "from adlib.other import x\n    return value * x")
    assert state.why() == "code of adlib.deep changed; code of adlib.other is new"


def test_notebook_code_counts_and_prose_does_not(project, state):
    notebook = project / "notebooks" / "02_preprocessing.ipynb"
    edit(notebook, "# 02_preprocessing", "# Preprocessing, said better")
    assert state.why() is None
    edit(notebook, "* 2", "* 3")
    assert state.why() == "code of notebooks/02_preprocessing.ipynb changed"


def test_only_its_own_params_count(project, state):
    assert open_state(project, "evaluate.bootstrap=500", "train.epochs=1", "exec.workers=1").why() is None
    changed = open_state(project, "preprocess.resolution_mm=2.0", "preprocess.bias_correction=false")
    assert changed.why() == (
        "params preprocess.bias_correction changed from True to False; "
        "params preprocess.resolution_mm changed from 1.0 to 2.0"
    )


def test_lost_scans_are_tried_again(state):
    state = replace(state, step=replace(state.step, leaves=LOST))
    (state.params.folder / LOST).write_text("{}")
    assert state.why() == "scans that were lost are tried again"
    (state.params.folder / LOST).unlink()
    assert state.why() is None


def test_inputs_and_outputs_are_watched(state):
    folder = state.params.folder
    (folder / "features.tsv").write_text("edited by hand")
    assert state.why() == "features.tsv was edited"
    (folder / "features.tsv").unlink()
    os.utime(folder / "derivatives" / "b.nii", ns=(1, 1))  # an image replaced in place
    assert state.why() == "features.tsv is missing; derivatives was edited"
    (folder / "features.tsv").write_text("features.tsv")
    state.finish(state.key(), 1.0)
    (folder / "manifest.tsv").write_text("another cohort")
    (folder / "source" / "new.nii").write_text("a new scan")
    assert state.why() == "the images changed; manifest.tsv changed"


def test_another_version_of_a_numeric_package(state):
    record = json.loads(state.record_path.read_text())
    now = package_versions()["torch"]
    record["key"]["packages"]["torch"] = "2.11.0"
    state.record_path.write_text(json.dumps(record))
    assert state.why() == f"torch changed from 2.11.0 to {now}"


def test_a_broken_record_means_never_run(state):
    state.record_path.write_text('{"step": ')
    assert state.why() == "never run"


def test_a_rerun_drops_the_figures_of_its_step_only(state):
    other = state.params.folder / "figures" / "03_scores.png"
    other.write_text("x")
    state.begin()
    assert [path.name for path in other.parent.iterdir()] == ["03_scores.png"]


def test_a_step_that_did_not_write_is_refused(project):
    with pytest.raises(StudyError, match=r"did not write features.tsv"):
        open_state(project).finish({}, 1.0)


def test_simulating_step_does_not_depend_on_its_images(project):
    params = load_params(project / "params" / "phantom.yaml", (f"exec.outputs={project}/outputs",))
    assert SOURCE not in StepState(STEPS[0], params, project).key()["inputs"]
    assert SOURCE in StepState(STEP, params, project).key()["inputs"]


def test_training_depends_on_its_weights_file(tmp_path):
    weights, step = tmp_path / "w.safetensors", next(step for step in STEPS if step.number == "03")
    digests = []
    for setting in ("random", f"path:{weights}", f"adlib:{weights}"):
        for content in (b"first", b"second"):
            weights.write_bytes(content)
            params = load_params("params/smoke.yaml", (f"train.weights={setting}", f"exec.outputs={tmp_path}"))
            digests.append(StepState(step, params).key()["inputs"].get(WEIGHTS))
    assert digests[:2] == [None, None]
    assert digests[2] == digests[4] != digests[3] == digests[5]


def test_exec_is_in_no_key():
    assert not [section for step in STEPS for section in step.sections if section.startswith("exec")]


def test_each_step_reads_what_an_earlier_one_writes():
    written = {SOURCE, WEIGHTS, GIVEN, SALT, "source/truth/truth.tsv"}
    for step in STEPS:
        assert set(step.reads) <= written, step.name
        written |= {*step.writes, *step.may_write}


def test_a_notebook_with_magics_is_refused(project):
    write_notebook(project / "notebooks" / "magic.ipynb", ["%matplotlib inline"])
    with pytest.raises(StudyError, match="plain Python"):
        notebook_digests(project / "notebooks" / "magic.ipynb", project)


def test_digests_of_files_and_folders(tmp_path):
    assert path_digest(tmp_path / "nothing") is None
    (tmp_path / "a.txt").write_text("adlib")
    assert path_digest(tmp_path / "a.txt") == hashlib.sha256(b"adlib").hexdigest()
    before = path_digest(tmp_path)
    (tmp_path / ".part-1-a.txt").write_text("unfinished")
    assert path_digest(tmp_path) == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").write_text("x")
    assert path_digest(tmp_path) != before


def test_flat_names_leaves_by_their_path():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, 2]}) == {"a.b": 1, "a.c": {}, "d": [1, 2]}
