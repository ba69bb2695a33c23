"""What preprocessing of simulated heads of 2 mm costs with one and with two workers, and what many scans would cost.

    python benchmarks/scaling.py [--scans 24] [--most 2] [--keep runs.tsv] [--hosts]

With ``--hosts`` it also measures two hosts of a worker each, made of network namespaces on this computer (root only).
Prints the speed-up (goal: at least 1.8 with two), the peak memory of a worker and how it grows from scan to scan (goal:
under 1.5 GB, flat), and what handing out a scan costs beside the scan (goal: under 2 %). Then it fits

    seconds of a run = start of the workers + seconds of a scan x scans / workers

to all runs and says with it what 10,000 and 100,000 scans take. Run it on a computer that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from two_hosts import FIRST, SCHEDULER, inside, two_hosts

from adlib.parallel.mapping import map_scans
from adlib.preprocess.cohort_run import preprocess_scan
from adlib.sources.reading import list_source
from adlib.study.exec_params import Pool
from adlib.study.params import PreprocessParams
from adlib.study.source_params import PhantomSource

CLASSES = ("CN", "MCI", "LMCI", "AD")
FAR = 8192  # a limit that is not met, so that one worker is a process of its own too
WAIT_SECONDS = 0.3
GOALS = {"speed-up": 1.8, "memory": 1500.0, "growth": 2.0, "engine": 0.02}
MANY = (10_000, 100_000)


@dataclass(frozen=True)
class Run:
    """One map: where, workers, scans, whether they were started for it, seconds, and what each scan said."""

    where: str
    workers: int
    scans: int
    cold: bool
    seconds: float
    said: pd.DataFrame


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=24, help="of the longest run")
    parser.add_argument("--most", type=int, default=2, help="workers that are compared with one")
    parser.add_argument("--keep", type=Path, help="table of all runs")
    parser.add_argument("--hosts", action="store_true", help="two hosts, too")
    parser.add_argument("--scheduler", help="measure the two workers of this scheduler, too")
    args = parser.parse_args()
    if args.hosts:
        with two_hosts():
            again = [sys.executable, *(part for part in sys.argv if part != "--hosts"), "--scheduler", SCHEDULER]
            return subprocess.run([*inside(FIRST), *again], check=False).returncode
    pools = [("here", workers, Pool(workers=workers, memory_mb=FAR)) for workers in (1, args.most)]
    pools += [("hosts", 2, Pool(scheduler=args.scheduler))] if args.scheduler else []
    with tempfile.TemporaryDirectory(prefix="adlib-scaling-") as name:
        folder = Path(name)
        scans = simulated(args.scans, folder, args.most)
        runs = [run for pool in pools for run in measured(*pool, scans, folder)]
        stored = sum(file.stat().st_size for file in (folder / "out").rglob("*") if file.is_file())
    waiting = engine_seconds(args.most)
    if args.keep:
        pd.DataFrame([vars(run) for run in runs]).drop(columns="said").to_csv(args.keep, sep="\t", index=False)
    met = [speed_up(runs), memory(runs), engine(waiting, runs)]
    forecast(runs, stored / 2**20 / len(scans))
    return 0 if all(met) else 1


def simulated(count: int, folder: Path, workers: int) -> list[dict[str, Any]]:
    """Rows of a manifest, of heads that are written under `folder`.

    The import stands here because workers import this script anew, and would hold what preprocessing does not need.
    """
    from adlib.phantom import cohort as phantom

    source = PhantomSource(kind="phantom", participants_per_class=-(-count // 4), voxel_mm=2.0, followup_fraction=0.0)
    pool = Pool(workers=workers)
    root = phantom.write_cohort(source, CLASSES, 7, folder / "source", pool=pool)
    listed = list_source(phantom.as_bids(root), root, pool=pool)
    rows = listed[["participant_id", "session_id", "scan_id", "path", "sha256"]].assign(space=None)
    return rows.to_dict("records")[:count]


def measured(where: str, workers: int, pool: Pool, scans: list[dict[str, Any]], folder: Path) -> list[Run]:
    """A run that starts the workers, and longer and longer ones with workers that are warm."""
    import scaling  # by its name, so that workers on other hosts find it

    runs = []
    for number, count in enumerate((workers, max(1, len(scans) // 4), max(1, len(scans) // 2), len(scans))):
        work = partial(scaling.timed, derivatives=folder / "out", code=f"{where}-{workers}-{number}")
        start = time.perf_counter()
        said = map_scans(work, scans[:count], pool=pool, label=f"{workers} workers {where}, {count} scans")
        runs.append(Run(where, workers, count, number == 0, time.perf_counter() - start, pd.DataFrame(said)))
    return runs


def timed(scan: dict[str, Any], derivatives: Path, code: str) -> dict[str, float]:
    """Preprocess one scan; seconds it took, also of the processor, and the memory of this process, MB."""
    start, processor = time.perf_counter(), time.process_time()
    verdict = preprocess_scan(scan, derivatives, PreprocessParams(), code)["verdict"]
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "worker": os.getpid(),
        "seconds": time.perf_counter() - start,
        "processor": time.process_time() - processor,
        "peak_mb": highest,
        "after_mb": psutil.Process().memory_info().rss / 2**20,
        "failed": verdict == "fail",
    }


def engine_seconds(workers: int, count: int = 60) -> float:
    """What one item costs beside the work, seconds: from a map of items that only wait."""
    pool = Pool(workers=workers, memory_mb=FAR)
    map_scans(time.sleep, [WAIT_SECONDS] * workers, pool=pool, label="starting")
    start = time.perf_counter()
    map_scans(time.sleep, [WAIT_SECONDS] * count, pool=pool, label="waiting")
    return (time.perf_counter() - start) * workers / count - WAIT_SECONDS


def speed_up(runs: list[Run]) -> bool:
    """Print scans an hour, and how much faster several workers are on the same scans."""
    titles = ("where", "workers", "scans", "start", "seconds", "s a scan", "of processor", "scans an hour")
    print("\n" + " ".join(f"{title:>13}" for title in titles))
    for run in runs:
        inside, busy = (f"{run.said[name].median():.2f}" for name in ("seconds", "processor"))
        started, rate = "yes" if run.cold else "no", f"{3600 * run.scans / run.seconds:.0f}"
        row = (run.where, run.workers, run.scans, started, f"{run.seconds:.1f}", inside, busy, rate)
        print(" ".join(f"{value:>13}" for value in row))
    one, *others = (max(own, key=lambda run: run.scans) for own in _by_workers(runs).values())
    gained = [one.seconds / most.seconds for most in others]
    failed = int(sum(run.said["failed"].sum() for run in runs))
    print()
    for most, gain in zip(others, gained, strict=True):
        print(f"speed-up of {most.workers} workers, {most.where}: {gain:.2f} (goal: at least {GOALS['speed-up']})")
    print(f"failed: {failed}")
    return min(gained) >= GOALS["speed-up"] and not failed


def _by_workers(runs: list[Run]) -> dict[tuple[str, int], list[Run]]:
    keys = dict.fromkeys((run.where, run.workers) for run in runs)
    return {key: [run for run in runs if (run.where, run.workers) == key] for key in keys}


def memory(runs: list[Run]) -> bool:
    """Print the peak of each worker, and the slope of what it holds after each scan, but for the first three."""
    flat, highest = True, 0.0
    for (where, workers), those in _by_workers(runs).items():
        said = pd.concat([run.said for run in those])
        for number, (_, own) in enumerate(said.groupby("worker", sort=False), start=1):
            held = own["after_mb"].to_numpy()[3:]
            slope = float(np.polyfit(np.arange(len(held)), held, 1)[0]) if len(held) > 2 else float("nan")
            highest, flat = max(highest, own["peak_mb"].max()), flat and not slope > GOALS["growth"]
            print(f"worker {number} of {workers} {where}: peak {own['peak_mb'].max():.0f} MB, {slope:+.2f} MB a scan")
    print(f"goal: under {GOALS['memory']:.0f} MB, and no more than {GOALS['growth']:.0f} MB a scan")
    return flat and highest < GOALS["memory"]


def engine(waiting: float, runs: list[Run]) -> bool:
    """Print what handing out a scan costs, as a share of the scan."""
    share = waiting / pd.concat([run.said for run in runs])["seconds"].median()
    print(f"handing out: {1000 * waiting:.1f} ms a scan, {share:.2%} of it (goal: under {GOALS['engine']:.0%})")
    return share < GOALS["engine"]


def forecast(runs: list[Run], stored_mb: float) -> None:
    """Fit the cost model, print how far each run is from it, and what many scans would take."""
    terms = np.array([[float(run.cold), run.scans / run.workers] for run in runs])
    seconds = np.array([run.seconds for run in runs])
    (start, each), *_ = np.linalg.lstsq(terms, seconds, rcond=None)
    left = seconds - terms @ (start, each)
    print(f"\nmodel: {start:.1f} s to start + {each:.2f} s x scans / workers; measured less model, s:")
    print(
        "  "
        + ", ".join(f"{run.scans}/{run.workers} {run.where}: {rest:+.1f}" for run, rest in zip(runs, left, strict=True))
    )
    print(f"  largest {np.abs(left).max():.1f} s, or {np.abs(left / seconds).max():.0%} of a run")
    peak = max(run.said["peak_mb"].max() for run in runs)
    print(f"\n{'scans':>8} {'core-hours':>11} {'days with 16':>13} {'storage GiB':>11} {'memory of 16, GiB':>17}")
    for count in MANY:
        hours = count * each / 3600
        stored, held = count * stored_mb / 1024, 16 * peak / 1024
        print(f"{count:>8} {hours:>11.1f} {hours / 16 / 24:>13.2f} {stored:>11.1f} {held:>17.1f}")


if __name__ == "__main__":
    sys.exit(main())
