"""Map a function over scans with one-thread worker processes: same results whatever their number."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait as wait_for_sentinel
from typing import Any, TypeVar

from joblib import cpu_count
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from adlib.records import StudyError

Item = TypeVar("Item")
Result = TypeVar("Result")

PROGRESS_SECONDS = 5.0
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
_KEEP = ((-4, 0), (-1, 2**31 - 1))  # M_MMAP_MAX: none; M_TRIM_THRESHOLD: never
_HELD = ExitStack()  # keeps a worker's thread limits for as long as the worker lives


def map_scans(function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, label: str) -> list[Result]:
    """Call `function` on every item, in parallel, and return the results in the order of the items.

    Parameters
    ----------
    function : callable
        Defined at the top level of a module, so that worker processes can import it.
    items : iterable
        Arguments, one per call; they and the results travel by pickle.
    workers : int
        Worker processes; 0 takes every core this process may use, 1 runs in this process.
    label : str
        What is being done, for the progress line and for errors.

    Returns
    -------
    list
        One result per item.

    Raises
    ------
    StudyError
        If a worker process dies (for want of memory, say), with the items that it may have died of.
    Exception
        Whatever `function` raised first, with a note that names the item; work not yet started is dropped.

    Notes
    -----
    Numerical libraries get one thread per process, also with ``workers=1``: threaded sums differ from run to run.
    """
    items = list(items)
    workers = min(workers or cpu_count(), len(items))
    with tqdm(total=len(items), desc=label, unit="scan", mininterval=PROGRESS_SECONDS) as progress:
        if workers <= 1:
            return _in_process(function, items, label, progress)
        return _in_pool(function, items, workers, label, progress)


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS, OpenMP, PyTorch and ITK to one thread, whether they are loaded yet or not."""
    with ExitStack() as stack:
        stack.enter_context(_environment(dict.fromkeys(THREAD_VARIABLES, "1")))
        stack.enter_context(threadpool_limits(1))
        if torch := sys.modules.get("torch"):
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        if sitk := sys.modules.get("SimpleITK"):
            itk = sitk.ProcessObject
            stack.callback(itk.SetGlobalDefaultNumberOfThreads, itk.GetGlobalDefaultNumberOfThreads())
            itk.SetGlobalDefaultNumberOfThreads(1)
        yield


def keep_memory() -> None:
    """Let freed memory stay with this process, so that a training on the processor need not fault its pages in again.

    Does nothing but on glibc. Large blocks then come from the heap, which is not trimmed (mallopt(3)).
    """
    with suppress(AttributeError, OSError):
        for option, value in _KEEP:
            ctypes.CDLL(None).mallopt(option, value)


def give_back_memory() -> None:
    """Return what was freed to the system; glibc keeps it, over 100 MB after a scan at 1 mm. Elsewhere: nothing."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _in_process(function: Callable[[Item], Result], items: list[Item], label: str, progress: tqdm) -> list[Result]:
    results = []
    with one_thread():
        for item in items:
            with _named(item, label):
                results.append(function(item))
            progress.update()
    return results


def _in_pool(
    function: Callable[[Item], Result], items: list[Item], workers: int, label: str, progress: tqdm
) -> list[Result]:
    """Keep exactly `workers` items in flight, so that those in flight are the suspects when a worker dies."""
    results: dict[int, Result] = {}
    running: dict[Future[Result], int] = {}
    queue = iter(enumerate(items))
    with _pool(workers) as pool:
        try:
            while len(results) < len(items):
                for index, item in queue:
                    running[pool.submit(function, item)] = index
                    if len(running) == workers:
                        break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    with _named(items[running[future]], label):
                        results[running[future]] = future.result()
                    del running[future]
                    progress.update()
        except BrokenProcessPool:
            raise StudyError(_crash(label, [items[index] for index in sorted(running.values())])) from None
    return [results[index] for index in range(len(items))]


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    before = set(multiprocessing.active_children())
    with _environment(dict.fromkeys(THREAD_VARIABLES, "1")):
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
        try:
            yield pool
            pool.shutdown()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            raise


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _HELD.enter_context(one_thread())


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_sentinel([parent.sentinel])
        os._exit(1)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _named(item: Any, label: str) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise
    except Exception as error:
        error.add_note(f"while {label}: {_short(item)}")
        raise


def _crash(label: str, suspects: list[Any]) -> str:
    names = "\n  ".join(_short(item) for item in suspects)
    return (
        f"{label}: a worker process died without a word, most often for want of memory. It was at work on one of\n"
        f"  {names}\nRun again with fewer workers (--set exec.workers=1); what is finished is kept."
    )


def _short(item: Any) -> str:
    text = str(getattr(item, "scan_id", None) or repr(item))
    return text if len(text) <= 160 else text[:157] + "..."
