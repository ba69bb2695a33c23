"""Map a function over scans with one-thread workers: same results whatever their number and wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from joblib import cpu_count
from tqdm import tqdm

from adlib.parallel.task import results_of
from adlib.study.exec_params import Pool

Item = TypeVar("Item")
Result = TypeVar("Result")

PROGRESS_SECONDS = 5.0


def map_scans(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    pool: Pool,
    label: str,
    lost: Callable[[Item, str], Result] | None = None,
) -> list[Result]:
    """Call `function` on every item, in parallel, and return the results in the order of the items.

    Parameters
    ----------
    function : callable
        Defined at the top level of a module, so that worker processes can import it.
    items : iterable
        Arguments, one per call; they and the results travel by pickle.
    pool : Pool
        Which processes do it, see `params.StudyParams.pool`; with ``workers=1`` and no limits it is this one, and
        otherwise none is, so that an item that crashes its process does not end this one.
    label : str
        What is being done, for the progress line and for errors.
    lost : callable, optional
        Makes what stands for an item that is lost, from the item and the reason in words.

    Returns
    -------
    list
        One result per item.

    Raises
    ------
    StudyError
        If an item is lost and `lost` is not given: it took longer than ``pool.scan_timeout_s``, or its worker died
        ``pool.retries`` times and once more. If the workers are gone, or have other code than this process.
    Exception
        Whatever `function` raised first, with a note that names the item; work not yet started is dropped.

    Notes
    -----
    Numerical libraries get one thread per process, also with one worker: threaded sums differ from run to run.
    """
    items = list(items)
    workers = min(pool.workers or cpu_count(), len(items))
    with tqdm(total=len(items), desc=label, unit="scan", mininterval=PROGRESS_SECONDS) as progress:
        if not items or (pool.workers == 1 and not pool.elsewhere and not pool.limited):
            return _in_process(function, items, label, progress)
        return _by_workers(function, items, workers, pool, label, lost, progress)


def _in_process(function: Callable[[Item], Result], items: list[Item], label: str, progress: tqdm) -> list[Result]:
    results = []
    for result in results_of(function, items, label):
        results.append(result)
        progress.update()
    return results


def _by_workers(
    function: Callable[[Item], Result],
    items: list[Item],
    workers: int,
    pool: Pool,
    label: str,
    lost: Callable[[Item, str], Result] | None,
    progress: tqdm,
) -> list[Result]:
    from adlib.parallel.cluster import (
        cluster_for,  # Dask takes a second to import, and is not needed in this process alone
    )
    from adlib.parallel.dispatch import Dispatch

    with cluster_for(pool, workers) as cluster:
        return Dispatch(cluster, function, items, label, lost, progress).run()
