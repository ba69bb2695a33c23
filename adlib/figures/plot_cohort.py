"""Figures of the cohort: flow, classes, ages, confounds, splits, and input slices of the network."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adlib.figures.sides import mark_sides
from adlib.figures.theme import ACCENT, COLUMN_WIDTH, NEUTRAL, class_palette
from adlib.study.params import Display

# OASIS-1 by Clinical Dementia Rating 0, 0.5, >= 1: whole-brain volume as a share of the intracranial volume
# (Marcus et al. 2007, doi:10.1162/jocn.2007.19.9.1498): mean, sd.
OASIS_NBV = ((0.769, 0.046), (0.729, 0.035), (0.706, 0.031))


def plot_flow(flow: pd.DataFrame) -> Figure:
    """Number of scans and participants left after each step.

    Parameters
    ----------
    flow : DataFrame
        Columns step, scans and participants; one row per step, in order.
    """
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.75 + 0.62 * len(flow)))
    for level, row in enumerate(flow.itertuples()):
        text = f"{row.step}\n{row.scans} scans of {row.participants or 'unknown'} participants"
        box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": NEUTRAL}
        axis.text(0, -level, text, ha="center", va="center", bbox=box)
        if level:
            dropped = flow.iloc[level - 1]["scans"] - row.scans
            axis.text(0.1, 0.5 - level, f"{dropped} scans left out", va="center", ha="left", color=NEUTRAL)
            axis.annotate("", (0, 0.33 - level), (0, 0.67 - level), arrowprops={"arrowstyle": "->", "color": NEUTRAL})
    axis.set(xlim=(-1, 1), ylim=(-len(flow) + 0.4, 0.6), title="Scans that enter the study")
    axis.axis("off")
    return figure


def plot_cohort(manifest: pd.DataFrame, classes: tuple[str, ...]) -> Figure:
    """Participants and scans of each class, and ages at the first session.

    Parameters
    ----------
    manifest : DataFrame
        Columns participant_id, session_id, diagnosis and age (years).
    classes : tuple of str
        Order of the classes in the figure.
    """
    people = manifest.sort_values("session_id").drop_duplicates("participant_id")
    figure, (left, right) = plt.subplots(1, 2, figsize=(COLUMN_WIDTH, 2.8), width_ratios=(1, 1.4))
    palette = class_palette(classes)
    counts = pd.DataFrame({"scans": manifest["diagnosis"].value_counts(), "people": people["diagnosis"].value_counts()})
    counts = counts.reindex(classes)
    left.bar(counts.index, counts["scans"], color="white", edgecolor=NEUTRAL, label="scans")
    left.bar(counts.index, counts["people"], color=[palette[c] for c in classes], label="participants")
    for place, (scans, number) in enumerate(counts.itertuples(index=False)):
        left.text(place, scans, f"{number:.0f}\n/ {scans:.0f}", ha="center", va="bottom", size="small")
    left.set(title="Participants (filled) / scans", ylabel="count", ylim=(0, 1.2 * counts["scans"].max()))
    _tilt(left, classes)
    right.set_title("Age at the first session")
    if people["age"].isna().all():
        right.text(0.5, 0.5, "no age is known", ha="center", va="center", color=NEUTRAL, transform=right.transAxes)
        right.set(xticks=[], yticks=[])
        return figure
    _draw_boxes(right, people, "age", classes)
    right.set_ylabel("years")
    _tilt(right, classes)
    return figure


def _draw_boxes(axis: Axes, table: pd.DataFrame, column: str, classes: tuple[str, ...], **look: float) -> None:
    colours = {"hue": "diagnosis", "palette": class_palette(classes), "legend": False}
    sns.boxplot(table, x="diagnosis", y=column, order=classes, ax=axis, **colours, **look)
    axis.set(xlabel="", ylabel="")


def _tilt(axis: Axes, classes: tuple[str, ...]) -> None:
    """Turn class names that are too long to stand side by side."""
    if max(map(len, classes)) > 6:
        axis.set_xticks(range(len(classes)), classes, rotation=25, ha="right", rotation_mode="anchor")


def plot_confounds(confounds: pd.DataFrame) -> Figure:
    """Association of each metadata column with the label, with 95 % intervals: 0 none, 1 complete.

    Parameters
    ----------
    confounds : DataFrame
        Columns column, measure, association, ci_low, ci_high and p_holm; one row per metadata column.
    """
    table = confounds.sort_values("association")
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.9 + 0.26 * max(len(table), 1)))
    for place, row in enumerate(table.itertuples()):
        colour = ACCENT if row.p_holm < 0.05 else NEUTRAL
        axis.plot([row.ci_low, row.ci_high], [place, place], color=colour, linewidth=1.5)
        axis.plot(row.association, place, "o", color=colour, markersize=5)
        axis.text(1.02, place, f"{row.association:.2f}, p = {row.p_holm:.2g}", va="center", size="small", clip_on=False)
    axis.set_yticks(range(len(table)), table["column"] + " (" + table["measure"] + ")")
    axis.set(xlim=(0, 1), title="Does metadata tell the label?")
    axis.set_xlabel("association, 95 % interval over participants; blue: p < 0.05 after Holm")
    axis.grid(axis="x")
    axis.grid(False, axis="y")
    return figure


def plot_calibration(truth: pd.DataFrame, classes: tuple[str, ...]) -> Figure:
    """True volumes of the phantom by class, with published brain fractions of OASIS-1.

    Hippocampi and ventricles have no published reference: their sizes depend on where the boundary is drawn.

    Parameters
    ----------
    truth : DataFrame
        Columns diagnosis, nbv (share of the intracranial volume), hippocampus_ml and ventricles_ml.
    classes : tuple of str
    """
    figure, axes = plt.subplots(1, 3, figsize=(COLUMN_WIDTH, 2.9))
    columns = (
        ("nbv", "brain / intracranial volume"),
        ("hippocampus_ml", "both hippocampi (ml)"),
        ("ventricles_ml", "lateral ventricles (ml)"),
    )
    for axis, (name, title) in zip(axes, columns, strict=True):
        _draw_boxes(axis, truth, name, classes, fliersize=2)
        axis.set_title(title)
    places = np.linspace(0, len(classes) - 1, len(OASIS_NBV))
    means, spreads = np.array(OASIS_NBV).T
    axes[0].errorbar(places, means, spreads, fmt="D", color="black", capsize=3, markersize=4, zorder=5)
    axes[0].set_xlabel("black: OASIS-1 by CDR,\nmean and sd", size="small")
    return figure


def plot_splits(splits: pd.DataFrame, classes: tuple[str, ...]) -> Figure:
    """Participants of each class in each part of each fold; no participant is in two parts of a fold.

    Parameters
    ----------
    splits : DataFrame
        Columns fold, split and diagnosis; one row per participant and fold.
    classes : tuple of str
    """
    folds = sorted(splits["fold"].unique())
    figure, axes = plt.subplots(1, len(folds), figsize=(COLUMN_WIDTH, 2.6), sharey=True, squeeze=False)
    for axis, fold in zip(axes[0], folds, strict=True):
        counts = splits[splits["fold"] == fold].groupby(["split", "diagnosis"]).size().unstack(fill_value=0)
        counts = counts.reindex([part for part in ("train", "validation", "test") if part in counts.index])
        counts = counts.reindex(columns=classes, fill_value=0)
        turn = 0 if len(folds) == 1 else 30
        counts.plot.bar(stacked=True, ax=axis, color=list(class_palette(classes).values()), legend=False, rot=turn)
        axis.set(title=f"fold {fold}" if len(folds) > 1 else "Participants by part", xlabel="", ylabel="participants")
    axes[0, -1].legend(title="", fontsize="small", loc="upper right")
    return figure


def plot_input_slices(
    slices: np.ndarray,
    table: pd.DataFrame,
    classes: tuple[str, ...],
    planes: tuple[str, str, str] = ("", "", ""),
    display: Display = "neurological",
) -> Figure:
    """One scan of each class as input to the network: a row per class, a column per slice and channel.

    Parameters
    ----------
    slices : (n, 3, H, W) float
        Stored slices of all scans.
    table : DataFrame
        Columns scan_id, diagnosis, row (index into `slices`) and position_mm.
    classes : tuple of str
        Each with at least one scan in `table`.
    planes : tuple of str
        Of the channels, from `adlib.figures.sides.channel_planes`.
    display : {"neurological", "radiological"}
    """
    scans = [table.loc[table["diagnosis"] == name, "scan_id"].iloc[0] for name in classes]
    items = [np.asarray(slices[table.loc[table["scan_id"] == scan, "row"]], dtype=np.float32) for scan in scans]
    count = min(items[0].shape[0], 3)
    panels = [np.concatenate(item[:count], 0) for item in items]
    height = COLUMN_WIDTH / len(panels[0]) * len(classes)
    figure, axes = plt.subplots(len(classes), len(panels[0]), figsize=(COLUMN_WIDTH, height + 0.4), squeeze=False)
    for row, (name, panel) in enumerate(zip(classes, panels, strict=True)):
        for k, (axis, image) in enumerate(zip(axes[row], panel, strict=True)):
            axis.imshow(image, cmap="gray", vmin=np.percentile(panel, 1), vmax=np.percentile(panel, 99.5))
            mark_sides(axis, planes[k % 3], display)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
        axes[row, 0].set_ylabel(name, weight="bold")
    for k in range(count):
        label = f"slice at {table['position_mm'].iloc[k]:.0f} mm" + (", three channels" if count == 1 else "")
        if pd.isna(table["position_mm"].iloc[k]):
            label = "three planes as channels"
        axes[0, 3 * k + 1].set_title(label, size="small")
    return figure
