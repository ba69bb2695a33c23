"""Figures of a classified scan: three views, summary, evidence, nearest training scans."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from adlib.classify.nearest import Neighbour, middle_slice
from adlib.classify.result import Prediction
from adlib.classify.scan_tables import VOLUME_LABELS, format_ml
from adlib.figures.sides import SIDED, channel_planes, mark_sides, strip
from adlib.figures.theme import ACCENT, COLUMN_WIDTH, NEUTRAL, class_palette
from adlib.preprocess.derivatives import Preprocessed
from adlib.study.params import Display

POSITIONS_MM = {
    "axial": (-30.0, -10.0, 10.0, 30.0, 50.0),
    "coronal": (-60.0, -40.0, -20.0, 0.0, 30.0),
    "sagittal": (-45.0, -22.0, 0.0, 22.0, 45.0),
}
MIDDLE_MM = {"axial": 10.0, "coronal": -20.0, "sagittal": 4.0}
BRAIN_EDGE = "#f0e442"
TISSUE_EDGE = "#56b4e9"


def plot_views(prepared: Preprocessed, display: Display = "neurological") -> Figure:
    """Draw an axial, a coronal and a sagittal slice through the middle of the brain with their outlines.

    Parameters
    ----------
    prepared : Preprocessed
    display : {"neurological", "radiological"}

    Returns
    -------
    matplotlib Figure
        Black, without text but the sides. Yellow: brain mask; blue: edge of white matter.
    """
    figure, axes = plt.subplots(1, len(MIDDLE_MM), figsize=(9.5, 3.4), facecolor="black", layout="none")
    figure.subplots_adjust(0, 0, 1, 1, 0, 0)
    for axis, (plane, position) in zip(axes, MIDDLE_MM.items(), strict=True):
        _draw_slices(axis, prepared, plane, (position,), display)
        _label_sides(axis, plane, display, 1)
    return figure


def plot_prediction(prediction: Prediction, display: Display = "neurological") -> Figure:
    """Draw the processed head, the prediction, and the volumes relative to the training cohort.

    Parameters
    ----------
    prediction : Prediction
    display : {"neurological", "radiological"}
        Side of the left of the head.

    Returns
    -------
    matplotlib Figure
        Brain outline and white matter edges on the head in three planes. Below, a bar per class with a
        dot per slice, or why the scan is refused, and each volume with mean ± SD of each class.
    """
    prepared, card = prediction.prepared, prediction.card
    figure = plt.figure(figsize=(9.5, 9.6))
    head, result, foot = figure.subfigures(3, 1, height_ratios=(6.3, 2.8, 0.7))
    measured = [name for name in VOLUME_LABELS if name in prepared.features]
    shown = [name for name in measured if name in card.cohort.get("volumes", {})]
    _mosaic(head, prepared, display)
    grid = result.add_gridspec(1, 1 + len(shown), width_ratios=(2.4, *[1] * len(shown)))
    _result(result.add_subplot(grid[0]), prediction)
    for column, name in enumerate(shown, start=1):
        axis = result.add_subplot(grid[column])
        _volume(axis, prepared.features[name], card.cohort["volumes"][name], card.classes)
        axis.set_title(f"{VOLUME_LABELS[name]}\n{format_ml(prepared.features[name])} ml", color=ACCENT)
    head.supxlabel("yellow: intracranial mask; blue: edge of white matter; L: left, R: right", fontsize="small")
    head.suptitle(_title(prediction), fontweight="bold")
    sizes = [f"{VOLUME_LABELS[name]} {format_ml(prepared.features[name])} ml" for name in measured]
    apart = f"{', '.join(sizes)}\nno volumes of the training cohort to compare with"
    compared = "volumes: blue line, this scan; dots and bars, mean ± SD of the training cohort"
    result.supxlabel(compared if shown else apart, fontsize="small")
    foot.text(0.5, 0.75, prediction.warning, ha="center", va="center", fontweight="bold", wrap=True)
    foot.text(0.5, 0.3, textwrap.fill(prediction.provenance, 130), ha="center", va="center", fontsize="x-small")
    return figure


def _title(prediction: Prediction) -> str:
    prepared = prediction.prepared
    reasons = f" ({'; '.join(prepared.reasons)})" if prepared.reasons else ""
    lines = [f"{prepared.name}: {prediction.statement}", f"quality control: {prepared.verdict}{reasons}"]
    return "\n".join(textwrap.fill(line, 100) for line in lines)


def _result(axis: Axes, prediction: Prediction) -> None:
    """The probabilities, or why there are none."""
    if prediction.predicted is not None:
        pooled = np.array(list(prediction.probabilities.values()))
        _probabilities(axis, pooled, prediction.slices, prediction.card.classes)
        return
    axis.set_axis_off()
    axis.set_title("not classified", fontweight="bold")
    problems = [check.problem for check in prediction.checks if check.refusal]
    also = [f"Also: {problem}" for problem in problems[1:]]
    reasons = [prediction.advice, *also] if problems else prediction.refusals
    words = "\n".join(textwrap.fill(reason, 44) for reason in reasons)
    axis.text(0, 1, words, va="top", fontsize="x-small", transform=axis.transAxes)


def plot_attribution(
    prediction: Prediction, maps: np.ndarray, method: str, display: Display = "neurological"
) -> Figure:
    """Draw attribution maps for the predicted class on the slices.

    Parameters
    ----------
    prediction : Prediction
    maps : (n, 3, H, W) float
        Signed evidence for the predicted class, from `adlib.evaluation.explain.attribution.attribute`.
    method : str
        Title of the method.
    display : {"neurological", "radiological"}

    Returns
    -------
    matplotlib Figure
        Red: evidence for the class; blue: against it. Upper row the slices alone.
    """
    count = len(maps)
    figure, axes = plt.subplots(2, count, figsize=(max(3.0 * count, 5), 6), squeeze=False)
    evidence = maps.sum(1)
    top = float(np.abs(evidence).max()) or 1.0
    for k in range(count):
        for row, axis in enumerate(axes[:, k]):
            axis.set_axis_off()
            axis.imshow(prediction.seen[k, 1], cmap="gray", vmin=-2, vmax=3)
            if row:
                strength = np.clip(2 * abs(evidence[k]) / top, 0, 0.7)
                axis.imshow(evidence[k], cmap="RdBu_r", vmin=-top, vmax=top, alpha=strength)
            mark_sides(axis, channel_planes(prediction.card.input)[1], display)
    figure.suptitle(f"Evidence for {prediction.predicted} (red) and against it (blue)\n{method}", fontsize="medium")
    return figure


def plot_nearest(prediction: Prediction, display: Display = "neurological") -> Figure:
    """Draw the scan's middle slice next to those of its nearest training scans.

    Parameters
    ----------
    prediction : Prediction
        With at least one of `Prediction.nearest`.
    display : {"neurological", "radiological"}

    Returns
    -------
    matplotlib Figure
        Above each training scan its diagnosis in the colour of its class, sex, age and distance.
    """
    near, colours = prediction.nearest, class_palette(prediction.card.classes)
    figure, axes = plt.subplots(1, 1 + len(near), figsize=(2.1 * (1 + len(near)), 2.6), squeeze=False)
    for axis, picture in zip(axes[0], [middle_slice(prediction.seen), *(scan.picture for scan in near)], strict=True):
        axis.set_axis_off()
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
        mark_sides(axis, channel_planes(prediction.card.input)[1], display)
    axes[0, 0].set_title("this scan\n", fontsize="small", fontweight="bold")
    for axis, scan in zip(axes[0, 1:], near, strict=True):
        axis.set_title(_neighbour_title(scan), fontsize="small", color=colours.get(scan.diagnosis, NEUTRAL))
    return figure


def _neighbour_title(scan: Neighbour) -> str:
    person = ", ".join(filter(None, [scan.sex, f"{scan.age:.0f} years" if scan.age is not None else ""]))
    return f"{scan.diagnosis}{f' ({person})' if person else ''}\ndistance {scan.distance:.2f}"


def _mosaic(figure: SubFigure, prepared: Preprocessed, display: Display) -> None:
    """The slices of each plane in one image, which is faster to lay out than axes for each."""
    axes = figure.subplots(len(POSITIONS_MM), 1, gridspec_kw={"hspace": 0})
    for axis, letter, (plane, positions) in zip(axes, "zyx", POSITIONS_MM.items(), strict=True):
        _draw_slices(axis, prepared, plane, positions, display)
        for column, position in enumerate(positions):
            _label(axis, (column + 0.02) / len(positions), 0.98, f"{letter} = {position:+.0f}", va="top")
        _label_sides(axis, plane, display, len(positions))


def _label_sides(axis: Axes, plane: str, display: Display, columns: int) -> None:
    left, right = "LR" if display == "neurological" else "RL"
    if plane in SIDED:
        _label(axis, 0.02 / columns, 0.02, left, va="bottom")
        _label(axis, 0.98 / columns, 0.02, right, va="bottom", ha="right")


def _draw_slices(
    axis: Axes, prepared: Preprocessed, plane: str, positions: tuple[float, ...], display: Display
) -> None:
    volumes = (prepared.native, prepared.tissues[..., 1], prepared.mask)
    views = [(plane, position) for position in positions]
    head, *edges = (strip(volume.astype(np.float32), prepared.affine, display, views) for volume in volumes)
    axis.set_axis_off()
    axis.imshow(head, cmap="gray", vmin=0, vmax=brightest(prepared), interpolation="bilinear")
    for colour, edge in zip((TISSUE_EDGE, BRAIN_EDGE), edges, strict=True):
        if edge.min() < 0.5 < edge.max():
            axis.contour(edge, levels=[0.5], colors=colour, linewidths=0.6)


def brightest(prepared: Preprocessed) -> float:
    """Intensity of the head that is drawn white.

    Parameters
    ----------
    prepared : Preprocessed

    Returns
    -------
    float
        Scanner units.
    """
    inside = prepared.native[prepared.mask]
    return float(np.percentile(inside, 99.5)) * 1.2 if inside.size else float(prepared.native.max())


def _label(axis: Axes, x: float, y: float, label: str, **aligned: str) -> None:
    axis.text(x, y, label, transform=axis.transAxes, color="white", fontsize="small", **aligned)


def _probabilities(axis: Axes, pooled: np.ndarray, slices: np.ndarray, classes: tuple[str, ...]) -> None:
    colours = class_palette(classes)
    axis.bar(range(len(classes)), pooled, color=[colours[name] for name in classes], width=0.7)
    offsets = np.linspace(-0.2, 0.2, len(slices)) if len(slices) > 1 else np.zeros(1)
    for column in range(len(classes)):
        axis.plot(column + offsets, slices[:, column], "o", color="white", markeredgecolor="black", markersize=4)
        above = max(pooled[column], slices[:, column].max())
        axis.text(column, above + 0.04, f"{pooled[column]:.2f}", ha="center")
    axis.set_xticks(range(len(classes)), classes)
    axis.set(ylim=(0, 1.12), yticks=(0, 0.5, 1), title="probability\n(dots: single slices)")


def _volume(axis: Axes, value: float, cohort: dict[str, list[float]], classes: tuple[str, ...]) -> None:
    colours = class_palette(classes)
    for position, label in enumerate(classes):
        mean, sd = cohort.get(label, (np.nan, np.nan))
        axis.errorbar(position, mean, sd, fmt="o", color=colours[label], markersize=5, capsize=0, elinewidth=2)
    axis.axhline(value, color=ACCENT, linewidth=1.6)
    axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize="small")
    axis.set_xlim(-0.7, len(classes) - 0.3)
    axis.yaxis.set_major_locator(MaxNLocator(4))


def plot_class_probabilities(predictions: pd.DataFrame, classes: tuple[str, ...]) -> Figure:
    """Draw the distribution of predicted probabilities by diagnosis.

    Parameters
    ----------
    predictions : DataFrame
        Columns truth and ``p_<class>``, one row per scan.
    classes : tuple of str

    Returns
    -------
    matplotlib Figure
        A box per diagnosis and class; the box of the true class should be the highest of its group.
    """
    long = predictions.melt(["truth"], [f"p_{name}" for name in classes], "class", "probability")
    long["class"] = long["class"].str.removeprefix("p_")
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 3.2))
    sns.boxplot(
        long, x="truth", y="probability", hue="class", order=classes, hue_order=classes, palette=class_palette(classes),
        fliersize=2, linewidth=0.8, ax=axis,
    )  # fmt: skip
    axis.axhline(1 / len(classes), color=NEUTRAL, linestyle=":", linewidth=1)
    counts = predictions["truth"].value_counts()
    axis.set_xticks(range(len(classes)), [f"{name}\n(n = {counts.get(name, 0)})" for name in classes])
    axis.set(xlabel="diagnosis", ylim=(0, 1))
    axis.legend(title="probability of", loc="upper left", bbox_to_anchor=(1, 1))
    return figure
