"""Bad and hostile uploads go through the form's own process: each is answered in words, and nothing stays behind.

``ADLIB_SHOTS`` may name a folder, which receives the table of what was shown.
"""

import os
import tempfile
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from bad_uploads import ANSWERED, all_uploads, head, sparse, vast_header

from adlib.classify.widget.jobs import Result, Worker
from adlib.classify.widget.uploads import Inbox, open_home
from adlib.classify.widget.views import fault_html
from adlib.study.params import ClassifyParams, InputParams, PreprocessParams
from adlib.study.records import StudyError
from adlib.training import model_file
from adlib.training import network as model

pytestmark = [pytest.mark.studies, pytest.mark.timeout(900)]
CLASSES = ("CN", "MCI", "LMCI", "AD")
MEMORY_MB = 2048


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("temporary"), tempfile.tempdir
    tempfile.tempdir = str(folder)
    yield open_home()
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def worker(home, tmp_path_factory):
    """The real process with a network of random weights, held to 2 GiB."""
    torch.manual_seed(3)
    network, origin = model.ResNet50(len(CLASSES)), "random initialisation"
    card = model_file.ModelCard(
        "phantom", CLASSES, True, InputParams(size=64), PreprocessParams(resolution_mm=3.0), 1.3,
        {"participants": dict.fromkeys(CLASSES, 5)}, origin, "", "", 3,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    model_file.save(model_file.Classifier(network.eval(), card), path)
    worker = Worker(path, ClassifyParams(memory_mb=MEMORY_MB), home)
    yield worker
    worker.stop()


def shown(worker: Worker, path: Path) -> tuple[str, Result | None]:
    """What a person is told, and the result where there is one."""
    try:
        result = worker.classify(path, {}, lambda stage: None)
    except StudyError as error:
        return str(error), None
    return "; ".join(result.record["refused"]) or ANSWERED, result


@pytest.fixture(scope="module")
def outcomes(worker, home, tmp_path_factory):
    """What was shown for each upload, the process that showed it, and what lay in the private folder afterwards."""
    inbox, found = Inbox(worker.limits, home), {}
    for kind, (name, content, expected) in all_uploads(tmp_path_factory.mktemp("made")).items():
        assert inbox.receive([{"name": name, "content": memoryview(content)}]) == []
        (one,) = inbox.take()
        said, result = shown(worker, one.path)
        inbox.drop(one)
        left = [str(path) for path in home.rglob("*") if path.is_file()]
        peak = psutil.Process(worker._process.pid).memory_info().rss / 2**20
        found[kind] = {"file": name, "expected": expected, "said": said, "result": result, "left": left, "rss": peak}
        found[kind]["process"] = worker._process.pid
    if folder := os.environ.get("ADLIB_SHOTS"):
        (Path(folder) / "uploads.md").write_text(as_markdown(found), encoding="utf-8")
    return found


def as_markdown(found: dict) -> str:
    """What a person sees after each upload, as a table."""
    rows = [
        f"| {kind} | `{one['file']}` | {escape(one['said']).replace('|', '&#124;')} |" for kind, one in found.items()
    ]
    return "\n".join(["| upload | file | what is shown |", "|---|---|---|", *rows, ""])


def test_there_are_more_than_forty(outcomes):
    assert len(outcomes) >= 50


def test_each_is_refused_in_words_or_answered(outcomes):
    wrong = {}
    for kind, one in outcomes.items():
        refused = one["result"] is None or one["result"].record["predicted"] is None
        said = one["said"]
        if one["expected"] == "refused":
            fits = refused and ("expected" in said or "Give" in said or "give" in said)
        else:
            fits = one["expected"] in said and refused == (one["expected"] != ANSWERED)
        if not fits:
            wrong[kind] = (one["expected"], said)
    assert wrong == {}


def test_each_refusal_says_what_to_do_and_names_no_place(outcomes, home):
    do = (
        "copy it again",
        "give",
        "Give",
        "send",
        "unpack",
        "pack the",
        "pack it",
        "convert",
        "expected",
        "repair",
        "resample",
        "choose",
    )
    for kind, one in outcomes.items():
        if one["said"] != ANSWERED:
            assert any(words in one["said"] for words in do), (kind, one["said"])
            assert str(home) not in one["said"], (kind, one["said"])


def test_nothing_is_left_and_the_process_lives_on_in_little_memory(outcomes):
    assert {kind: one["left"] for kind, one in outcomes.items() if one["left"]} == {}
    assert len({one["process"] for one in outcomes.values()}) == 1
    assert max(one["rss"] for one in outcomes.values()) < MEMORY_MB


def test_no_markup_of_a_name_or_header_reaches_the_page(outcomes):
    for kind, one in outcomes.items():
        assert "<img" not in fault_html(one["file"], one["said"]), kind


def test_classes_keep_their_order(outcomes):
    record = next(one["result"].record for one in outcomes.values() if one["said"] == ANSWERED)
    assert tuple(record["probabilities"]) == CLASSES
    assert record["origin"].endswith("(5 CN, 5 MCI, 5 LMCI, 5 AD)")


def test_no_identifier_of_a_header_is_shown(outcomes):
    assert not any("Secret" in one["said"] for one in outcomes.values())


@pytest.mark.parametrize("kind", ["left and right exchanged, header right", "axes swapped, header right"])
def test_another_order_of_the_axes_gives_the_same_answer(worker, outcomes, kind, tmp_path):
    head().to_filename(tmp_path / "plain.nii")
    _, plain = shown(worker, tmp_path / "plain.nii")
    names = list(plain.record["probabilities"])
    values = [[result.record["probabilities"][n] for n in names] for result in (plain, outcomes[kind]["result"])]
    assert np.abs(np.subtract(*values)).max() < 0.02


@pytest.mark.parametrize(("header", "words"), [(b"", "no such header"), (vast_header(), "GiB of voxels")])
def test_a_sparse_file_of_2_gib_is_refused_at_once(worker, home, tmp_path, header, words):
    path = sparse(tmp_path, header)
    assert path.stat().st_size == 2 * 2**30
    said, result = shown(worker, path)
    assert words in said and result is None
    assert psutil.Process(worker._process.pid).memory_info().rss / 2**20 < MEMORY_MB


def test_a_scan_that_wants_more_memory_than_allowed_is_refused_and_the_next_is_not(worker, tmp_path):
    small = replace(worker, limits=ClassifyParams(memory_mb=64))
    image = head()
    image.to_filename(tmp_path / "plain.nii")
    said, result = shown(small, tmp_path / "plain.nii")
    small.stop()
    assert result is None and "memory" in said
    assert shown(worker, tmp_path / "plain.nii")[0] == ANSWERED
