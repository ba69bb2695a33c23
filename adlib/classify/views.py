"""HTML of the form, a viewer of one scan, and reports as CSV, JSON, HTML and PDF; the templates escape all texts."""

import base64
import json
import textwrap
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import nibabel as nib
import numpy as np
import pandas as pd
from ipyniivue import NiiVue, ShowRender
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from adlib.classify.scan_tables import VOLUME_LABELS, format_ml, scan_table, summaries
from adlib.classify.worker import EVIDENCE_MAX, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = {"passed": "✓", "warning": "!", "failed": "✗", "not checked": "–"}
LABELS = VOLUME_LABELS | {"csf_ml": "CSF", "temporal_ml": "temporal lobes, grey matter"}
EVIDENCE_NOTE = "Red or orange: evidence for the predicted class, blue: against it; only where slices were cut."
HEIGHT = 420  # pixels
LINE = 0.011  # height of a line of a PDF page, over that of the page
OVERLAYS = {
    "brain mask": ("mask", 0.35, {"colormap": "blue", "cal_min": 0.5}),
    "tissues": ("tissue", 0.45, {"colormap": "viridis", "cal_min": 0.5}),
    "evidence": ("evidence", 0.8, {"colormap": "warm", "colormap_negative": "winter", "cal_min": EVIDENCE_MAX / 4,
                                   "cal_max": EVIDENCE_MAX, "cal_min_neg": -EVIDENCE_MAX,
                                   "cal_max_neg": -EVIDENCE_MAX / 4}),
}  # fmt: skip
WORDS = {"result": "statement", "what to do": "advice", "warning": "warning", "time": "time", "version": "version"}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # characters that make a spreadsheet run a cell


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("adlib.classify"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"base64": lambda content: base64.b64encode(content).decode(), "ml": format_ml}
    return environment.get_template("views.html.j2", globals={"marks": MARKS, "labels": LABELS})


def _macro(name: str, *values: Any) -> str:
    return str(getattr(_template().module, name)(*values))


def html(name: str, *values: Any) -> str:
    """A macro of ``views.html.j2``, in the style of the form.

    Parameters
    ----------
    name : str
        Of the macro.
    *values
        Arguments of the macro.

    Returns
    -------
    str
    """
    return f"<div class='adlib'>{_macro(name, *values)}</div>"


def as_csv(results: list[Result]) -> bytes:
    """One row per scan; a text that a spreadsheet would run as a formula begins with an apostrophe.

    Parameters
    ----------
    results : list of Result

    Returns
    -------
    bytes
    """
    records = [result.record for result in results]
    words = pd.DataFrame([{title: record[name] for title, name in WORDS.items()} for record in records])
    words["model"] = [record["model"]["name"] for record in records]
    words["model_sha256"] = [record["model"]["sha256"] for record in records]
    words["refused"] = ["; ".join(record["refused"]) for record in records]
    table = scan_table(records).join(words.set_axis([record["name"] for record in records]))
    table.index = [f"'{name}" if name.startswith(FORMULA) else name for name in table.index]
    return table.to_csv(index_label="scan", lineterminator="\n").encode()


def as_json(results: list[Result]) -> bytes:
    """The record of each scan as JSON.

    Parameters
    ----------
    results : list of Result

    Returns
    -------
    bytes
    """
    return (json.dumps([result.record for result in results], indent=2, allow_nan=False) + "\n").encode()


def as_html(results: list[Result]) -> bytes:
    """One page with all results and pictures.

    Parameters
    ----------
    results : list of Result

    Returns
    -------
    bytes
    """
    return _macro("report", results, summaries([result.record for result in results])).encode()


def as_pdf(results: list[Result]) -> bytes:
    """A page for each picture of each scan, under the result.

    Parameters
    ----------
    results : list of Result

    Returns
    -------
    bytes
    """
    from matplotlib.backends.backend_pdf import PdfPages

    content = BytesIO()
    with PdfPages(content, metadata={"Title": "Classified scans", "Creator": "adlib"}) as pages:
        for result in results:
            for png in result.pictures.values():
                pages.savefig(_sheet(result, png))
    return content.getvalue()


def _sheet(result: Result, png: bytes) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    figure, record = Figure(figsize=(8.27, 11.69), layout="none"), result.record
    texts = [record["advice"], record["warning"], *record["refused"], record["provenance"]]
    title = textwrap.fill(f"{record['name']}: {record['statement']}", 80)
    words = "\n".join(textwrap.fill(text, 130) for text in texts if text)
    top = 0.97 - LINE * (2 * title.count("\n") + 2)
    figure.text(0.06, 0.97, title, fontsize=11, fontweight="bold", va="top")
    figure.text(0.06, top, words, fontsize=7, va="top")
    axis = figure.add_axes((0.05, 0.03, 0.9, top - LINE * (words.count("\n") + 2) - 0.03))
    axis.set_axis_off()
    axis.imshow(imread(BytesIO(png)))
    axis.set_anchor("N")
    return figure


def links_html(results: list[Result]) -> str:
    """Download links of the reports in all formats, with the content inside the links.

    Parameters
    ----------
    results : list of Result

    Returns
    -------
    str
    """
    reports = {
        "csv": ("text/csv", as_csv(results)),
        "json": ("application/json", as_json(results)),
        "html": ("text/html", as_html(results)),
        "pdf": ("application/pdf", as_pdf(results)),
    }
    return html("links", len(results), reports)


class Scene(NiiVue):
    """Three planes and a rendering of one scan that follow the mouse, for browsers with WebGL 2.

    Parameters
    ----------
    view : dict of str to array
        See `adlib.classify.serving.view_arrays`.
    shown : str
        The first overlay.
    """

    def __init__(self, view: dict[str, np.ndarray], shown: str) -> None:
        super().__init__(height=HEIGHT, multiplanar_show_render=ShowRender.ALWAYS, crosshair_width=0.3)
        parts = [{"colormap": "gray", "cal_min": 0, "cal_max": 255, **_nifti(view, "head")}]
        self.titles = _overlays(view)
        for title in self.titles:
            part, _, options = OVERLAYS[title]
            parts.append({**options, **_nifti(view, part)})
        self.load_volumes(parts)
        self.show(shown)

    def show(self, shown: str) -> None:
        """Draw one overlay, or none.

        Parameters
        ----------
        shown : str
            Title of the overlay.
        """
        for volume, title in zip(self.volumes[1:], self.titles, strict=True):
            volume.opacity = OVERLAYS[title][1] if title == shown else 0.0


def _overlays(view: dict[str, np.ndarray]) -> list[str]:
    return [title for title, (part, *_) in OVERLAYS.items() if part in view]


def _nifti(view: dict[str, np.ndarray], part: str) -> dict[str, Any]:
    return {"name": f"{part}.nii", "data": nib.Nifti1Image(view[part], view["affine"]).to_bytes()}


class Viewer(widgets.VBox):
    """On request a `Scene` of one scan, with a choice of its overlay.

    Parameters
    ----------
    view : dict of str to array
        See `adlib.classify.serving.view_arrays`.
    """

    def __init__(self, view: dict[str, np.ndarray]) -> None:
        self.view, self.note = view, widgets.HTML()
        self.scene: Scene | None = None
        self.overlay = widgets.Dropdown(
            options=[*_overlays(view), "nothing"], description="overlay", tooltip="drawn over the head",
            layout={"width": "17em"},
        )  # fmt: skip
        self.turn = widgets.ToggleButton(
            description="View in 3-D",
            tooltip="planes and a rendering that follow the mouse; needs a browser with WebGL 2",
        )  # fmt: skip
        self.overlay.observe(self._overlay_changed, "value")
        self.turn.observe(self._turned, "value")
        self.row = widgets.Box([self.overlay, self.turn], layout={"flex_flow": "row wrap"})
        super().__init__([self.row, self.note])

    def _turned(self, _: Any) -> None:
        if self.scene is not None:
            self.scene.close()
        self.scene = Scene(self.view, self.overlay.value) if self.turn.value else None
        self.children = tuple(filter(None, (self.row, self.scene, self.note)))

    def _overlay_changed(self, change: dict[str, Any]) -> None:
        if self.scene is not None:
            self.scene.show(change["new"])
        self.note.value = html("note", EVIDENCE_NOTE) if change["new"] == "evidence" else ""
