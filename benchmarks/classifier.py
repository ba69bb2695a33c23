"""From a file to its answer in the form's own process: seconds by stage, the warm-up, and memory over many scans.

    python benchmarks/classifier.py [--model models/phantom] [--scans 50] [--voxel-mm 1.0]

Simulated whole heads, one of each class and scanner in turn, are classified one after the other as the form does it.
The last line holds the figures against the goals; the exit code is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil

from adlib.classify.widget.jobs import Worker
from adlib.phantom.cohort import draw_cohort, write_cohort
from adlib.study.exec_params import Pool
from adlib.study.params import ClassifyParams, load_params

MEDIAN_S, GROWTH, SEED = 15.0, 0.05, 1_000_003
WARM_UP = 5  # scans until caches and allocator have settled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/phantom"))
    parser.add_argument("--scans", type=int, default=50)
    parser.add_argument("--voxel-mm", type=float, default=1.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        files = heads(args.model, args.voxel_mm, Path(place))
        home = Path(place) / "home"
        home.mkdir(mode=0o700)
        worker = Worker(args.model / "model.safetensors", ClassifyParams(), home)
        table = pd.DataFrame([timed(worker, files[n % len(files)]) for n in range(args.scans)])
        worker.stop()
    return report(table)


def heads(model: Path, voxel_mm: float, place: Path) -> list[Path]:
    """Files of one newly simulated scan of each class."""
    params = load_params(model / "params.yaml")
    changed = {"participants_per_class": 1, "followup_fraction": 0.0, "voxel_mm": voxel_mm}
    source = params.source.model_copy(update=changed)
    root = write_cohort(source, params.classes, SEED, place, pool=Pool(workers=2))
    cohort = draw_cohort(source, params.classes, SEED)
    return [next(root.rglob(f"{name}.nii.gz")) for name in cohort["scan_id"]]


def timed(worker: Worker, path: Path) -> dict[str, float]:
    """Seconds of each stage and of all, and the memory that the process holds afterwards, MiB."""
    began, stages = time.monotonic(), []
    worker.classify(path, {}, lambda stage: stages.append((stage, time.monotonic())))
    ended = time.monotonic()
    ends = [moment for _, moment in stages[1:]] + [ended]
    row = {stage: end - start for (stage, start), end in zip(stages, ends, strict=True)}
    process = psutil.Process(worker._process.pid)
    held = sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    return row | {"all": ended - began, "memory": held / 2**20}


def report(table: pd.DataFrame) -> int:
    """Print seconds by stage and judge them."""
    later = table.iloc[1:]
    print(pd.DataFrame({"first": table.iloc[0], "median of the others": later.median()}).round(2).to_string())
    median, warm = later["all"].median(), table["all"].iloc[1] / later["all"].median()
    settled = table["memory"].iloc[WARM_UP:]
    half = len(settled) // 2
    growth = settled.iloc[half:].median() / settled.iloc[:half].median() - 1
    met = median < MEDIAN_S and warm < 1.5 and growth < GROWTH
    print(
        f"{len(table)} scans: median {median:.1f} s (goal under {MEDIAN_S:.0f}), the second takes {warm:.2f} times the "
        f"median (goal under 1.5); memory {settled.max():.0f} MiB at most, second half {growth:+.1%} against the first "
        f"(goal under {GROWTH:+.0%}): {'met' if met else 'MISSED'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
