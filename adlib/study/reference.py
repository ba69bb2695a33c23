"""What a study publishes: its figures, its provenance, and the reference results that a rerun is compared with."""

import os
import platform
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adlib.study.metrics import KEY, NETWORK, metrics_table
from adlib.study.params import StudyParams
from adlib.study.records import FIGURES, StudyError, atomic_path, flat, read_json, read_table, write_json

PUBLISHED = Path("figures")  # relative to the repository root
TABLES = PUBLISHED / "reference"
TOLERANCES = PUBLISHED / "main_results.tsv"
MAIN_RESULTS = pd.DataFrame([
    ("resnet50", "balanced_accuracy", ""), ("resnet50", "roc_auc", "macro"), ("resnet50", "roc_auc_binary", ""),
    ("resnet50", "log_loss", ""), ("resnet50", "coverage", ""), ("shuffled_labels", "balanced_accuracy", ""),
    ("background", "balanced_accuracy", ""), ("slice_split", "balanced_accuracy", ""),
    ("slice_split", "roc_auc_binary", ""),
], columns=["run", "metric", "class"])  # fmt: skip
FIXED = {  # table: (columns that name a row, columns left out because they hold paths, digests or sentences)
    "manifest.tsv": (["scan_id"], ["path", "sha256"]),
    "splits.tsv": (["participant_id", "fold"], []),
    "features.tsv": (["scan_id"], ["qc_reasons"]),
    "audit.tsv": (["check", "subject"], ["value", "limit", "meaning"]),
    "flow.tsv": (["step"], []),
    "confounds.tsv": (["column", "measure"], []),
}
ROUNDING = 0.05  # standard deviations of a column; the largest difference between AVX-512 and AVX2 is 0.008
ROUNDING_SCORE = 0.02  # largest difference of a score of a model that is not a network
LOOSE = ("exec", "train.seed")  # params in which honest reruns differ


@dataclass(frozen=True)
class Verdict:
    """Outcome of a comparison.

    Attributes
    ----------
    lines : tuple of str
        What to print, at most 20 lines.
    same : bool
        False where a main result, a table that no training touches, or a setting is another one.
    """

    lines: tuple[str, ...]
    same: bool


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
    are none yet; `accept` replaces them.

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
        with atomic_path(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
    if not (target / "metrics.json").exists() and (params.folder / "metrics.json").is_file():
        accept(params, root)
    return len(names)


def accept(params: StudyParams, root: Path) -> None:
    """Make this run's metrics and provenance the committed reference; of a simulated cohort, its tables, too.

    Parameters
    ----------
    params : StudyParams
    root : path
        Root of the repository.

    Raises
    ------
    StudyError
        If the study has no metrics or no provenance yet.
    """
    metrics, history = (read_json(params.folder / name) for name in ("metrics.json", "provenance.json"))
    history["params"].pop("exec", None)
    for source in (history["params"]["source"], *history["params"]["sources"].values()):
        source.pop("root", None)
    write_json(metrics, root / PUBLISHED / "metrics.json")
    write_json(history, root / PUBLISHED / "provenance.json")
    if params.source.kind == "phantom":
        for name in FIXED:
            if (params.folder / name).is_file():
                _write(_fixed(params.folder / name, name), root / TABLES / name)


def compare(params: StudyParams, root: Path, edited: Sequence[str] = ()) -> Verdict:
    """Compare a study with the reference in ``figures/``.

    Main results lie within the tolerances of ``main_results.tsv``, measured over repeated trainings with other seeds,
    numbers of threads and kinds of processor (``benchmarks/repeatability.py``); without that file, within the 95 %
    interval of the reference. What no training touches (manifest, splits, volumes, audit, scores of the baselines) is
    equal to rounding, and so are the params; the network predicts the held-out participants of the splits with the
    labels of the manifest. All other scores are counted and decide nothing.

    Parameters
    ----------
    params : StudyParams
    root : path
        Repository root.
    edited : sequence of str
        Settings in which the training differs from the params, see `adlib.training.recipe.record_differences`.

    Raises
    ------
    StudyError
        If a file is missing, or reference and study have different names.
    """
    before, now = (_scores(path, params.study) for path in (root / PUBLISHED, params.folder))
    trained = set(pd.read_parquet(params.folder / "predictions.parquet", columns=["run"])["run"])
    parts = [
        *_main_results(_tolerances(root, before), _points(now)),
        *_tables(params.folder, root / TABLES),
        _tested(params.folder),
        _untrained(_points(before), _points(now), trained),
        _settings(root, params, edited),
    ]
    lines = [*(line for line, _ in parts), _rest(_points(before), _points(now), trained)]
    if not (root / TOLERANCES).is_file():
        lines.append(f"tolerances are intervals of the reference, as {TOLERANCES} does not exist")
    return Verdict(tuple(lines), all(same for _, same in parts))


def main_results(metrics: pd.DataFrame, wanted: pd.DataFrame = MAIN_RESULTS) -> pd.DataFrame:
    """Rows of the main results in a table of metrics.

    Parameters
    ----------
    metrics : DataFrame
        See `adlib.study.metrics.metrics_table`.
    wanted : DataFrame
        run, metric and class (text; empty where there is none), at the level of participants.

    Returns
    -------
    DataFrame
        Rows of `wanted` that were measured, with point, low, high and n.
    """
    return wanted.assign(level="subject", group="").merge(metrics, on=list(KEY))


def _tolerances(root: Path, reference: pd.DataFrame) -> pd.DataFrame:
    if (root / TOLERANCES).is_file():
        return pd.read_csv(root / TOLERANCES, sep="\t", keep_default_na=False)
    rows = main_results(reference)
    width = np.maximum(rows["high"] - rows["point"], rows["point"] - rows["low"])
    return rows.assign(mean=rows["point"], tolerance=width)


def _points(metrics: pd.DataFrame) -> pd.Series:
    return metrics.set_index(list(KEY))["point"]


def _scores(folder: Path, study: str) -> pd.DataFrame:
    path = folder / "metrics.json"
    if not path.is_file():
        remedy = "make one with run_all.py --accept" if folder.name == PUBLISHED.name else "run the study, then --check"
        raise StudyError(f"{path} does not exist; {remedy}")
    content = read_json(path)
    if content["study"] != study:
        raise StudyError(
            f"the reference {path} is of study {content['study']!r}, not {study!r}; check with the params file of "
            f"{content['study']!r}, or replace the reference with --accept"
        )
    return metrics_table(content)


def _main_results(main: pd.DataFrame, now: pd.Series) -> Iterator[tuple[str, bool]]:
    for row in main.to_dict("records"):
        value = now.get((row["run"], "subject", "", row["metric"], row["class"]), np.nan)
        same = bool(abs(value - row["mean"]) <= row["tolerance"])
        title = " ".join(filter(None, (row["run"], row["metric"], row["class"]))).replace("_", " ")
        line = f"{title:<52} {value:6.3f}   reference {row['mean']:6.3f} ± {row['tolerance']:.3f}"
        yield f"{line}   {'same' if same else 'ANOTHER RESULT'}", same


def _tables(folder: Path, reference: Path) -> Iterator[tuple[str, bool]]:
    for name in FIXED:
        if (reference / name).is_file():
            difference = _difference(_read(reference / name), _fixed(folder / name, name), FIXED[name][0])
            yield f"{name:<52} {difference or 'equal to rounding'}", not difference


def _tested(folder: Path) -> tuple[str, bool]:
    """Whether the network predicted the held-out participants of the splits, with the labels of the manifest."""
    predictions = pd.read_parquet(folder / "predictions.parquet")
    names = ["fold", "split", "participant_id"]
    predicted = predictions.loc[predictions["run"] == NETWORK, [*names, "scan_id", "truth"]].drop_duplicates()
    labels = _read(folder / "manifest.tsv").set_index("scan_id")["diagnosis"].reindex(predicted["scan_id"])
    other = set(predicted.loc[predicted["truth"].to_numpy() != labels.to_numpy(), "participant_id"])
    splits = _read(folder / "splits.tsv")
    if "member" in splits:
        splits["split"] = splits["split"].mask(splits["member"].notna(), "validation")
    held_out = splits.query("split != 'train'")[names]
    rows = predicted[names].drop_duplicates().merge(held_out, how="outer", indicator="where")
    other |= set(rows.loc[rows["where"] != "both", "participant_id"])
    title = f"{'held-out participants and their labels':<52}"
    if other:
        return f"{title} DIFFER from splits.tsv and manifest.tsv in {len(other)} participants", False
    return f"{title} equal to splits.tsv and manifest.tsv", True


def _difference(before: pd.DataFrame, now: pd.DataFrame, key: list[str]) -> str:
    """What differs between two tables, in words; empty where nothing does."""
    if list(before.columns) != list(now.columns):
        return f"OTHER COLUMNS: {', '.join(sorted(set(before.columns) ^ set(now.columns)))}"
    key = [name for name in key if name in before.columns] or list(before.columns)
    before, now = (table.sort_values(key).reset_index(drop=True) for table in (before, now))
    if not before[key].equals(now[key]):
        return f"OTHER ROWS: {len(now)} here, {len(before)} in the reference"
    for name in before.columns.difference(key):
        old, new = before[name], now[name]
        if (old.isna() != new.isna()).any():
            return f"DIFFERS in {name}: empty in other rows"
        if pd.api.types.is_numeric_dtype(old) and pd.api.types.is_numeric_dtype(new):
            wrong = (old - new).abs() > ROUNDING * float(np.nan_to_num(old.std())) + 1e-9
        else:
            wrong = (old != new) & old.notna()
        if wrong.any():
            return f"DIFFERS in {name}: {int(wrong.sum())} of {len(now)} rows"
    return ""


def _untrained(before: pd.Series, now: pd.Series, trained: set[str]) -> tuple[str, bool]:
    old, new = (scores[~_of_networks(scores, trained)] for scores in (before, now))
    title = f"{f'{len(old)} scores without a network':<52}"
    if set(old.index) != set(new.index):
        return f"{title} OTHER SCORES: {len(set(old.index) ^ set(new.index))} are in one of the two", False
    new = new.reindex(old.index)
    largest = float((old - new).abs().max()) if len(old) else 0.0
    same = largest <= ROUNDING_SCORE and old.isna().equals(new.isna())
    return f"{title} {'equal to rounding' if same else 'DIFFER'}, largest difference {largest:.4f}", same


def _rest(before: pd.Series, now: pd.Series, trained: set[str]) -> str:
    old = before[_of_networks(before, trained)].dropna()
    difference = (old - now.reindex(old.index)).abs()
    return (
        f"for information: of {len(old)} scores of networks {int((difference == 0).sum())} are identical; median "
        f"difference {float(difference.median()):.3f}"
    )


def _of_networks(scores: pd.Series, trained: set[str]) -> np.ndarray:
    """Whether each score is of a trained run, or of a difference with one."""
    return np.array([not trained.isdisjoint(str(run).split(" - ")) for run in scores.index.get_level_values("run")])


def _settings(root: Path, params: StudyParams, edited: Sequence[str]) -> tuple[str, bool]:
    old = flat(read_json(root / PUBLISHED / "provenance.json")["params"])
    new = flat(params.model_dump(mode="json"))
    names = [name for name in new if not name.startswith(LOOSE) and name in old and old[name] != new[name]]
    title = f"{'params and what was trained':<52}"
    if edited:
        return f"{title} the training DIFFERS from the params in {', '.join(edited)}", False
    return (f"{title} DIFFER in {', '.join(names)}", False) if names else (f"{title} equal", True)


def _fixed(path: Path, name: str) -> pd.DataFrame:
    return _read(path).drop(columns=FIXED[name][1], errors="ignore") if path.is_file() else pd.DataFrame()


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", keep_default_na=False, na_values=["n/a", ""])


def _write(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, na_rep="n/a", lineterminator="\n", float_format="%.6g")


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
