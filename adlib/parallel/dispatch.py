"""Send items to Dask workers, one task to each, and lose no more than the item that a worker dies of."""

import faulthandler
import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from distributed import Future, KilledWorker
from distributed.protocol.pickle import dumps
from tqdm import tqdm

from adlib.parallel.cluster import Cluster, Gone, cluster_for, difference_from_here
from adlib.parallel.mapping import item_name
from adlib.study.exec_params import Pool
from adlib.study.records import StudyError

Item = TypeVar("Item")
Result = TypeVar("Result")

POLL_SECONDS = 0.5


class Dispatch(Generic[Item, Result]):
    """One map over Dask workers; parameters as for `mapping.map_scans`.

    There are never more tasks than workers, so that each worker has one, the item that a worker died of is certain, and
    any number of items is no burden for the scheduler.
    """

    def __init__(
        self,
        function: Callable[[Item], Result],
        items: list[Item],
        *,
        pool: Pool,
        label: str,
        lost: Callable[[Item, str], Result] | None,
        chunksize: int,
        progress: tqdm,
    ) -> None:
        self.function, self.items, self.pool, self.label = function, items, pool, label
        self.lost, self.progress = lost, progress
        self.waiting = deque(range(len(items))[i : i + chunksize] for i in range(0, len(items), chunksize))
        self.suspects: deque[range] = deque()  # items whose worker died, which may have been another item's fault
        self.running: dict[Future, tuple[range, float, bool]] = {}  # items, when they were sent, whether alone
        self.deaths: Counter[int] = Counter()
        self.done: SimpleQueue[Future] = SimpleQueue()
        self.results: dict[int, Result] = {}

    def run(self) -> list[Result]:
        """Return the results in the order of the items.

        Raises
        ------
        StudyError
            If no worker is left.
        """
        with cluster_for(self.pool, len(self.waiting)) as cluster, difference_from_here(self.pool) as difference:
            work = _work(os.getcwd(), self.pool.scan_timeout_s, difference)  # noqa: PTH109
            try:
                while len(self.results) < len(self.items):
                    self._send(cluster, work)
                    self._receive(cluster)
            except Gone as error:
                raise StudyError(
                    f"{self.label}: the workers of {cluster.name} are gone ({error}) with {len(self.results)} of "
                    f"{len(self.items)} done.\nFind out why, start them and run again; what is finished is kept. "
                    "Without exec.scheduler and exec.jobqueue the work is done on this computer."
                ) from None
            finally:
                for future in self.running:
                    future.cancel()
        return [self.results[index] for index in range(len(self.items))]

    def _send(self, cluster: Cluster, work: Callable[[bytes], bytes | str]) -> None:
        workers = cluster.count()
        if self.suspects:
            if workers and not self.running:
                self._submit(self.suspects.popleft(), cluster, work, alone=True)
            return
        while self.waiting and len(self.running) < workers and not any(alone for *_, alone in self.running.values()):
            self._submit(self.waiting.popleft(), cluster, work, alone=False)

    def _submit(self, indices: range, cluster: Cluster, work: Callable[[bytes], bytes | str], *, alone: bool) -> None:
        call = dumps((self.function, [self.items[index] for index in indices], self.label))
        future = cluster.client.submit(work, call, pure=False)
        self.running[future] = indices, time.monotonic(), alone
        future.add_done_callback(self.done.put)

    def _receive(self, cluster: Cluster) -> None:
        try:
            future = self.done.get(timeout=POLL_SECONDS)
        except Empty:
            return
        if future not in self.running:
            return  # done a second time, since a worker died with the first result
        try:
            answer = cluster.result(future)
        except KilledWorker as error:
            self._died(*self.running.pop(future), error, cluster)
            return
        if isinstance(answer, str):
            raise StudyError(answer)
        indices, *_ = self.running.pop(future)
        for index, result in zip(indices, pickle.loads(answer), strict=True):  # noqa: S301
            self._keep(index, result)

    def _keep(self, index: int, result: Result) -> None:
        self.results[index] = result
        self.progress.update()

    def _died(self, indices: range, sent: float, alone: bool, error: KilledWorker, cluster: Cluster) -> None:
        if len(indices) > 1:  # find the one at fault
            self.waiting.extend(indices[k : k + 1] for k in range(len(indices)))
            return
        index, limit = indices[0], self.pool.scan_timeout_s
        if self.deaths[index] >= self.pool.retries and not alone and not limit:
            self.suspects.append(indices)  # Dask blames all tasks of a worker: only alone it is known which one it was
            return
        self.deaths[index] += 1
        reason = "its worker process died" + (f" {self.deaths[index]} times" if self.deaths[index] > 1 else "")
        if limit and time.monotonic() - sent > limit:
            reason = f"it took longer than exec.scan_timeout_s, {limit:g} seconds"
        elif self.deaths[index] <= self.pool.retries:
            self.waiting.append(indices)
            return
        elif cluster.outgrew(error.last_worker.address):
            reason = f"it needs more memory than a worker may take; {reason}"
        if self.lost is None:
            raise StudyError(
                f"{self.label}: {item_name(self.items[index])} is lost: {reason}.\nLeave it out, or give it more: "
                "fewer workers (--set exec.workers=1), exec.memory_mb, exec.scan_timeout_s. What is finished is kept."
            )
        self._keep(index, self.lost(self.items[index], reason))


def _work(folder: str, limit_s: float, difference: Callable[[], str] | None) -> Callable[[bytes], bytes | str]:
    """Make what a worker does; it travels as its own code, since the worker's adlib may be another version."""

    def work(call: bytes) -> bytes | str:
        if difference and (text := difference()):
            return text
        os.chdir(folder)
        function, items, label = pickle.loads(call)  # noqa: S301
        from adlib.parallel.mapping import results_of

        if limit_s:
            faulthandler.dump_traceback_later(limit_s * len(items), exit=True)  # also from inside a native library
        try:
            return pickle.dumps(list(results_of(function, items, label)), pickle.HIGHEST_PROTOCOL)
        finally:
            faulthandler.cancel_dump_traceback_later()

    return work
