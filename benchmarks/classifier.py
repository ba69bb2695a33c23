"""The classifier of a study on newly simulated heads: its speed, and which heads its input checks refuse.

    python benchmarks/classifier.py speed [--scans 50] [--voxel-mm 1.0]
    python benchmarks/classifier.py checks [--heads 40] [--workers 2]

``speed`` classifies heads in the worker process of the form: seconds by stage, warm-up, memory. ``checks`` classifies
heads like those of training, with T2w contrast, half a brain, and strong motion: share of refused heads by check. The
exit code is 1 if a goal is missed.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import psutil
from goals import count_missed
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from made_head import add_noise, spoil

from adlib.classify.prediction import predict_image
from adlib.classify.stored_results import simulate_scans
from adlib.classify.worker import Worker
from adlib.parallel.mapping import map_scans
from adlib.phantom.cohort import SCANNERS, draw_cohort
from adlib.phantom.head import Subject, image_head
from adlib.study.exec_params import Pool
from adlib.study.params import ClassifyParams, StudyParams, load_params
from adlib.study.records import StudyError
from adlib.training import model_file

SEED = 1_000_003  # differs from that of every study
SETTLED = 5  # scans until memory is stable
IN_RANGE = "as in training"
T2W = {"gm": 0.70, "wm": 0.45, "csf": 1.0, "bone": 0.06, "marrow": 0.5, "scalp": 0.7, "muscle": 0.3, "fluid": 1.0}
FAULTS = {"half a brain": "half brain", "strong motion": "motion"}
KINDS = (IN_RANGE, "T2w contrast", *FAULTS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=("speed", "checks"))
    parser.add_argument("--model", type=Path, default=Path("models/phantom"), help="folder of weights and params.yaml")
    parser.add_argument("--scans", type=int, default=50)
    parser.add_argument("--voxel-mm", type=float, help="default: 1 for speed, that of the study for the checks")
    parser.add_argument("--heads", type=int, default=40, help="of each kind")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    params = load_params(args.model / "params.yaml", (f"seed={SEED}", f"exec.workers={args.workers}"))
    weights = args.model / "model.safetensors"
    return int((measure_speed if args.benchmark == "speed" else measure_checks)(weights, params, args) > 0)


def with_cohort(params: StudyParams, per_class: int, **changed: Any) -> StudyParams:
    changed |= {"participants_per_class": per_class, "followup_fraction": 0.0}
    return params.model_copy(update={"source": params.source.model_copy(update=changed)})


def measure_speed(weights: Path, params: StudyParams, args: argparse.Namespace) -> int:
    """Print seconds by stage, warm-up and memory; return the number of goals missed."""
    with tempfile.TemporaryDirectory() as folder:
        files = simulate_scans(with_cohort(params, 1, voxel_mm=args.voxel_mm or 1.0), Path(folder))["path"].tolist()
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        worker = Worker(weights, ClassifyParams(), home)
        table = pd.DataFrame([timed(worker, files[n % len(files)]) for n in range(args.scans)])
        worker.stop()
    median = table.iloc[1:].median()
    print(pd.DataFrame({"first": table.iloc[0], "median of the others": median}).round(2).to_string())
    warm_up, settled = table["all"].iloc[1] / median["all"], table["memory"].iloc[SETTLED:]
    half = len(settled) // 2
    growth = settled.iloc[half:].median() / settled.iloc[:half].median() - 1
    print(f"{len(table)} scans, memory {settled.max():.0f} MiB at most")
    return count_missed(
        ("median seconds", median["all"], "<=", 15.0),
        ("second scan over the median", warm_up, "<=", 1.5),
        ("growth of memory from the first half of the scans to the second", growth, "<=", 0.05),
    )


def timed(worker: Worker, path: str) -> dict[str, float]:
    """Seconds of each stage and of all, and the memory of the process afterwards, MiB."""
    stages: list[tuple[str, float]] = []
    worker.classify(path, {}, lambda stage: stages.append((stage, time.monotonic())))
    titles, moments = zip(*stages, ("", time.monotonic()), strict=True)
    process = psutil.Process(worker._process.pid)
    memory = sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    row = dict(zip(titles, np.diff(moments), strict=False))
    return row | {"all": moments[-1] - moments[0], "memory": memory / 2**20}


def measure_checks(weights: Path, params: StudyParams, args: argparse.Namespace) -> int:
    """Print the share of refused heads of each kind; return the number of goals missed."""
    cohort = with_cohort(params, -(-args.heads // len(params.classes)))
    people = draw_cohort(cohort.source, params.classes, SEED).head(args.heads).to_dict("records")
    items = [(kind, person) for kind in KINDS for person in people]
    function = partial(refusal, weights=str(weights), voxel_mm=args.voxel_mm or params.source.voxel_mm)
    results = map_scans(function, items, pool=Pool(workers=args.workers), label="simulated heads")
    figures = []
    for kind, rows in pd.DataFrame(results, columns=["kind", "refused", "checks"]).groupby("kind", sort=False):
        interval = stats.binomtest(int(rows["refused"].sum()), len(rows)).proportion_ci(method="wilson")
        checks = ", ".join(f"{name} {times}" for name, times in Counter(rows["checks"].sum()).most_common(4))
        print(f"{kind:16} {len(rows):4d} heads, 95 % interval {interval.low:.1%} to {interval.high:.1%}; {checks}")
        goal = ("<=", 0.05) if kind == IN_RANGE else (">=", 0.95)
        figures.append((f"share refused, {kind}", float(rows["refused"].mean()), *goal))
    return count_missed(*figures)


def refusal(item: tuple[str, dict[str, Any]], weights: str, voxel_mm: float) -> tuple[str, bool, tuple[str, ...]]:
    """Kind of a head, whether it is refused, and the failed checks."""
    kind, person = item
    volume, affine = simulated(kind, person, voxel_mm)
    try:
        prediction = predict_image(nib.Nifti1Image(volume, affine), person["scan_id"], load(weights))
    except StudyError:
        return kind, True, ("preprocessing failed",)
    return kind, prediction.predicted is None, tuple(check.title for check in prediction.checks if check.refusal)


@cache
def load(weights: str) -> model_file.Classifier:
    return model_file.load(weights)


def simulated(kind: str, person: dict[str, Any], voxel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """One head and its affine."""
    scanner = next(scanner for scanner in SCANNERS if scanner.site == person["site"])
    subject = Subject(
        person["severity"], person["brain_age"], np.array(person["to_mni"]), person["shape_seed"], person["scan_seed"]
    )
    if kind in FAULTS:
        rng = np.random.default_rng(person["scan_seed"])
        volume, affine, *_ = image_head(subject, replace(scanner, noise=0.0), voxel_mm)
        spoilt = spoil(volume, affine, FAULTS[kind], float(rng.uniform(0.5, 1)), rng)
        return add_noise(spoilt, scanner.noise, rng), affine
    scanner = scanner if kind == IN_RANGE else replace(scanner, contrast=T2W)
    volume, affine, *_ = image_head(subject, scanner, voxel_mm)
    return volume, affine


if __name__ == "__main__":
    sys.exit(main())
