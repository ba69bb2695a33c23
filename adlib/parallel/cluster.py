"""The Dask workers that scans are sent to: of this computer, of a batch system, or of a scheduler that runs already."""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from functools import lru_cache
from http import HTTPStatus
from multiprocessing import current_process
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import dask
from distributed import Client, Future, LocalCluster, Security
from tqdm import tqdm

from adlib.parallel.admission import admitted
from adlib.parallel.task import leave_interrupts_to_the_parent
from adlib.parallel.threads import MEMORY_VARIABLES, THREAD_VARIABLES
from adlib.study.exec_params import JobQueueParams, Pool
from adlib.study.records import DASHBOARD, StudyError

CONNECT_SECONDS = 30
FETCH_SECONDS = 0.5
DASHBOARD_SECONDS = 5
PATIENCE_SECONDS = 60.0  # how long a cluster may be without any worker
START_SECONDS = 300.0  # the same on this computer, which may be too busy to start one sooner
IDLE_SECONDS = 30.0  # how long workers are kept for the next map
MEMORY_EVENTS = "worker-restart-memory"
AWAY = (OSError, asyncio.TimeoutError)
UNGUARDED = (
    "Workers import the script that starts them: in a script of your own, keep what calls adlib under "
    "`if __name__ == '__main__':`, or use one process (exec.workers: 1)"
)
_SETTINGS = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 1.0,
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.work-stealing": False,
    "distributed.admin.tick.limit": "1h",
}
_ENVIRONMENT = dict.fromkeys(THREAD_VARIABLES, "1") | MEMORY_VARIABLES
_SETTINGS |= {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in _ENVIRONMENT.items()}

_KEEP_ON = "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False"


class Gone(Exception):
    """The scheduler does not answer any more, or has no workers left."""


class Cluster:
    """A connection to workers, checked before they get work.

    Parameters
    ----------
    pool : Pool
    workers : int
        How many to start, where they are processes of this computer.

    Raises
    ------
    StudyError
        If no scheduler answers, or dask-jobqueue is wanted and missing.
    """

    def __init__(self, pool: Pool, workers: int) -> None:
        self.pool = pool
        self.size = float("inf") if pool.elsewhere else workers
        self._admitted: set[str] = set()
        self._ending: set[str] = set()
        self._started: Any = None
        with dask.config.set(_SETTINGS):
            if pool.jobqueue.kind:
                self._started = _batch(pool.jobqueue, pool.folder)
            elif not pool.scheduler:
                self._started = _local(pool, workers)
        try:
            self.client = Client(self._started or pool.scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except AWAY as error:
            raise StudyError(
                f"no Dask scheduler answers at {pool.scheduler} ({error}); start `dask scheduler` there, "
                f"or set exec.scheduler to its address"
            ) from None
        if _is_page(link := self.client.dashboard_link):
            tqdm.write(f"{DASHBOARD} {link}", file=sys.stderr)

    @property
    def where(self) -> str:
        """The cluster in words."""
        return self.pool.scheduler or self.pool.jobqueue.kind or "this computer"

    @property
    def patience_s(self) -> float:
        """How long there may be no worker; jobs may wait in their queue as long as they must."""
        if self.pool.jobqueue.kind:
            return float("inf")
        return PATIENCE_SECONDS if self.pool.elsewhere else START_SECONDS

    def workers(self) -> set[str]:
        """Addresses of the workers that may be given work now.

        Raises
        ------
        Gone
        StudyError
            If a worker has other code or other packages than this process, or does not see the study's folder and data.
        """
        with _answering():
            present = set(self.client.nthreads(callback_timeout=CONNECT_SECONDS))
            if not self.pool.elsewhere and len(present) < self.size:
                self._started.scale(self.size)  # Dask gives up for good on a worker that restarts slowly
            if new := present - self._admitted:
                self._admitted |= self._admit(new)
        self._ending &= present
        return (present & self._admitted) - self._ending

    def _admit(self, new: set[str]) -> set[str]:
        if self.pool.elsewhere:
            return admitted(self.client, new, self.pool)
        ready = self.client.run(leave_interrupts_to_the_parent, workers=list(new), on_error="return")
        return {address for address, answer in ready.items() if answer is True}

    def fetch(self, future: Future) -> Any:
        """Result of a finished task; None where its worker does not send it at once."""
        if future.status == "error":
            return future.result()
        with _answering():
            try:
                return future.result(timeout=FETCH_SECONDS)
            except TimeoutError:
                return None

    def restart(self, address: str) -> None:
        """Have a worker killed and started anew, without waiting for it; it gets no more work."""
        self._ending.add(address)

        def work() -> None:
            with suppress(Exception):  # a worker that cannot be restarted is not seen again, or times out again
                self.client.restart_workers([address], timeout=CONNECT_SECONDS, raise_for_error=False)

        threading.Thread(target=work, daemon=True).start()

    def outgrew(self, address: str) -> bool:
        """Whether a worker was stopped for its memory."""
        with _answering():
            events = self.client.get_events(MEMORY_EVENTS)
        return any(event.get("worker") == address for _, event in events)

    def close(self) -> None:
        """Leave the scheduler, and end what was started here."""
        for part in (self.client, self._started):
            if part is not None:
                with suppress(Exception):
                    part.close()


_OPEN: list[Cluster] = []
_LOCK = threading.RLock()
_IDLE: list[threading.Timer] = []


@contextmanager
def cluster_for(pool: Pool, workers: int) -> Iterator[Cluster]:
    """Lend the cluster of a pool, started or left over from the last map.

    It is closed when nothing was asked of it for a while, when another one is asked for, after an error, and at exit.

    Parameters
    ----------
    pool : Pool
    workers : int
        How many the work can keep busy.
    """
    with _LOCK:
        while _IDLE:
            _IDLE.pop().cancel()
        if _OPEN and (_OPEN[0].pool != pool or _OPEN[0].size < workers):
            close_clusters()
        if not _OPEN:
            _OPEN.append(Cluster(pool, workers))
        try:
            yield _OPEN[0]
        except BaseException:
            close_clusters()
            raise
        timer = threading.Timer(IDLE_SECONDS, _close_idle)
        timer.daemon = True
        _IDLE.append(timer)
        timer.start()


@atexit.register
def close_clusters() -> None:
    """End the workers that were kept for another map."""
    with _LOCK:
        while _OPEN:
            _OPEN.pop().close()


def _close_idle() -> None:
    with _LOCK:
        if threading.current_thread() in _IDLE:
            close_clusters()


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except CancelledError:
        raise Gone("the connection to the scheduler is lost") from None
    except AWAY as error:
        raise Gone(str(error) or "the scheduler does not answer") from None


@lru_cache(maxsize=1)
def _certificate() -> Security:
    """Keys of this process: who does not have them can neither send work nor see any."""
    return Security.temporary()


def _is_page(link: str) -> bool:
    """Whether a dashboard answers there: Dask names an address also where bokeh is missing or none is wanted."""
    try:
        with urlopen(link, timeout=DASHBOARD_SECONDS) as page:  # noqa: S310
            return page.status == HTTPStatus.OK
    except (OSError, ValueError):
        return False


def _local(pool: Pool, workers: int) -> LocalCluster:
    if getattr(current_process(), "_inheriting", False):  # a worker that is still importing the script that started it
        raise StudyError(UNGUARDED)
    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="tls://127.0.0.1",
            security=_certificate(),  # other users of this computer cannot send work
            dashboard_address="127.0.0.1:0",
            memory_limit=pool.memory_mb * 2**20,
            silence_logs=logging.CRITICAL,
        )
    except RuntimeError as error:
        raise StudyError(f"no worker process could be started on this computer ({error}). {UNGUARDED}") from None


def _batch(jobs: JobQueueParams, folder: Path) -> Any:
    try:
        import dask_jobqueue
    except ImportError:
        raise StudyError(
            "exec.jobqueue needs the package dask-jobqueue; install it (pip install dask-jobqueue), "
            "or leave exec.jobqueue.kind empty"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    kind = {"slurm": dask_jobqueue.SLURMCluster, "pbs": dask_jobqueue.PBSCluster}[jobs.kind]
    cluster = kind(
        queue=jobs.queue or None,
        cores=jobs.cores,
        processes=jobs.cores,
        memory=jobs.memory,
        walltime=jobs.walltime,
        interface=jobs.interface or None,
        job_extra_directives=list(jobs.directives),
        job_script_prologue=[f"export {name}={value}" for name, value in _ENVIRONMENT.items()] + [_KEEP_ON],
        security=_certificate(),
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
        shared_temp_directory=str(folder.resolve()),
        silence_logs=logging.CRITICAL,
    )
    cluster.adapt(minimum_jobs=jobs.jobs, maximum_jobs=jobs.jobs)  # a job that ends is followed by another
    return cluster
