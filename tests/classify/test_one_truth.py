"""Page, command line, CSV, JSON, HTML, PDF and picture state the same result, whole, with its provenance."""

import html as entities
import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from bad_uploads import head
from matplotlib.backends import backend_pdf
from matplotlib.text import Text

from adlib import predict
from adlib.classify import prediction as module
from adlib.classify.plot_prediction import plot_prediction
from adlib.classify.views import as_csv, as_html, as_json, as_pdf, html
from adlib.classify.worker import Result
from adlib.training import model_file


def words(text: str) -> str:
    """A text without tags, entities and line ends."""
    return " ".join(entities.unescape(re.sub("<[^>]+>", " ", text)).split())


def drawn(figure) -> str:
    """All text of a figure, none of which leaves it."""
    figure.savefig(BytesIO(), dpi=figure.dpi)
    edge = figure.bbox.padded(1)
    texts = [text for text in figure.findobj(Text) if re.search("[a-z]", text.get_text())]
    boxes = {text.get_text(): text.get_window_extent() for text in texts}
    assert [text for text, box in boxes.items() if not edge.containsx(box.x0) or not edge.containsx(box.x1)] == []
    assert [text for text, box in boxes.items() if not edge.containsy(box.y0) or not edge.containsy(box.y1)] == []
    return words(" ".join(boxes))


@pytest.fixture(params=["answered", "refused"])
def answer(request, classifier, tmp_path, monkeypatch, capsys):
    """The prediction of a file, what the command line prints of it, and its picture; refused for its age."""
    card = replace(classifier.card, cohort={**classifier.card.cohort, "min_age": 60})
    head(2.5).to_filename(tmp_path / "made.nii")
    model_file.save(replace(classifier, card=card), tmp_path / "m.safetensors")
    made, whole = [], module.predict_file
    monkeypatch.setattr(
        module, "predict_file", lambda *given, **options: made.append(whole(*given, **options)) or made[0]
    )
    age = "70" if request.param == "answered" else "40"
    options = ["--model", str(tmp_path / "m.safetensors"), "--out", str(tmp_path), "--age", age]
    assert predict.main([str(tmp_path / "made.nii"), *options]) == 0
    assert (made[0].predicted is None) == (request.param == "refused")
    return made[0], json.loads(capsys.readouterr().out)


def test_every_output_has_the_same_statement_and_provenance(answer, monkeypatch):
    prediction, record = answer
    picture, sheets = Path(record["summary"]).read_bytes(), []
    monkeypatch.setattr(backend_pdf.PdfPages, "savefig", lambda _, figure: sheets.append(figure))
    results = [Result(record, {"views": picture, "summary": picture}, {})]
    as_pdf(results)
    facts = [prediction.name, prediction.statement, prediction.warning, prediction.provenance]
    outputs = {
        "page": html("card", record, results[0].pictures),
        "command line": " ".join(map(str, record.values())),
        "JSON": " ".join(map(str, json.loads(as_json(results))[0].values())),
        "HTML": as_html(results).decode(),
        "PDF": drawn(sheets[0]),
        "picture": drawn(plot_prediction(prediction)),
    }
    for place, text in outputs.items():
        reasons = [] if place == "picture" else prediction.refusals
        assert [fact for fact in [*facts, prediction.advice] if fact not in words(text)] == [], place
        assert [reason for reason in reasons if reason.split(": ")[1] not in words(text)] == [], place
    row = pd.read_csv(BytesIO(as_csv(results)), keep_default_na=False).iloc[0]
    assert [row["scan"], row["result"], row["warning"], row["what to do"]] == [*facts[:3], prediction.advice]
    assert [row["time"], row["model_sha256"]] == [prediction.time, prediction.sha256]
    assert row["refused"] == "; ".join(prediction.refusals) and len(prediction.sha256) == 64
