"""The process that classifies for the form: it can be stopped at any time, and its crash does not end the notebook.

`Worker` is its side of the form, `adlib.classify.serving` the process, which alone loads torch and the model.
"""

import contextlib
import multiprocessing
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from adlib.classify.scan_tables import COVERAGE, STAGES, Record
from adlib.parallel.threads import one_thread
from adlib.study.params import ClassifyParams
from adlib.study.records import StudyError

START, DRAWING, EXPLAINING = "starting", "drawing", "computing the attribution map"
EXPECTED_S = {START: 8.0, **dict(zip(STAGES, (1.0, 8.0, 0.3, 0.5), strict=True)), DRAWING: 3.0, EXPLAINING: 8.0}
EVIDENCE_MAX = 127


class CancelledError(Exception):
    """The user stopped the work."""


@dataclass(frozen=True, eq=False)
class Result:
    """One classified scan.

    Attributes
    ----------
    record : dict
        See `adlib.classify.result.as_record`.
    pictures : dict of str to bytes
        PNG of ``summary``, with stored training scans ``nearest``, and, on request, ``evidence``.
    view : dict of str to array
        See `adlib.classify.serving.view_arrays`; on request with ``evidence``.
    """

    record: Record
    pictures: dict[str, bytes]
    view: dict[str, np.ndarray]


def serve(*arguments: Any) -> None:
    """Start `adlib.classify.serving.serve` in a process.

    Parameters
    ----------
    *arguments
        See there.
    """
    from adlib.classify import serving

    serving.serve(*arguments)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Block the interrupt of a notebook, which reaches a new process before its `setsid`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@dataclass
class Worker:
    """A process that classifies one scan after the other; it starts on first use and ends with `stop`.

    Attributes
    ----------
    model : Path
    limits : ClassifyParams
        Time and memory of a scan.
    home : Path
        Private folder, which also holds the temporary files of the process.
    coverage : float
    method : str
        Attribution method.
    target : callable
        Runs in the process, see `serve`.
    about : str
        What the model is, for the user.
    expected : dict of str to float
        Seconds of each stage, as last measured.
    """

    model: Path
    limits: ClassifyParams
    home: Path
    coverage: float = COVERAGE
    method: str = "integrated_gradients"
    target: Callable[..., None] = serve
    about: str = ""
    expected: dict[str, float] = field(default_factory=EXPECTED_S.copy)

    def __post_init__(self) -> None:
        self._process: Any = None
        self._lock, self._job = threading.Lock(), threading.Lock()
        self._cancelled = False

    def start(self) -> None:
        """Start the process, unless it runs, without waiting for it."""
        with self._lock:
            if self._process is not None and self._process.is_alive():
                return
            (self.home / "tmp").mkdir(mode=0o700, exist_ok=True)
            spawn = multiprocessing.get_context("spawn")
            self._pipe, end = spawn.Pipe()
            settings = (self.model.resolve(), self.home, self.coverage, self.method, self.limits.memory_mb)
            self._process = spawn.Process(target=self.target, args=(end, *settings), daemon=True)
            with _uninterrupted(), one_thread():  # the process inherits the variables and the mask
                self._process.start()
            end.close()

    def classify(
        self, path: Path | str, person: dict[str, float], stage: Callable[[str], None], explain: bool = False
    ) -> Result:
        """Classify one scan and wait for it; not to be called from the main thread.

        Parameters
        ----------
        path : path
        person : dict of str to float
            ``age`` and ``sex``, if given.
        stage : callable
            Called with the title of each stage when it begins.
        explain : bool
            Compute an attribution map.

        Returns
        -------
        Result

        Raises
        ------
        StudyError
            If the scan cannot be classified, takes too long or too much memory, or crashes the process.
        CancelledError
            If `stop` was called.
        """
        with self._job:
            return Result(*self._ask(path, person, stage, explain))

    def stated_person(self, path: Path | str) -> dict[str, float]:
        """Read age and sex in the header of a scan, see `adlib.classify.prediction.stated_person`.

        Parameters
        ----------
        path : path

        Returns
        -------
        dict of str to float

        Raises
        ------
        StudyError, CancelledError
            As for `classify`.
        """
        with self._job:
            return self._ask(path, None, lambda stage: None, False)[0]

    def _ask(
        self, path: Path | str, person: dict[str, float] | None, stage: Callable[[str], None], explain: bool
    ) -> list[Any]:
        """Content of the message that ends a job."""
        self._cancelled = False
        title, began = START, time.monotonic()
        deadline = began + self.limits.timeout_s
        try:
            stage(START)
            self.start()
            with contextlib.suppress(OSError):  # a dead process shows as an end of its messages
                self._pipe.send((str(path), person, explain))
            while True:
                kind, *content = self._next(deadline)
                if kind == "error":
                    raise StudyError(*content)
                self.expected[title], began = time.monotonic() - began, time.monotonic()
                if kind != "stage":
                    return content
                (title,) = content
                stage(title)
        except (StudyError, CancelledError):
            raise
        except BaseException:  # an interrupted process must not deliver this scan as the result of a later one
            self._kill()
            raise

    def stop(self) -> None:
        """End the process with all its children; a later scan starts a new one."""
        self._cancelled = True
        self._kill()

    def seconds_left(self, stage: str, explain: bool = False) -> float:
        """Expected seconds from the beginning of a stage to the result.

        Parameters
        ----------
        stage : str
            Title of the stage.
        explain : bool
            Whether an attribution map is computed.

        Returns
        -------
        float
            Seconds.
        """
        names = [name for name in self.expected if explain or name != EXPLAINING]
        return sum(self.expected[name] for name in names[names.index(stage) :])

    def _next(self, deadline: float) -> tuple[Any, ...]:
        """The next message of the process."""
        process, pipe = self._process, self._pipe
        try:
            if pipe.poll(max(deadline - time.monotonic(), 0)):
                return pipe.recv()
        except (EOFError, OSError):
            process.join()
            if self._cancelled:
                raise CancelledError from None
            shutil.rmtree(self.home / "tmp", ignore_errors=True)
            raise StudyError(
                f"the worker process ended unexpectedly (exit code {process.exitcode}), most often for lack of "
                f"memory: at most {self.limits.memory_mb} MiB are allowed (classify.memory_mb); resample the scan to "
                "1 mm and try again"
            ) from None
        self._kill()
        raise StudyError(
            f"timeout: the scan took more than {self.limits.timeout_s} s (classify.timeout_s); resample it to 1 mm, or "
            "raise the limit"
        )

    def _kill(self) -> None:
        if self._process is not None and self._process.is_alive():
            children = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            self._process.join()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        shutil.rmtree(self.home / "tmp", ignore_errors=True)
