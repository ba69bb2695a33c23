"""Tables of a report: scores of the runs, what controls show, confusion, cohort, audit, figures, provenance."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from adlib.report.content import NETWORK, Study
from adlib.report.privacy import may_show, shows
from adlib.report.words import (
    CHANCE,
    METRICS,
    clock,
    listed,
    metric_title,
    moment,
    percent,
    run_of,
    step_title,
    written,
)
from adlib.study.params import StudyParams
from adlib.study.records import StudyError

MAIN = (("balanced_accuracy", None), ("roc_auc", "macro"), ("roc_auc_binary", None), ("brier", None))
DIFFERENCES = ("balanced_accuracy_difference", "roc_auc_binary_difference", "mcnemar_p")
OVERALL = (
    "accuracy", "balanced_accuracy", "f1", "roc_auc", "roc_auc_binary", "kappa_linear", "matthews", "log_loss",
    "brier", "calibration_error", "share_of_bayes_ceiling", "permutation_p",
)  # fmt: skip
BY_CLASS = ("recall", "specificity", "precision", "roc_auc", "average_precision")
ORDER = ("network", "control", "baseline", "ceiling", "other")
PRIVATE = ("exec", "root", "table", "tables", "data_dir")  # params that hold places on a machine


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of each row names the row."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table(caption: str, header: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A `Table` of text."""
    return Table(caption, tuple(header), tuple(tuple(str(cell) for cell in row) for row in rows))


def runs(study: Study) -> Table:
    """The main scores of every run, network first."""
    names = sorted(study.runs(), key=lambda name: ORDER.index(run_of(name).group))
    rows = [
        (run_of(name).title, run_of(name).group, *(written(study.entry(name, *metric)) for metric in MAIN))
        for name in names
    ]
    header = ("Run", "Kind", *(METRICS[metric] for metric, _ in MAIN))
    caption = (
        f"Scores of test participants with 95 % intervals; guessing has a balanced accuracy of {study.chance:.2f}."
    )
    return table(caption, header, rows)


def released(scores: list[dict[str, Any]]) -> Table:
    """Scores of the weights of a release."""
    rows = [(metric_title(entry["metric"], entry["class"]), entry["n"], written(entry)) for entry in scores]
    caption = (
        "Scores of the weights in this file, rounded to 16 bit, on the scan files of the test participants, each "
        "prepared anew; all tables further down are of the study's own weights in 32 bit."
    )
    return table(caption, ("Score", "Participants", "With 95 % interval"), rows)


def control_rows(study: Study) -> Table:
    """What each control must show, and what it shows."""
    rows = []
    for name in study.runs():
        run = run_of(name)
        if run.group == "control":
            entry = study.entry(name, "balanced_accuracy")
            rows.append((run.title, run.meaning, written(entry), _shown(study, name, run.meaning, entry)))
    return table(
        "Controls: the training repeated with one thing changed.",
        ("Control", "What it must show", "Balanced accuracy", "What it shows"),
        rows,
    )


def above_chance(study: Study) -> list[str]:
    """Controls that must fall to chance and did not, in words."""
    names = [name for name in study.runs() if CHANCE in run_of(name).meaning]
    entries = {run_of(name).title: study.entry(name, "balanced_accuracy") for name in names}
    known = {title: entry for title, entry in entries.items() if entry and entry["ci95"] and None not in entry["ci95"]}
    return [title for title, entry in known.items() if entry["ci95"][0] > study.chance]


def _shown(study: Study, name: str, meaning: str, entry: dict[str, Any] | None) -> str:
    interval = (entry or {}).get("ci95")
    if not interval or None in interval:
        return "no interval, no conclusion"
    high = interval[1]
    if CHANCE in meaning:
        if run_of(name).title in above_chance(study):
            return f"not as it must: the interval lies above chance ({study.chance:.2f}); something else is learnt"
        return f"as it must: chance ({study.chance:.2f}) is " + ("in the interval" if high >= study.chance else "above")
    network = study.entry(NETWORK, "balanced_accuracy")
    if network is None or entry["point"] is None or network["point"] is None:
        return "not comparable"
    return f"{entry['point'] - network['point']:+.2f} against the network"


def differences(study: Study) -> Table:
    """The network against every other run, paired."""
    prefix = f"{NETWORK} - "
    names = list(dict.fromkeys(e["run"] for e in study.metrics["entries"] if e["run"].startswith(prefix)))
    rows = [
        (run_of(name.removeprefix(prefix)).title, *(written(study.entry(name, metric)) for metric in DIFFERENCES))
        for name in names
    ]
    return table(
        "The network less each other run, on the same participants. An interval that holds 0 shows no difference.",
        ("Against", "Balanced accuracy", "ROC AUC, two classes", "p, McNemar"),
        rows,
    )


def overall(study: Study) -> Table:
    """All overall scores of the network."""
    found = [(m, study.entry(NETWORK, m, "macro") or study.entry(NETWORK, m)) for m in OVERALL]
    rows = [(metric_title(metric), written(entry)) for metric, entry in found if entry]
    return table("The network's scores over all classes.", ("Score", "Value and 95 % interval"), rows)


def by_class(study: Study) -> Table:
    """The network's scores of each class."""
    rows = [
        (name, *(written(study.entry(NETWORK, metric, name)) for metric in BY_CLASS)) for name in study.params.classes
    ]
    return table(
        "The network's scores of each class against the others.", ("Class", *map(metric_title, BY_CLASS)), rows
    )


def by_level(study: Study) -> Table:
    """The network's scores of slices, scans and participants."""
    rows = []
    for level, title in (("slice", "Slices"), ("scan", "Scans"), ("subject", "Participants")):
        entry = study.entry(NETWORK, "balanced_accuracy", level=level)
        if entry:
            rows.append((title, entry["n"], *(written(study.entry(NETWORK, *m, level=level)) for m in MAIN)))
    header = ("Scored", "n", *(METRICS[metric] for metric, _ in MAIN))
    return table("The network by what is scored; intervals are over participants in each case.", header, rows)


def groups(study: Study) -> Table:
    """The network's scores in groups of people, where the study has them."""
    found = study.metrics.get("subgroups", [])
    metrics = list(dict.fromkeys(entry["metric"] for entry in found))
    rows: dict[str, dict[str, Any]] = {}
    for entry in found:
        rows.setdefault(study.ids.redact(entry["group"]), {"n": entry["n"]})[entry["metric"]] = entry
    cells = [(name, own["n"], *(written(own.get(metric)) for metric in metrics)) for name, own in rows.items()]
    small = len(study.metrics.get("small_groups", []))
    caption = f"The network in groups of test participants; {small} groups were too small to be scored."
    return table(caption, ("Group", "n", *map(metric_title, metrics)), cells)


def confusion(study: Study) -> Table:
    """Participants by truth and decision of the network."""
    classes, matrix = study.params.classes, study.metrics["confusion"].get(NETWORK, [])
    rows = [
        (name, *(f"{count}\u00a0({percent(round(count / max(sum(row), 1), 2))})" for count in row))
        for name, row in zip(classes, matrix, strict=False)
    ]
    header = ("Truth", *(f"decided {name}" for name in classes))
    return table("Test participants by true class (row) and decision (column), with shares of the row.", header, rows)


def cohort(study: Study) -> Table:
    """Participants, scans, age and sex by class; participants count by the label of their first scan."""
    rows = []
    people = study.manifest.sort_values("session_id").drop_duplicates("participant_id")
    for name in (*study.params.classes, "all"):
        own, scans = (t if name == "all" else t[t["diagnosis"] == name] for t in (people, study.manifest))
        rows.append((name, len(own), len(scans), _mean(own["age"]), _women(own["sex"])))
    return table(
        "The cohort by class; age and sex at the first session.",
        ("Class", "Participants", "Scans", "Age, mean (sd)", "Women"),
        rows,
    )


def parts(study: Study) -> Table:
    """Participants by class and part of the split."""
    splits, folds = study.splits, study.splits["fold"].nunique()
    counts = splits.groupby(["split", "diagnosis"]).size().unstack(fill_value=0)
    names = [name for name in ("train", "validation", "test") if name in counts.index]
    rows = [
        (name, *(counts.loc[name].get(c, 0) for c in study.params.classes), counts.loc[name].sum()) for name in names
    ]
    over = "" if folds == 1 else f", added up over {folds} folds"
    return table(f"Participants by part of the split{over}.", ("Part", *study.params.classes, "All"), rows)


def flow(study: Study) -> Table:
    """What was left after each exclusion."""
    rows = [tuple(row) for row in study.flow.itertuples(index=False)]
    passed = study.features[study.features["qc_verdict"] != "fail"]
    rows.append(("with preprocessing that passed", len(passed), passed["participant_id"].nunique()))
    return table("Scans and participants left after each step.", ("Step", "Scans", "Participants"), rows)


def left_out(study: Study) -> Table:
    """Scans that quality control left out, counted by their first reason."""
    failed = study.features[study.features["qc_verdict"] == "fail"]
    reasons = Counter(_reason(study, str(text)) for text in failed["qc_reasons"])
    return table("Scans left out by quality control.", ("First reason", "Scans"), reasons.most_common())


def audit(study: Study) -> Table:
    """Findings with what was decided; the scans concerned are named in audit.tsv alone."""
    whole = {*study.params.classes, "all", "all participants", "all scans"}
    rows = [
        (
            row.check,
            row.severity,
            row.subject if row.subject in whole else "not named here",
            *(study.ids.redact(str(cell)) for cell in (row.value, row.limit, row.decision)),
        )
        for row in study.audit.fillna("").itertuples()
    ]
    header = ("Check", "Severity", "Of", "Found", "Limit", "Decision")
    return table("Findings of the audit, the worst first.", header, rows)


def accepted(study: Study) -> list[str]:
    """Stop findings with which the study went on, in words."""
    found = study.audit[study.audit["decision"] == "accepted by params"]
    return [study.ids.redact(f"{row.check}: {row.value}. {row.meaning}") for row in found.fillna("").itertuples()]


def warnings(study: Study) -> list[str]:
    """Warnings of the audit, in words."""
    found = study.audit[study.audit["severity"] == "warn"]
    return [study.ids.redact(f"{row.check}: {row.value}. {row.meaning}") for row in found.fillna("").itertuples()]


def acquisition(study: Study) -> list[tuple[str, str]]:
    """Facts about the scans as a whole."""
    scans = study.manifest
    facts = [("Sites", str(scans["site"].nunique() or "not known"))]
    for column, title in (("manufacturer", "Manufacturers"), ("field_strength_T", "Field strengths, T")):
        values = sorted({str(value) for value in scans[column].dropna()})
        facts.append((title, listed(values) if values else "not known"))
    years = pd.to_datetime(scans["acquisition_date"], errors="coerce").dt.year.dropna().astype(int)
    facts.append(("Acquired", f"{years.min()} to {years.max()}" if len(years) else "not known"))
    facts.append(("Participants with several scans", str(int((scans["participant_id"].value_counts() > 1).sum()))))
    return facts


def figures(study: Study, numbers: Iterable[int]) -> dict[str, list[dict[str, Any]]]:
    """Figures that the report may hold, inlined, by the notebook that drew them.

    Raises
    ------
    StudyError
        If the register names a figure that is not there.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in study.figures.itertuples():
        if not may_show(row.name, study.simulated, getattr(row, "shows", "")):
            continue
        path = study.folder / "figures" / f"{row.name}.png"
        try:
            image = base64.b64encode(path.read_bytes()).decode("ascii")
        except OSError:
            raise StudyError(f"figures.tsv registers {path}, which is not there; run {row.notebook} again") from None
        caption = study.ids.redact(row.caption)
        caption = caption[:1].upper() + caption[1:]
        entry = {"name": row.name, "caption": caption, "image": image, "number": next(numbers)}
        found.setdefault(row.notebook, []).append(entry)
    return found


def figures_left_out(study: Study) -> list[str]:
    """Names of the figures that show more than the cohort as a whole, with what they show."""
    stated = study.figures.set_index("name").reindex(columns=["shows"])["shows"].items()
    return [f"{name} ({shows(name, own)})" for name, own in stated if not may_show(name, study.simulated, own)]


def provenance(study: Study) -> list[tuple[str, str]]:
    """How the run came to be."""
    told = study.history
    sha, dirty = told.get("git_sha") or "not under git", told.get("git_dirty")
    return [
        ("Started", moment(told.get("started"))),
        ("Finished", moment(told.get("finished"))),
        ("Code", f"git {sha}" + (", with changes that were not committed" if dirty else "")),
        ("Python", told.get("python", "unknown")),
        ("Machine", told.get("platform", "unknown")),
        ("Device", told.get("device", "unknown")),
        ("Seed", str(told.get("seed", "unknown"))),
        ("Minutes by step", ", ".join(f"{step_title(step)} {clock(s)}" for step, s in told.get("seconds", {}).items())),
    ]


def packages(study: Study) -> Table:
    """Installed versions of what the project asks for."""
    return table("Packages.", ("Package", "Version"), sorted(study.history.get("packages", {}).items(), key=str))


def public_params(params: StudyParams) -> dict[str, Any]:
    """Params without places on a machine."""
    content = params.model_dump(mode="json", exclude={"exec"})
    content["source"] = {name: value for name, value in content["source"].items() if name not in PRIVATE}
    kind, _, path = str(content["train"]["weights"]).partition(":")
    content["train"]["weights"] = f"{kind}:FILE" if path else kind
    content["splits"]["test_sites"] = len(content["splits"]["test_sites"])
    return content


def _reason(study: Study, text: str) -> str:
    first = study.ids.redact(text.split("; ")[0])
    name, is_value, _ = first.partition(" is ")
    return name if is_value and " " not in name else "could not be processed"


def _mean(values: pd.Series) -> str:
    known = values.dropna()
    return f"{known.mean():.1f} ({known.std(ddof=0):.1f})" if len(known) else "not known"


def _women(sex: pd.Series) -> str:
    known = sex.dropna().str.upper()
    return percent(np.round(known.str.startswith("F").mean(), 2)) if len(known) else "not known"
