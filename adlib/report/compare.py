"""Two finished studies side by side: scores with intervals, params that differ, packages that differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adlib.report.page import render
from adlib.report.results import Table, public_params, table
from adlib.report.words import columns, metric_title, moment, run_of, unbroken
from adlib.study.digests import flat
from adlib.study.params import StudyParams, load_params
from adlib.study.publication import score, score_name
from adlib.study.records import StudyError, read_json, write_text

PAGE = "compare.html"
SHOWN = ("balanced_accuracy", "roc_auc", "roc_auc_binary", "brier", "calibration_error")
SAME, INSIDE, OUTSIDE, ALONE = "same", "B inside A's interval", "B outside A's interval", "in one alone"
LEVELS = {"slice": "slices", "scan": "scans", "subject": "participants"}


@dataclass(frozen=True)
class Side:
    """One of the two studies."""

    folder: Path
    params: StudyParams
    scores: dict[str, dict[str, Any]]
    history: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.params.study}, finished {moment(self.history.get('finished'))}"


def read_side(folder: Path) -> Side:
    """Read a finished study's folder.

    Raises
    ------
    StudyError
        If it is no folder of a finished study.
    """
    if not folder.is_dir():
        raise StudyError(f"--compare: {folder} is no folder; give two folders such as outputs/phantom")
    missing = [name for name in ("params.yaml", "metrics.json", "provenance.json") if not (folder / name).is_file()]
    if missing:
        raise StudyError(f"--compare: {folder} lacks {', '.join(missing)}; give the folder of a study that has run")
    metrics = read_json(folder / "metrics.json")
    if not isinstance(metrics.get("entries"), list):
        raise StudyError(f"--compare: {folder / 'metrics.json'} holds no scores; run its step 04_evaluation again")
    scores = {score_name(entry): entry for entry in metrics["entries"]}
    return Side(folder, load_params(folder / "params.yaml"), scores, read_json(folder / "provenance.json"))


def compare(first: Path, second: Path, outputs: Path) -> tuple[Path, str]:
    """Write ``compare.html`` into `outputs`; return where it is, and the main scores as text for the screen.

    Raises
    ------
    StudyError
        If one of the folders is not that of a finished study.
    """
    a, b = read_side(first), read_side(second)
    main = scores(a, b, "Main scores of test participants.", main_only=True)
    text = render(
        "compare.html.j2",
        title=f"Two runs side by side: {a.params.study} and {b.params.study}",
        warning=_warning(a, b),
        sides=[("A", a.title), ("B", b.title)],
        main_scores=main,
        all_scores=scores(a, b, "All scores."),
        params=params_that_differ(a, b),
        code=code_that_differs(a, b),
    )
    screen = columns([main.header, *main.rows])
    sides = "\n".join(f"{name}  {side.title}  ({side.folder})" for name, side in (("A", a), ("B", b)))
    return write_text(text, outputs / PAGE), f"{sides}\n{screen}"


def scores(a: Side, b: Side, caption: str, *, main_only: bool = False) -> Table:
    """Scores of both, with what their difference amounts to."""
    rows = []
    for name in {**a.scores, **b.scores}:
        one, other = a.scores.get(name), b.scores.get(name)
        entry = one or other
        if main_only and not _is_main(entry):
            continue
        title = " less ".join(run_of(run).title for run in entry["run"].split(" - "))
        what = metric_title(entry["metric"], entry.get("class"))
        level = () if main_only else (LEVELS.get(entry["level"], entry["level"]),)
        rows.append(
            (
                title,
                *level,
                what,
                unbroken(score(one)),
                unbroken(score(other)),
                _change(one, other),
                verdict(one, other),
            )
        )
    level = () if main_only else ("Scored",)
    return table(caption, ("Run", *level, "Score", "A", "B", "B less A", "Verdict"), rows)


def verdict(one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    """How far B's score is from A's; the intervals of two runs are no test of their difference."""
    if one is None or other is None:
        return ALONE
    if one["point"] == other["point"] and one.get("ci95") == other.get("ci95"):
        return SAME
    interval = one.get("ci95")
    if not interval or None in interval or other["point"] is None:
        return "no interval"
    return INSIDE if interval[0] <= other["point"] <= interval[1] else OUTSIDE


def params_that_differ(a: Side, b: Side) -> Table:
    """Params of both where they differ; places on a machine and execution settings do not count."""
    return _differing("Params that differ.", "Param", *(flat(public_params(side.params)) for side in (a, b)))


def code_that_differs(a: Side, b: Side) -> Table:
    """Versions of code, Python, machine and packages where they differ."""
    known = [
        {name: side.history.get(name) for name in ("git_sha", "git_dirty", "python", "platform", "device")}
        | side.history.get("packages", {})
        for side in (a, b)
    ]
    return _differing("Code, machine and packages that differ.", "What", *known)


def _differing(caption: str, what: str, one: dict[str, Any], other: dict[str, Any]) -> Table:
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    rows = [(name, one.get(name, "-"), other.get(name, "-")) for name in names]
    return table(caption, (what, "A", "B"), rows)


def _is_main(entry: dict[str, Any]) -> bool:
    if " - " in entry["run"] or entry["level"] != "subject" or entry["metric"] not in SHOWN:
        return False
    return entry.get("class") in (None, "macro")


def _change(one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    if one is None or other is None or one["point"] is None or other["point"] is None:
        return "-"
    return f"{other['point'] - one['point']:+.3f}"


def _warning(a: Side, b: Side) -> str:
    made = "simulated heads" if "phantom" in (a.params.source.kind, b.params.source.kind) else ""
    about = f"Results on {made} say nothing about patients. " if made else ""
    return f"{about}Research only. Two intervals side by side are no test of a difference."
