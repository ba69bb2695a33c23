"""Break a study while it runs, for real, and check that its results are the same as those of an undisturbed run.

    python benchmarks/faults.py study [--kills 20]              # kill -9 of run_all.py, of its kernel, of all
    python benchmarks/faults.py workers [--scans 500] [--every 60]   # kill -9 of a worker, again and again
    python benchmarks/faults.py hosts [--set key=value ...]     # two hosts, one of them cut off in the middle

``hosts`` makes two network namespaces on this computer, each with an address of its own, and needs root and iproute2;
``study`` and ``hosts`` run `params/smoke.yaml`. The exit code is 1 where a result differs.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from adlib.parallel.threads import MEMORY_VARIABLES
from adlib.preprocess.cohort_run import preprocess_cohort
from adlib.sources.reading import read_source
from adlib.study.params import StudyParams, load_params
from adlib.study.records import MANIFEST, file_digest, write_table

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "params" / "smoke.yaml"
VICTIMS = ("run_all.py", "its kernel", "everything")
LOST_SECONDS = 12.0  # that a killed run needs to be where it was
ALIKE = 10  # scans prepared again without a fault
CUT_AFTER = 8  # scans
HOSTS = {"adlib-a": "10.77.0.1", "adlib-b": "10.77.0.2"}
FIRST, SECOND = HOSTS
SCHEDULER = f"tcp://{HOSTS[FIRST]}:8786"
START_SECONDS = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("study", "workers", "hosts"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--scans", type=int, default=500)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between kills of a worker")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", dest="sets", action="append", default=[], help="of the study, as for run_all.py")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        done = {"study": killed_study, "workers": killed_workers, "hosts": cut_host}[args.what](args, Path(place))
    print("the same" if done else "NOT the same")
    return int(not done)


def start(outputs: Path, sets: list[str], host: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """The smoke study, as a process with a log beside its outputs."""
    outputs.mkdir(parents=True, exist_ok=True)
    options = [part for one in (f"exec.outputs={outputs}", *sets) for part in ("--set", one)]
    command = [*host, sys.executable, str(ROOT / "run_all.py"), "--params", str(SMOKE), *options]
    with (outputs / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def finished(outputs: Path, sets: list[str], host: tuple[str, ...] = ()) -> float:
    """Run the study to its end; seconds that it took."""
    began = time.monotonic()
    code = start(outputs, sets, host).wait()
    if code:
        raise SystemExit(f"the study ended with {code}:\n{(outputs / 'log.txt').read_text()[-3000:]}")
    return time.monotonic() - began


def metrics(outputs: Path) -> str:
    return file_digest(outputs / "smoke" / "metrics.json")


def killed_study(args: argparse.Namespace, place: Path) -> bool:
    """Kill the study at random instants, spread over its whole length, and let it end."""
    rng, whole, cut = np.random.default_rng(args.seed), place / "whole", place / "cut"
    seconds = finished(whole, args.sets)
    print(f"undisturbed: {seconds:.0f} s")
    killed: Counter[str] = Counter()
    while killed.total() < args.kills:
        process, victim = start(cut, args.sets), str(rng.choice(VICTIMS))
        try:
            process.wait(rng.uniform(0.05, 2 * (seconds / args.kills + LOST_SECONDS)))
        except subprocess.TimeoutExpired:
            kill(process, victim)
            killed[victim] += 1
            print(f"{killed.total():3} killed {victim}", flush=True)
        else:
            break
    finished(cut, args.sets)
    print(f"killed {killed.total()} times of {args.kills}: {dict(killed)}")
    same = metrics(whole) == metrics(cut)
    if killed.total() < args.kills:
        print("the study ended too soon; give more kills or another seed")
    return same and killed.total() == args.kills


def kill(process: subprocess.Popen[bytes], victim: str) -> None:
    """Kill part of a study with SIGKILL, or all where there is no such part, and wait until all of it has ended."""
    children = psutil.Process(process.pid).children(recursive=True)
    kernels = [child for child in children if "ipykernel_launcher" in " ".join(_line(child))]
    targets = dict(zip(VICTIMS, ([process], kernels[:1], [*children, process]), strict=True))[victim]
    for one in targets or [process]:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            one.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(children, timeout=60)


def _line(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def killed_workers(args: argparse.Namespace, place: Path) -> bool:
    """Prepare many scans while a worker is killed again and again; every scan must be done, once, and alike."""
    sets = (f"exec.outputs={place}", f"source.participants_per_class={args.scans // 4}", "source.followup_fraction=0")
    params = load_params(SMOKE, (*sets, "exec.workers=2", *args.sets))
    manifest = write_table(read_source(params), params.folder / "manifest.tsv", MANIFEST)
    began, over, kills = time.monotonic(), threading.Event(), []
    thread = threading.Thread(target=_kill_workers, args=(args, over, kills))
    thread.start()
    try:
        features = preprocess_cohort(manifest, params)
    finally:
        over.set()
        thread.join()
    lost = features["qc_reasons"].str.contains("worker|longer", na=False).sum()
    sidecars = len(list((params.folder / "derivatives").rglob("*desc-preproc_T1w.json")))
    once = features["scan_id"].is_unique and set(features["scan_id"]) == set(manifest["scan_id"])
    print(f"{len(manifest)} scans in {time.monotonic() - began:.0f} s, {len(kills)} workers killed")
    print(f"{len(features)} rows, each scan {'once' if once else 'NOT once'}, {sidecars} sidecars, {lost} lost")
    return once and not lost and sidecars == len(manifest) and bool(kills) and _alike(manifest, features, params, place)


def _kill_workers(args: argparse.Namespace, over: threading.Event, kills: list[int]) -> None:
    rng = np.random.default_rng(args.seed)
    while not over.wait(args.every):
        children = psutil.Process().children(recursive=True)
        workers = [child for child in children if "spawn_main" in " ".join(_line(child))]
        if workers:
            victim = workers[rng.integers(len(workers))]
            with suppress(psutil.NoSuchProcess):
                victim.kill()
                kills.append(victim.pid)


def _alike(manifest: pd.DataFrame, features: pd.DataFrame, params: StudyParams, place: Path) -> bool:
    """Whether some scans give the same values in this process, without a fault."""
    some = manifest.sample(ALIKE, random_state=1)
    undisturbed = params.model_copy(
        update={"exec": params.exec.model_copy(update={"outputs": place / "undisturbed", "workers": 1})}
    )
    again = preprocess_cohort(some, undisturbed).set_index("scan_id")
    stored = features.set_index("scan_id").loc[again.index, again.columns]
    numbers = again.select_dtypes("number").columns
    return bool(np.array_equal(again[numbers], stored[numbers], equal_nan=True))


def cut_host(args: argparse.Namespace, place: Path) -> bool:
    """The study undisturbed on this computer, on two hosts, and on two hosts of which one is cut off."""
    print(f"on this computer: {finished(place / 'alone', args.sets):.0f} s", flush=True)
    same = []
    for name in ("two", "cut"):
        with two_hosts():
            cut = threading.Event()
            if name == "cut":
                threading.Thread(target=_cut, args=(place / name, cut), daemon=True).start()
            sets = [*args.sets, f"exec.scheduler={SCHEDULER}"]
            seconds = finished(place / name, sets, ("ip", "netns", "exec", FIRST))
            same += [metrics(place / name) == metrics(place / "alone"), cut.is_set() == (name == "cut")]
            print(f"on two hosts, one cut off: {cut.is_set()}: {seconds:.0f} s, same metrics: {same[-2]}", flush=True)
    return all(same)


def _cut(outputs: Path, cut: threading.Event) -> None:
    """Take the second host's network away when some scans are done."""
    while len(list((outputs / "smoke" / "derivatives").rglob("*desc-preproc_T1w.json"))) < CUT_AFTER:
        time.sleep(0.2)
    _ip("-n", SECOND, "link", "set", "eth", "down")
    cut.set()


@contextmanager
def two_hosts() -> Iterator[None]:
    """Two network namespaces with a cable between them, a Dask scheduler on the first and a worker on each."""
    dask = [sys.executable, "-m", "dask"]
    lines = {name: [[*dask, "worker", SCHEDULER, "--nthreads", "1", "--no-dashboard"]] for name in HOSTS}
    lines[FIRST].insert(0, [*dask, "scheduler", "--host", HOSTS[FIRST], "--port", "8786", "--no-dashboard"])
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name in HOSTS:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "eth", "netns", FIRST, "type", "veth", "peer", "name", "eth", "netns", SECOND)
        for name, address in HOSTS.items():
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth")
            _ip("-n", name, "link", "set", "eth", "up")
        for host, line in [(name, line) for name in HOSTS for line in lines[name]]:
            command, quiet = ["ip", "netns", "exec", host, *line], subprocess.DEVNULL
            environment = os.environ | settings | MEMORY_VARIABLES
            started.append(
                subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True, stdout=quiet, stderr=quiet)
            )
        time.sleep(START_SECONDS)
        yield
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
