"""What preprocessing of simulated heads of 2 mm costs with one and several workers, and what many scans would cost.

    python benchmarks/scaling.py [--scans 24] [--workers 2]
    python benchmarks/scaling.py --rows 100000      # instead: audit, splits and evaluation of so many scans

Prints the speed-up (goal: at least 1.8 with two), the peak memory of a worker and its growth from scan to scan (goal:
under 1500 MB, at most 2 MB a scan), and the overhead of handing out a scan (goal: under 2 %). Then it fits

    seconds of a run = start of the workers + seconds of a scan x scans / workers

to all runs, and extrapolates to 10,000 and 100,000 scans. Run it on a computer that does nothing else.

With ``--rows`` the tables of the finished default study are repeated under other names, without images, and processor
seconds and memory of each part are printed; 100 bootstrap resamples.
"""

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from goals import count_missed

from adlib.parallel.mapping import map_scans
from adlib.study.exec_params import Pool

NO_LIMIT = 8192  # MB; with a memory limit one worker is a process of its own, too
WAIT_SECONDS = 0.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=24, help="of the longest run")
    parser.add_argument("--workers", type=int, default=2, help="number compared with one")
    parser.add_argument("--rows", type=int, help="scans of tables without images")
    args = parser.parse_args()
    if args.rows:
        return many_rows(args.rows)
    with tempfile.TemporaryDirectory(prefix="adlib-scaling-") as name:
        scans = simulated(args.scans, Path(name), args.workers)
        scans_of_runs = pd.concat([measured(workers, scans, Path(name)) for workers in (1, args.workers)])
        stored_mb = sum(file.stat().st_size for file in (Path(name) / "out").rglob("*") if file.is_file()) / 2**20
    runs = scans_of_runs.groupby(["workers", "run"], as_index=False).agg(
        scans=("seconds", "size"),
        total=("total", "first"),
        seconds=("seconds", "median"),
        processor=("processor", "median"),
    )
    print(runs.round(2).to_string(index=False))
    last = runs.groupby("workers")["total"].last()
    highest_mb, seconds = scans_of_runs["peak_mb"].max(), scans_of_runs["seconds"].median()
    missed = count_missed(
        ("speed-up", last[1] / last[args.workers], ">=", 1.8),
        ("peak MB", highest_mb, "<=", 1500.0),
        ("MB a scan", max(growth(own["after_mb"]) for _, own in scans_of_runs.groupby("worker")), "<=", 2.0),
        ("overhead", overhead_seconds(args.workers) / seconds, "<=", 0.02),
    )
    forecast(runs, stored_mb / len(scans), highest_mb)
    return int(missed > 0 or scans_of_runs["failed"].any())


def many_rows(count: int) -> int:
    """Audit, split and evaluate the default study's tables, repeated to at least `count` scans."""
    from adlib.audit.run import run_audit
    from adlib.evaluation.evaluate import SOURCES, evaluate_study
    from adlib.phantom.cohort import TRUTH
    from adlib.study.params import load_params
    from adlib.study.records import LISTING, TABLES, read_table, write_table
    from adlib.training.splits import make_splits

    done = load_params("params/phantom.yaml").folder
    with tempfile.TemporaryDirectory(prefix="adlib-rows-") as name:
        params = load_params("params/phantom.yaml", (f"exec.outputs={name}", "evaluate.bootstrap=100"))
        listed = read_table(done / "listing.tsv", LISTING)
        times = -(-count // len(listed))
        for path in (*SOURCES, "source/truth/ceiling.json"):
            (params.folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(done / path, params.folder / path)
        schemas = {table: TABLES[table] for table in ("features.tsv", "splits.tsv", "predictions.parquet")}
        for table, schema in (schemas | {"source/truth/truth.tsv": TRUTH}).items():
            write_table(repeated(read_table(done / table, schema), times), params.folder / table, schema)
        audit = costs("audit", lambda: run_audit(repeated(listed, times), params.classes, params.audit, params.seed))
        costs("splits", lambda: make_splits(audit.manifest, params.splits, params.seed))
        for table, content in (("manifest.tsv", audit.manifest), ("audit.tsv", audit.findings)):
            write_table(content, params.folder / table, TABLES[table])
        costs(f"evaluation of {len(audit.manifest)} scans", lambda: evaluate_study(params))
    return 0


def repeated(table: pd.DataFrame, times: int) -> pd.DataFrame:
    """The rows of a table `times` times, each time with other participants, scans, files and ages."""
    parts = []
    for k in range(times):
        names = {n: table[n] + f"x{k}" for n in ("participant_id", "scan_id", "path", "sha256") if n in table}
        ages = {"age": (table["age"] + k % 7 / 10).round(1)} if "age" in table else {}
        parts.append(table.assign(**names, **ages))
    return pd.concat(parts, ignore_index=True)


def costs(title: str, work: Callable[[], Any]) -> Any:
    """Result of some work; prints its processor seconds and the peak memory of the process so far, MB."""
    start = time.process_time()
    result = work()
    print(f"{title}: {time.process_time() - start:.1f} processor s, at most {peak_mb():.0f} MB", flush=True)
    return result


def peak_mb() -> float:
    """Peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def simulated(count: int, folder: Path, workers: int) -> list[dict[str, Any]]:
    """Rows of a manifest, of heads that are written under `folder`.

    The imports stand here because workers import this script anew, and would hold what preprocessing does not need.
    """
    from adlib.sources.reading import read_source
    from adlib.study.params import load_params

    sets = (f"exec.outputs={folder}", f"source.participants_per_class={-(-count // 4)}", "source.followup_fraction=0")
    listed = read_source(load_params("params/smoke.yaml", (*sets, f"exec.workers={workers}", "source.voxel_mm=2.0")))
    names = ["participant_id", "session_id", "scan_id", "path", "sha256"]
    return listed[names].assign(space=None).head(count).to_dict("records")


def measured(workers: int, scans: list[dict[str, Any]], folder: Path) -> pd.DataFrame:
    """A run that starts the workers, and longer and longer ones with workers that are warm; a row for each scan."""
    tables, pool = [], Pool(workers=workers, memory_mb=NO_LIMIT)
    for run, count in enumerate((workers, max(1, len(scans) // 4), max(1, len(scans) // 2), len(scans))):
        work = partial(timed, derivatives=folder / "out", code=f"{workers}-{run}")
        start = time.perf_counter()
        rows = map_scans(work, scans[:count], pool=pool, label=f"{workers} workers, {count} scans")
        tables.append(pd.DataFrame(rows).assign(workers=workers, run=run, total=time.perf_counter() - start))
    return pd.concat(tables)


def timed(scan: dict[str, Any], derivatives: Path, code: str) -> dict[str, float]:
    """Preprocess one scan; its seconds, also of the processor, and the memory of this process, MB."""
    from adlib.preprocess.cohort_run import preprocess_scan
    from adlib.study.params import PreprocessParams

    start, processor = time.perf_counter(), time.process_time()
    verdict = preprocess_scan(scan, derivatives, PreprocessParams(), code)["verdict"]
    return {
        "worker": os.getpid(),
        "seconds": time.perf_counter() - start,
        "processor": time.process_time() - processor,
        "peak_mb": peak_mb(),
        "after_mb": psutil.Process().memory_info().rss / 2**20,
        "failed": verdict == "fail",
    }


def growth(held_mb: pd.Series) -> float:
    """Slope of what a worker holds after each scan, without the first three, MB a scan."""
    held = held_mb.to_numpy()[3:]
    return float(np.polyfit(np.arange(len(held)), held, 1)[0]) if len(held) > 2 else 0.0


def overhead_seconds(workers: int, count: int = 60) -> float:
    """Seconds that one item costs beside the work: from a map of items that only wait."""
    pool = Pool(workers=workers, memory_mb=NO_LIMIT)
    map_scans(time.sleep, [WAIT_SECONDS] * workers, pool=pool, label="starting")
    start = time.perf_counter()
    map_scans(time.sleep, [WAIT_SECONDS] * count, pool=pool, label="waiting")
    return (time.perf_counter() - start) * workers / count - WAIT_SECONDS


def forecast(runs: pd.DataFrame, stored_mb: float, peak_mb: float) -> None:
    """Fit the cost model, print the residual of each run, and what many scans would take."""
    terms = np.column_stack([runs["run"] == 0, runs["scans"] / runs["workers"]]).astype(float)
    (start, each), *_ = np.linalg.lstsq(terms, runs["total"].to_numpy(), rcond=None)
    residuals = ", ".join(f"{value:+.1f}" for value in runs["total"] - terms @ (start, each))
    print(f"model: {start:.1f} s to start + {each:.2f} s x scans / workers; measured less model, s: {residuals}")
    for count in (10_000, 100_000):
        hours = count * each / 3600
        print(
            f"{count} scans: {hours:.0f} core-hours, {hours / 16 / 24:.2f} days with 16 workers, which take "
            f"{16 * peak_mb / 1024:.0f} GiB of memory; {count * stored_mb / 1024:.0f} GiB of storage"
        )


if __name__ == "__main__":
    sys.exit(main())
