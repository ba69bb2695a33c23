"""Two finished studies side by side."""

import re

import pytest
from finished_study import make_finished

from adlib.report.compare import compare
from adlib.study.records import StudyError, read_json, write_json
from adlib.training.recipe import RECORD


def test_two_studies_side_by_side(tmp_path):
    a = make_finished(tmp_path / "a")
    b = make_finished(tmp_path / "b", "params/phantom.yaml", "train.epochs=3")
    metrics = read_json(b.folder / "metrics.json")
    metrics["entries"][0] |= {"point": 0.7, "ci95": [0.66, 0.74]}
    metrics["entries"].pop()
    write_json(metrics, b.folder / "metrics.json")
    history = read_json(b.folder / "provenance.json")
    write_json(history | {"packages": history["packages"] | {"numpy": "2.1.0"}}, b.folder / "provenance.json")
    page, screen = compare(a.folder, b.folder.rename(tmp_path / "earlier"), tmp_path)
    assert re.search(r"ResNet50 +Balanced accuracy +0\.600 \[.*\] +0\.700 \[.*\] +\+0\.100 +B outside A's", screen)
    words = re.sub(r"<[^>]*>\s*", "", page.read_text())  # the cells of a row follow each other without a space
    assert page == tmp_path / "compare.html" and "train.epochs163" in words
    assert "numpy2.0.02.1.0" in words and "in one study only" in words and "exec" not in words
    assert str(tmp_path) not in page.read_text()


def test_training_that_differs_from_its_params_is_named(tmp_path):
    a, b = (make_finished(tmp_path / name) for name in "ab")
    record = read_json(b.folder / RECORD)
    record["train"]["epochs"] = 1
    write_json(record, b.folder / RECORD)
    page, screen = compare(a.folder, b.folder, tmp_path)
    assert re.search(r"train.epochs +16 +1$", screen, re.M)
    assert "train.epochs is 1 instead of 16" in page.read_text() and "No setting differs" not in page.read_text()


@pytest.mark.parametrize("missing", [None, "metrics.json", "params.yaml"])
def test_unfinished_study_is_refused(tmp_path, missing):
    made = make_finished(tmp_path)
    if missing:
        (made.folder / missing).unlink()
    other = made.folder if missing else made.folder / "nowhere"
    with pytest.raises(StudyError, match=missing or "nowhere has no params.yaml"):
        compare(made.folder, other, made.exec.outputs)
