"""Workers that run elsewhere: same results, checked before they get work, and no hang when they are gone."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_mapping import die_once, fail_on_two, hang_on_one, lost, matrix_product
from throwaway import soon

from adlib.parallel import cluster as cluster_module
from adlib.parallel.cluster import close_clusters
from adlib.parallel.mapping import map_scans
from adlib.study.exec_params import HERE, JobQueueParams, Pool
from adlib.study.records import StudyError

ROOT = Path(__file__).parents[2]
TESTS = [str(ROOT / "tests"), str(ROOT / "tests" / "parallel")]  # of the functions that workers import
pytestmark = pytest.mark.studies


class Elsewhere:
    """A scheduler and its workers, started as one starts them on other computers."""

    def __init__(self, folder: Path) -> None:
        self.started: list[subprocess.Popen] = []
        self.file = folder / "scheduler.txt"
        settings = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--idle-timeout", "120s"]
        self.scheduler = self.start("scheduler", *settings, log=self.file.open("w"))
        assert soon(lambda: "Scheduler at:" in self.file.read_text(), seconds=60), self.file.read_text()
        self.address = self.file.read_text().split("Scheduler at:")[1].split()[0]

    def work(self, code: Path = ROOT, inside: tuple[str, ...] = ()) -> None:
        settings = ["--nthreads", "1", "--nworkers", "2", "--no-dashboard", "--death-timeout", "30"]
        self.start("worker", self.address, *settings, code=code, inside=inside)

    def start(self, *arguments, code: Path = ROOT, log=subprocess.DEVNULL, inside=()) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(code), *TESTS])}
        environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "0"
        command = [*inside, sys.executable, "-m", "dask", *arguments]
        self.started.append(
            subprocess.Popen(command, cwd=code, env=environment, stdout=log, stderr=log, start_new_session=True)
        )
        return self.started[-1]

    def end(self) -> None:
        close_clusters()
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    place = Elsewhere(tmp_path_factory.mktemp("scheduler"))
    place.work()
    yield place
    place.end()


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """Workers of a busy computer may take minutes to start."""
    monkeypatch.setattr(cluster_module, "PATIENCE_SECONDS", 300)


def test_scheduler_never_changes_a_result(elsewhere, tmp_path):
    alone = map_scans(matrix_product, range(6), pool=HERE, label="products")
    there = map_scans(
        matrix_product, range(6), pool=Pool(scheduler=elsewhere.address, outputs=tmp_path), label="products"
    )
    assert all(np.array_equal(*pair) for pair in zip(alone, there, strict=True))
    assert not list(tmp_path.iterdir())


def test_faults_elsewhere_cost_the_item_at_fault(elsewhere, tmp_path):
    pool = Pool(scheduler=elsewhere.address, scan_timeout_s=8, retries=1, outputs=tmp_path / "study")
    items = [(index, tmp_path) for index in range(10)]
    assert map_scans(die_once, items, pool=pool, label="reading") == list(range(10))
    found = map_scans(hang_on_one, range(4), pool=pool, label="reading", lost=lost)
    assert found == [0, ("lost", 1, "it took longer than exec.scan_timeout_s, 8 seconds"), 2, 3]
    with pytest.raises(ValueError, match="unreadable header") as caught:
        map_scans(fail_on_two, range(4), pool=pool, label="reading")
    assert "while reading: 2" in caught.value.__notes__


def test_workers_with_other_code_are_refused(tmp_path):
    place = Elsewhere(tmp_path)
    try:
        shutil.copytree(ROOT / "adlib", tmp_path / "other" / "adlib", ignore=shutil.ignore_patterns("__pycache__"))
        with (tmp_path / "other" / "adlib" / "imaging" / "volume.py").open("a") as module:
            module.write("CHANGED = True\n")
        place.work(code=tmp_path / "other")
        with pytest.raises(StudyError, match=r"worker tcp://.* has adlib code .*, this process has .*installation"):
            map_scans(double, range(4), pool=Pool(scheduler=place.address, outputs=tmp_path), label="doubling")
    finally:
        place.end()


def test_workers_without_the_shared_disk_are_refused(tmp_path):
    data = tmp_path / "data"
    (data / "sub-01").mkdir(parents=True)
    empty = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(data))
    if subprocess.run([*empty, "true"], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    place = Elsewhere(tmp_path)
    try:
        place.work(inside=empty)
        pool = Pool(scheduler=place.address, outputs=tmp_path / "study", data=(data,))
        with pytest.raises(StudyError, match=rf"worker tcp://.* does not see {data} as this process does; put study"):
            map_scans(double, range(4), pool=pool, label="doubling")
    finally:
        place.end()


def test_cluster_that_disappears_ends_the_map(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 2)
    monkeypatch.setattr(cluster_module, "PATIENCE_SECONDS", 2)
    place = Elsewhere(tmp_path)
    pool = Pool(scheduler=place.address, outputs=tmp_path)
    try:
        with pytest.raises(StudyError, match=r"doubling: the workers of tcp://.* are gone \(no worker for 2 seconds\)"):
            map_scans(double, range(4), pool=pool, label="doubling")
        place.work()
        monkeypatch.setattr(cluster_module, "PATIENCE_SECONDS", 300)
        with pytest.raises(StudyError, match=r"killing: the workers of tcp://.* are gone \(.*\) with . of 4 done"):
            map_scans(kill_on_two, [(index, place.scheduler.pid) for index in range(4)], pool=pool, label="killing")
        with pytest.raises(StudyError, match="no Dask scheduler answers at tcp://"):
            map_scans(double, range(4), pool=pool, label="doubling")
    finally:
        place.end()


def double(index):
    return 2 * index


def kill_on_two(item):
    index, pid = item
    if index == 2:
        os.kill(pid, signal.SIGKILL)
    return double(index)


SBATCH = """#!/bin/sh
cp "$1" {folder}/script
setsid sh {folder}/script > {folder}/job.txt 2>&1 &
echo $! >> {folder}/jobs
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
for job in "$@"; do kill -- "-$job"; done
"""


def test_batch_jobs_work_and_are_cancelled(tmp_path, monkeypatch):
    """The batch system is a stand-in that runs each job script here; scripts, workers and results are real."""
    pytest.importorskip("dask_jobqueue")
    for name, text in {"sbatch": SBATCH, "scancel": SCANCEL}.items():
        (tmp_path / name).write_text(text.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *TESTS]))
    jobs = JobQueueParams(
        kind="slurm", queue="short", cores=2, memory="4GB", interface="lo", directives=("--account=lab",)
    )
    try:
        assert map_scans(double, range(40), pool=Pool(jobqueue=jobs, outputs=tmp_path), label="doubling") == list(
            range(0, 80, 2)
        )
    finally:
        close_clusters()
    pids = [int(pid) for pid in (tmp_path / "jobs").read_text().split()]
    assert pids and soon(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), seconds=10)
