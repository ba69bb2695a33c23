"""Pictures of preprocessing: the steps of one scan, mosaics for the eye, volumes, and QC values with their limits."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adlib import atlas
from adlib.figures.theme import ACCENT, COLUMN_WIDTH, NEUTRAL, class_palette
from adlib.preprocess.pipeline import Preprocessed
from adlib.preprocess.qc import LIMITS
from adlib.records import StudyError
from adlib.volume import extract_slice

VIEWS = (("sagittal", 4.0), ("coronal", -20.0), ("axial", 8.0))
OUTLINE = "#e8590c"
VERDICTS = {"pass": "#2b8a3e", "check": "#e8890c", "fail": "#c92a2a"}
VOLUMES = {
    "nbv": "brain tissue / intracranial volume",
    "icv_ml": "intracranial volume (ml)",
    "gm_ml": "grey matter (ml)",
    "wm_ml": "white matter (ml)",
    "hippocampus_ml": "both hippocampi (ml)",
    "ventricles_ml": "lateral ventricles (ml)",
}


def plot_steps(scan: Preprocessed) -> Figure:
    """One scan after each step: a row per step, a column per plane."""
    base = atlas.template(float(scan.affine[0, 0]))
    tissue = np.concatenate([scan.tissues[..., [0, 1]], scan.tissues[..., 2:]], axis=-1)
    rows = (
        ("registered head", scan.native, base.mask, "outline: MNI152"),
        ("bias field", _gain(scan), None, "bright: gain above 1"),
        ("brain mask", scan.native, scan.mask, "outline: this brain"),
        ("normalised brain", scan.t1w, None, "0 outside the brain"),
        ("tissues", tissue, None, "red GM, green WM, blue CSF"),
    )
    figure, axes = plt.subplots(len(rows), 3, figsize=(COLUMN_WIDTH, 1.72 * len(rows)))
    for line, (title, volume, outline, note) in zip(axes, rows, strict=True):
        for axis, (plane, position) in zip(line, VIEWS, strict=True):
            _show(axis, volume, scan.affine, plane, position, outline)
        line[0].set_ylabel(f"{title}\n({note})", fontsize=7)
    for axis, (plane, position) in zip(axes[0], VIEWS, strict=True):
        axis.set_title(f"{plane}, {position:g} mm")
    figure.suptitle(f"{scan.name}: {scan.verdict}", fontsize=9)
    return figure


def plot_mosaic(scans: Sequence[Preprocessed], columns: int = 4) -> Figure:
    """Many scans at a glance, in the order given: three planes each, with the brain's outline and the verdict.

    Raises
    ------
    StudyError
        If there is no scan to draw.
    """
    if not scans:
        raise StudyError("no scan to draw: none was preprocessed; look at the reasons in features.tsv")
    columns = min(columns, len(scans))
    rows = -(-len(scans) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(COLUMN_WIDTH, 0.62 * rows * 4 / columns + 0.2), squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, scan in zip(axes.ravel(), scans, strict=False):
        picture, outline = (_strip(volume, scan.affine) for volume in (scan.native, scan.mask.astype(np.float32)))
        axis.imshow(picture, cmap="gray", vmin=0, vmax=np.percentile(picture[picture > 0], 99.5))
        axis.contour(outline, [0.5], colors=OUTLINE, linewidths=0.6)
        label = f"{scan.name.removesuffix('_T1w')}: {scan.verdict}, r = {scan.qc['qc_similarity']:.2f}"
        axis.set_title(label, fontsize=5.5, pad=2, color=VERDICTS[scan.verdict], weight="normal")
    return figure


def plot_volumes(features: pd.DataFrame, manifest: pd.DataFrame, classes: tuple[str, ...]) -> Figure:
    """Measured volumes by class, one point per scan."""
    known = features[features["qc_verdict"] != "fail"].merge(manifest[["scan_id", "diagnosis"]], on="scan_id")
    figure, axes = plt.subplots(2, 3, figsize=(COLUMN_WIDTH, 4.2))
    for axis, (name, label) in zip(axes.ravel(), VOLUMES.items(), strict=True):
        shared = {"data": known, "x": "diagnosis", "y": name, "order": list(classes), "ax": axis}
        sns.stripplot(**shared, hue="diagnosis", palette=class_palette(classes), legend=False, size=2, alpha=0.6)
        sns.boxplot(**shared, width=0.5, fill=False, color=NEUTRAL, showfliers=False, linewidth=0.8)
        axis.set(xlabel="", ylabel="")
        axis.set_title(label, fontsize=7)
    return figure


def plot_volumes_truth(features: pd.DataFrame, truth: pd.DataFrame) -> Figure:
    """Measured against true volumes of simulated heads, with the correlation; the dashed line is equality."""
    both = features[features["qc_verdict"] != "fail"].merge(truth, on="scan_id", suffixes=("", "_true"))
    figure, axes = plt.subplots(2, 3, figsize=(COLUMN_WIDTH, 4.2))
    for axis, (name, label) in zip(axes.ravel(), VOLUMES.items(), strict=True):
        true, measured = both[f"{name}_true"], both[name]
        axis.scatter(true, measured, s=5, color=ACCENT, alpha=0.5, linewidths=0)
        axis.axline((true.mean(), true.mean()), slope=1, color=NEUTRAL, linestyle="--", linewidth=0.8)
        axis.set_title(label, fontsize=7)
        axis.set(xlabel="true", ylabel="measured")
        axis.annotate(f"r = {true.corr(measured):.2f}", (0.05, 0.9), xycoords="axes fraction", fontsize=7)
    return figure


def plot_qc(features: pd.DataFrame) -> Figure:
    """Distribution of each QC value; between the dashed lines a scan passes, beyond the solid lines it is left out."""
    figure, axes = plt.subplots(2, -(-len(LIMITS) // 2), figsize=(COLUMN_WIDTH, 4))
    for axis, (name, limit) in zip(axes.ravel(), LIMITS.items(), strict=False):
        values = features[["qc_verdict", name]].dropna()
        sns.histplot(
            values,
            x=name,
            hue="qc_verdict",
            palette=VERDICTS,
            multiple="stack",
            bins=25,
            ax=axis,
            legend=False,
            linewidth=0,
        )
        for bounds, style in ((limit.fine, "--"), (limit.bearable, "-")):
            for bound in bounds:
                if np.isfinite(bound) and not (bound == 1.0 and limit.fine[1] == 1.0):
                    axis.axvline(bound, color=NEUTRAL, linestyle=style, linewidth=0.8)
        axis.set_title(name, fontsize=8)
        axis.set_xlabel(textwrap.fill(limit.meaning, 30), fontsize=6)
        axis.set_ylabel("scans")
    counts = features["qc_verdict"].value_counts()
    figure.suptitle(", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS), fontsize=9)
    return figure


def _show(
    axis: Axes, volume: np.ndarray, affine: np.ndarray, plane: str, position: float, outline: np.ndarray | None
) -> None:
    if volume.ndim == 4:
        parts = [extract_slice(volume[..., k], affine, plane, position) for k in range(3)]
        axis.imshow(np.clip(np.stack(parts, axis=-1), 0, 1))
    else:
        inside = volume[volume != 0]
        low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0, 1)
        shown = np.where(volume != 0, volume, low)
        axis.imshow(extract_slice(shown, affine, plane, position), cmap="gray", vmin=low, vmax=high)
    if outline is not None:
        axis.contour(extract_slice(outline, affine, plane, position), [0.5], colors=OUTLINE, linewidths=0.7)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)


def _gain(scan: Preprocessed) -> np.ndarray:
    """The bias field inside the brain, 0 outside, got back from the head and its normalised version."""
    inside = scan.mask & (scan.native > 0)
    design = np.column_stack([scan.t1w[inside], np.ones(int(inside.sum()))]).astype(np.float64)
    scale, offset = np.linalg.lstsq(design, scan.native[inside].astype(np.float64), rcond=None)[0]
    corrected = scan.t1w * scale + offset
    ratio = np.divide(scan.native, corrected, out=np.ones_like(scan.native), where=corrected > 0.2 * offset)
    return np.where(inside & (corrected > 0.2 * offset), np.clip(ratio, 0.3, 3), 0)


def _strip(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The three views side by side, (rows, columns) float32."""
    parts = [extract_slice(volume, affine, plane, position) for plane, position in VIEWS]
    height = max(part.shape[0] for part in parts)
    return np.hstack([np.pad(part, ((height - part.shape[0], 0), (0, 0))) for part in parts])
