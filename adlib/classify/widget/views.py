"""What the form shows of a scan: answer, checks, volumes, pictures and a three-plane viewer, all as escaped HTML."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from adlib.classify.picture import BRAIN_EDGE, VOLUME_LABELS, written_ml
from adlib.classify.widget.result_tables import Record
from adlib.classify.widget.scene import STRONGEST, Scene, overlays_of

STYLE = """<style>
.adlib {max-width: 60rem; line-height: 1.45; color: var(--jp-ui-font-color1, #1f1f1f);}
.adlib h3, .adlib h4 {margin: 1rem 0 .3rem;}
.adlib img {max-width: 100%; height: auto; border-radius: 4px;}
.adlib .scroll {overflow-x: auto;}
.adlib table {border-collapse: collapse; margin: .4rem 0;}
.adlib th, .adlib td {padding: .2rem .6rem; text-align: left;
  border-bottom: 1px solid var(--jp-border-color2, #bdbdbd);}
.adlib .answer {font-size: 1.25rem; font-weight: 600; padding: .5rem .8rem;
  border-left: 5px solid #0072b2; background: var(--jp-layout-color2, #eeeeee);}
.adlib .refused {border-left-color: #d55e00;}
.adlib .warning {font-weight: 600;}
.adlib .bar {display: inline-block; height: .8rem; background: #0072b2; vertical-align: middle;}
.adlib .muted {color: var(--jp-ui-font-color2, #5f5f5f);}
.adlib a {color: var(--jp-content-link-color, #0b57d0); text-decoration: underline; margin-right: 1.2rem;}
</style>"""
MARKS = {"passed": "✓ passed", "doubtful": "! doubtful", "refused": "✗ refused", "not checked": "– not checked"}
TISSUE_COLOURS = {"grey matter": (1, "#56b4e9"), "white matter": (2, "#e69f00"), "fluid": (3, "#009e73")}
EVIDENCE_NOTE = "Red or orange speaks for the answer, blue against it; known only where the network's slices were cut."
PLANES = ("sagittal", "coronal", "axial")


def page(*parts: str) -> str:
    """Parts inside the form's own style."""
    return f"{STYLE}<div class='adlib'>{''.join(parts)}</div>"


def answer_html(record: Record) -> str:
    """Heading, answer or refusal, probabilities, and what must stand beside them."""
    name, predicted = escape(record["name"]), record["predicted"]
    state = "answer" if predicted else "answer refused"
    parts = [f"<h3>{name}</h3><p class='{state}' role='status'>{escape(record['statement'])}</p>"]
    if predicted:
        parts.append(_probabilities(record))
        parts.append(f"<p>{escape(record['agreement'])}.</p>")
    else:
        reasons = "".join(f"<li>{escape(reason)}.</li>" for reason in record["refused"])
        parts.append(f"<p>The model was not asked, because:</p><ul>{reasons}</ul>")
    parts.append(f"<p class='warning'>{escape(record['warning'])}</p><p class='muted'>{escape(record['origin'])}.</p>")
    return "".join(parts)


def _probabilities(record: Record) -> str:
    rows = [
        f"<tr><th scope='row'>{escape(name)}</th><td>{p:.2f}</td>"
        f"<td><span class='bar' aria-hidden='true' style='width:{12 * p:.2f}rem'></span></td></tr>"
        for name, p in record["probabilities"].items()
    ]
    head = "<tr><th scope='col'>class</th><th scope='col'>probability</th><th scope='col'></th></tr>"
    return f"<table><caption class='muted'>calibrated probabilities</caption>{head}{''.join(rows)}</table>"


def checks_html(record: Record) -> str:
    """The gate's questions, each with its verdict."""
    rows = "".join(
        f"<tr><td>{escape(one['question'])}</td><td style='white-space:nowrap'>{MARKS[one['verdict']]}</td>"
        f"<td>{escape(one['found'])}</td></tr>"
        for one in record["gate"]
    )
    head = "<tr><th scope='col'>may it be answered?</th><th scope='col'>verdict</th><th scope='col'>found</th></tr>"
    return f"<h4>Checks before the answer</h4><div class='scroll'><table>{head}{rows}</table></div>"


def volumes_html(record: Record) -> str:
    """Volumes in ml and, with age and sex, as percentiles."""
    rows = []
    for name, label in (VOLUME_LABELS | {"csf_ml": "fluid", "temporal_ml": "temporal lobes, grey matter"}).items():
        if record["volumes"].get(name) is not None:
            place = record["percentiles"].get(name)
            percentile = "" if place is None else f"{place:.0f}"
            rows.append(
                f"<tr><th scope='row'>{escape(label)}</th><td>{written_ml(record['volumes'][name])}</td>"
                f"<td>{percentile}</td></tr>"
            )
    head = "<tr><th scope='col'>volume</th><th scope='col'>ml</th><th scope='col'>percentile</th></tr>"
    note = f"<p class='muted'>{escape(record['percentiles_note'])}</p>"
    return f"<h4>Volumes</h4><table>{head}{''.join(rows)}</table>{note}"


def remarks_html(record: Record) -> str:
    """How the file was read and what was done with it."""
    items = "".join(f"<li>{escape(words)}</li>" for words in [*record["notes"], *record["steps"], *record["reasons"]])
    return f"<details><summary>How the scan was read and prepared</summary><ul>{items}</ul></details>"


def picture_html(png: bytes, words: str) -> str:
    """A picture with its description."""
    return f"<img alt='{escape(words, quote=True)}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


def nearest_words(record: Record) -> str:
    """Which training scans are nearest, in words."""
    found = [f"{one['scan_id']} ({one['diagnosis']}, distance {one['distance']:.2f})" for one in record["nearest"]]
    return f"middle slice of {record['name']} beside its nearest training scans: {'; '.join(found)}"


def fault_html(name: str, words: str) -> str:
    """Why a scan could not be classified at all."""
    text = f"<h3>{escape(name)}</h3><p class='answer refused' role='alert'>No answer</p><p>{escape(words)}</p>"
    return page(text)


def table_html(table: pd.DataFrame, words: str) -> str:
    """A table that scrolls sideways on its own where it is wide."""
    return f"<h4>{escape(words)}</h4><div class='scroll' tabindex='0'>{table.to_html(na_rep='', border=0)}</div>"


class Viewer(widgets.VBox):
    """Three planes of one scan, moved by sliders; on request the same scan turned and cut with the mouse.

    Parameters
    ----------
    view : dict of str to array
        See `adlib.classify.widget.worker.view_arrays`.
    name : str
    """

    def __init__(self, view: dict[str, np.ndarray], name: str) -> None:
        self.view, self.name = view, name
        shape, affine = view["head"].shape, view["affine"]
        centre = np.clip(np.rint(np.linalg.inv(affine)[:3, 3]).astype(int), 0, np.array(shape) - 1)
        self.sliders = [
            widgets.IntSlider(
                value=int(centre[k]), min=0, max=shape[k] - 1, description=f"{PLANES[k]}", continuous_update=False,
                readout=False, tooltip=f"position of the {PLANES[k]} plane", layout={"width": "17em"},
            )
            for k in range(3)
        ]  # fmt: skip
        self.overlay = widgets.Dropdown(
            options=[*overlays_of(view), "nothing"], description="overlay", tooltip="what is drawn over the head",
            layout={"width": "17em"},
        )  # fmt: skip
        self.turn = widgets.ToggleButton(
            description="turn it with the mouse", icon="cube", layout={"width": "17em"},
            tooltip="planes and a rendering that follow the mouse; needs a browser with WebGL 2",
        )  # fmt: skip
        self.turn.observe(self._turned, "value")
        self.scene: Scene | None = None
        self.picture, self.note = widgets.HTML(), widgets.HTML()
        self.overlay.observe(self._chosen, "value")
        for control in self.sliders:
            control.observe(self._draw, "value")
        self._draw()
        self.row = widgets.Box([*self.sliders, self.overlay, self.turn], layout={"flex_flow": "row wrap"})
        super().__init__([self.row, self.picture, self.note])

    def _turned(self, _: Any) -> None:
        """Put the scene in the place of the picture and its sliders, or the other way round."""
        if self.scene is not None:
            self.scene.close()
        self.scene = Scene(self.view, self.overlay.value) if self.turn.value else None
        self.row.children = (*([] if self.scene else self.sliders), self.overlay, self.turn)
        self.children = (self.row, self.scene or self.picture, self.note)

    def _chosen(self, change: dict[str, Any]) -> None:
        """Draw another overlay; evidence where it is strongest, as most of the head was in no slice."""
        if self.scene is not None:
            self.scene.show(change["new"])
        shown = change["new"] == "evidence"
        if shown:
            evidence = np.abs(self.view["evidence"])
            self._move(np.unravel_index(evidence.argmax(), evidence.shape))
        self._draw()
        self.note.value = page(f"<p class='muted'>{EVIDENCE_NOTE}</p>") if shown else ""

    def _move(self, at: tuple[np.intp, ...]) -> None:
        """Set the sliders without drawing after each."""
        for slider, position in zip(self.sliders, at, strict=True):
            slider.unobserve(self._draw, "value")
            slider.value = int(position)
            slider.observe(self._draw, "value")

    def _draw(self, _: Any = None) -> None:
        at = [slider.value for slider in self.sliders]
        png = planes_png(self.view, at, self.overlay.value)
        mm = self.view["affine"] @ [*at, 1]
        where = f"x {mm[0]:.0f}, y {mm[1]:.0f}, z {mm[2]:.0f} mm (MNI152)"
        words = f"{self.name}, sagittal, coronal and axial plane at {where}; overlay: {self.overlay.value}"
        self.picture.value = page(picture_html(png, words), f"<p class='muted'>{where}; left is left</p>")


def planes_png(view: dict[str, np.ndarray], at: list[int], overlay: str) -> bytes:
    """PNG of three planes through voxel `at`, left is left."""
    figure = Figure(figsize=(9, 3.2), facecolor="black", layout="none")
    axes = figure.subplots(1, 3)
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0)
    for k, axis in enumerate(axes):
        head, mask, tissue = (np.take(view[name], at[k], axis=k).T for name in ("head", "mask", "tissue"))
        axis.set_axis_off()
        axis.imshow(head, cmap="gray", vmin=0, vmax=255, origin="lower", interpolation="bilinear")
        shown = {"brain mask": [(mask, BRAIN_EDGE)], "tissues": [(tissue == n, c) for n, c in TISSUE_COLOURS.values()]}
        for part, colour in shown.get(overlay, []):
            if part.any():
                axis.contour(part.astype(float), levels=[0.5], colors=colour, linewidths=0.8)
        if overlay == "evidence":
            evidence = np.take(view["evidence"], at[k], axis=k).T / STRONGEST
            opacity = np.clip(2 * np.abs(evidence), 0, 0.8)
            axis.imshow(evidence, cmap="RdBu_r", vmin=-1, vmax=1, alpha=opacity, origin="lower")
        across, up = [n for n in range(3) if n != k]
        axis.axvline(at[across], color="#888888", linewidth=0.5)
        axis.axhline(at[up], color="#888888", linewidth=0.5)
        if k:
            axis.text(0.02, 0.5, "L", color="white", transform=axis.transAxes)
            axis.text(0.98, 0.5, "R", color="white", transform=axis.transAxes, ha="right")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=100, facecolor="black")
    return content.getvalue()
