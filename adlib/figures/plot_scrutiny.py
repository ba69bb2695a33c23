"""A closer look at the predictions: leakage, prediction sets, subgroups and the most confident misclassifications."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from adlib.evaluation.evaluate import LEAK, SHARED
from adlib.figures.sides import mark_sides
from adlib.figures.theme import ACCENT, COLUMN_WIDTH, NEUTRAL
from adlib.study.metrics import CEILING, NETWORK, format_score, get_score
from adlib.study.params import Display

WARNING = "#d55e00"
BEST = "#1b1f24"
BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
WIDTH = 0.36
LEVELS = {SHARED["slice"]: "each slice", SHARED["subject"]: "each participant"}


def plot_leak(metrics: pd.DataFrame, classes: tuple[str, ...], binary: str) -> Figure:
    """Scores of the network with a split by participant and with a split by slice, on the slices that both test.

    What the leak adds is hatched; its interval is paired over the shared participants. For a phantom a line marks the
    best possible classifier.

    Parameters
    ----------
    metrics : DataFrame
        See `adlib.study.metrics.metrics_table`; of a study with the control ``slice_split``.
    classes : tuple of str
    binary : str
        What `roc_auc_binary` tells apart, in words.
    """
    figure, axes = plt.subplots(1, 2, figsize=(COLUMN_WIDTH, 3.5), sharey=True)
    panels = (
        ("balanced_accuracy", f"Balanced accuracy,\n{len(classes)} classes", 1 / len(classes)),
        ("roc_auc_binary", f"ROC AUC,\n{binary}", 0.5),
    )
    best = [get_score(metrics, CEILING, metric) for metric, _, _ in panels]
    for axis, (metric, title, chance), ceiling in zip(axes, panels, best, strict=True):
        for place, level in enumerate(LEVELS):
            honest, leaking = (get_score(metrics, run, metric, level=level) for run in (NETWORK, LEAK))
            _pair(axis, place, honest, leaking)
        axis.axhline(chance, color=NEUTRAL, linestyle=":")
        if ceiling is not None:
            axis.axhline(ceiling.point, color=BEST, linestyle="--", linewidth=1)
        axis.set_xticks(range(len(LEVELS)), [_added(metrics, metric, *level) for level in LEVELS.items()], size="small")
        axis.set_axisbelow(True)
        axis.set(title=title, ylim=(0, 1.12), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    _legend(figure, any(ceiling is not None for ceiling in best))
    return figure


def _added(metrics: pd.DataFrame, metric: str, level: str, words: str) -> str:
    """Name of a pair of bars: what is scored, how many, and what the leaking score adds to the network's."""
    score = get_score(metrics, f"{NETWORK} - {LEAK}", f"{metric}_difference", level=level).copy()
    score[["point", "low", "high"]] = -score[["point", "high", "low"]].to_numpy(float)
    return f"{words} ({score.n:.0f})\nleak adds " + format_score(score).replace(" [", "\n[")


def _pair(axis: Axes, place: int, honest: pd.Series, leaking: pd.Series) -> None:
    """A bar for each of two scores, the second with what it has above the first hatched."""
    left, right = place - WIDTH / 2 - 0.02, place + WIDTH / 2 + 0.02
    for where, score, colour in ((left, honest, ACCENT), (right, leaking, WARNING)):
        if np.isnan(score.point):
            axis.text(where, 0.02, "undefined", ha="center", rotation=90, size="x-small", color=NEUTRAL)
            continue
        axis.bar(where, score.point, WIDTH, color=colour, alpha=0.35, edgecolor=colour)
        axis.plot([where, where], [score.low, score.high], color=colour, linewidth=2)
        axis.text(where, max(score.high, score.point) + 0.03, f"{score.point:.2f}", ha="center", size="small", bbox=BOX)
    added = leaking.point - honest.point
    if np.isnan(added):
        return
    if added > 0:
        axis.bar(right, added, WIDTH, bottom=honest.point, color="none", edgecolor=WARNING, hatch="////")
    axis.text(right, 0.02, f"{added:+.2f}", ha="center", size="small", weight="bold", bbox=BOX)


def _legend(figure: Figure, with_best: bool) -> None:
    handles = [
        Patch(facecolor=ACCENT, alpha=0.35, label="split by participant"),
        Patch(facecolor=WARNING, alpha=0.35, label="split by slice: same participants in training and test"),
        Patch(facecolor="none", edgecolor=WARNING, hatch="////", label="difference due to leakage"),
        Line2D([], [], color=NEUTRAL, linestyle=":", label="chance"),
    ]
    if with_best:
        handles.append(Line2D([], [], color=BEST, linestyle="--", linewidth=1, label="best possible"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize="x-small", frameon=False)


def plot_conformal(
    curve: pd.DataFrame,
    sets: np.ndarray,
    truth: np.ndarray,
    metrics: pd.DataFrame,
    classes: tuple[str, ...],
    nominal: float,
) -> Figure:
    """Coverage of the prediction sets against nominal coverage, and the size of the sets.

    Parameters
    ----------
    curve : DataFrame
        From `adlib.evaluation.prediction_sets.coverage_curve`.
    sets : (n, K) bool
        The set of each tested participant at `nominal`.
    truth : (n,) int
        Their true classes.
    metrics : DataFrame
        See `adlib.study.metrics.metrics_table`.
    classes : tuple of str
    nominal : float
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(COLUMN_WIDTH, 3.0), width_ratios=(1, 1.15))
    left.fill_between(
        curve["nominal"], curve["expected_low"], curve["expected_high"], color=NEUTRAL, alpha=0.18, linewidth=0,
        label="95 % by chance, for this size",
    )  # fmt: skip
    left.plot([0, 1], [0, 1], color=NEUTRAL, linestyle=":", linewidth=1, label="nominal")
    spread = np.abs(curve[["low", "high"]].to_numpy().T - curve["coverage"].to_numpy())
    left.errorbar(
        curve["nominal"], curve["coverage"], spread, fmt="o", color=ACCENT, capsize=2, markersize=4, label="measured"
    )
    measured = format_score(get_score(metrics, NETWORK, "coverage"))
    left.set_title(f"Coverage of the prediction sets\n(nominal {nominal:.0%}: {measured})")
    left.set(xlabel="nominal", ylabel="measured")
    left.set(xlim=(0.45, 1), ylim=(0, 1.01), xticks=np.arange(0.5, 1.01, 0.1), yticks=np.arange(0, 1.01, 0.2))
    left.legend(fontsize="x-small", loc="lower right")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    _sizes(right, sets.sum(1), truth, classes)
    size = format_score(get_score(metrics, NETWORK, "set_size"))
    right.set_title(f"Classes in a set at {nominal:.0%}\n(mean {size})")
    return figure


def _sizes(axis: Axes, sizes: np.ndarray, truth: np.ndarray, classes: tuple[str, ...]) -> None:
    left = np.zeros(len(classes))
    shades = plt.colormaps["Blues"](np.linspace(0.85, 0.15, len(classes)))
    for size, shade in zip(range(1, len(classes) + 1), shades, strict=True):
        counts = np.array([np.sum(sizes[truth == k] == size) for k in range(len(classes))])
        axis.barh(classes, counts, left=left, color=shade, edgecolor="white", label=str(size))
        for place in np.flatnonzero(counts):
            colour = "white" if size <= len(classes) // 2 else "black"
            middle = left[place] + counts[place] / 2
            axis.text(middle, place, str(counts[place]), ha="center", va="center", color=colour, size="small")
        left += counts
    axis.invert_yaxis()
    axis.grid(False)
    axis.set(xlabel="tested participants", ylabel="truth")
    axis.legend(title="classes in the set", ncols=len(classes), fontsize="x-small", title_fontsize="x-small",
                loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False)  # fmt: skip


def plot_subgroups(metrics: pd.DataFrame, classes: tuple[str, ...], binary: str, nominal: float) -> Figure:
    """Balanced accuracy, binary ROC AUC and coverage of the network in each subgroup and in all participants.

    Parameters
    ----------
    metrics : DataFrame
        See `adlib.study.metrics.metrics_table`.
    classes : tuple of str
    binary : str
        Name of the two-class comparison, in words.
    nominal : float
        Nominal coverage of the prediction sets.
    """
    rows = metrics[metrics["group"] != ""]
    counts = rows.drop_duplicates("group").set_index("group")["n"]
    figure, axes = plt.subplots(1, 3, figsize=(COLUMN_WIDTH, 1.4 + 0.3 * max(len(counts), 1)), sharey=True)
    titles = {
        "balanced_accuracy": "Balanced accuracy",
        "roc_auc_binary": f"ROC AUC,\n{binary}",
        "coverage": "Coverage of\nprediction sets",
    }
    for axis, (metric, title), chance in zip(axes, titles.items(), (1 / len(classes), 0.5, nominal), strict=True):
        whole = get_score(metrics, NETWORK, metric)
        if not np.isnan(whole.point):
            axis.axvspan(whole.low, whole.high, color=ACCENT, alpha=0.1, linewidth=0)
            axis.axvline(whole.point, color=ACCENT, linestyle="--", linewidth=1)
        axis.axvline(chance, color=NEUTRAL, linestyle=":")
        for row in rows[rows["metric"] == metric].itertuples():
            place = counts.index.get_loc(row.group)
            if np.isnan(row.point):
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                axis.text(0.02, place, "too few of a class", va="center", color=NEUTRAL, size="x-small", bbox=box)
            else:
                axis.plot([row.low, row.high], [place, place], color=NEUTRAL)
                axis.plot(row.point, place, "o", color=NEUTRAL, fillstyle="none" if np.isnan(row.low) else "full")
        axis.set_title(f"{title}\nall: {format_score(whole)}", size="small")
        axis.set_xlim(0, 1.04)
        axis.grid(axis="x")
    labels = [f"{name} ({n})" for name, n in counts.items()] or ["no group is\nlarge enough"]
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(max(len(counts), 1) - 0.4, -0.6)
    figure.supxlabel("dots and bars: group (participants) with 95 % interval;\n"
                     "empty dot: all resamples agree, too few for an interval;\n"
                     "blue: all participants; dotted: chance, or nominal coverage", size="small")  # fmt: skip
    return figure


def plot_failures(
    table: pd.DataFrame, images: np.ndarray, plane: str = "", display: Display = "neurological"
) -> Figure:
    """The middle slice of each misclassification with true and predicted class, probability and quality verdict.

    Parameters
    ----------
    table, images
        From `adlib.evaluation.errors.study_failures`.
    plane : str
        Of the images, empty where it is not known which side is left.
    display : {"neurological", "radiological"}
    """
    count = len(table)
    columns, rows = 4, max(1, -(-count // 4))
    figure, axes = plt.subplots(rows, columns, figsize=(COLUMN_WIDTH, 2.15 * rows + 0.3), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, row, image in zip(axes.flat, table.to_dict("records"), images, strict=False):
        axis.imshow(image, cmap="gray", vmin=np.percentile(image, 1), vmax=np.percentile(image, 99.5))
        mark_sides(axis, plane, display)
        reasons = "" if pd.isna(row["qc_reasons"]) else f" ({row['qc_reasons']})"
        quality = textwrap.fill(f"quality: {row['qc_verdict']}{reasons}", 30)
        title = f"{row['participant_id']}\ntrue {row['truth']}, predicted {row['answer']} ({row['probability']:.2f})"
        axis.set_title(f"{title}\n{quality}", size="x-small", weight="normal")
    figure.suptitle("Most confident misclassifications (predicted probability)", size="medium", weight="bold")
    if not count:
        axes[0, 0].text(0, 0.5, "no tested participant was misclassified")
    return figure
