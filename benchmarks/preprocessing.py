"""The whole preprocessing of adlib at 1 mm against other tools' registration alone, on the same scans in one run.

    python benchmarks/preprocessing.py [--heads 3] [--first 2000] [--workers 2] [--without NAME ...]

The scans are made heads at 1 mm with a known pose and, where ADLIB_REALDATA names their folder, real ones. Each method
runs in a process of its own with one thread; adlib has done one scan before its time is taken, the others have loaded
their libraries and the template. Beside the time by the clock stands processor time, which other work on the machine
hardly moves; the goal is held against it. On real scans there is no truth: a method counts as right where the
template's brain, carried over by its affine, overlaps adlib's brain mask with a Dice of 0.9. That is agreement with
adlib, no proof. The last line holds the figures against the goals, and the exit code is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import peers
from heads import easy, make, pose, pose_error

from adlib.parallel.threads import THREAD_VARIABLES, one_thread

FASTER, MEDIAN_MM, MEGABYTES = 5.0, 0.5, 1000.0
WITHIN_MM, OVERLAP = 2.0, 0.9
ADLIB = "adlib, whole pipeline"
RECIPE = "ANTsPy N4 + SyNQuick[a]"
METHODS = {ADLIB: None, RECIPE: peers.t1_linear, "greedy NMI": peers.greedy, "SimpleITK Mattes": peers.mattes}
REAL = ("t1w_head/t1_crop.nii.gz", "dicom_t1/t1w_dicom.zip", "t1w_cc0/sub-01/anat/sub-01_T1w.nii.gz")


@dataclass
class Measured:
    """What one method did: seconds by the clock and of the processor for each scan, peak memory, poses by scan name."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    poses: dict[str, np.ndarray | None] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--first", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--without", nargs="*", default=[], choices=[m for m in METHODS if m != ADLIB])
    args = parser.parse_args()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    settings = {f"made-{seed}": easy(seed) for seed in range(args.first, args.first + args.heads)}
    with tempfile.TemporaryDirectory(prefix="adlib-preprocessing-") as name:
        folder = Path(name)
        apart(peers.prepare, folder)
        scans = apart(write_scans, folder, settings)
        print("scans:", ", ".join(path.name.removesuffix(".nii.gz") for path in scans), flush=True)
        truths = {name: pose(setting) for name, setting in settings.items()}
        print_heading()
        results = {}
        for method in (method for method in METHODS if method not in args.without):
            package = peers.PACKAGES.get(method)
            if package and importlib.util.find_spec(package) is None:
                print(f"{method:24s} not installed (python -m pip install '.[benchmarks]')")
                continue
            results[method] = apart(measure, method, scans, folder)
            dice = overlaps(results[method], results[ADLIB], folder)
            rate = per_hour(scans, folder, args.workers) if method == ADLIB else None
            print_row(method, results[method], truths, dice, rate)
    return judged(results, truths)


def write_scans(folder: Path, settings: dict) -> list[Path]:
    """The made heads and the real scans as .nii.gz files."""
    from adlib.sources.scanfile import read_scan

    found = []
    for name, setting in settings.items():
        found.append(folder / f"{name}.nii.gz")
        nib.save(make(setting, 1.0).image, found[-1])
    root = Path(os.environ.get("ADLIB_REALDATA") or "/nonexistent")
    for path in (root / name for name in REAL):
        if path.exists():
            found.append(folder / f"real-{path.name.split('.')[0]}.nii.gz")
            nib.save(read_scan(path), found[-1])
    return found


def measure(method: str, scans: list[Path], folder: Path) -> Measured:
    """Time each scan with one thread in this process, and find this process's peak memory."""
    result = Measured()
    with one_thread():
        warm_up(method, scans[0], folder)
        for path in scans:
            name = path.name.removesuffix(".nii.gz")
            clock, processor = time.perf_counter(), time.process_time()
            try:
                result.poses[name] = adlib_pose(path, folder) if method == ADLIB else METHODS[method](path, folder)
            except Exception as error:
                result.poses[name] = None
                result.troubles.append(f"{name}: {str(error).splitlines()[0]}")
            result.clock.append(time.perf_counter() - clock)
            result.processor.append(time.process_time() - processor)
    status = Path("/proc/self/status").read_text()
    result.peak_mb = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return result


def warm_up(method: str, scan: Path, folder: Path) -> None:
    """Load what stays loaded for a cohort."""
    if method == ADLIB:
        adlib_pose(scan, folder)
    elif method == RECIPE:
        peers.ants_template(folder)
    else:
        peers.sitk_template(folder)
        importlib.import_module(peers.PACKAGES[method])


def adlib_pose(path: Path, folder: Path) -> np.ndarray | None:
    """Preprocess one scan to files, as a cohort's run does, and read off where the brain was found."""
    from adlib.preprocess.cohort_run import preprocess_scan
    from adlib.study.params import PreprocessParams

    name = path.name.removesuffix(".nii.gz")
    scan = {"participant_id": f"sub-{name}", "session_id": "ses-01", "scan_id": f"sub-{name}_ses-01_T1w"}
    again = str(time.perf_counter_ns())  # no result is taken from an earlier call
    sidecar = preprocess_scan(scan | {"path": str(path), "sha256": again, "space": None}, folder, PreprocessParams())
    if sidecar["scan_to_mni"] is None:
        raise RuntimeError("; ".join(sidecar["reasons"]))
    return np.linalg.inv(sidecar["scan_to_mni"])


def per_hour(scans: list[Path], folder: Path, workers: int) -> float:
    """Scans an hour with warm one-thread workers at work side by side, each on all the scans."""
    context = multiprocessing.get_context("spawn")
    ready, seconds = context.Barrier(workers), context.Queue()
    pool = [context.Process(target=_steady, args=(scans, folder / f"w{k}", ready, seconds)) for k in range(workers)]
    for process in pool:
        process.start()
    slowest = max(seconds.get() for _ in pool)
    for process in pool:
        process.join()
    return 3600 * workers * len(scans) / slowest


def _steady(scans: list[Path], folder: Path, ready, seconds) -> None:
    with one_thread():
        adlib_pose(scans[0], folder)
        ready.wait()
        start = time.perf_counter()
        for path in scans:
            adlib_pose(path, folder)
        seconds.put(time.perf_counter() - start)


def overlaps(found: Measured, reference: Measured, folder: Path) -> dict[str, float]:
    """Dice of the template's brain, carried over by a method, with adlib's mask, for each real scan."""
    from adlib.imaging.atlas import template
    from adlib.imaging.volume import resample

    base, result = template(2.0), {}
    for name in (name for name in found.poses if name.startswith("real")):
        mask = next(folder.glob(f"sub-{name}/ses-01/anat/*_mask.nii.gz"), None)
        if mask is None or found.poses[name] is None or reference.poses[name] is None:
            result[name] = 0.0
            continue
        image = nib.load(mask)
        world = np.linalg.inv(reference.poses[name]) @ found.poses[name]
        carried = resample(np.asarray(image.dataobj) > 0, image.affine, base.mask.shape, base.affine, world, "nearest")
        result[name] = float(2 * (carried & base.mask).sum() / max(carried.sum() + base.mask.sum(), 1))
    return result


def errors(found: Measured, truths: dict[str, np.ndarray]) -> np.ndarray:
    """Mean distance from the truth over the brain, mm, for each made head; infinite where the method gave up."""
    pairs = [(found.poses[name], truth) for name, truth in truths.items()]
    return np.array([np.inf if got is None else pose_error(np.linalg.inv(got), truth) for got, truth in pairs])


def print_heading() -> None:
    columns = (("s a scan", 9), ("CPU s", 7), ("an hour", 8), ("peak MB", 8), ("median mm", 10), ("made ok", 8))
    print(" " * 24, *(f"{name:>{width}}" for name, width in columns), " real ok")


def print_row(method: str, found: Measured, truths: dict, dice: dict[str, float], rate: float | None) -> None:
    off = errors(found, truths)
    made = f"{int((off <= WITHIN_MM).sum())}/{len(off)}"
    real = f"{sum(value >= OVERLAP for value in dice.values())}/{len(dice)}"
    hour = f"{rate:.0f}" if rate else "-"
    print(
        f"{method:24s} {np.median(found.clock):9.1f} {np.median(found.processor):7.1f} {hour:>8} {found.peak_mb:8.0f} "
        f"{np.median(off):10.2f} {made:>8} {real:>8}",
        flush=True,
    )
    for trouble in found.troubles:
        print(f"    {trouble}")
    listed = [" ".join(f"{value:.2f}" for value in values) for values in (off, dice.values())]
    print(f"    errors mm {listed[0]}; overlaps {listed[1] or '-'}")


def judged(results: dict[str, Measured], truths: dict[str, np.ndarray]) -> int:
    own, median = results[ADLIB], float(np.median(errors(results[ADLIB], truths)))
    ratio = np.nan
    if RECIPE in results:
        ratio = float(np.median(np.array(results[RECIPE].processor) / np.array(own.processor)))
    met = ratio >= FASTER and median <= MEDIAN_MM and own.peak_mb <= MEGABYTES
    verdict = "met" if met else "MISSED"
    print(
        f"adlib's whole pipeline: {ratio:.1f} times as fast as the t1-linear recipe (goal {FASTER:g}), median error "
        f"{median:.2f} mm (goal {MEDIAN_MM:g}), {own.peak_mb:.0f} MB (goal {MEGABYTES:.0f}): {verdict}"
    )
    return 0 if met else 1


def apart(function, *arguments):
    """Call in a fresh process, so that memory and warm-up are the function's own, and return the result."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_answer, args=(send, function, arguments))
    process.start()
    send.close()
    try:
        return receive.recv()
    finally:
        process.join()


def _answer(send, function, arguments) -> None:
    send.send(function(*arguments))


if __name__ == "__main__":
    sys.exit(main())
