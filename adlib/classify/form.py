"""The form: choose scans, classify them in a process, view the results, download a report."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import yaml

from adlib.classify.model_store import find_models, list_examples
from adlib.classify.scan_tables import scan_table, summaries, unique_name
from adlib.classify.uploads import ACCEPT, MIB, Chosen, DropZone, Inbox, open_home
from adlib.classify.views import Viewer, html, links_html
from adlib.classify.worker import EXPECTED_S, CancelledError, Result, Worker
from adlib.sources.scanfile import scan_name
from adlib.study.params import StudyParams
from adlib.study.records import StudyError
from adlib.training.model_card import read_card

WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes())
SENTENCES = WORDS["sentences"]
STAGES = tuple(EXPECTED_S)
MAX_WITH_PICTURES = 20  # pictures of older results are deleted to save memory
MAX_AGE = 120.0  # years
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
        self._states: list[list[str]] = []
        self._running = self.worker
        self._inputs()
        self._outputs()
        self.button.on_click(lambda _: self.classify())
        self.cancel.on_click(lambda _: self.stop())
        self.report.on_click(lambda _: self._report())
        for control in (self.sort, self.descending):
            control.observe(lambda _: self._show_tables(), "value")
        self.path.observe(lambda _: self._count(), "value")
        self.model.observe(self._model_chosen, "value")
        self.options.observe(self._options_changed, "value")
        row = widgets.Box([self.age, self.sex, self.button, self.cancel, self.options], layout=WRAP)
        chosen = [self.path, *([self.model] if self.models else []), self.explain]
        self.more = widgets.VBox(chosen, layout={"display": "none"})
        examples = widgets.Box([widgets.HTML(html("note", SENTENCES["examples"])), *self.samples], layout=WRAP)
        order = widgets.Box([self.report, self.sort, self.descending], layout=WRAP)
        self.after = widgets.VBox([order, self.links, self.summary], layout={"display": "none"})
        self.about = widgets.HTML(html("note", self.worker.about))
        asked = [self.upload, self.waiting, self.about, row, self.more, *([examples] if self.samples else [])]
        self.box = Form([*asked, self.stage, self.queue, self.shown, self.after], SENTENCES["no kernel"])
        self.box.add_class("adlib-form")

    def _inputs(self) -> None:
        self.upload = DropZone(self.receive, [*ACCEPT], self.inbox.limits.max_upload_mb * MIB)
        self.path = widgets.Text(**WORDS["path"])
        samples = {name: f"classify the example {name}" for name in self.examples}
        self.samples = [widgets.Button(description=name, tooltip=hint) for name, hint in samples.items()]
        for sample, path in zip(self.samples, self.examples.values(), strict=True):
            sample.on_click(lambda _, path=path: self._classify_example(path))
        models = [*self.models.items()] or [("of the study", self.worker)]
        self.model = widgets.Dropdown(options=models, **WORDS["model"])
        self.age = widgets.Text(**WORDS["age"])
        self.sex = widgets.Dropdown(options=[("not given", None), ("female", 1.0), ("male", 0.0)], **WORDS["sex"])
        self.explain = widgets.Checkbox(indent=False, **WORDS["explain"])

    def _outputs(self) -> None:
        self.button = widgets.Button(button_style="primary", **WORDS["button"])
        self.cancel = widgets.Button(disabled=True, **WORDS["cancel"])
        self.options = widgets.ToggleButton(**WORDS["options"])
        self.waiting, self.stage, self.queue, self.links, self.summary = (widgets.HTML() for _ in range(5))
        self.shown = widgets.VBox()
        self.sort = widgets.Dropdown(options=["scan"], **WORDS["sort"])
        self.descending = widgets.ToggleButton(**WORDS["descending"])
        self.report = widgets.Button(**WORDS["report"])

    def _model_chosen(self, change: dict[str, Any]) -> None:
        self.worker = change["new"]
        self.about.value = html("note", self.worker.about)

    def _options_changed(self, change: dict[str, Any]) -> None:
        self.more.layout.display = "" if change["new"] else "none"

    def receive(self, files: list[dict[str, Any]]) -> None:
        """Store uploads in the private folder and start the worker.

        Parameters
        ----------
        files : list of dict
            See `adlib.classify.uploads.Inbox.receive`.
        """
        left_out = self.inbox.receive(files)
        self.worker.start()
        self._show_waiting(left_out)
        chosen = self._chosen()
        if len(chosen) == 1 and (chosen[0].path.is_dir() or chosen[0].path.suffix == ".zip"):
            threading.Thread(target=self._propose, args=(chosen[0],), daemon=True).start()

    def _propose(self, scan: Chosen) -> None:
        """Fill in age and sex that the DICOM header states, unless something is there or the scan is gone."""
        try:
            stated = self.worker.stated_person(scan.path)
        except (StudyError, CancelledError, OSError):
            return
        if not stated or self._chosen() != [scan] or self.age.value or self.sex.value is not None:
            return
        self.age.value = f"{stated['age']:g}" if "age" in stated else ""
        self.sex.index = [value for _, value in self.sex.options].index(stated.get("sex"))
        self.waiting.value += html("status", SENTENCES["proposed"])

    def _chosen(self) -> list[Chosen]:
        """All scans that the button classifies."""
        path = self.path.value.strip()
        return [*self.inbox.chosen, *([Chosen(scan_name(path), Path(path), 0)] if path else [])]

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
        if self._is_busy():
            return
        chosen = self._chosen()
        if not chosen:
            self.shown.children = [widgets.HTML(html("alert", SENTENCES["nothing chosen"]))]
            return
        try:
            person = self._person() if len(chosen) == 1 else {}
        except ValueError as error:
            self.stage.value = html("alert", str(error))
            return
        self.inbox.chosen, self.path.value, self.age.value, self.sex.index = [], "", "", 0
        self._show_waiting([])
        self._begin(self.worker, chosen, person)

    def _classify_example(self, path: str) -> None:
        """Examples are of the study, whose model is the last; chosen scans go on waiting."""
        if not self._is_busy():
            worker = [*self.models.values()][-1] if self.models else self.worker
            self._begin(worker, [Chosen(scan_name(path), Path(path), 0)], {})

    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _begin(self, worker: Worker, chosen: list[Chosen], person: dict[str, float]) -> None:
        if worker is not self._running:
            self._running.stop()
        self._running, self._stop, self.shown.children = worker, False, ()
        self._states = [[scan.name, "waiting"] for scan in chosen]
        self._busy(True)
        self._thread = threading.Thread(target=self._run, args=(chosen, person), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the work now; a new process waits, which removes the private folder if this one is killed."""
        self._stop = True
        self._running.stop()
        self._running.start()

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
            for number, scan in enumerate(chosen):
                self._enter(number, "in progress")
                self._enter(number, "cancelled" if self._stop else self._attempt(scan, person, number, len(chosen)))
                self.inbox.delete(scan)
                self._show_tables()
        finally:
            self._busy(False)

    def _enter(self, number: int, state: str) -> None:
        """Write the state of a scan into the table of several scans."""
        self._states[number][1] = state
        self.queue.value = html("queue", self._states) if len(self._states) > 1 else ""

    def _attempt(self, scan: Chosen, person: dict[str, float], number: int, count: int) -> str:
        """Classify one scan, show it, and return its statement or why it has none."""
        explain, worker = self.explain.value, self._running

        def show_stage(stage: str) -> None:
            left = worker.seconds_left(stage, explain)
            left += (count - 1 - number) * worker.seconds_left(STAGES[1], explain)
            place = f"scan {number + 1} of {count}, " if count > 1 else ""
            text = f"{place}{scan.name}: {stage}; about {left:.0f} s left"
            self.stage.value = html("progress", text, STAGES.index(stage), len(STAGES))
            self.upload.progress = f"{number + 1} of {count}: {stage}"

        try:
            if str(scan.path) in self.examples.values() and not scan.path.exists():
                self.stage.value = html("status", SENTENCES["simulating"])
                self.simulate()
            result = worker.classify(scan.path, person, show_stage, explain)
        except CancelledError:
            self._show(widgets.HTML(html("status", f"{scan.name}: cancelled")))
            return "cancelled"
        except (StudyError, OSError, MemoryError) as error:
            self._show(widgets.HTML(html("failure", scan.name, str(error))))
            return str(error)
        record = result.record
        record["name"] = unique_name(record["name"], [earlier.record["name"] for earlier in self.results])
        self.results.append(result)
        for old in self.results[:-MAX_WITH_PICTURES]:
            old.pictures.clear()
            old.view.clear()
        self._show(widgets.HTML(html("card", record, result.pictures)), Viewer(result.view))
        return str(record["statement"])

    def _show(self, *shown: widgets.Widget) -> None:
        self.shown.children = (*self.shown.children, *shown)

    def _show_tables(self) -> None:
        """The sortable table of all scans of the session, and a summary of those of each model."""
        if not self.results:
            return
        records = [result.record for result in self.results]
        table = scan_table(records)
        self.after.layout.display = ""
        for widget in (self.sort, self.descending):
            widget.layout.display = "" if len(records) > 1 else "none"
        columns = ("scan", *table.columns)
        if self.sort.options != columns:
            self.sort.options = columns
        table = table.sort_values(self.sort.value, ascending=not self.descending.value, kind="stable")
        self.summary.value = html("tables", {f"Scans read in this session: {len(records)}": table} | summaries(records))

    def _report(self) -> None:
        self.links.value = links_html(self.results)

    def _busy(self, busy: bool) -> None:
        self.cancel.disabled = not busy
        for button in (self.button, *self.samples):
            button.disabled = busy
        self.links.value = ""
        if not busy:
            self.stage.value, self.upload.progress = "", ""


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
    examples = {f"{scan.participant_id} ({scan.diagnosis})": scan.path for scan in list_examples(params).itertuples()}
    inbox = Inbox(params.classify, open_home())
    settings = (params.classify, inbox.home, params.evaluate.coverage, params.evaluate.attribution)
    workers = {
        title: Worker(model, *settings, about=f"Model: {title}. {read_card(model).origin}.")
        for title, model in models.items()
    }

    def simulate() -> None:
        from adlib.classify.stored_results import example_scans

        example_scans(params)

    return App(next(iter(workers.values())), inbox, examples, workers if len(workers) > 1 else {}, simulate).box
