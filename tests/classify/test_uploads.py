"""Bad uploads through the worker process of the form: each has a message, and nothing is left on disk.

``ADLIB_SHOTS`` may name a folder, which receives the table of the messages.
"""

import os
import re
import tempfile
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import psutil
import pytest
from bad_uploads import CLASSIFIED, all_uploads, head, sparse, vast_header

from adlib.classify.uploads import Inbox, open_home
from adlib.classify.views import html
from adlib.classify.worker import Result, Worker
from adlib.study.params import ClassifyParams
from adlib.study.records import StudyError
from adlib.training import model_file

pytestmark = [pytest.mark.studies, pytest.mark.timeout(900)]
MEMORY_MB = 2048


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("temporary"), tempfile.tempdir
    tempfile.tempdir = str(folder)
    yield open_home()
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def worker(classifier, home, tmp_path_factory):
    """The process, limited to 2 GiB."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    model_file.save(classifier, path)
    worker = Worker(path, ClassifyParams(memory_mb=MEMORY_MB), home)
    yield worker
    worker.stop()


def shown(worker: Worker, path: Path) -> tuple[str, Result | None]:
    """The message, and the result if there is one."""
    try:
        result = worker.classify(path, {}, lambda stage: None)
    except StudyError as error:
        return str(error), None
    return "; ".join(result.record["refused"]) or CLASSIFIED, result


@pytest.fixture(scope="module")
def outcomes(worker, home, tmp_path_factory):
    """Message and process of each upload, and the files left in the private folder."""
    inbox, outcomes = Inbox(worker.limits, home), {}
    for kind, (name, content, expected) in all_uploads(tmp_path_factory.mktemp("made")).items():
        assert inbox.receive([{"name": name, "size": len(content), "content": memoryview(content)}]) == []
        scan = inbox.chosen.pop()
        message, result = shown(worker, scan.path)
        inbox.delete(scan)
        left = [str(path) for path in home.rglob("*") if path.is_file()]
        peak = psutil.Process(worker._process.pid).memory_info().rss / 2**20
        outcomes[kind] = {"file": name, "expected": expected, "message": message, "result": result}
        outcomes[kind] |= {"left": left, "rss": peak, "process": worker._process.pid}
    if folder := os.environ.get("ADLIB_SHOTS"):
        rows = [
            f"| {kind} | `{outcome['file']}` | {one_line(escape(outcome['message']))} |\n"
            for kind, outcome in outcomes.items()
        ]
        text = "".join(["| upload | file | message |\n|---|---|---|\n", *rows])
        (Path(folder) / "uploads.md").write_text(text, encoding="utf-8")
    return outcomes


def one_line(text: str) -> str:
    """A text as a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", "&#124;")


def test_each_upload_has_the_expected_message(outcomes):
    assert len(outcomes) >= 50
    wrong = {}
    for kind, outcome in outcomes.items():
        refused = outcome["result"] is None or outcome["result"].record["predicted"] is None
        message, expected = outcome["message"], outcome["expected"]
        if expected == "refused":
            fits = refused and re.search("expected|[Uu]se|give|Check", message)
        else:
            fits = expected in message and refused == (expected != CLASSIFIED)
        if not fits:
            wrong[kind] = (expected, message)
    assert wrong == {}


def test_messages_advise_and_reveal_no_path_or_identifier(outcomes, home):
    advice = "copy it again|[Gg]ive|send|unpack|pack (the|it)|convert|expected|repair|resample|choose|[Uu]se"
    for kind, outcome in outcomes.items():
        message = outcome["message"]
        assert message == CLASSIFIED or re.search(advice, message), (kind, message)
        assert str(home) not in message and "Secret" not in message, (kind, message)
        assert "<img" not in html("failure", outcome["file"], message), kind


def test_nothing_is_left_and_memory_stays_low(outcomes):
    assert {kind: outcome["left"] for kind, outcome in outcomes.items() if outcome["left"]} == {}
    assert len({outcome["process"] for outcome in outcomes.values()}) == 1
    assert max(outcome["rss"] for outcome in outcomes.values()) < MEMORY_MB


def test_classes_keep_their_order(outcomes, classifier):
    record = next(outcome["result"].record for outcome in outcomes.values() if outcome["message"] == CLASSIFIED)
    assert tuple(record["probabilities"]) == classifier.card.classes
    assert record["origin"].endswith("(5 CN, 5 MCI, 5 LMCI, 5 AD)")


@pytest.mark.parametrize("kind", ["left and right exchanged, header right", "axes swapped, header right"])
def test_axis_order_does_not_change_the_prediction(worker, outcomes, kind, tmp_path):
    head().to_filename(tmp_path / "plain.nii")
    _, plain = shown(worker, tmp_path / "plain.nii")
    names = list(plain.record["probabilities"])
    values = [[result.record["probabilities"][n] for n in names] for result in (plain, outcomes[kind]["result"])]
    assert np.abs(np.subtract(*values)).max() < 0.02


@pytest.mark.parametrize(("header", "expected"), [(b"", "no such header"), (vast_header(), "GiB of voxels")])
def test_sparse_file_of_2_gib_is_refused(worker, home, tmp_path, header, expected):
    path = sparse(tmp_path, header)
    assert path.stat().st_size == 2 * 2**30
    message, result = shown(worker, path)
    assert expected in message and result is None
    assert psutil.Process(worker._process.pid).memory_info().rss / 2**20 < MEMORY_MB


def test_memory_limit_refuses_one_scan(worker, tmp_path):
    small = replace(worker, limits=ClassifyParams(memory_mb=64))
    image = head()
    image.to_filename(tmp_path / "plain.nii")
    message, result = shown(small, tmp_path / "plain.nii")
    small.stop()
    assert result is None and "memory" in message
    assert shown(worker, tmp_path / "plain.nii")[0] == CLASSIFIED
