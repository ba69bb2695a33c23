"""Effect of leakage: scores with a split by participant and with a split by slice."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from adlib.evaluation.evaluate import LEAK
from adlib.figures.theme import ACCENT, COLUMN_WIDTH, NEUTRAL
from adlib.study.metrics import CEILING, NETWORK, get_score

WARNING = "#d55e00"
BEST = "#1b1f24"
BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
WIDTH = 0.36
LEVELS = {"slice": "each slice", "subject": "each participant"}


def plot_leak(metrics: pd.DataFrame, classes: tuple[str, ...], binary: str) -> Figure:
    """Scores of the network with a split by participant and with a split by slice, at slice and participant level.

    What the leak adds is hatched. For a phantom a line marks the best possible classifier.

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
        axis.set_xticks(range(len(LEVELS)), [f"score of\n{words}" for words in LEVELS.values()])
        axis.set_axisbelow(True)
        axis.set(title=title, ylim=(0, 1.12), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    _legend(figure, any(ceiling is not None for ceiling in best))
    return figure


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
        Patch(facecolor=WARNING, alpha=0.35, label="split by slice: same people in training and test"),
        Patch(facecolor="none", edgecolor=WARNING, hatch="////", label="what it has above the other: worth nothing"),
        Line2D([], [], color=NEUTRAL, linestyle=":", label="chance"),
    ]
    if with_best:
        handles.append(Line2D([], [], color=BEST, linestyle="--", linewidth=1, label="best possible"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize="x-small", frameon=False)
