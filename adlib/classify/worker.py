"""The process that classifies for the form: it can be stopped at any time, and its crash does not end the notebook.

`Worker` is its side of the form; `serve` is the process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from adlib.classify.nearest import read_examples
from adlib.classify.plot_prediction import brightest, plot_attribution, plot_nearest, plot_prediction
from adlib.classify.prediction import STAGES, as_png, predict_file
from adlib.classify.result import COVERAGE, Prediction, Record, as_record
from adlib.evaluation.explain.attribution import THREE_PLANES, TITLES, attribute
from adlib.evaluation.explain.regions import in_volume, slice_voxels
from adlib.figures.theme import apply_theme
from adlib.parallel.threads import one_thread
from adlib.study.params import ClassifyParams
from adlib.study.records import StudyError
from adlib.training import model_file

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
        See `view_arrays`; on request with ``evidence``.
    """

    record: Record
    pictures: dict[str, bytes]
    view: dict[str, np.ndarray]


def serve(pipe: Connection, model: Path, home: Path, coverage: float, method: str, memory_mb: int) -> None:
    """Classify scans until the form is gone, then remove the private folder.

    Parameters
    ----------
    pipe : Connection
        Receives path, age and sex, and whether to compute an attribution map; sends ``("stage", title)`` when a stage
        begins, and ``("result", record, pictures, view)``, see `Result`, or ``("error", message)``.
    model, home, coverage, method
        See `Worker`.
    memory_mb : int
        Memory of a scan, MiB.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # an interrupted notebook does not interrupt it, and its children end with it
    signal.signal(signal.SIGTERM, lambda *_: _end(home))  # of a kernel that shuts down
    jobs: queue.Queue[tuple[str, dict[str, float], bool]] = queue.Queue()
    threading.Thread(target=_listen, args=(pipe, jobs, home), daemon=True).start()
    for output in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    os.environ["TMPDIR"] = tempfile.tempdir = str(home / "tmp")
    matplotlib.use("agg")
    apply_theme()
    try:
        classifier, examples = model_file.load(model, trusted=True), read_examples(model)
    except StudyError as error:
        pipe.send(("error", str(error)))
        return
    _limit_memory(memory_mb)

    def stage(title: str) -> None:
        pipe.send(("stage", title))

    while True:
        path, person, explain = jobs.get()
        try:
            prediction = predict_file(
                path, classifier, stage=stage, person=person, coverage=coverage, examples=examples
            )
            pictures, view = _draw(prediction, classifier, method if explain else None, stage)
            pipe.send(("result", as_record(prediction), pictures, view))
        except StudyError as error:
            pipe.send(("error", str(error)))
        except MemoryError:
            advice = "resample it to 1 mm"
            pipe.send(("error", f"needs more than {memory_mb} MiB of memory (classify.memory_mb); {advice}"))
        except Exception as error:  # an unforeseen error of a library must not end the process
            reason = f"{type(error).__name__}: {error}"
            pipe.send(("error", f"cannot be processed ({reason}); convert it to NIfTI and try again"))


def _listen(pipe: Connection, jobs: queue.Queue[Any], home: Path) -> None:
    """Queue incoming jobs; when the form is gone, remove the private folder and end at once."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            jobs.put(pipe.recv())
    _end(home)


def _end(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


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


def _limit_memory(megabytes: int) -> None:
    """Limit this process and its children to their memory now plus `megabytes`, if the system can."""
    try:
        import resource

        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except (ImportError, OSError):
        return
    used = int(re.search(r"VmData:\s+(\d+) kB", status)[1]) * 2**10
    resource.setrlimit(resource.RLIMIT_DATA, (used + megabytes * 2**20, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _draw(
    prediction: Prediction, classifier: model_file.Classifier, method: str | None, stage: Callable[[str], None]
) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Pictures and volumes of a `Result`, with an attribution map if there is a `method`."""
    stage(DRAWING)
    pictures, view = {"summary": as_png(plot_prediction(prediction))}, view_arrays(prediction)
    if prediction.nearest:
        pictures["nearest"] = as_png(plot_nearest(prediction))
    if method and prediction.predicted:
        stage(EXPLAINING)
        card = prediction.card
        target, apart = card.classes.index(prediction.predicted), card.input.plane in THREE_PLANES
        maps = attribute(classifier.network, prediction.seen, target, method, apart)
        pictures["evidence"] = as_png(plot_attribution(prediction, maps, TITLES[method]))
        if not card.input.flat:
            view["evidence"] = _evidence_volume(prediction, maps)
    return pictures, view


def _evidence_volume(prediction: Prediction, maps: np.ndarray) -> np.ndarray:
    """Attribution maps (n, 3, H, W) on the grid of the template, int16 within ±`EVIDENCE_MAX`; 0 outside the slices."""
    volume = in_volume(maps, slice_voxels(prediction.card), prediction.prepared.mask.shape)
    return np.rint(volume / (float(np.abs(volume).max()) or 1.0) * EVIDENCE_MAX).astype(np.int16)


def view_arrays(prediction: Prediction) -> dict[str, np.ndarray]:
    """Volumes of the viewer on the grid of the template.

    Parameters
    ----------
    prediction : Prediction

    Returns
    -------
    dict of str to array
        ``head``, ``tissue`` (0 none, 1 GM, 2 WM, 3 CSF) and ``mask`` (X, Y, Z) uint8; ``affine`` (4, 4) float, mm.
    """
    prepared = prediction.prepared
    head = np.clip(prepared.native / max(brightest(prepared), 1e-9) * 255, 0, 255).astype(np.uint8)
    tissue = (prepared.tissues.argmax(-1) + 1) * (prepared.tissues.sum(-1) > 0.5) * prepared.mask
    mask = prepared.mask.astype(np.uint8)
    return {"head": head, "tissue": tissue.astype(np.uint8), "mask": mask, "affine": prepared.affine}


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
    expected : dict of str to float
        Seconds of each stage, as last measured.
    """

    model: Path
    limits: ClassifyParams
    home: Path
    coverage: float = COVERAGE
    method: str = "integrated_gradients"
    target: Callable[..., None] = serve
    expected: dict[str, float] = field(default_factory=EXPECTED_S.copy)

    def __post_init__(self) -> None:
        self._process: Any = None
        self._lock = threading.Lock()
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
                if kind == "result":
                    return Result(*content)
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
            shutil.rmtree(self.home / "tmp", ignore_errors=True)
            if self._cancelled:
                raise CancelledError from None
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
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
        shutil.rmtree(self.home / "tmp", ignore_errors=True)
