"""Provenance of a study and publication of its figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from adlib.study.params import StudyParams
from adlib.study.records import FIGURES, atomic_path, file_digest, read_json, read_table
from adlib.study.reference import PUBLISHED, accept


def provenance(params: StudyParams, root: Path, *, started: str, finished: str) -> dict[str, Any]:
    """What repeats a run: code, packages, machine, seed, params; and its durations.

    Parameters
    ----------
    params : StudyParams
    root : path
        Root of the repository.
    started, finished : str
        ISO 8601 times.

    Returns
    -------
    dict
        Content of ``provenance.json``.
    """
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
        "packages": _direct_packages(root),
        "seed": params.seed,
        "params": params.model_dump(mode="json"),
        "seconds": {step["step"]: step.get("seconds") for step in steps},
    }


def _direct_packages(root: Path) -> dict[str, str]:
    """Installed versions of the packages that ``pyproject.toml`` names."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in project["dependencies"]]
    return {name: metadata.version(name) for name in names}


def publish(params: StudyParams, root: Path) -> int:
    """Make ``figures/`` hold exactly the figures of this study.

    PNG files there that the study does not register are removed. Reference metrics are written only where there
    are none yet; `reference.accept` replaces them.

    Parameters
    ----------
    params : StudyParams
    root : path
        Root of the repository.

    Returns
    -------
    int
        Number of figures.

    Raises
    ------
    StudyError
        If the study has no table of figures.
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
    if wanted == "cpu":
        return wanted
    import torch

    if wanted in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    if wanted in ("auto", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"
