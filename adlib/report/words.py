"""Names and numbers as a reader wants them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from adlib.study.publication import score

NONE = "not measured"


@dataclass(frozen=True)
class Run:
    """What a run is called in a report.

    Attributes
    ----------
    title : str
    group : str
        network, control, baseline or ceiling.
    meaning : str
        What it is; of a control, what it must show.
    """

    title: str
    group: str
    meaning: str


CHANCE = "must fall to chance"
RUNS = {
    "resnet50": Run("ResNet50", "network", "the study's network"),
    "shuffled_labels": Run("Shuffled labels", "control", f"labels dealt out again over participants: {CHANCE}"),
    "background": Run("Background only", "control", f"the brain and its surroundings cut out: {CHANCE}"),
    "slice_split": Run("Split by slice", "control", "the usual leak: what it adds; nothing in this score is true"),
    "binarised": Run("Silhouette", "control", "1 inside the brain, 0 outside: how much the outline tells"),
    "metadata_added": Run("Metadata added", "control", "scanner facts told beside the image: what they would add"),
    "majority": Run("Majority", "baseline", "always the most frequent class"),
    "metadata": Run("Scanner metadata", "baseline", "site, scanner, voxels and date alone, no image"),
    "age_sex": Run("Age and sex", "baseline", "logistic regression"),
    "brain_fraction": Run("Brain fraction", "baseline", "brain volume as a share of the intracranial volume"),
    "volumes": Run("Volumes", "baseline", "logistic regression on regional volumes"),
    "age_sex_volumes": Run("Age, sex and volumes", "baseline", "logistic regression"),
    "grey_matter_svm": Run("Grey-matter maps", "baseline", "linear support vector machine"),
    "bayes_ceiling": Run("Best possible", "ceiling", "knows the true severity and age of every simulated participant"),
}
METRICS = {
    "balanced_accuracy": "Balanced accuracy",
    "roc_auc": "ROC AUC",
    "roc_auc_binary": "ROC AUC, two classes",
    "accuracy": "Accuracy",
    "f1": "F1",
    "recall": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "average_precision": "Average precision",
    "kappa_linear": "Kappa, linear weights",
    "matthews": "Matthews correlation",
    "log_loss": "Log loss",
    "brier": "Brier score",
    "calibration_error": "Calibration error",
    "share_of_bayes_ceiling": "Share of the best possible balanced accuracy",
    "permutation_p": "p, permutation of labels",
    "mcnemar_p": "p, McNemar",
}


def run_of(name: str) -> Run:
    """The run of that name; one that this page does not know is shown under its own name."""
    return RUNS.get(name, Run(name.replace("_", " ").capitalize(), "other", ""))


def metric_title(name: str, label: str | None = None) -> str:
    """A metric in words, with its class."""
    title = METRICS.get(name, name.replace("_", " ").capitalize())
    return f"{title}, {label}" if label else title


def written(entry: dict[str, Any] | None) -> str:
    """A score with its interval, a p value with two digits, or that it was not measured."""
    if entry is None:
        return NONE
    if entry["point"] is None:
        return "undefined"
    if entry["metric"].endswith("_p"):
        return "< 0.0001" if entry["point"] < 0.0001 else f"{entry['point']:.2g}"
    return unbroken(score(entry, 2))


def unbroken(text: str) -> str:
    """`text` with intervals that no line break parts."""
    return text.replace(", ", ",\u00a0")


def counted(number: int, thing: str) -> str:
    """A number of things: ``1 slice``, ``3 slices``."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def sentence_score(entry: dict[str, Any] | None) -> str:
    """A score as it stands in a sentence: ``0.61 (95 % interval 0.53 to 0.69)``."""
    interval = (entry or {}).get("ci95")
    if not interval or entry["point"] is None or None in interval:
        return written(entry)
    return f"{entry['point']:.2f} (95 % interval {interval[0]:.2f} to {interval[1]:.2f})"


def listed(items: Iterable[object]) -> str:
    """Items as a list in a sentence: ``CN, MCI and AD``."""
    *rest, last = [str(item) for item in items] or ["none"]
    return f"{', '.join(rest)} and {last}" if rest else last


def percent(share: float) -> str:
    return f"{100 * share:.3g}\u00a0%"


def moment(text: str | None) -> str:
    """A time stamp as one reads it: ``2026-01-31 18:05 UTC``."""
    return f"{text[:10]} {text[11:16]} UTC" if text and text.endswith("+00:00") else text or "at an unknown time"


def columns(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as lines of aligned columns, for a screen."""
    rows = list(rows)
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def step_title(name: str) -> str:
    """A step's name for a heading: ``01 Data audit``."""
    number, _, rest = name.partition("_")
    return f"{number} {rest.replace('_', ' ').capitalize().replace('resnet', 'ResNet')}"


def clock(seconds: float | None) -> str:
    """Seconds as ``m:ss``."""
    return "unknown" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"
