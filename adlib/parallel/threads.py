"""One thread for the numerical libraries, and what happens to freed memory."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from threadpoolctl import threadpool_limits

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
# For glibc in a Dask worker: one heap, and blocks below 32 MiB from it. Dask's own setting, a heap trimmed at 64 KiB,
# has nearly every array mapped anew, which made a scan at 1 mm take 1.4 times as long.
MEMORY_VARIABLES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}
_KEEP = ((-4, 0), (-1, 2**31 - 1))  # M_MMAP_MAX: none; M_TRIM_THRESHOLD: never


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
