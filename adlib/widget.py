"""Upload, classify, look: a thin ipywidgets shell over `adlib.predict`, and the same without a mouse."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd

from adlib import model_file
from adlib.figures.theme import apply_theme
from adlib.params import StudyParams
from adlib.predict import Prediction, Stage, as_record, draw, example_scans, find_model, predict_file
from adlib.records import StudyError
from adlib.sources.dicom import private_folder
from adlib.sources.scanfile import SUFFIXES

NOTHING_CHOSEN = (
    "Choose a file, a path or an example first. A chosen file that does not arrive is larger than this server takes "
    "(10 MB unless it was started by <code>make lab</code>); give its path instead."
)
STAGES = 4  # reading, preprocessing, classifying, drawing


def classify_scans(params: StudyParams, paths: Iterable[str]) -> list[Prediction]:
    """Classify scans from their files, exactly as uploaded ones would be."""
    classifier = model_file.load(find_model(params))
    return [predict_file(path, classifier) for path in paths]


def probability_table(predictions: list[Prediction], truth: dict[str, str] | None = None) -> pd.DataFrame:
    """One row per scan: known diagnosis where there is one, answer, and the probability of each class."""
    rows = []
    for one in predictions:
        known = {"diagnosis": (truth or {}).get(one.name, "unknown")} if truth is not None else {}
        answer = {"scan": one.name, **known, "answer": one.predicted or "none", "quality control": one.prepared.verdict}
        rows.append({**answer, **{f"p({name})": value for name, value in one.probabilities.items()}})
    return pd.DataFrame(rows).round(3)


def volume_table(predictions: list[Prediction]) -> pd.DataFrame:
    """One column per scan: tissue and regional volumes, ml, and the brain volume as a share (nbv)."""
    return pd.DataFrame(
        [one.prepared.features for one in predictions], index=[one.name for one in predictions]
    ).T.round(2)


def summary_table(predictions: list[Prediction]) -> pd.DataFrame:
    """Number of scans, mean, standard deviation and range of probabilities and volumes; empty without scans."""
    if not predictions:
        return pd.DataFrame()
    rows = [{f"p({name})": p for name, p in one.probabilities.items()} | one.prepared.features for one in predictions]
    table = pd.DataFrame(rows).agg(["count", "mean", "std", "min", "max"]).T.round(2)
    return table.astype({"count": int})


class Form(widgets.VBox):
    """A box that shows words instead of itself on a page without a kernel."""

    def __init__(self, children: list[widgets.Widget], words: str) -> None:
        self.words = words
        super().__init__(children)

    def __repr__(self) -> str:
        return self.words


@dataclass
class App:
    """The classifier as a person sees it; `box` is what the notebook shows.

    Attributes
    ----------
    classifier : Classifier
    examples : dict of str to str
        Path by label.
    predictions : list of Prediction
        Every scan classified so far in this session.
    """

    classifier: model_file.Classifier
    examples: dict[str, str]
    predictions: list[Prediction] = field(default_factory=list)

    def __post_init__(self) -> None:
        wide = widgets.Layout(width="38em")
        self.upload = widgets.FileUpload(accept=",".join((*SUFFIXES, ".gz")), multiple=True, description="Choose scans")
        self.path = widgets.Text(placeholder="or a path on this computer: a file or a folder of DICOM", layout=wide)
        self.example = widgets.Dropdown(
            options=[("or an example of the study", ""), *self.examples.items()], layout=wide
        )
        self.button = widgets.Button(description="Classify", button_style="primary", icon="play")
        self.stage = widgets.HTML()
        self.progress = widgets.IntProgress(max=STAGES, layout=widgets.Layout(width="20em", visibility="hidden"))
        self.results = widgets.VBox()
        self.summary = widgets.HTML()
        self.button.on_click(lambda _: self.classify())
        row = widgets.HBox([self.button, self.progress, self.stage])
        parts = [self.upload, self.path, self.example, row, self.results, self.summary]
        self.box = Form(parts, "The upload form appears here while a kernel runs: make lab")

    def classify(self) -> None:
        """Classify everything chosen; a file that cannot be classified is reported and the others go on."""
        self.button.disabled, self.progress.layout.visibility = True, "visible"
        try:
            shown = [widgets.VBox(self._attempt(name, read)) for name, read in self._chosen()]
            self.results.children = shown or [widgets.HTML(NOTHING_CHOSEN)]
            self.summary.value = _summary_html(self.predictions)
        finally:
            self.stage.value = ""
            self.button.disabled, self.progress.layout.visibility = False, "hidden"

    def _chosen(self) -> list[tuple[str, Callable[[Stage], Prediction]]]:
        """Name and classifying call of each chosen scan; the upload is emptied, so that no bytes stay in the page."""
        files = [(one["name"], bytes(one["content"])) for one in self.upload.value]
        self.upload.value = ()
        paths = [path for path in (self.path.value.strip(), self.example.value) if path]
        uploads = [(name, lambda stage, n=name, c=content: self._uploaded(n, c, stage)) for name, content in files]
        return uploads + [(path, lambda stage, p=path: predict_file(p, self.classifier, stage)) for path in paths]

    def _uploaded(self, name: str, content: bytes, stage: Stage) -> Prediction:
        with private_folder() as folder:
            file = folder / Path(name.replace("\\", "/")).name
            file.write_bytes(content)
            return predict_file(file, self.classifier, stage)

    def _attempt(self, name: str, read: Callable[[Stage], Prediction]) -> list[widgets.Widget]:
        self.progress.value = 0
        try:
            prediction = read(lambda words: self._tell(f"{name}: {words}"))
            self._tell(f"{name}: drawing")
            shown = result_widgets(prediction)
        except (StudyError, OSError, MemoryError) as error:
            return [widgets.HTML(f"<p style='color:#b00020'><b>{escape(name)}</b>: {escape(str(error))}</p>")]
        self.predictions.append(prediction)
        return shown

    def _tell(self, words: str) -> None:
        self.progress.value += 1
        self.stage.value = escape(words)


def result_widgets(prediction: Prediction) -> list[widgets.Widget]:
    """Picture, tables, remarks and a JSON download of one classified scan."""
    apply_theme()
    figure, picture = draw(prediction), BytesIO()
    figure.savefig(picture, format="png")
    plt.close(figure)
    tables = (probability_table([prediction]), volume_table([prediction]))
    remarks = [*prediction.notes, *prediction.prepared.steps, *prediction.prepared.reasons]
    page = tables[0].to_html(index=False) + tables[1].to_html()
    page += "<ul>" + "".join(f"<li>{escape(remark)}</li>" for remark in remarks) + "</ul>"
    page += f"<p><b>{escape(prediction.warning)}</b></p>{_download(prediction)}"
    return [widgets.Image(value=picture.getvalue(), format="png", layout={"max_width": "60em"}), widgets.HTML(page)]


def _download(prediction: Prediction) -> str:
    content = base64.b64encode(json.dumps(as_record(prediction), indent=2, allow_nan=False).encode()).decode()
    name = escape(f"{prediction.name}_prediction.json", quote=True)
    return f'<a download="{name}" href="data:application/json;base64,{content}">Download as JSON</a>'


def _summary_html(predictions: list[Prediction]) -> str:
    if not predictions:
        return ""
    return f"<h4>All {len(predictions)} scans of this session</h4>" + summary_table(predictions).to_html(na_rep="")


def classifier_app(params: StudyParams) -> widgets.Widget:
    """The interactive classifier of a study.

    Parameters
    ----------
    params : StudyParams
        Its model must have been trained on 3-D scans.

    Returns
    -------
    ipywidgets.VBox
        One line that says why, where the model takes no heads.

    Raises
    ------
    StudyError
        If the study has no model yet.
    """
    classifier = model_file.load(find_model(params))
    if classifier.card.refusal:
        words = f"This study's model {classifier.card.refusal}."
        return Form([widgets.HTML(words)], words)
    stored = (params.folder / "predictions.parquet").is_file()
    scans = example_scans(params).itertuples() if stored else ()
    examples = {f"{scan.scan_id} ({scan.diagnosis})": scan.path for scan in scans}
    return App(classifier, examples).box
