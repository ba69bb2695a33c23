"""Call a function in a process of its own, and the peak memory that it took."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def apart(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Call in a fresh process; return its result and the peak memory of it and its workers, MB.

    Memory is the proportional set size of the whole process tree, sampled five times a second: it counts shared pages
    once, which the sum of resident set sizes does not.
    """
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_answer, args=(send, function, arguments))
    process.start()
    send.close()
    peak = 0.0
    try:
        while not receive.poll(0.2):
            peak = max(peak, sum(_proportional_mb(one) for one in _tree(process.pid)))
        result, error = receive.recv()
        if error:
            raise RuntimeError(error)
        return result, peak
    finally:
        process.join()


def _answer(send: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 (progress lines of a measured run)
    try:
        send.send((function(*arguments), None))
    except Exception:
        send.send((None, traceback.format_exc()))


def _tree(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in _tree(child))]


def _proportional_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)
