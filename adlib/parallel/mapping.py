"""Map a function over scans with one-thread workers: same results whatever their number and wherever they are."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from adlib.parallel.threads import one_thread
from adlib.study.exec_params import Pool

Item = TypeVar("Item")
Result = TypeVar("Result")

FEW = 3  # tasks that take less time in this process than worker processes take to start
WORTH_SECONDS = 8.0  # work for this process that worker processes, which take as long to start, would not do sooner
PROGRESS_SECONDS = 5.0


def map_scans(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    pool: Pool,
    label: str,
    lost: Callable[[Item, str], Result] | None = None,
    isolate: bool = False,
    chunksize: int = 1,
) -> list[Result]:
    """Call `function` on every item and return the results in the order of the items.

    The work is done in this process if ``pool.workers`` is 1, if there are at most ``3 * chunksize`` items, or if the
    first ones show that all take less than `WORTH_SECONDS`, and by Dask workers otherwise. It is always done by workers
    with a time limit, a memory limit, a scheduler or a batch system, and where items are isolated; where they can be
    lost, unless they are few.

    Parameters
    ----------
    function : callable
        Defined at the top level of a module, so that worker processes can import it.
    items : iterable
        Arguments, one per call; they and the results travel by pickle.
    pool : Pool
        Number and kind of the workers, and their limits.
    label : str
        Name of the work, for the progress line and for errors.
    lost : callable, optional
        Makes the result of a lost item from the item and the reason. An item is lost if it takes longer than
        ``pool.scan_timeout_s``, or if its worker process dies ``pool.retries`` times and once more.
    isolate : bool
        Use worker processes however few the items are, since an item may crash its process.
    chunksize : int
        Items that are sent to a worker together; for functions that take milliseconds.

    Returns
    -------
    list
        One result per item.

    Raises
    ------
    StudyError
        If an item is lost and `lost` is not given, if the workers disappear, or if a worker has other code than this
        process.
    Exception
        Whatever `function` raised first, with a note that names the item; work not yet started is dropped.

    Notes
    -----
    Numerical libraries get one thread per process, also in this one: threaded sums differ from run to run.
    """
    items = list(items)
    here = not (pool.elsewhere or pool.limited)
    all_here = here and (pool.workers == 1 or (len(items) <= FEW * chunksize and not isolate))
    tried = here and lost is None and not isolate
    with tqdm(total=len(items), desc=label, unit="scan", mininterval=PROGRESS_SECONDS) as progress:
        done = _done_here(function, items, label, progress, all_here) if all_here or tried else []
        rest = items[len(done) :]
        if not rest:
            return done
        from adlib.parallel.dispatch import Dispatch  # Dask takes a second to import

        dispatch = Dispatch(function, rest, pool=pool, label=label, lost=lost, chunksize=chunksize, progress=progress)
        return done + dispatch.run()


def _done_here(
    function: Callable[[Item], Result], items: list[Item], label: str, progress: tqdm, whole: bool
) -> list[Result]:
    """Results of all items; without `whole`, of the first ones only where all would take too long."""
    results: list[Result] = []
    least, before = math.inf, time.monotonic()
    for result in results_of(function, items, label):
        results.append(result)
        progress.update()
        least, before = min(least, time.monotonic() - before), time.monotonic()
        warm = len(results) > 1  # the first item may load what all of them need
        if not whole and warm and least * (len(items) - len(results)) > WORTH_SECONDS:
            break
    return results


def results_of(function: Callable[[Item], Result], items: Iterable[Item], label: str) -> Iterator[Result]:
    """Call a function on items with one thread; an error carries a note that names its item.

    Parameters
    ----------
    function : callable
        Takes one item.
    items : iterable
    label : str
        What the function does, for the note.

    Yields
    ------
    object
        Result of each item, in order.
    """
    with one_thread():
        for item in items:
            try:
                result = function(item)
            except Exception as error:
                error.add_note(f"while {label}: {item_name(item)}")
                raise
            yield result


def item_name(item: Any) -> str:
    """Return the scan_id of an item, or its start as text.

    Parameters
    ----------
    item : any
    """
    name = item.get("scan_id") if isinstance(item, dict) else getattr(item, "scan_id", None)
    text = str(name or repr(item))
    return text if len(text) <= 160 else text[:157] + "..."
