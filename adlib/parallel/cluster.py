"""The Dask workers: processes of this computer, jobs of a batch system, or those of a scheduler that runs already."""

import atexit
import hashlib
import logging
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, Future, LocalCluster, Security, Worker, WorkerPlugin, get_worker
from tqdm import tqdm

from adlib.parallel.threads import MEMORY_VARIABLES, THREAD_VARIABLES
from adlib.study.exec_params import JobQueueParams, Pool
from adlib.study.records import DASHBOARD, StudyError

CONNECT_SECONDS = 30
PATIENCE_SECONDS = 60.0  # how long a cluster may be without any worker
START_SECONDS = 300.0  # the same on this computer, which may be too busy to start one sooner
IDLE_SECONDS = 30.0  # how long workers are kept for the next map
SAME_PACKAGES = ("scipy", "nibabel", "nilearn", "SimpleITK", "torch")  # in addition to those of Dask, numpy and pandas
UNGUARDED = (
    "Workers import the script that starts them: in a script of your own, keep what calls adlib under "
    "`if __name__ == '__main__':`, or use one process (exec.workers: 1)"
)
ENVIRONMENT = dict.fromkeys(THREAD_VARIABLES, "1") | MEMORY_VARIABLES
JOB_SCRIPT = [
    *(f"export {name}={value}" for name, value in ENVIRONMENT.items()),
    "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False",
]


class Gone(Exception):
    """The scheduler does not respond any more, or has no workers left."""


class _IgnoreInterrupts(WorkerPlugin):
    """Leave it to the process that started a worker what Ctrl-C means."""

    def setup(self, worker: Worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class Cluster:
    """A connection to workers.

    Parameters
    ----------
    pool : Pool
    size : int
        Number of workers to start on this computer.

    Raises
    ------
    StudyError
        If no scheduler answers, or dask-jobqueue is missing.
    """

    def __init__(self, pool: Pool, size: int) -> None:
        self.pool, self.size = pool, size
        self.name = pool.scheduler or pool.jobqueue.kind or "this computer"
        self._started = _start(pool, size)
        try:
            self.client = Client(self._started or pool.scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except OSError as error:
            raise StudyError(
                f"no Dask scheduler answers at {pool.scheduler} ({error}); start `dask scheduler` there, "
                f"or set exec.scheduler to its address"
            ) from None
        if not pool.elsewhere:
            self.client.register_plugin(_IgnoreInterrupts())
        if self._started and find_spec("bokeh"):
            tqdm.write(f"{DASHBOARD} {self.client.dashboard_link}", file=sys.stderr)
        self._patience = None if pool.jobqueue.kind else PATIENCE_SECONDS if pool.scheduler else START_SECONDS
        self._checked: set[str] = set()
        self._seen = time.monotonic()

    def count(self) -> int:
        """Return the number of workers.

        Raises
        ------
        Gone
            If there has been none for some time; jobs of a batch system may wait in their queue as long as they must.
        StudyError
            If a new worker has other versions of packages than this process.
        """
        with _answering():
            present = set(self.client.nthreads(callback_timeout=CONNECT_SECONDS))
            if not self.pool.elsewhere and len(present) < self.size:
                self._started.scale(self.size)  # Dask gives up for good on a worker that restarts slowly
            if self.pool.elsewhere and not present <= self._checked:
                try:
                    self.client.get_versions(check=True, packages=SAME_PACKAGES)
                except ValueError as error:
                    raise StudyError(f"{error}\nStart scheduler and workers from this installation") from None
                self._checked |= present
        if present:
            self._seen = time.monotonic()
        elif self._patience and time.monotonic() - self._seen > self._patience:
            raise Gone(f"no worker for {self._patience:.0f} seconds")
        return len(present)

    def result(self, future: Future) -> Any:
        """Return the result of a finished task, or raise its error.

        Parameters
        ----------
        future : distributed.Future
        """
        if future.status == "error":
            return future.result()
        with _answering():
            return future.result(timeout=self._patience)  # not at once if its worker died since: Dask repeats the work

    def outgrew(self, address: str) -> bool:
        """Whether a worker was stopped for its memory.

        Parameters
        ----------
        address : str
            Of the worker.
        """
        with _answering():
            events = self.client.get_events("worker-restart-memory")
        return any(event.get("worker") == address for _, event in events)

    def close(self) -> None:
        """Leave the scheduler, and end what was started here."""
        for part in (self.client, self._started):
            if part is not None:
                with suppress(Exception):
                    part.close()


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except CancelledError:
        raise Gone("the connection to the scheduler is lost") from None
    except OSError as error:
        raise Gone(str(error) or "the scheduler does not answer") from None


_OPEN: list[Cluster] = []
_LOCK = threading.RLock()
_IDLE: list[threading.Timer] = []


@contextmanager
def cluster_for(pool: Pool, tasks: int) -> Iterator[Cluster]:
    """Lend the cluster of a pool, started or left over from the last map.

    It is closed after `IDLE_SECONDS` without work, when another one is asked for, after an error, and at exit.

    Parameters
    ----------
    pool : Pool
    tasks : int
        Number of tasks; on this computer no more workers are started.
    """
    size = min(pool.workers or CPU_COUNT, tasks)
    with _LOCK:
        while _IDLE:
            _IDLE.pop().cancel()
        if _OPEN and (_OPEN[0].pool != pool or (_OPEN[0].size < size and not pool.elsewhere)):
            close_clusters()
        if not _OPEN:
            _OPEN.append(Cluster(pool, size))
        try:
            yield _OPEN[0]
        except BaseException:
            close_clusters()
            raise
        _IDLE.append(threading.Timer(IDLE_SECONDS, _close_idle))
        _IDLE[0].daemon = True
        _IDLE[0].start()


@atexit.register
def close_clusters() -> None:
    """End the idle workers."""
    with _LOCK:
        while _OPEN:
            _OPEN.pop().close()


def _close_idle() -> None:
    with _LOCK:
        if threading.current_thread() in _IDLE:
            close_clusters()


@contextmanager
def difference_from_here(pool: Pool) -> Iterator[Callable[[], str] | None]:
    """Make a function by which a worker elsewhere finds out how it differs from this process; empty if it does not.

    It compares the source of adlib, and looks for a file that exists in the study's folder while the context lasts, for
    the working folder, and for one of the data: a computer without the shared disk may well have an empty folder there.

    Parameters
    ----------
    pool : Pool

    Yields
    ------
    callable or None
        Returns the difference as text; None where the workers run on this computer alone.
    """
    if not pool.elsewhere:
        yield None
        return
    pool.outputs.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".seen-", dir=pool.outputs.resolve()) as file:
        marker = file.name
        shared = {pool.outputs.resolve(): Path(marker), Path.cwd(): Path.cwd()}
        for data in pool.data:
            if data.is_dir() and (some := next(data.absolute().iterdir(), None)):
                shared[data.absolute()] = some

        def code_of() -> str:  # this and the next travel as their own code: the worker's adlib may be another version
            if (package := find_spec("adlib")) is None:
                return "not at all"
            root, code = Path(str(package.origin)).parent, hashlib.sha256()
            for file in sorted(root.rglob("*.py")):
                code.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
            return code.hexdigest()[:12]

        here = code_of()

        def difference() -> str:
            worker: Any = get_worker()
            if getattr(worker, "adlib_checked", "") == marker:
                return ""
            worker.adlib_checked, name = marker, f"worker {worker.address}"
            if unseen := [str(folder) for folder, file in shared.items() if not file.exists()]:
                return (
                    f"{name} does not see {' and '.join(unseen)} as this process does; put study, data and working "
                    "folder on a file system that all computers share, under one path"
                )
            if (there := code_of()) != here:
                return (
                    f"{name} has adlib code {there}, this process has {here}; results would depend on the worker. "
                    "Start the workers from this very installation, and again after each change"
                )
            return ""

        yield difference


def _start(pool: Pool, size: int) -> Any:
    """Start workers on this computer or as jobs; None with a scheduler that runs already."""
    if pool.scheduler:
        return None
    settings = {
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.profile.enabled": False,
    } | {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in ENVIRONMENT.items()}
    with dask.config.set(settings):
        if pool.jobqueue.kind:
            return _submit_jobs(pool.jobqueue, pool.outputs)
        if getattr(current_process(), "_inheriting", False):  # a worker that imports the script that started it
            raise StudyError(UNGUARDED)
        try:
            return LocalCluster(
                n_workers=size,
                threads_per_worker=1,
                host="tls://127.0.0.1",
                security=Security.temporary(),  # other users of this computer cannot send work
                dashboard_address="127.0.0.1:0",
                memory_limit=pool.memory_mb * 2**20,
                silence_logs=logging.CRITICAL,
            )
        except RuntimeError as error:
            raise StudyError(f"no worker process could be started on this computer ({error}). {UNGUARDED}") from None


def _submit_jobs(jobs: JobQueueParams, folder: Path) -> Any:
    try:
        import dask_jobqueue
    except ImportError:
        raise StudyError(
            "exec.jobqueue needs the package dask-jobqueue; install it (pip install dask-jobqueue), "
            "or leave exec.jobqueue.kind empty"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    cluster = {"slurm": dask_jobqueue.SLURMCluster, "pbs": dask_jobqueue.PBSCluster}[jobs.kind](
        queue=jobs.queue or None,
        cores=jobs.cores,
        processes=jobs.cores,
        memory=jobs.memory,
        walltime=jobs.walltime,
        interface=jobs.interface or None,
        job_extra_directives=list(jobs.directives),
        job_script_prologue=JOB_SCRIPT,
        security=Security.temporary(),
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
        shared_temp_directory=str(folder.resolve()),
        silence_logs=logging.CRITICAL,
    )
    cluster.adapt(minimum_jobs=jobs.jobs, maximum_jobs=jobs.jobs)  # a job that ends is followed by another
    return cluster
