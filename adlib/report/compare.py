"""Two finished studies side by side: scores with intervals, params that differ, packages that differ."""

from pathlib import Path
from typing import Any

import pandas as pd

from adlib.report.content import PARTS, Study, read_study
from adlib.report.tables import LEVELS, Table, bounded, metric_title, moment, public_params, table, written
from adlib.report.text import render
from adlib.study.metrics import KEY, run_of
from adlib.study.params import load_params
from adlib.study.records import StudyError, flat, write_text

PAGE = "compare.html"
SHOWN = ("balanced_accuracy", "roc_auc", "roc_auc_binary", "brier", "calibration_error")
SAME, INSIDE, OUTSIDE, ALONE = "same", "B inside A's interval", "B outside A's interval", "in one study only"


def read_side(folder: Path) -> Study:
    """Read a finished study's folder.

    Parameters
    ----------
    folder : path
        ``outputs/<study>``.

    Returns
    -------
    Study

    Raises
    ------
    StudyError
        If it is not the folder of a finished study.
    """
    if not (folder / "params.yaml").is_file():
        raise StudyError(f"--compare: {folder} has no params.yaml; give the folder of a finished study")
    return read_study(load_params(folder / "params.yaml"), folder)


def compare(first: Path, second: Path, outputs: Path) -> tuple[Path, str]:
    """Write ``compare.html`` with the comparison of two finished studies.

    Parameters
    ----------
    first, second : path
        Folders of the studies, A and B.
    outputs : path
        Folder that receives the page.

    Returns
    -------
    path : Path
        Of the page.
    screen : str
        Main scores and differing settings as text for the terminal.

    Raises
    ------
    StudyError
        If one of the folders is not that of a finished study.
    """
    a, b = read_side(first), read_side(second)
    finished = {"A": (a, moment(a.provenance.get("finished"))), "B": (b, moment(b.provenance.get("finished")))}
    titles = {name: f"{side.params.study}, finished {when}" for name, (side, when) in finished.items()}
    main = scores(a, b, "Main scores of test participants.", main_only=True)
    settings = _differing("Settings that differ.", "Setting", _settings(a), _settings(b))
    page = render(
        "compare.html.j2",
        title=f"Two runs side by side: {a.params.study} and {b.params.study}",
        simulated=a.simulated or b.simulated,
        sides=titles,
        edited={name: "; ".join(texts) for name, texts in (("A", a.differences), ("B", b.differences)) if texts},
        main_scores=main,
        all_scores=scores(a, b, "All scores."),
        params=settings,
        code=_differing("Code, machine and packages that differ.", "Item", _versions(a), _versions(b)),
    )
    sides = "\n".join(f"{name}  {titles[name]}  ({folder})" for name, folder in (("A", first), ("B", second)))
    screen = "\n".join([sides, _columns([main.header, *main.rows]), _columns([settings.header, *settings.rows])])
    return write_text(page, outputs / PAGE), screen


def _settings(side: Study) -> dict[str, Any]:
    """Params with the settings that the training used, and network, loss, optimizer and augmentation."""
    parts = {part: side.record[part] for part in PARTS if part in side.record}
    described = {part: " ".join([of["name"], of.get("sha256", "")[:12]]).strip() for part, of in parts.items()}
    return flat(public_params(side.params)) | described


def _versions(side: Study) -> dict[str, Any]:
    """Versions of code, Python, machine and packages."""
    names = ("git_sha", "git_dirty", "python", "platform", "device")
    return {name: side.provenance.get(name) for name in names} | side.provenance.get("packages", {})


def scores(a: Study, b: Study, caption: str, *, main_only: bool = False) -> Table:
    """Scores of both studies with their difference and its verdict.

    Parameters
    ----------
    a, b : Study
    caption : str
    main_only : bool
        Only `SHOWN` scores of participants, and no column for the level.

    Returns
    -------
    Table
        Columns Run, Level, Score, A, B, B minus A and Verdict.
    """
    rows = []
    stored = [study.scores.query("group == ''").set_index(list(KEY), drop=False) for study in (a, b)]
    for name in dict.fromkeys([*stored[0].index, *stored[1].index]):
        run, level, _, metric, label = name
        is_main = " - " not in run and level == "subject" and metric in SHOWN and label in ("", "macro")
        if main_only and not is_main:
            continue
        left, right = (side.loc[name] if name in side.index else None for side in stored)
        title = " minus ".join(run_of(part).title for part in run.split(" - "))
        change = "-" if left is None or right is None else f"{right['point'] - left['point']:+.3f}"
        cells = written(left, 3), written(right, 3), change.replace("+nan", "-"), verdict(left, right)
        levels = () if main_only else (LEVELS.get(level, level).lower(),)
        rows.append((title, *levels, metric_title(metric, label), *cells))
    header = ("Run", *(() if main_only else ("Level",)), "Score", "A", "B", "B minus A", "Verdict")
    return table(caption, header, rows)


def verdict(left: pd.Series | None, right: pd.Series | None) -> str:
    """Position of B's score relative to A's interval; the intervals of two runs are no test of their difference.

    Parameters
    ----------
    left, right : Series or None
        Rows point, low and high of A and B; None where the study lacks the score.

    Returns
    -------
    str
        `SAME`, `INSIDE`, `OUTSIDE`, `ALONE` or ``no interval``.
    """
    if left is None or right is None:
        return ALONE
    numbers = ["point", "low", "high"]
    if left[numbers].equals(right[numbers]):
        return SAME
    if not bounded(left) or pd.isna(right["point"]):
        return "no interval"
    return INSIDE if left["low"] <= right["point"] <= left["high"] else OUTSIDE


def _differing(caption: str, item: str, left: dict[str, Any], right: dict[str, Any]) -> Table:
    names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    rows = [(name, left.get(name, "-"), right.get(name, "-")) for name in names]
    return table(caption, (item, "A", "B"), rows)


def _columns(rows: list[tuple[str, ...]]) -> str:
    """Rows as lines of aligned columns, for a screen."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
