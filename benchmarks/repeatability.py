"""Spread of the main results over repeated trainings of a finished study, and the tolerances of ``make check``.

    python benchmarks/repeatability.py --params params/phantom.yaml --runs 10 --write
    python benchmarks/repeatability.py --params params/phantom.yaml --plant leak|labels|epochs

The study is finished first (``make study``). Each repetition copies it, trains again under other conditions (training seed,
one or two threads, AVX2 instead of AVX-512 instructions) and evaluates. ``--plant`` repeats with one fault, which
``run_all.py --check`` must find.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from adlib.study.params import StudyParams, load_params
from adlib.study.records import MANIFEST, SPLITS, read_table, write_table
from adlib.study.reference import MAIN, main_results, read_scores

ROOT = Path(__file__).resolve().parents[1]
AVX2 = {  # instructions of a processor without AVX-512
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
WANTED = pd.DataFrame(
    [
        ("resnet50", "balanced_accuracy", ""),
        ("resnet50", "roc_auc", "macro"),
        ("resnet50", "roc_auc_binary", ""),
        ("resnet50", "log_loss", ""),
        ("resnet50", "coverage", ""),
        ("resnet50", "share_of_bayes_ceiling", ""),
        ("shuffled_labels", "balanced_accuracy", ""),
        ("background", "balanced_accuracy", ""),
        ("slice_split", "balanced_accuracy", ""),
        ("slice_split", "roc_auc_binary", ""),
    ],
    columns=["run", "metric", "class"],
).assign(level="subject")
LEVEL = 0.995  # of the two-sided prediction interval of one further training


def conditions() -> list[tuple[list[str], dict[str, str]]]:
    """Settings and environment of each repetition; the first differs in the number of threads alone."""
    for number in count():
        seed = [] if number == 0 else [f"train.seed={100 + number}"]
        yield seed, {"OMP_NUM_THREADS": "12"[number % 2], **(AVX2 if number % 3 == 2 else {})}


def repeat(
    params: StudyParams, params_file: str, folder: Path, settings: list[str], env: dict[str, str], plant: str = ""
) -> Path:
    """Train and evaluate a copy of a finished study under `folder`; return the copy's folder."""
    copy = folder / params.study
    if not (copy / "metrics.json").is_file():
        shutil.rmtree(copy, ignore_errors=True)
        left_out = shutil.ignore_patterns(
            "training", "metrics.json", "model.safetensors", "predictions.parquet", "notebooks", "steps"
        )
        shutil.copytree(params.folder, copy, copy_function=os.link, ignore=left_out)
        if plant in FAULTS:
            FAULTS[plant](copy)
        settings = [*settings, f"exec.outputs={folder}", "exec.publish=false", "evaluate.attribution_scans=1"]
        sets = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "run_all.py", "--params", params_file, *sets, "--only", "03", "--only", "04"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, check=True)
    return copy


def leak(copy: Path) -> None:
    """Train on half of the tested participants."""
    splits = read_table(copy / "splits.tsv", SPLITS)
    tested = splits.index[splits["split"] == "test"]
    splits.loc[tested[::2], "split"] = "train"
    (copy / "splits.tsv").unlink()
    write_table(splits, copy / "splits.tsv", SPLITS)


def shifted_labels(copy: Path) -> None:
    """Give each participant the label of the one before."""
    manifest = read_table(copy / "manifest.tsv", MANIFEST)
    first = manifest.groupby("participant_id")["diagnosis"].first()
    shifted = pd.Series(np.roll(first.to_numpy(), 1), first.index)
    (copy / "manifest.tsv").unlink()
    write_table(manifest.assign(diagnosis=manifest["participant_id"].map(shifted)), copy / "manifest.tsv", MANIFEST)


FAULTS = {"leak": leak, "labels": shifted_labels}


def tolerances(values: np.ndarray) -> pd.DataFrame:
    """Mean and tolerance of each main result.

    Parameters
    ----------
    values : (n, m) float64
        Of n repetitions.
    """
    n = len(values)
    width = student.ppf(0.5 + LEVEL / 2, n - 1) * values.std(axis=0, ddof=1) * np.sqrt(1 + 1 / n)
    return WANTED.assign(mean=values.mean(axis=0), tolerance=width, repetitions=n)


def main() -> int:
    """Repeat, print the spread, and write the tolerances where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params/phantom.yaml")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--plant", choices=[*FAULTS, "epochs"], default="")
    parser.add_argument("--write", action="store_true", help=f"write {MAIN}")
    options = parser.parse_args()
    params = load_params(options.params)
    folder = params.folder.parent / "repeated"
    if options.plant:
        halved = [f"train.epochs={max(1, params.train.epochs // 2)}"] if options.plant == "epochs" else []
        print(repeat(params, options.params, folder / options.plant, halved, {}, options.plant))
        return 0
    copies = [params.folder]
    for number, (settings, env) in enumerate(islice(conditions(), options.runs)):
        copies.append(repeat(params, options.params, folder / str(number), settings, env))
    values = np.array([main_results(read_scores(copy), WANTED) for copy in copies])
    table = tolerances(values)
    print(table.assign(least=values.min(axis=0), most=values.max(axis=0)).round(4).to_string(index=False))
    if options.write:
        table.round(6).to_csv(ROOT / MAIN, sep="\t", index=False, lineterminator="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
