"""Hand items to workers one by one, and lose no more than the item that a worker dies of."""

from __future__ import annotations

import pickle
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import cloudpickle
from distributed import Future, KilledWorker
from tqdm import tqdm

from adlib.parallel.cluster import Cluster, Gone
from adlib.parallel.task import by_worker, short
from adlib.study.records import StudyError

Item = TypeVar("Item")
Result = TypeVar("Result")
Lost = Callable[[Item, str], Result]

LOOK_SECONDS = 0.5
BRIEF_SECONDS = 0.25  # what takes less goes to a worker in bundles that take about so long
LARGEST_BUNDLE = 64


@dataclass(frozen=True)
class _Task:
    """What one worker is at: mostly one item, several where they are brief."""

    indices: tuple[int, ...]
    future: Future
    began: float


class Dispatch(Generic[Item, Result]):
    """One map over the workers of a cluster.

    Each worker has one task at a time and is sent the next when it is done, so that it is known what a worker died of,
    and that any number of items is no burden. Items that are brief travel in bundles; a bundle that is lost is tried
    again item by item.

    Parameters
    ----------
    cluster : Cluster
    function : callable
    items : list
    label : str
    lost : callable or None
        Makes what stands for an item that is lost, from the item and the reason; None ends the map with an error.
    progress : tqdm
    """

    def __init__(
        self,
        cluster: Cluster,
        function: Callable[[Item], Result],
        items: list[Item],
        label: str,
        lost: Lost | None,
        progress: tqdm,
    ) -> None:
        self.cluster, self.function, self.items = cluster, function, items
        self.label, self.lost, self.progress = label, lost, progress
        self.results: dict[int, Result] = {}
        self.waiting = deque(range(len(items)))
        self.alone: set[int] = set()  # no longer in bundles
        self.deaths: Counter[int] = Counter()
        self.outgrown: set[int] = set()
        self.running: dict[str, _Task] = {}  # by the address of the worker
        self.done: queue.SimpleQueue[tuple[str, Future]] = queue.SimpleQueue()
        self.bundle = 1
        self.present: set[str] = set()
        self.looked = float("-inf")
        self.seen = time.monotonic()

    def run(self) -> list[Result]:
        """Results in the order of the items."""
        try:
            while len(self.results) < len(self.items):
                self._look()
                self._hand_out()
                self._take_in()
        except Gone as error:
            raise self._away(str(error)) from None
        finally:
            for task in self.running.values():
                task.future.cancel()
        return [self.results[index] for index in range(len(self.items))]

    def _look(self) -> None:
        """See, now and then, which workers are there and which take too long."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        self.present = self.cluster.workers()
        for address in set(self.running) - self.present:
            self._died(address)
        limit = self.cluster.pool.scan_timeout_s
        for address, task in list(self.running.items()):
            if limit and now - task.began > limit:
                self._overdue(address, limit)
        if self.present:
            self.seen = now
        elif now - self.seen > self.cluster.patience_s:
            raise Gone(f"no worker for {self.cluster.patience_s:.0f} seconds")

    def _hand_out(self) -> None:
        for address in sorted(self.present - set(self.running)):
            if self.waiting:
                self._send(address, self._next())

    def _next(self) -> tuple[int, ...]:
        """The items of the next task: brief ones together, but no worker is left without."""
        fair = max(1, len(self.waiting) // (2 * len(self.present)))
        chosen = [self.waiting.popleft()]
        while len(chosen) < min(self.bundle, fair) and not self.alone.intersection((chosen[0], self.waiting[0])):
            chosen.append(self.waiting.popleft())
        return tuple(chosen)

    def _send(self, address: str, indices: tuple[int, ...]) -> None:
        call = cloudpickle.dumps((self.function, [self.items[index] for index in indices], self.label))
        client = self.cluster.client
        future = client.submit(
            by_worker, call, str(Path.cwd()), workers=[address], allow_other_workers=False, pure=False, retries=0
        )
        self.running[address] = _Task(indices, future, time.monotonic())
        future.add_done_callback(partial(_put, self.done, address))

    def _take_in(self) -> None:
        try:
            address, future = self.done.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            return
        task = self.running.get(address)
        if task is None or task.future is not future:
            return  # given up before
        if isinstance(future.status == "error" and future.exception(), KilledWorker):
            self._died(address)
        elif (results := self.cluster.fetch(future)) is None:
            self.done.put((address, future))  # its worker died since, which will be seen, or is slow to answer
        else:
            self._adapt(time.monotonic() - task.began, len(task.indices))
            del self.running[address]
            self._keep(zip(task.indices, pickle.loads(results), strict=True))  # noqa: S301

    def _adapt(self, seconds: float, count: int) -> None:
        wanted = int(BRIEF_SECONDS * count / max(seconds, 1e-3))
        self.bundle = max(1, min(wanted, 2 * count, LARGEST_BUNDLE))

    def _keep(self, found: Iterator[tuple[int, Result]]) -> None:
        for index, result in found:
            self.results[index] = result
            self.progress.update()

    def _died(self, address: str) -> None:
        task = self._drop(address)
        if task is None:
            return
        (index,) = task.indices
        self.deaths[index] += 1
        if self.cluster.outgrew(address):
            self.outgrown.add(index)
        if self.deaths[index] <= self.cluster.pool.retries:
            self.waiting.append(index)
            return
        reason = "its worker process died" + (f" {self.deaths[index]} times" if self.deaths[index] > 1 else "")
        if index in self.outgrown:
            reason = f"it needs more memory than a worker may take; {reason}"
        self._lose(index, reason)

    def _overdue(self, address: str, limit: float) -> None:
        self.present.discard(address)
        self.cluster.restart(address)
        task = self._drop(address)
        if task is not None:
            self._lose(task.indices[0], f"it took longer than exec.scan_timeout_s, {limit:g} seconds")

    def _drop(self, address: str) -> _Task | None:
        """Forget a worker's task and return it; a bundle goes back to wait instead, item by item."""
        task = self.running.pop(address)
        task.future.cancel()
        if len(task.indices) == 1:
            return task
        self.alone.update(task.indices)
        self.waiting.extendleft(reversed(task.indices))
        return None

    def _lose(self, index: int, reason: str) -> None:
        if self.lost is None:
            raise StudyError(
                f"{self.label}: {short(self.items[index])} is lost: {reason}.\nLeave it out, or give it more: fewer "
                "workers (--set exec.workers=1), exec.memory_mb, exec.scan_timeout_s. What is finished is kept."
            )
        self._keep(iter([(index, self.lost(self.items[index], reason))]))

    def _away(self, what: str) -> StudyError:
        return StudyError(
            f"{self.label}: the workers of {self.cluster.where} are gone ({what}) with "
            f"{len(self.results)} of {len(self.items)} done.\nSee why, start them and run again; what is finished is "
            "kept. Without exec.scheduler and exec.jobqueue the work is done on this computer."
        )


def _put(done: queue.SimpleQueue[tuple[str, Future]], address: str, future: Future) -> None:
    done.put((address, future))
