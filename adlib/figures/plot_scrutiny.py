"""A closer look at the answers: precision and recall, sets of classes, groups of people, the worst errors."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from sklearn.metrics import precision_recall_curve

from adlib.evaluation import scores
from adlib.evaluation.errors import Failures
from adlib.figures.theme import ACCENT, COLUMN_WIDTH, NEUTRAL, class_palette, leave_panel
from adlib.study.metrics import NETWORK, format_score, get_score
from adlib.training.pooling import arrays

GRID = np.linspace(0, 1, 101)


def plot_precision_recall(pooled: pd.DataFrame, metrics: pd.DataFrame, classes: tuple[str, ...], seed: int) -> Figure:
    """Precision of each class against recall, with 95 % bands over participants; dotted: the share of the class.

    AP is the average precision.

    Parameters
    ----------
    pooled : DataFrame
        Columns participant_id, truth and ``p_<class>``; one row per test participant.
    metrics : DataFrame
        See `adlib.study.metrics.metrics_table`.
    classes : tuple of str
    seed : int
        Of the bootstrap.
    """
    y, p, groups = arrays(pooled, classes)
    weights = scores.cluster_weights(groups, 300, seed)
    figure, axes = plt.subplots(1, len(classes), figsize=(COLUMN_WIDTH, 2.4), sharey=True, squeeze=False)
    for k, (axis, name) in enumerate(zip(axes[0], classes, strict=True)):
        if not (y == k).any():
            axis.set_title(f"{name} against the rest", size="x-small")
            leave_panel(axis, f"none tested\nare {name}")
            continue
        curves = np.array([precision_at(y == k, p[:, k], w) for w in weights if w[y == k].sum()])
        low, high = np.percentile(curves[1:], [2.5, 97.5], axis=0)
        colour = class_palette(classes)[name]
        axis.fill_between(GRID, low, high, color=colour, alpha=0.25, linewidth=0)
        axis.plot(GRID, curves[0], color=colour)
        axis.axhline(np.mean(y == k), color=NEUTRAL, linestyle=":", linewidth=1)
        average = get_score(metrics, NETWORK, "average_precision", name)
        axis.set_title(f"{name} against the rest\nAP {format_score(average)}", size="x-small")
        axis.set(aspect="equal", xlabel="recall", ylabel="precision" if k == 0 else "", xlim=(0, 1), ylim=(0, 1.02))
    return figure


def precision_at(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision at each recall of `GRID`, of the strictest threshold that reaches it; not interpolated.

    Parameters
    ----------
    positive : (n,) bool
    score : (n,) float
        Higher for the positive class.
    weights : (n,) float
        Sample weights.

    Returns
    -------
    (101,) float64
    """
    precision, recall, _ = precision_recall_curve(positive, score, sample_weight=weights, drop_intermediate=False)
    precision, recall = precision[:-1][::-1], recall[:-1][::-1]  # strict thresholds first; the made-up point left out
    found = np.searchsorted(recall, np.maximum(GRID, 1e-6) - 1e-9)  # at recall 0 that of the first one found
    return precision[np.minimum(found, len(recall) - 1)]


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
    left.set(
        title=f"Coverage of the prediction sets\n(nominal {nominal:.0%}: {measured})",
        xlabel="nominal",
        ylabel="measured",
    )
    left.set(xlim=(0.45, 1), ylim=(0, 1.01), xticks=np.arange(0.5, 1.01, 0.1), yticks=np.arange(0, 1.01, 0.2))
    left.legend(fontsize="x-small", loc="lower right")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    _sizes(right, sets.sum(1), truth, classes)
    size = format_score(get_score(metrics, NETWORK, "set_size"))
    right.set_title(f"Classes in a set at {nominal:.0%}\n(mean {size})")
    return figure


def _sizes(axis: plt.Axes, sizes: np.ndarray, truth: np.ndarray, classes: tuple[str, ...]) -> None:
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


def plot_subgroups(metrics: pd.DataFrame, classes: tuple[str, ...], binary: str) -> Figure:
    """Balanced accuracy and binary ROC AUC of the network in each subgroup and in all participants.

    Parameters
    ----------
    metrics : DataFrame
        See `adlib.study.metrics.metrics_table`.
    classes : tuple of str
    binary : str
        Name of the two-class comparison, in words.
    """
    rows = metrics[metrics["group"] != ""]
    counts = rows.drop_duplicates("group").set_index("group")["n"]
    figure, axes = plt.subplots(1, 2, figsize=(COLUMN_WIDTH, 1.3 + 0.3 * max(len(counts), 1)), sharey=True)
    titles = {"balanced_accuracy": "Balanced accuracy", "roc_auc_binary": f"ROC AUC, {binary}"}
    for axis, (metric, title), chance in zip(axes, titles.items(), (1 / len(classes), 0.5), strict=True):
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
                axis.plot(row.point, place, "o", color=NEUTRAL)
        axis.set(title=f"{title}\nall: {format_score(whole)}", xlim=(0, 1.03))
        axis.grid(axis="x")
    labels = [f"{name} ({n})" for name, n in counts.items()] or ["no group is\nlarge enough"]
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(max(len(counts), 1) - 0.4, -0.6)
    figure.supxlabel("dots and bars: group (participants) with 95 % interval;\n"
                     "blue: all participants; dotted: chance", size="small")  # fmt: skip
    return figure


def plot_failures(failures: Failures) -> Figure:
    """The middle slice of each misclassification with true and predicted class, probability and quality verdict.

    Parameters
    ----------
    failures : Failures
        See `adlib.evaluation.errors`.
    """
    count = len(failures.table)
    columns, rows = 4, max(1, -(-count // 4))
    figure, axes = plt.subplots(rows, columns, figsize=(COLUMN_WIDTH, 2.15 * rows + 0.3), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, row, image in zip(axes.flat, failures.table.to_dict("records"), failures.images, strict=False):
        axis.imshow(image, cmap="gray", vmin=np.percentile(image, 1), vmax=np.percentile(image, 99.5))
        reasons = "" if pd.isna(row["qc_reasons"]) else f" ({row['qc_reasons']})"
        quality = textwrap.fill(f"quality: {row['qc_verdict']}{reasons}", 30)
        title = f"{row['participant_id']}\ntrue {row['truth']}, predicted {row['answer']} ({row['probability']:.2f})"
        axis.set_title(f"{title}\n{quality}", size="x-small", weight="normal")
    figure.suptitle("Most confident misclassifications (predicted probability)", size="medium", weight="bold")
    if not count:
        axes[0, 0].text(0, 0.5, "no tested participant was misclassified")
    return figure
