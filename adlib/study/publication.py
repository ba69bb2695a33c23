"""What a finished study leaves for readers: provenance, the published figures, and the reference metrics."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.study.params import StudyParams
from adlib.study.records import FIGURES, StudyError, atomic_path, file_digest, read_json, read_table, write_json

PUBLISHED = Path("figures")  # relative to the repository root
KEY = ("run", "level", "group", "metric", "class")
IDENTICAL, INSIDE, OUTSIDE = "identical", "inside the reference's 95 % interval", "outside"
UNBOUNDED = "differs; a p value has no interval to lie in"
ADDED, LOST = "not in the reference", "not regenerated"


def provenance(params: StudyParams, root: Path, *, started: str, finished: str) -> dict[str, Any]:
    """All that one needs to know to repeat the run: code, packages, machine, seed, params, durations."""
    steps = [read_json(path) for path in sorted((params.folder / "steps").glob("*.json"))]
    return {
        "study": params.study,
        "started": started,
        "finished": finished,
        "git_sha": _git(root, "rev-parse", "HEAD"),
        "git_dirty": bool(_git(root, "status", "--porcelain", "--", "adlib", "notebooks", "params", "run_all.py")),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": _device(params.exec.device),
        "packages": direct_packages(root),
        "seed": params.seed,
        "params": params.model_dump(mode="json"),
        "seconds": {step["step"]: step.get("seconds") for step in steps},
    }


def direct_packages(root: Path) -> dict[str, str]:
    """Installed versions of the packages that ``pyproject.toml`` names."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in project["dependencies"]]
    return {name: metadata.version(name) for name in names}


def publish(params: StudyParams, root: Path) -> int:
    """Make ``figures/`` hold exactly the figures of this study; return how many.

    PNG files there that the study does not register are removed. Reference metrics are written only where there
    are none yet; `accept` replaces them.
    """
    source, target = params.folder / "figures", root / PUBLISHED
    names = list(read_table(source / "figures.tsv", FIGURES)["name"])
    for path in target.glob("*.png"):
        if path.stem not in names:
            path.unlink()
    for name in [*(f"{name}.png" for name in names), "figures.tsv"]:
        _copy(source / name, target / name)
    if not (target / "metrics.json").exists() and (params.folder / "metrics.json").is_file():
        accept(params, root)
    return len(names)


def accept(params: StudyParams, root: Path) -> None:
    """Make this run's metrics and provenance, without machine paths, the committed reference.

    Raises
    ------
    StudyError
        If the study has no metrics or no provenance yet.
    """
    metrics, history = (read_json(params.folder / name) for name in ("metrics.json", "provenance.json"))
    history["params"].pop("exec", None)
    history["params"]["source"].pop("root", None)
    write_json(metrics, root / PUBLISHED / "metrics.json")
    write_json(history, root / PUBLISHED / "provenance.json")


def compare(params: StudyParams, root: Path) -> pd.DataFrame:
    """Compare this study's metrics with the committed reference.

    Returns
    -------
    DataFrame
        metric, reference, regenerated, verdict (text), one row per (run, level, group, metric, class).

    Raises
    ------
    StudyError
        If one of the two files is missing or they belong to different studies.
    """
    paths = root / PUBLISHED / "metrics.json", params.folder / "metrics.json"
    if not paths[0].is_file():
        raise StudyError(f"there is no reference {paths[0]}; make one with run_all.py --accept")
    if not paths[1].is_file():
        raise StudyError(f"{paths[1]} does not exist; run the study first, then --check")
    reference, regenerated = (read_json(path) for path in paths)
    if reference["study"] != regenerated["study"]:
        raise StudyError(
            f"the reference {paths[0]} is of study {reference['study']!r}, not {regenerated['study']!r}; "
            f"check with the params file of {reference['study']!r}, or replace the reference with --accept"
        )
    old, new = (
        {score_name(entry): entry for entry in [*content["entries"], *content.get("subgroups", [])]}
        for content in (reference, regenerated)
    )
    rows = [
        {
            "metric": name,
            "reference": score(old.get(name)),
            "regenerated": score(new.get(name)),
            "verdict": _verdict(old.get(name), new.get(name)),
        }
        for name in {**old, **new}
    ]
    return pd.DataFrame(rows, columns=["metric", "reference", "regenerated", "verdict"])


def score_name(entry: dict[str, Any]) -> str:
    """What tells a score from all others, in words."""
    return " ".join(str(entry.get(part)) for part in KEY if entry.get(part) is not None)


def score(entry: dict[str, Any] | None, digits: int = 3) -> str:
    """A score with its interval, where it has one: ``0.612 [0.534, 0.690]``; a dash for none."""
    if entry is None or entry["point"] is None:
        return "-"
    interval = entry.get("ci95")
    text = f"{entry['point']:.{digits}f}"
    return text + (f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if _bounds(interval) else "")


def _verdict(reference: dict[str, Any] | None, regenerated: dict[str, Any] | None) -> str:
    if reference is None or regenerated is None:
        return ADDED if reference is None else LOST
    if all(reference.get(part) == regenerated.get(part) for part in ("n", "point", "ci95")):
        return IDENTICAL
    interval, point = reference.get("ci95"), regenerated["point"]
    if str(reference.get("metric")).endswith("_p"):
        return UNBOUNDED
    if _bounds(interval) and point is not None and interval[0] <= point <= interval[1]:
        return INSIDE
    return OUTSIDE


def _bounds(interval: list[float | None] | None) -> bool:
    return bool(interval) and None not in interval


def _copy(source: Path, target: Path) -> None:
    if target.is_file() and file_digest(source) == file_digest(target):
        return
    with atomic_path(target) as temporary:
        temporary.write_bytes(source.read_bytes())


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _device(wanted: str) -> str:
    import torch

    if wanted in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    if wanted in ("auto", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"
