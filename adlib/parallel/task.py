"""The work itself, in this process or in a worker: item by item, with one thread, and errors that name the item."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from adlib.parallel.threads import one_thread

Item = TypeVar("Item")
Result = TypeVar("Result")


def results_of(function: Callable[[Item], Result], items: Iterable[Item], label: str) -> Iterator[Result]:
    """One result after the other; an error gets a note that names its item."""
    with one_thread():
        for item in items:
            try:
                result = function(item)
            except Exception as error:
                error.add_note(f"while {label}: {short(item)}")
                raise
            yield result


def by_worker(call: bytes, folder: str) -> bytes:
    """A task as it travels: function, items and label in, results out, done in the folder where the study is run."""
    if Path.cwd() != Path(folder):
        os.chdir(folder)
    function, items, label = pickle.loads(call)  # noqa: S301
    return pickle.dumps(list(results_of(function, items, label)), pickle.HIGHEST_PROTOCOL)


def leave_interrupts_to_the_parent() -> bool:
    """Let the process that started a worker decide what Ctrl-C means to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return True


def short(item: Any) -> str:
    """The item's scan_id, or what it looks like, in one line."""
    name = item.get("scan_id") if isinstance(item, dict) else getattr(item, "scan_id", None)
    text = str(name or repr(item))
    return text if len(text) <= 160 else text[:157] + "..."
