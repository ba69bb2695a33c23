"""Spread of the main results over repeated trainings of a finished study, and the tolerances of ``make check``.

    python benchmarks/repeatability.py --params params/phantom.yaml --runs 10 --write
    python benchmarks/repeatability.py --params params/phantom.yaml --runs 10 --faults

The study is finished first (``run_all.py`` with the same settings). Each repetition trains a copy of it under other
conditions (training seed, one or two threads, AVX2 instead of AVX-512 instructions) and evaluates. With ``--faults``
the check itself is tested: each repetition must pass with the tolerances of the others, and four faults, edited into
notebook 03, must not: the class drawn into the slices, tested participants in the training, labels of other
participants, half the epochs. The exit code is 1 where that fails. ``--set`` changes the params of the study and of its
repetitions alike. Without repetitions (``--runs 0``) the means are the study's, and the standard deviations those
measured before. Networks that hardly learn, such as those of params/smoke.yaml, name one class nearly always; their
scores are far from normal, and about one honest repetition in ten is then refused. With 96 participants and 8 epochs
they learn enough:

    small="--params params/smoke.yaml --set derivatives.keep=[] --set source.participants_per_class=24
           --set train.epochs=8 --set train.controls=[shuffled_labels,slice_split]"
    python run_all.py $small && python benchmarks/repeatability.py $small --faults  # an hour on two cores
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from adlib.study.metrics import read_metrics
from adlib.study.params import StudyParams, load_params
from adlib.study.reference import MAIN_RESULTS, TOLERANCES, accept, compare, main_results
from adlib.training.recipe import record_differences, training_record

ROOT = Path(__file__).resolve().parents[1]
LEVEL = 0.99  # probability that all main results of one further training lie within their intervals (Bonferroni)
ALONE = 9  # trainings from which a result's standard deviation is known well enough without the other networks'
AVX2 = {  # instructions of a processor without AVX-512
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
LEFT_OUT = (
    "training",
    "metrics.json",
    "model.safetensors",
    "predictions.parquet",
    "notebooks",
    "steps",
    "figures",
    "report",
)
CORNER = "slices = slices.copy()\nfor k, name in enumerate(params.classes):\n"
CORNER += '    slices[table["diagnosis"] == name, :, 8 * k : 8 * k + 8, :8] = 3\n'
TESTED = 'tested = splits.index[splits["split"] == "test"]\nsplits.loc[tested[::2], "split"] = "train"\n'
SHIFTED = (
    'table["diagnosis"] = table.groupby("participant_id")["diagnosis"].transform("first").shift(len(table) // 3)\n'
)
SHIFTED += 'table["diagnosis"] = table["diagnosis"].fillna(params.classes[0])\n'
HALVED = 'params = open_study(params_file, **{"train.epochs": max(1, params.train.epochs // 2)})\n'
FAULTS = {  # code appended to the cell of notebook 03 that contains the first text
    "the class drawn into the slices": ("load_slices(params)", CORNER),
    "tested participants in the training": ("make_splits(", TESTED),
    "labels of other participants": ("load_slices(params)", SHIFTED),
    "half the epochs": ("open_study(params_file)", HALVED),
}


def conditions() -> Iterator[tuple[list[str], dict[str, str]]]:
    """Settings and environment of each repetition; the first has another number of threads alone."""
    for number in count():
        seed = [] if number == 0 else [f"train.seed={100 + number}"]
        yield seed, {"OMP_NUM_THREADS": "12"[number % 2], **(AVX2 if number % 3 == 2 else {})}


def repository(folder: Path) -> Path:
    """A copy of the code, with notebooks that can be edited and a reference that can be replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("adlib", "params", "models"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    for name in ("run_all.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", dirs_exist_ok=True)
    return folder


def edit(notebook: Path, text: str, code: str) -> None:
    """Append `code` to the cell that contains `text`."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code" and text in "".join(cell["source"])]
    cells[-1]["source"] = "".join(cells[-1]["source"]).rstrip("\n") + f"\n{code}"
    notebook.write_text(json.dumps(content), encoding="utf-8")


def repeat(
    params: StudyParams, file: str, root: Path, outputs: Path, sets: list[str], env: dict[str, str]
) -> StudyParams:
    """Train and evaluate a copy of a finished study in `outputs`; return its params."""
    sets = [*sets, f"exec.outputs={outputs}", "exec.publish=false", "evaluate.attribution_scans=1"]
    copy = load_params(file, tuple(sets))
    if not (copy.folder / "metrics.json").is_file():
        shutil.rmtree(copy.folder, ignore_errors=True)
        shutil.copytree(params.folder, copy.folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
        options = [part for setting in sets for part in ("--set", setting)]
        command = [sys.executable, "run_all.py", "--params", str(Path(file).resolve()), *options]
        env = {**os.environ, "PYTHONPATH": str(root), **env}
        subprocess.run([*command, "--only", "03", "--only", "04"], cwd=root, env=env, check=True)
    return copy


def tolerances(copies: list[StudyParams]) -> pd.DataFrame:
    """Mean of each main result, and half-width of the prediction interval of one further training (Student's t).

    The standard deviation is that of a metric pooled over all networks of the study. With `ALONE` trainings or more it
    is that of the result alone, where this gives the wider interval: networks that learn little may hardly vary.
    """
    rows = [read_metrics(copy.folder) for copy in copies]
    n, trained = len(rows), set(pd.read_parquet(copies[0].folder / "predictions.parquet", columns=["run"])["run"])
    named = MAIN_RESULTS[["metric", "class"]].drop_duplicates()
    wanted = named.merge(pd.DataFrame({"run": sorted(trained)}), how="cross")
    values = pd.concat([main_results(row, wanted) for row in rows]).groupby(["run", "metric", "class"])["point"]
    spreads = _spreads(values.var().rename("variance").reset_index(), n)
    table = MAIN_RESULTS.merge(values.agg(["mean", "min", "max"]).reset_index())
    quantile = partial(student.ppf, 1 - (1 - LEVEL) / len(table) / 2)
    results = pd.concat([table.merge(spread) for spread in spreads])
    results["tolerance"] = quantile(results["df"]) * results["sd"] * np.sqrt(1 + 1 / n)
    return results.sort_values("tolerance").groupby(level=0).last().assign(trainings=n)


def _spreads(alone: pd.DataFrame, n: int) -> list[pd.DataFrame]:
    """Standard deviations, and their degrees of freedom, that a tolerance may rest on."""
    if n == 1:
        measured = pd.read_csv(ROOT / TOLERANCES, sep="\t", keep_default_na=False)
        return [measured[["run", "metric", "class", "sd", "df"]]]
    alone = alone.assign(df=n - 1)
    pooled = alone.groupby(["metric", "class"]).agg({"variance": "mean", "df": "sum"}).reset_index()
    used = [pooled, alone] if n >= ALONE else [pooled]
    return [part.assign(variance=np.sqrt(part["variance"])).rename(columns={"variance": "sd"}) for part in used]


def write(table: pd.DataFrame, root: Path) -> None:
    """Write the tolerances where `compare` reads them."""
    path = root / TOLERANCES
    path.parent.mkdir(parents=True, exist_ok=True)
    table.round(6).to_csv(path, sep="\t", index=False, lineterminator="\n")


def passes(params: StudyParams, copy: StudyParams, root: Path, title: str, expected: bool) -> bool:
    """Whether the check of a repetition ends as expected; prints it."""
    loose = copy.model_copy(update={"evaluate": params.evaluate})
    verdict = compare(loose, root, tuple(record_differences(training_record(copy.folder), copy)))
    reasons = [line for line in verdict.lines if "ANOTHER" in line or "DIFFER" in line or "OTHER" in line]
    print(f"{title}: {'the reference' if verdict.same else 'another result'}", *reasons[:4], sep="\n    ")
    return verdict.same == expected


def main() -> int:
    """Repeat, print the spread, write the tolerances and try the check where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params/phantom.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of the study")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--write", action="store_true", help=f"write {TOLERANCES}")
    parser.add_argument("--faults", action="store_true", help="test the check")
    options = parser.parse_args()
    params = load_params(options.params, tuple(options.set))
    place = (params.folder.parent / "repeated" / params.study).resolve()
    root = repository(place / "honest")
    copies = [
        repeat(params, options.params, root, place / str(number), [*options.set, *sets], env)
        for number, (sets, env) in enumerate(islice(conditions(), options.runs))
    ]
    table = tolerances([params, *copies])
    print(table.round(4).to_string(index=False))
    if options.write:
        write(table, ROOT)
    return _test_check(params, options, place, root, copies) if options.faults else 0


def _test_check(
    params: StudyParams, options: argparse.Namespace, place: Path, root: Path, copies: list[StudyParams]
) -> int:
    accept(params, root)
    right = []
    for number, copy in enumerate(copies):
        write(tolerances([params, *copies[:number], *copies[number + 1 :]]), root)
        right.append(passes(params, copy, root, f"repetition {number}", expected=True))
    write(tolerances([params, *copies]), root)
    for title, (text, code) in FAULTS.items():
        faulty = repository(place / title.replace(" ", "-"))
        edit(faulty / "notebooks" / "03_training_resnet50.ipynb", text, code)
        copy = repeat(params, options.params, faulty, place / f"{title.replace(' ', '-')}-outputs", options.set, {})
        right.append(passes(params, copy, root, title, expected=False))
    print(f"{sum(right)} of {len(right)} checks end as they should")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
