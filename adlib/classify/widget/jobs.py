"""The working process seen from the form: hand it a scan, hear its stages, stop it, and survive its end."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adlib.classify.prediction import STAGES
from adlib.parallel.threads import THREAD_VARIABLES
from adlib.study.params import ClassifyParams
from adlib.study.records import StudyError, read_json

COMMAND = (sys.executable, "-m", "adlib.classify.widget.worker")
START, DRAWING, EXPLAINING = "starting", "drawing", "explaining where the network looked"
EXPECTED_S = {START: 8.0, **dict(zip(STAGES, (1.0, 8.0, 0.3, 0.5), strict=True)), DRAWING: 3.0, EXPLAINING: 8.0}


class CancelledError(Exception):
    """The person stopped the work."""


@dataclass(frozen=True, eq=False)
class Result:
    """One classified scan, as the working process left it.

    Attributes
    ----------
    record : dict
        See `adlib.classify.result.as_record`.
    pictures : dict of str to bytes
        PNG of ``summary``, where there are training scans to show ``nearest``, and, on request, ``evidence``.
    view : dict of str to array
        See `adlib.classify.widget.worker.view_arrays`; on request with ``evidence``.
    """

    record: dict[str, Any]
    pictures: dict[str, bytes]
    view: dict[str, np.ndarray]


@dataclass
class Worker:
    """A process that classifies one scan after the other; started when first needed, kept warm, ended by `stop`.

    Attributes
    ----------
    model : Path
    limits : ClassifyParams
        Time and memory of a scan.
    home : Path
        Private folder; temporary files of the process, too, lie in it.
    coverage : float
    method : str
        Of attribution.
    command : tuple of str
    expected : dict of str to float
        Seconds of each stage, as they were the last time.
    """

    model: Path
    limits: ClassifyParams
    home: Path
    coverage: float = 0.9
    method: str = "integrated_gradients"
    command: tuple[str, ...] = COMMAND
    expected: dict[str, float] = field(default_factory=lambda: dict(EXPECTED_S))

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._lock = threading.Lock()
        self._cancelled = self._ready = False
        self._count = 0

    def warm(self) -> None:
        """Start the process, if it does not run, without waiting for it."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self._ready, self._said = False, queue.Queue()
            temporary = self.home / "tmp"
            temporary.mkdir(mode=0o700, exist_ok=True)
            settings = {"model": str(self.model.resolve()), "home": str(self.home), "coverage": self.coverage}
            settings |= {"method": self.method, "memory_mb": self.limits.memory_mb}
            paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
            own = {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(paths)} | dict.fromkeys(
                THREAD_VARIABLES, "1"
            )
            self._process = subprocess.Popen(
                [*self.command, json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
                env=os.environ | own, start_new_session=True,
            )  # fmt: skip
            threading.Thread(target=_read, args=(self._process, self._said), daemon=True).start()

    def classify(
        self, path: Path | str, person: dict[str, float], tell: Callable[[str], None], explain: bool = False
    ) -> Result:
        """Classify one scan and wait for it; call it off the main thread.

        Parameters
        ----------
        path : path
        person : dict of str to float
            ``age`` and ``sex``, as far as given.
        tell : callable
            Told each stage when it begins.
        explain : bool
            Whether to draw where the network looked.

        Returns
        -------
        Result

        Raises
        ------
        StudyError
            If the scan cannot be classified, takes too long or too much memory, or the process dies of it.
        CancelledError
            If `stop` was called.
        """
        self._cancelled = False
        self._count += 1
        folder = self.home / f"result-{self._count:04d}"
        folder.mkdir(mode=0o700)
        try:
            tell(START)
            self.warm()
            self._await_ready()
            job = {"path": str(path), "person": person, "folder": str(folder), "explain": explain}
            self._send(job)
            self._follow(tell)
            return _load(folder)
        except (StudyError, CancelledError):
            raise
        except BaseException:  # whatever broke off here, the process must not answer a later scan with this one
            self._kill()
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def stop(self) -> None:
        """End the process with everything that it started, now; a later scan starts a new one."""
        self._cancelled = True
        self._kill()

    def seconds_left(self, stage: str, explain: bool = False) -> float:
        """How long a scan at the beginning of a stage is expected to take still."""
        names = [name for name in self.expected if explain or name != EXPLAINING]
        return sum(self.expected[name] for name in names[names.index(stage) :]) if stage in names else 0.0

    def _await_ready(self) -> None:
        if not self._ready:
            began = time.monotonic()
            self._hear(began + self.limits.timeout_s)
            self._ready, self.expected[START] = True, time.monotonic() - began
        else:
            self.expected[START] = 0.0

    def _send(self, job: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a dead process is noticed when it does not answer
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()

    def _follow(self, tell: Callable[[str], None]) -> None:
        deadline, stage, began = time.monotonic() + self.limits.timeout_s, "", time.monotonic()
        while "done" not in (said := self._hear(deadline)):
            if stage in self.expected:
                self.expected[stage] = time.monotonic() - began
            stage, began = said["stage"], time.monotonic()
            tell(stage)
        if stage in self.expected:
            self.expected[stage] = time.monotonic() - began

    def _hear(self, deadline: float) -> dict[str, Any]:
        try:
            said = self._said.get(timeout=max(deadline - time.monotonic(), 0.01))
        except queue.Empty:
            self._kill()
            raise StudyError(
                f"it took more than the {self.limits.timeout_s} s allowed (classify.timeout_s) and was stopped; "
                "resample it to 1 mm, or raise the limit"
            ) from None
        if said is None:
            code = self._process.wait() if self._process else 0
            self._clean()
            if self._cancelled:
                raise CancelledError
            raise StudyError(
                f"the working process ended by itself (exit code {code}), most often for want of memory: at most "
                f"{self.limits.memory_mb} MiB are allowed (classify.memory_mb); resample the scan to 1 mm and try again"
            )
        if "error" in said:
            raise StudyError(said["error"])
        return said

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._clean()

    def _clean(self) -> None:
        shutil.rmtree(self.home / "tmp", ignore_errors=True)


def _read(process: subprocess.Popen[str], said: queue.Queue[dict[str, Any] | None]) -> None:
    for line in process.stdout:
        with contextlib.suppress(ValueError):
            said.put(json.loads(line))
    said.put(None)


def _load(folder: Path) -> Result:
    pictures = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))}
    with np.load(folder / "view.npz", allow_pickle=False) as arrays:
        view = {name: arrays[name] for name in arrays.files}
    return Result(read_json(folder / "record.json"), pictures, view)
