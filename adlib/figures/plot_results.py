"""Figures of the main results: training, confusion, ROC, precision and recall, calibration, scores of all runs."""

import time
from collections.abc import Callable, Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adlib.evaluation import risk, scores
from adlib.figures.theme import ACCENT, COLUMN_WIDTH, NEUTRAL, class_palette
from adlib.study.metrics import MEMBER, NETWORK, format_score, get_score, run_of
from adlib.training.pooling import arrays

GRID = np.linspace(0, 1, 101)
BINS = np.linspace(0, 1, 21)
FAINT = 1.8  # top of the blues: a share of 1 is light enough for black numbers, contrast above 7


def plot_curves(histories: dict[str, list[dict[str, float]]]) -> Figure:
    """Training loss, validation loss and validation balanced accuracy by epoch, a line per training (run and fold).

    The training loss has label smoothing, class weights and auxiliary terms that the validation loss lacks, so that the
    two have separate axes.

    Parameters
    ----------
    histories : dict of str to list of dict
        For each ``run, fold``, a dict per epoch: epoch, train_loss, validation_loss and validation_balanced_accuracy.
    """
    panels = {
        "train_loss": "Training loss",
        "validation_loss": "Validation cross-entropy",
        "validation_balanced_accuracy": "Validation\nbalanced accuracy",
    }
    figure, axes = plt.subplots(1, 3, figsize=(COLUMN_WIDTH, 2.8))
    runs = dict.fromkeys(name.split(",")[0] for name in histories)
    colours = dict(zip(runs, sns.color_palette("colorblind"), strict=False))
    for name, history in histories.items():
        table, run = pd.DataFrame(history), name.split(",")[0]
        for axis, column in zip(axes, panels, strict=True):
            axis.plot(table["epoch"], table[column], color=colours[run])
    for axis, title in zip(axes, panels.values(), strict=True):
        axis.set_title(title, size="small")
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for run, colour in colours.items():
        axes[2].plot([], [], color=colour, label=run_of(run).label)
    axes[2].set_ylim(0, 1)
    figure.legend(fontsize="small", loc="outside lower center", ncols=2, frameon=False)
    return figure


class LiveCurves:
    """Training curves in a notebook, updated during the training, also under papermill.

    Parameters
    ----------
    every_seconds : float
        Shortest time between two updates, s.
    """

    def __init__(self, every_seconds: float = 5.0) -> None:
        self.histories: dict[str, list[dict[str, float]]] = {}
        self.every_seconds, self.drawn, self.handle = every_seconds, -np.inf, None

    def __call__(self, name: str, history: list[dict[str, float]]) -> None:
        """Update the curves of a run after an epoch; see `plot_curves` for the history."""
        self.histories[name] = history
        if time.monotonic() - self.drawn < self.every_seconds:
            return
        figure = plot_curves(self.histories)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        plt.close(figure)
        self.drawn = time.monotonic()

    def close(self) -> None:
        """Replace the figure by a note: the final curves are drawn from stored results."""
        if self.handle is not None:
            self.handle.update(Markdown("The curves stand below."))


def plot_confusion(confusion: dict[str, list[list[int]]], classes: tuple[str, ...]) -> Figure:
    """Participants by true and predicted class, of the network and two comparisons; colour is the share of the row.

    Parameters
    ----------
    confusion : dict of str to list of list of int
        For each run: counts, rows are true classes.
    classes : tuple of str
    """
    runs = [run for run in (NETWORK, "volumes", "shuffled_labels") if run in confusion]
    figure, axes = plt.subplots(1, len(runs), figsize=(COLUMN_WIDTH, 0.9 + COLUMN_WIDTH / len(runs)), squeeze=False)
    look = {"annot_kws": {"color": "black"}, "cmap": "Blues", "vmin": 0, "vmax": FAINT, "cbar": False, "square": True}
    for axis, run in zip(axes[0], runs, strict=True):
        counts = np.array(confusion[run])
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        sns.heatmap(share, annot=counts, fmt="d", xticklabels=classes, yticklabels=classes, ax=axis, **look)
        axis.set_title(run_of(run).label.replace(" (", "\n("), size="small")
        axis.set(xlabel="decision", ylabel="truth" if run == runs[0] else "")
    return figure


def plot_roc(pooled: pd.DataFrame, metrics: pd.DataFrame, classes: tuple[str, ...], seed: int) -> Figure:
    """One-vs-rest ROC curves of participants with 95 % bands over participants, for the classes that were tested.

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
    figure, axes = plt.subplots(1, len(classes), figsize=(COLUMN_WIDTH, 2.3), sharey=True, squeeze=False)
    for axis, _ in _class_curves(axes[0], _sensitivity, pooled, classes, seed, "AUC", "roc_auc", metrics):
        axis.plot([0, 1], [0, 1], color=NEUTRAL, linestyle=":", linewidth=1)
        axis.set(aspect="equal", xlabel="1 - specificity")
    axes[0, 0].set_ylabel("sensitivity")
    return figure


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
    figure, axes = plt.subplots(1, len(classes), figsize=(COLUMN_WIDTH, 2.4), sharey=True, squeeze=False)
    for axis, k in _class_curves(axes[0], precision_at, pooled, classes, seed, "AP", "average_precision", metrics):
        share = (pooled["truth"] == classes[k]).mean()
        axis.axhline(share, color=NEUTRAL, linestyle=":", linewidth=1)
        axis.set(aspect="equal", xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
    axes[0, 0].set_ylabel("precision")
    return figure


def _class_curves(
    axes: Sequence[Axes], curve: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], pooled: pd.DataFrame,
    classes: tuple[str, ...], seed: int, title: str, metric: str, metrics: pd.DataFrame,
) -> Iterator[tuple[Axes, int]]:  # fmt: skip
    """Draw the curve of each class against the rest with its band; yields the panel and the number of the class.

    Panels of classes that none or all of the participants have say so and are not yielded.
    """
    y, p, groups = arrays(pooled, classes)
    weights = scores.cluster_weights(groups, 300, seed)
    for k, (axis, name) in enumerate(zip(axes, classes, strict=True)):
        share = np.mean(y == k)
        if share in (0, 1):
            axis.set(title=f"{name} against the rest", xticks=[])
            axis.grid(False)
            reason = f"{'all' if share else 'none'} tested\nare {name}"
            axis.text(0.5, 0.5, reason, transform=axis.transAxes, ha="center", va="center", size="x-small", wrap=True)
        else:
            both = (weights[:, y == k].sum(1) > 0) & (weights[:, y != k].sum(1) > 0)
            curves = curve(y == k, p[:, k], weights[both])
            drawn = np.isfinite(curves[0])
            colour = class_palette(classes)[name]
            if drawn.any():  # probabilities may all lie between two points of the grid
                low, high = np.nanpercentile(curves[1:][:, drawn], [2.5, 97.5], axis=0)
                axis.fill_between(GRID[drawn], low, high, color=colour, alpha=0.25, linewidth=0)
            axis.plot(GRID, curves[0], color=colour)
            area = format_score(get_score(metrics, NETWORK, metric, name))
            axis.set_title(f"{name} against the rest\n{title} {area}")
            yield axis, k
        axis.title.set_size("x-small")


def _sensitivity(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sensitivity (B, 101) at each 1 - specificity of `GRID`."""
    rates = (np.pad(part, ((0, 0), (1, 0))) / part[:, -1:] for part in _positives(positive, score, weights))
    return np.array([np.interp(GRID, false, true) for true, false in zip(*rates, strict=True)])


def precision_at(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision at each recall of `GRID`, of the strictest threshold that reaches it; not interpolated.

    Parameters
    ----------
    positive : (n,) bool
    score : (n,) float
        Higher for the positive class.
    weights : (B, n) float
        One weighting of the items per row; the positive ones have some weight in each.

    Returns
    -------
    (B, 101) float64
    """
    true, false = _positives(positive, score, weights)
    precision = true / np.maximum(true + false, 1e-12)
    first = [np.searchsorted(row, row[-1] * (np.maximum(GRID, 1e-6) - 1e-9)) for row in true]
    return np.take_along_axis(precision, np.minimum(first, true.shape[1] - 1), axis=1)


def _positives(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (B, T) of the true and the false positives at each threshold, the strictest first."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    true, false = (np.cumsum(weights[:, order] * part[order], axis=1)[:, last] for part in (positive, ~positive))
    return true, false


def plot_calibration(
    pooled: pd.DataFrame, before: pd.DataFrame, metrics: pd.DataFrame, classes: tuple[str, ...], seed: int
) -> Figure:
    """Observed share of each class by its predicted probability, smoothed, with 95 % bands over participants.

    Below, the distribution of the probability: upwards of participants of the class, downwards of all others.

    Parameters
    ----------
    pooled : DataFrame
        Calibrated probabilities of the test participants.
    before : DataFrame
        The same without calibration, drawn dashed.
    metrics : DataFrame
        See `adlib.study.metrics.metrics_table`.
    classes : tuple of str
    seed : int
        Of the bootstrap.
    """
    figure, axes = plt.subplots(2, len(classes), figsize=(COLUMN_WIDTH, 3.3), sharey="row", sharex=True,
                                height_ratios=(2.6, 1), squeeze=False)  # fmt: skip
    y, p, _ = arrays(before, classes)
    panels = _class_curves(axes[0], _observed, pooled, classes, seed, "slope", "calibration_slope", metrics)
    for axis, k in panels:
        axis.plot([0, 1], [0, 1], color=NEUTRAL, linestyle=":", linewidth=1)
        axis.plot(GRID, _observed(y == k, p[:, k], np.ones(len(y))), color=NEUTRAL, linestyle="--", linewidth=1)
        axis.set(xlim=(0, 1), ylim=(0, 1))
    y, p, _ = arrays(pooled, classes)
    for k, (axis, name) in enumerate(zip(axes[1], classes, strict=True)):
        for inside, sign, colour in ((y == k, 1, class_palette(classes)[name]), (y != k, -1, NEUTRAL)):
            counts, edges = np.histogram(p[inside, k], BINS)
            axis.stairs(sign * counts, edges, color=colour, fill=True, alpha=0.7)
        axis.axhline(0, color=NEUTRAL, linewidth=0.8)
        axis.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    axes[0, 0].set_ylabel("observed share")
    axes[1, 0].set_ylabel("participants")
    figure.supxlabel("predicted probability of the class (dashed: before calibration)", size="small")
    return figure


def _observed(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return risk.smoothed(positive, score, weights[None], GRID)[0]


def plot_decision(
    pooled: pd.DataFrame, curve: dict[str, list[float]], classes: tuple[str, ...], binary: dict[str, tuple[str, ...]]
) -> Figure:
    """The two-class view: predicted risk by truth, and its net benefit over treating all or nobody.

    Parameters
    ----------
    pooled : DataFrame
        Calibrated probabilities of the test participants.
    curve : dict of str to list of float
        ``decision_curve`` of ``metrics.json``.
    classes : tuple of str
    binary : dict
        Names of the classes of ``negative`` and ``positive``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(COLUMN_WIDTH, 2.9))
    y, p, _ = arrays(pooled, classes)
    _, positive, risks = risk.binary_view(y, p, classes, binary)
    for side, inside in (("negative", ~positive), ("positive", positive)):
        look = {"color": class_palette(classes)[binary[side][-1]], "alpha": 0.6, "edgecolor": "white"}
        left.hist(risks[inside], BINS, label=f"{' or '.join(binary[side])} ({inside.sum()})", **look)
    left.set(xlabel=f"predicted risk of {' or '.join(binary['positive'])}", ylabel="participants", xlim=(0, 1))
    left.set_title("Predicted risk by truth")
    left.legend(fontsize="x-small", title="truth", title_fontsize="x-small")
    right.set_title("Net benefit by threshold")
    if not curve:
        right.text(0.5, 0.5, "nobody of the two classes was tested", ha="center", va="center", size="x-small")
        return figure
    right.fill_between(curve["threshold"], curve["low"], curve["high"], color=ACCENT, alpha=0.2, linewidth=0)
    right.plot(curve["threshold"], curve["network"], color=ACCENT, label=run_of(NETWORK).title)
    right.plot(curve["threshold"], curve["treat_all"], color=NEUTRAL, linestyle="--", label="treat all")
    right.axhline(0, color=NEUTRAL, linestyle=":", label="treat nobody")
    top = max(max(curve["high"]), positive.mean())
    right.set(xlabel="threshold of the risk", ylabel="net benefit", xlim=(0, 1), ylim=(-0.25 * top, 1.08 * top))
    right.legend(fontsize="x-small")
    return figure


def plot_forest(metrics: pd.DataFrame, metric: str, title: str, chance: float) -> Figure:
    """One score of every run by participant, with its interval and chance level.

    Parameters
    ----------
    metrics : DataFrame
        See `adlib.study.metrics.metrics_table`.
    metric : str
        Name of the score in `metrics`.
    title : str
        Of the figure.
    chance : float
        Score of a classifier without information.
    """
    rows = metrics.query(
        "level == 'subject' and group == '' and metric == @metric and `class` == '' and point == point"
    )[::-1]
    member = rows["run"].str.startswith(MEMBER)
    members, rows = rows.loc[member, "point"], rows[~member]
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.9 + 0.34 * len(rows)))
    for place, row in enumerate(rows.itertuples()):
        colour = ACCENT if row.run == NETWORK else NEUTRAL
        spread = [[row.point - row.low], [row.high - row.point]]
        axis.errorbar(row.point, place, xerr=spread, fmt="o", color=colour, capsize=3)
        if row.run == NETWORK:
            axis.plot(members, np.full(len(members), place + 0.25), ".", color=colour, markersize=4)
        axis.text(1.03, place, format_score(row), va="center", transform=axis.get_yaxis_transform(), size="small")
    axis.set_yticks(range(len(rows)), [run_of(run).label for run in rows["run"]])
    axis.axvline(chance, color=NEUTRAL, linestyle=":")
    axis.set(title=title, xlim=(0, 1), ylim=(-0.6, len(rows) - 0.4))
    single = "; small dots: networks of the ensemble" if len(members) else ""
    axis.set_xlabel(f"dotted: chance ({chance:.2f}); bars: 95 % interval over participants{single}")
    return figure


def plot_severity(pooled: pd.DataFrame, truth: pd.DataFrame, classes: tuple[str, ...]) -> Figure:
    """Expected stage by the network against true severity of the phantom's participants.

    Parameters
    ----------
    pooled : DataFrame
        Columns participant_id, truth and ``p_<class>``; one row per test participant.
    truth : DataFrame
        Columns participant_id and severity.
    classes : tuple of str
        From healthy to most severe.
    """
    stage = pooled[[f"p_{name}" for name in classes]].to_numpy() @ np.linspace(0, 1, len(classes))
    severity = truth.groupby("participant_id")["severity"].mean()
    table = pooled.assign(stage=stage, severity=pooled["participant_id"].map(severity))
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH * 0.75, 3.2))
    colours = {"hue": "truth", "hue_order": classes, "palette": class_palette(classes)}
    sns.scatterplot(table, x="severity", y="stage", ax=axis, **colours)
    r = table["severity"].corr(table["stage"], method="spearman")
    axis.set(title=f"Reading of unseen participants (Spearman {r:.2f})", xlabel="true severity")
    axis.set_ylabel("expected stage (0 first class, 1 last)")
    axis.legend(title="", fontsize="small")
    return figure
