"""The form: choose scans, classify them in a process, view the results, download a report."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from adlib.classify.examples import list_examples
from adlib.classify.model_store import find_models
from adlib.classify.scan_tables import scan_table, summary_table, unique_name
from adlib.classify.uploads import ACCEPT, Chosen, Inbox, open_home
from adlib.classify.views import Viewer, html, links_html
from adlib.classify.worker import EXPECTED_S, CancelledError, Result, Worker
from adlib.sources.scanfile import scan_name
from adlib.study.params import StudyParams
from adlib.study.records import StudyError
from adlib.training.model_card import read_card

NOTHING_CHOSEN = (
    "Choose a file, a path or an example first. A chosen file that does not arrive exceeds the upload limit of this "
    "server (10 MB unless started by make lab or make app); give its path instead."
)
STAGES = tuple(EXPECTED_S)
MAX_WITH_PICTURES = 20  # pictures of older results are deleted to save memory
MAX_AGE = 120.0  # years
WIDE = {"width": "38em", "max_width": "100%"}
LABELS = {"description_width": "7em"}
WRAP = {"flex_flow": "row wrap"}


class Form(widgets.VBox):
    """A box that shows a text instead of itself on a page without a kernel.

    Parameters
    ----------
    children : list of Widget
    text : str
    """

    def __init__(self, children: list[widgets.Widget], text: str) -> None:
        self.text = text
        super().__init__(children)

    def __repr__(self) -> str:
        return self.text


@dataclass
class App:
    """The classifier; `box` is what the notebook shows.

    Attributes
    ----------
    worker : Worker
        Of the model in use.
    inbox : Inbox
    examples : dict of str to str
        Path by label, for the last of the models.
    models : dict of str to Worker
        By title, where there is a choice; the first is the default.
    simulate : callable
        Makes the files of the examples, where they do not exist yet.
    results : list of Result
        Every scan classified in this session.
    """

    worker: Worker
    inbox: Inbox
    examples: dict[str, str]
    models: dict[str, Worker] = field(default_factory=dict)
    simulate: Callable[[], object] = lambda: None
    results: list[Result] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._stop = False
        self._inputs()
        self._outputs()
        self.upload.observe(self._received, "value")
        self.button.on_click(lambda _: self.classify())
        self.cancel.on_click(lambda _: self.stop())
        self.report.on_click(lambda _: self._report())
        for control in (self.sort, self.descending):
            control.observe(lambda _: self._show_tables(), "value")
        for control in (self.path, self.example):
            control.observe(lambda _: self._count(), "value")
        self.model.observe(self._model_chosen, "value")
        self.example.observe(self._example_chosen, "value")
        person = widgets.Box([self.age, self.sex, self.explain], layout=WRAP)
        row = widgets.Box([self.button, self.cancel, self.progress], layout=WRAP)
        order = widgets.Box([self.sort, self.descending, self.report], layout=WRAP)
        self.after = widgets.VBox([order, self.links, self.summary], layout={"display": "none"})
        asked = [self.example, *([self.model] if self.models else []), person, row]
        parts = [self.upload, self.waiting, self.path, *asked, self.stage, self.shown, self.after]
        self.box = Form(parts, "The upload form appears here while a kernel runs: make lab, or make app")

    def _inputs(self) -> None:
        self.upload = widgets.FileUpload(
            accept=",".join(ACCEPT), multiple=True, description="Choose scans", layout={"width": "14em"},
            tooltip="NIfTI, MGH, Analyze pairs, a zip of DICOM or all DICOM files of one series",
        )  # fmt: skip
        self.path = widgets.Text(
            description="or a path", placeholder="on this computer: a file or a folder of DICOM", layout=WIDE,
            style=LABELS, tooltip="path of a scan on the computer that runs this page",
        )  # fmt: skip
        options = [("none", ""), *self.examples.items()]
        self.example = widgets.Dropdown(
            options=options, description="or example", layout=WIDE, style=LABELS, tooltip="test scans of the study"
        )
        self.model = widgets.Dropdown(
            options=[*self.models.items()] or [("of the study", self.worker)], description="model", layout=WIDE,
            style=LABELS, tooltip="whom the model was trained on",
        )  # fmt: skip
        self.age = widgets.Text(
            description="age, years", placeholder="optional", layout={"width": "14em"}, style=LABELS,
            tooltip="age in years, for percentiles of volumes; of one scan only",
        )  # fmt: skip
        self.sex = widgets.Dropdown(
            options=[("not given", None), ("female", 1.0), ("male", 0.0)], description="sex", layout={"width": "16em"},
            tooltip="for percentiles of volumes; of one scan only",
        )  # fmt: skip
        self.explain = widgets.Checkbox(
            description="show an attribution map", indent=False, layout={"width": "18em"},
            tooltip="evidence for the predicted class; takes a few seconds more",
        )  # fmt: skip

    def _outputs(self) -> None:
        self.button = widgets.Button(description="Classify", button_style="primary", icon="play", tooltip="start")
        self.cancel = widgets.Button(
            description="Cancel", icon="stop", disabled=True, tooltip="stop now and drop the scans that have not begun"
        )
        self.progress = widgets.IntProgress(max=len(STAGES), layout={"width": "20em", "visibility": "hidden"})
        self.waiting, self.stage, self.links, self.summary = (widgets.HTML() for _ in range(4))
        self.shown = widgets.VBox()
        self.sort = widgets.Dropdown(
            options=["scan"], description="sort by", tooltip="column that the table is sorted by"
        )
        self.descending = widgets.ToggleButton(description="descending", tooltip="largest first")
        self.report = widgets.Button(description="Make report", icon="download", tooltip="CSV, JSON, HTML and PDF")

    def _model_chosen(self, change: dict[str, Any]) -> None:
        self.worker = change["new"]

    def _example_chosen(self, change: dict[str, Any]) -> None:
        """Examples are of the study: its model is the last."""
        if self.models:
            self.model.index = len(self.models) - 1 if change["new"] else 0

    def _received(self, change: dict[str, Any]) -> None:
        """Take uploads out of the page at once, so that no bytes of them stay in the widget."""
        if not change["new"]:
            return
        left_out = self.inbox.receive(change["new"])
        self.upload.value = ()
        self.worker.start()
        self._show_waiting(left_out)

    def _chosen(self) -> list[Chosen]:
        """All scans that the button classifies."""
        paths = [path for path in (self.path.value.strip(), self.example.value) if path]
        return [*self.inbox.chosen, *(Chosen(scan_name(path), Path(path), 0) for path in paths)]

    def _count(self) -> None:
        """Say on the button what it classifies; age and sex are those of one person."""
        count = len(self._chosen())
        self.button.description = f"Classify {count} scans" if count > 1 else "Classify"
        self.age.disabled = self.sex.disabled = count > 1

    def _show_waiting(self, left_out: list[str]) -> None:
        self._count()
        chosen = self.inbox.chosen
        self.waiting.value = html("received", chosen, left_out) if chosen or left_out else ""

    def classify(self) -> None:
        """Start to classify all chosen scans in a thread."""
        if self._thread is not None and self._thread.is_alive():
            return
        chosen = self._chosen()
        if not chosen:
            self.shown.children = [widgets.HTML(html("alert", NOTHING_CHOSEN))]
            return
        try:
            person = self._person() if len(chosen) == 1 else {}
        except ValueError as error:
            self.stage.value = html("alert", str(error))
            return
        self._stop, self.shown.children, self.inbox.chosen = False, (), []
        self._show_waiting([])
        self._busy(True)
        self._thread = threading.Thread(target=self._run, args=(chosen, person), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the work now."""
        self._stop = True
        self.worker.stop()

    def _person(self) -> dict[str, float]:
        person = {} if self.sex.value is None else {"sex": self.sex.value}
        if text := self.age.value.strip():
            try:
                person["age"] = float(text.replace(",", "."))
            except ValueError:
                raise ValueError(f"age is {text!r}, expected a number of years such as 71") from None
            if not 0 < person["age"] < MAX_AGE:
                raise ValueError(f"age is {text}, expected 0 to {MAX_AGE:g} years")
        return person

    def _run(self, chosen: list[Chosen], person: dict[str, float]) -> None:
        try:
            for number, scan in enumerate(chosen, start=1):
                if not self._stop:
                    self._attempt(scan, person, f"{number} of {len(chosen)}: " if len(chosen) > 1 else "")
                self.inbox.delete(scan)
            self._show_tables()
        finally:
            self._busy(False)

    def _attempt(self, scan: Chosen, person: dict[str, float], prefix: str) -> None:
        explain = self.explain.value

        def show_stage(stage: str) -> None:
            left = self.worker.seconds_left(stage, explain)
            self.progress.value = STAGES.index(stage)
            self.stage.value = html("status", f"{prefix}{scan.name}: {stage}; about {left:.0f} s left")

        try:
            if str(scan.path) in self.examples.values() and not scan.path.exists():
                self.stage.value = html("status", "simulating the examples")
                self.simulate()
            result = self.worker.classify(scan.path, person, show_stage, explain)
        except CancelledError:
            self._show(widgets.HTML(html("status", f"{scan.name}: cancelled")))
        except (StudyError, OSError, MemoryError) as error:
            self._show(widgets.HTML(html("failure", scan.name, str(error))))
        else:
            record = result.record
            record["name"] = unique_name(record["name"], [earlier.record["name"] for earlier in self.results])
            self.results.append(result)
            for old in self.results[:-MAX_WITH_PICTURES]:
                old.pictures.clear()
                old.view.clear()
            details = widgets.HTML(html("details", record, result.pictures))
            self._show(widgets.HTML(html("prediction", record)), Viewer(result.view), details)

    def _show(self, *shown: widgets.Widget) -> None:
        self.shown.children = (*self.shown.children, *shown)

    def _show_tables(self) -> None:
        """The sortable table of all scans of the session and their summary."""
        if not self.results:
            return
        records = [result.record for result in self.results]
        table = scan_table(records)
        self.after.layout.display = ""
        columns = ("scan", *table.columns)
        if self.sort.options != columns:
            self.sort.options = columns
        table = table.sort_values(self.sort.value, ascending=not self.descending.value, kind="stable")
        tables = {f"Scans of this session: {len(records)}": table}
        if len(records) > 1:
            tables["Summary"] = summary_table(records)
        self.summary.value = html("tables", tables)

    def _report(self) -> None:
        self.links.value = links_html(self.results)

    def _busy(self, busy: bool) -> None:
        self.button.disabled, self.cancel.disabled = busy, not busy
        self.progress.layout.visibility = "visible" if busy else "hidden"
        self.links.value = ""
        if not busy:
            self.stage.value = ""


def classifier_app(params: StudyParams) -> widgets.Widget:
    """The interactive classifier of a study.

    Parameters
    ----------
    params : StudyParams
        Its model must have been trained on 3-D scans.

    Returns
    -------
    ipywidgets.VBox
        A line with the reason if the model takes no heads.

    Raises
    ------
    StudyError
        If the study has no model yet.
    """
    models = find_models(params)
    card = read_card([*models.values()][-1])
    if card.refusal:
        text = f"This study's model {card.refusal}."
        return Form([widgets.HTML(text)], text)
    examples = {f"{scan.scan_id} ({scan.diagnosis})": scan.path for scan in list_examples(params).itertuples()}
    inbox = Inbox(params.classify, open_home())
    settings = (params.classify, inbox.home, params.evaluate.coverage, params.evaluate.attribution)
    workers = {title: Worker(model, *settings) for title, model in models.items()}

    def simulate() -> None:
        from adlib.classify.stored_results import example_scans

        example_scans(params)

    return App(next(iter(workers.values())), inbox, examples, workers if len(workers) > 1 else {}, simulate).box
