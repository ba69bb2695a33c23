"""The form: choose scans, classify them in a process of its own, look at the answers, keep a report."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from adlib.classify.model_store import example_scans, find_model
from adlib.classify.prediction import STAGES
from adlib.classify.widget.download import links_html
from adlib.classify.widget.jobs import DRAWING, EXPLAINING, START, CancelledError, Result, Worker
from adlib.classify.widget.result_tables import batch_table, summary_table
from adlib.classify.widget.uploads import ACCEPT, MIB, Chosen, Inbox, open_home
from adlib.classify.widget.views import (
    Viewer,
    answer_html,
    checks_html,
    fault_html,
    nearest_words,
    page,
    picture_html,
    remarks_html,
    table_html,
    volumes_html,
)
from adlib.sources.scanfile import scan_name
from adlib.study.params import StudyParams
from adlib.study.records import StudyError
from adlib.training import model_file

NOTHING_CHOSEN = (
    "Choose a file, a path or an example first. A chosen file that does not arrive is larger than this server takes "
    "(10 MB unless it was started by <code>make lab</code> or <code>make app</code>); give its path instead."
)
ALL_STAGES = (START, *STAGES, DRAWING, EXPLAINING)
NEAREST_NOTE = (
    "<p class='muted'>Nearest among the network's features, for comparison by eye; they do not decide the answer.</p>"
)
KEPT_PICTURES = 20  # of the latest results; older ones keep their numbers
OLDEST, YOUNGEST = 120.0, 0.0
WIDE = {"width": "38em", "max_width": "100%"}
LABELS = {"description_width": "7em"}


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
    worker : Worker
    inbox : Inbox
    examples : dict of str to str
        Path by label.
    results : list of Result
        Every scan classified so far in this session.
    """

    worker: Worker
    inbox: Inbox
    examples: dict[str, str]
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
            control.observe(lambda _: self._show_batch(), "value")
        person = widgets.Box([self.age, self.sex, self.explain], layout={"flex_flow": "row wrap"})
        row = widgets.Box([self.button, self.cancel, self.progress], layout={"flex_flow": "row wrap"})
        order = widgets.Box([self.sort, self.descending, self.report], layout={"flex_flow": "row wrap"})
        self.after = widgets.VBox([order, self.links, self.summary], layout={"display": "none"})
        parts = [self.upload, self.waiting, self.path, self.example, person, row, self.stage, self.shown, self.after]
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
        self.age = widgets.Text(
            description="age, years", placeholder="optional", layout={"width": "14em"}, style=LABELS,
            tooltip="age in years, for percentiles of volumes; used when one scan is classified",
        )  # fmt: skip
        self.sex = widgets.Dropdown(
            options=[("not given", None), ("female", 1.0), ("male", 0.0)], description="sex", layout={"width": "16em"},
            tooltip="for percentiles of volumes; used when one scan is classified",
        )  # fmt: skip
        self.explain = widgets.Checkbox(
            description="show where the network looked", indent=False, layout={"width": "18em"},
            tooltip="adds a map of the evidence; takes a few seconds more",
        )  # fmt: skip

    def _outputs(self) -> None:
        self.button = widgets.Button(description="Classify", button_style="primary", icon="play", tooltip="start")
        self.cancel = widgets.Button(
            description="Cancel", icon="stop", disabled=True, tooltip="stop the work now; scans not begun are dropped"
        )
        self.progress = widgets.IntProgress(max=len(ALL_STAGES), layout={"width": "20em", "visibility": "hidden"})
        self.waiting, self.stage, self.links, self.summary = (widgets.HTML() for _ in range(4))
        self.shown = widgets.VBox()
        self.sort = widgets.Dropdown(
            options=["scan"], description="sort by", tooltip="column that the table is sorted by"
        )
        self.descending = widgets.ToggleButton(description="descending", tooltip="largest first")
        self.report = widgets.Button(description="Make report", icon="download", tooltip="CSV, JSON, HTML and PDF")

    def _received(self, change: dict[str, Any]) -> None:
        """Take uploads out of the page at once, so that no bytes of them stay in the widget."""
        if not change["new"]:
            return
        left_out = self.inbox.receive(change["new"])
        self.upload.value = ()
        self.worker.warm()
        self._show_waiting(left_out)

    def _show_waiting(self, left_out: list[str]) -> None:
        waiting = "".join(f"<li>{escape(c.name)}, {c.bytes / MIB:.1f} MiB</li>" for c in self.inbox.chosen)
        words = f"<p>Received:</p><ul>{waiting}</ul>" if waiting else ""
        faults = "".join(f"<p role='alert'>{escape(one)}</p>" for one in left_out)
        self.waiting.value = page(f"<div role='status'>{words}{faults}</div>") if words or faults else ""

    def classify(self) -> None:
        """Begin to classify everything chosen, off the main thread; see `wait`."""
        if self._thread is not None and self._thread.is_alive():
            return
        chosen = self._chosen()
        if not chosen:
            self.shown.children = [widgets.HTML(page(f"<p role='alert'>{NOTHING_CHOSEN}</p>"))]
            return
        person, fault = self._person(len(chosen))
        if fault:
            self.stage.value = page(f"<p role='alert'>{escape(fault)}</p>")
            self.inbox.chosen = [one for one in chosen if one.path.is_relative_to(self.inbox.home)]
            return
        self._stop, self.shown.children = False, ()
        self._show_waiting([])
        self._busy(True)
        self._thread = threading.Thread(target=self._run, args=(chosen, person), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the work is done."""
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """End the work now."""
        self._stop = True
        self.worker.stop()

    def _chosen(self) -> list[Chosen]:
        paths = [path for path in (self.path.value.strip(), self.example.value) if path]
        return [*self.inbox.take(), *(Chosen(scan_name(path), Path(path), 0) for path in paths)]

    def _person(self, count: int) -> tuple[dict[str, float], str]:
        """Age and sex, where one scan is classified, and what is wrong with them."""
        person = {} if self.sex.value is None else {"sex": self.sex.value}
        if text := self.age.value.strip():
            try:
                person["age"] = float(text.replace(",", "."))
            except ValueError:
                return {}, f"The age is {text!r}; give a number of years, such as 71"
            if not YOUNGEST < person["age"] < OLDEST:
                return {}, f"The age is {text}; give years between {YOUNGEST:g} and {OLDEST:g}"
        return (person if count == 1 else {}), ""

    def _run(self, chosen: list[Chosen], person: dict[str, float]) -> None:
        try:
            for number, one in enumerate(chosen, start=1):
                if not self._stop:
                    self._attempt(one, person, f"{number} of {len(chosen)}: " if len(chosen) > 1 else "")
                self.inbox.drop(one)
            self._show_batch()
        finally:
            self._busy(False)

    def _attempt(self, one: Chosen, person: dict[str, float], prefix: str) -> None:
        explain = self.explain.value

        def tell(stage: str) -> None:
            left = self.worker.seconds_left(stage, explain)
            self.progress.value = ALL_STAGES.index(stage) if stage in ALL_STAGES else 0
            words = f"{prefix}{one.name}: {stage}; about {left:.0f} s left"
            self.stage.value = page(f"<p role='status' aria-live='polite'>{escape(words)}</p>")

        try:
            result = self.worker.classify(one.path, person, tell, explain)
        except CancelledError:
            self._add(widgets.HTML(page(f"<p role='status'>{escape(one.name)}: cancelled.</p>")))
        except (StudyError, OSError, MemoryError) as error:
            self._add(widgets.HTML(fault_html(one.name, str(error))))
        else:
            result.record["name"] = self._free_name(result.record["name"])
            self.results.append(result)
            for old in self.results[:-KEPT_PICTURES]:
                old.pictures.clear()
                old.view.clear()
            self._add(*result_widgets(result))

    def _free_name(self, name: str) -> str:
        taken = Counter(result.record["name"] for result in self.results)
        return name if name not in taken else f"{name} ({sum(n.startswith(name) for n in taken) + 1})"

    def _add(self, *shown: widgets.Widget) -> None:
        self.shown.children = (*self.shown.children, *shown)

    def _show_batch(self) -> None:
        """The sortable table of all scans of the session and their summary."""
        if not self.results:
            return
        records = [result.record for result in self.results]
        table = batch_table(records)
        self.after.layout.display = ""
        if self.sort.options != tuple(table.columns):
            self.sort.options = list(table.columns)
        table = table.sort_values(self.sort.value, ascending=not self.descending.value, kind="stable")
        title = f"All {len(records)} scans of this session" if len(records) > 1 else "The scan of this session"
        parts = [table_html(table.set_index("scan"), title)]
        parts += [table_html(summary_table(records), "Summary")] if len(records) > 1 else []
        self.summary.value = page(*parts)

    def _report(self) -> None:
        self.report.disabled = True
        try:
            self.links.value = links_html(self.results)
        finally:
            self.report.disabled = False

    def _busy(self, busy: bool) -> None:
        self.button.disabled, self.cancel.disabled = busy, not busy
        self.progress.layout.visibility = "visible" if busy else "hidden"
        self.links.value = ""
        if not busy:
            self.stage.value = ""


def result_widgets(result: Result) -> list[widgets.Widget]:
    """Answer, checks, pictures, volumes and viewer of one classified scan."""
    record = result.record
    name = record["name"]
    above = page(answer_html(record), checks_html(record))
    summary = picture_html(result.pictures["summary"], f"{name}: brain outline in three planes, answer and volumes")
    parts = [summary]
    if "evidence" in result.pictures:
        words = f"{name}: evidence for {record['predicted']} on the slices that the network saw"
        parts += ["<h4>Where the network looked</h4>", picture_html(result.pictures["evidence"], words)]
    if "nearest" in result.pictures:
        parts += ["<h4>Training scans nearest to it</h4>", NEAREST_NOTE]
        parts.append(picture_html(result.pictures["nearest"], nearest_words(record)))
    below = page(volumes_html(record), *parts, remarks_html(record))
    return [widgets.HTML(above), Viewer(result.view, name), widgets.HTML(below)]


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
    model = find_model(params)
    card = model_file.load(model, trusted=True).card
    if card.refusal:
        words = f"This study's model {card.refusal}."
        return Form([widgets.HTML(words)], words)
    examples = {f"{scan.scan_id} ({scan.diagnosis})": scan.path for scan in example_scans(params).itertuples()}
    inbox = Inbox(params.classify, open_home())
    worker = Worker(model, params.classify, inbox.home, params.evaluate.coverage, params.evaluate.attribution)
    return App(worker, inbox, examples).box
