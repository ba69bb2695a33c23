"""The metrics of a study as one tidy table, and how runs and scores are written for a reader."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adlib.study.records import StudyError, read_json

NETWORK = "resnet50"  # the run of the study's network
MEMBER = "member_"  # first part of the names of the members of an ensemble, each a run
CEILING = "bayes_ceiling"
KEY = ("run", "level", "group", "metric", "class")  # together they name a score
CHECK = ("check", "of", "metric")  # the same for a check of the attribution maps
NOT_MEASURED = "not measured"
CHANCE = "must fall to chance"


@dataclass(frozen=True)
class Run:
    """What a run is called in figures and reports.

    Attributes
    ----------
    title : str
    group : str
        network, member, control, baseline, ceiling or other.
    meaning : str
        Its description; of a control, what it must show.
    """

    title: str
    group: str
    meaning: str

    @property
    def label(self) -> str:
        """The title, of a control with that word."""
        return f"{self.title} (control)" if self.group == "control" else self.title


RUNS = {
    NETWORK: Run("ResNet50", "network", "the study's network"),
    "shuffled_labels": Run("Permuted labels", "control", f"labels permuted over participants: {CHANCE}"),
    "background": Run("Background only", "control", f"the brain and its surroundings masked out: {CHANCE}"),
    "slice_split": Run("Slice-level split", "control", "leakage: how much it inflates the score; not a valid score"),
    "binarised": Run("Silhouette", "control", "1 inside the brain, 0 outside: what the outline alone predicts"),
    "metadata_added": Run("Metadata added", "control", "scanner metadata as covariates: how much they would add"),
    "majority": Run("Majority", "baseline", "always the most frequent class"),
    "metadata": Run("Scanner metadata", "baseline", "site, scanner, voxels and date alone, no image"),
    "quality": Run("Image quality", "baseline", "quality-control values alone, which must not predict the class"),
    "age_sex": Run("Age and sex", "baseline", "logistic regression"),
    "brain_fraction": Run("Brain fraction", "baseline", "brain volume as a share of the intracranial volume"),
    "volumes": Run("Volumes", "baseline", "logistic regression on regional volumes"),
    "age_sex_volumes": Run("Age, sex and volumes", "baseline", "logistic regression"),
    "untrained_network": Run("Untrained network", "baseline", "image features of a ResNet50 with random weights"),
    "grey_matter_svm": Run("Grey-matter maps", "baseline", "linear support vector machine"),
    CEILING: Run("Best possible", "ceiling", "uses the true severity and age of every simulated participant"),
}


def run_of(name: str) -> Run:
    """The run of a given name; a name that `RUNS` does not list becomes its title.

    Parameters
    ----------
    name : str
        Value of the column ``run``.
    """
    if name.startswith(MEMBER):
        return Run(f"Member {name.removeprefix(MEMBER)}", "member", "one network of the ensemble")
    return RUNS.get(name, Run(name.replace("_", " ").capitalize(), "other", ""))


def file_run(runs: Iterable[str]) -> str:
    """The run of the network that is in the model file: the first member of an ensemble.

    Parameters
    ----------
    runs : iterable of str
        Values of the column ``run``.
    """
    first = f"{MEMBER}1"
    return first if first in set(runs) else NETWORK


def read_metrics(path: Path | str) -> pd.DataFrame:
    """Read the scores of a study, of its subgroups too.

    Parameters
    ----------
    path : path
        Folder of a study, or a file such as ``metrics.json`` or the ``scores.json`` of a released model.

    Returns
    -------
    DataFrame
        See `metrics_table`.

    Raises
    ------
    StudyError
        If there is no such file or it holds no scores.

    Examples
    --------
    >>> metrics = read_metrics("outputs/phantom")
    >>> metrics.query("run == 'resnet50' and level == 'subject' and metric == 'recall'")
    """
    path = Path(path)
    path = path / "metrics.json" if path.is_dir() else path
    content = read_json(path)
    if not isinstance(content.get("entries"), list):
        raise StudyError(f"{path} holds no scores; run step 04_evaluation again")
    return metrics_table(content)


def metrics_table(content: dict[str, Any]) -> pd.DataFrame:
    """The scores in the content of a ``metrics.json``.

    Parameters
    ----------
    content : dict

    Returns
    -------
    DataFrame
        run, level (slice, scan or subject), group (empty: all participants), metric, class (empty: all classes), point,
        low and high (95 % interval over participants), n. Undefined numbers are NaN.
    """
    return tidy([*content["entries"], *content.get("subgroups", [])], KEY)


def tidy(entries: Iterable[dict[str, Any]], names: Sequence[str]) -> pd.DataFrame:
    """Stored entries as a table: `names` (empty text where absent), point, low, high and n.

    Parameters
    ----------
    entries : iterable of dict
        Each has ``point``; ``ci95`` and ``n`` are optional.
    names : sequence of str
        Keys that identify an entry.
    """
    rows = []
    for entry in entries:
        low, high = entry.get("ci95") or (None, None)
        rows.append([*(entry.get(name) or "" for name in names), entry["point"], low, high, entry.get("n")])
    table = pd.DataFrame(rows, columns=[*names, "point", "low", "high", "n"])
    return table.astype(dict.fromkeys(("point", "low", "high"), float))


def get_score(
    metrics: pd.DataFrame, run: str, metric: str, label: str = "", level: str = "subject", group: str = ""
) -> pd.Series | None:
    """One row of a metrics table; None where the score was not measured.

    Parameters
    ----------
    metrics : DataFrame
        See `metrics_table`.
    run, metric : str
    label : str
        The class, or ``macro``.
    level, group : str
    """
    wanted = dict(zip(KEY, (run, level, group, metric, label), strict=True))
    rows = metrics[np.logical_and.reduce([metrics[name] == value for name, value in wanted.items()])]
    return None if rows.empty else rows.iloc[0]


def format_score(score: Any, digits: int = 2) -> str:
    """A score with its interval: ``0.61 [0.53, 0.69]``.

    Parameters
    ----------
    score : Series, namedtuple or None
        A row of a metrics table. None is written as not measured; a p value has two significant digits.
    digits : int
        After the point.
    """
    if score is None:
        return NOT_MEASURED
    if np.isnan(score.point):
        return "undefined"
    if score.metric.endswith("_p"):
        return "< 0.0001" if score.point < 0.0001 else f"{score.point:.2g}"
    interval = "" if np.isnan(score.low) else f" [{score.low:.{digits}f}, {score.high:.{digits}f}]"
    return f"{score.point:.{digits}f}{interval}"


def metric_table(metrics: pd.DataFrame, level: str, names: Sequence[str]) -> pd.DataFrame:
    """Runs by metrics as text, over all participants and classes (or macro).

    Parameters
    ----------
    metrics : DataFrame
        See `metrics_table`.
    level : str
    names : sequence of str
        Metrics, one column each.
    """
    rows = metrics[(metrics["level"] == level) & (metrics["group"] == "") & metrics["class"].isin(["", "macro"])]
    return _written(rows[rows["metric"].isin(names)], "run", names)


def member_spread(metrics: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """How much the networks of an ensemble differ, beside what the choice of tested participants does.

    Members differ in their seed and in the participants they leave out of the training; those tested are the same.

    Parameters
    ----------
    metrics : DataFrame
        See `metrics_table`.
    names : sequence of str
        Metrics, at the level of participants.

    Returns
    -------
    DataFrame
        One row per metric and class: ensemble; mean, sd, lowest and highest of the members; and test_sd, the standard
        error over tested participants (the ensemble's 95 % interval is 3.92 of them wide where it is normal).
        Empty without members.
    """
    rows = metrics[(metrics["level"] == "subject") & (metrics["group"] == "") & metrics["metric"].isin(names)]
    own = rows[rows["run"].str.startswith(MEMBER)].groupby(["metric", "class"])["point"]
    spread = own.agg(mean="mean", sd="std", lowest="min", highest="max")
    whole = rows[rows["run"] == NETWORK].set_index(["metric", "class"])
    spread.insert(0, "ensemble", whole["point"])
    return spread.assign(test_sd=(whole["high"] - whole["low"]) / 3.92).reset_index()


def subgroup_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Groups of participants by number and scores, as text.

    Parameters
    ----------
    metrics : DataFrame
        As `metrics_table` returns it.

    Returns
    -------
    DataFrame
        One row per group: participants, balanced accuracy, ROC AUC.
    """
    rows = metrics[metrics["group"] != ""]
    counts = rows.groupby("group")["n"].first().rename("participants")
    table = _written(rows, "group", ("balanced_accuracy", "roc_auc_binary"))
    return table.join(counts)[["participants", *table.columns]].reindex(rows["group"].unique())


def _written(rows: pd.DataFrame, index: str, names: Sequence[str]) -> pd.DataFrame:
    texts = rows.assign(text=[format_score(row) for row in rows.itertuples()])
    table = texts.pivot(index=index, columns="metric", values="text").reindex(columns=list(names))
    return table.astype(object).fillna("")
