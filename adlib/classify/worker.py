"""The process that classifies for the form: it can be stopped at any time, and its crash does not end the notebook.

`Worker` is its side of the form. ``python -m adlib.classify.worker SETTINGS`` is the process: it reads jobs and writes
its stages as lines of JSON, and leaves each result as files in a folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
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

from adlib.classify.nearest import read_examples
from adlib.classify.plot_prediction import brightest, plot_attribution, plot_nearest, plot_prediction
from adlib.classify.prediction import STAGES, predict_file, write_png
from adlib.classify.result import COVERAGE, Prediction, Record, as_record
from adlib.evaluation.explain.attribution import THREE_PLANES, TITLES, attribute
from adlib.evaluation.explain.regions import in_volume, slice_voxels
from adlib.figures.theme import apply_theme
from adlib.parallel.threads import THREAD_VARIABLES
from adlib.study.params import ClassifyParams
from adlib.study.records import StudyError, read_json, write_text
from adlib.training import model_file

COMMAND = (sys.executable, "-m", "adlib.classify.worker")
START, DRAWING, EXPLAINING = "starting", "drawing", "computing the attribution map"
EXPECTED_S = {START: 8.0, **dict(zip(STAGES, (1.0, 8.0, 0.3, 0.5), strict=True)), DRAWING: 3.0, EXPLAINING: 8.0}
EVIDENCE_MAX = 127

Message = dict[str, Any]
Send = Callable[..., None]


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
    command : tuple of str
    expected : dict of str to float
        Seconds of each stage, as last measured.
    """

    model: Path
    limits: ClassifyParams
    home: Path
    coverage: float = COVERAGE
    method: str = "integrated_gradients"
    command: tuple[str, ...] = COMMAND
    expected: dict[str, float] = field(default_factory=lambda: dict(EXPECTED_S))

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._messages: queue.Queue[Message | None] = queue.Queue()
        self._lock = threading.Lock()
        self._cancelled = self._ready = False
        self._count = 0

    def start(self) -> None:
        """Start the process, unless it runs, without waiting for it."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self._ready, self._messages = False, queue.Queue()
            temporary = self.home / "tmp"
            temporary.mkdir(mode=0o700, exist_ok=True)
            settings = {"model": str(self.model.resolve()), "home": str(self.home), "coverage": self.coverage}
            settings |= {"method": self.method, "memory_mb": self.limits.memory_mb}
            paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
            environment |= {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "agg"}
            self._process = subprocess.Popen(
                [*self.command, json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
                env=environment, start_new_session=True,
            )  # fmt: skip
            threading.Thread(target=_receive, args=(self._process, self._messages), daemon=True).start()

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
        self._count += 1
        folder = self.home / f"result-{self._count:04d}"
        folder.mkdir(mode=0o700)
        try:
            self._follow(stage, {"path": str(path), "person": person, "folder": str(folder), "explain": explain})
            pictures = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))}
            with np.load(folder / "view.npz", allow_pickle=False) as arrays:
                return Result(read_json(folder / "record.json"), pictures, dict(arrays))
        except (StudyError, CancelledError):
            raise
        except BaseException:  # an interrupted process must not deliver this scan as the result of a later one
            self._kill()
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

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
        return sum(self.expected[name] for name in names[names.index(stage) :]) if stage in names else 0.0

    def _follow(self, stage: Callable[[str], None], job: Message) -> None:
        """Send a job, report its stages and measure them, until it is done."""
        title, began = START, time.monotonic()
        stage(title)
        self.start()
        if not self._ready:
            self._next(began + self.limits.timeout_s)
            self._ready = True
        with contextlib.suppress(OSError):  # a dead process shows as an end of its messages
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        deadline = time.monotonic() + self.limits.timeout_s
        while True:
            message = self._next(deadline)
            now = time.monotonic()
            if title in self.expected:
                self.expected[title] = now - began
            if "done" in message:
                return
            title, began = message["stage"], now
            stage(title)

    def _next(self, deadline: float) -> Message:
        try:
            message = self._messages.get(timeout=max(deadline - time.monotonic(), 0.01))
        except queue.Empty:
            self._kill()
            raise StudyError(
                f"timeout: the scan took more than {self.limits.timeout_s} s (classify.timeout_s); resample it to "
                "1 mm, or raise the limit"
            ) from None
        if message is None:
            code = self._process.wait() if self._process else 0
            self._clean()
            if self._cancelled:
                raise CancelledError
            raise StudyError(
                f"the worker process ended unexpectedly (exit code {code}), most often for lack of memory: at most "
                f"{self.limits.memory_mb} MiB are allowed (classify.memory_mb); resample the scan to 1 mm and try again"
            )
        if "error" in message:
            raise StudyError(message["error"])
        return message

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._clean()

    def _clean(self) -> None:
        shutil.rmtree(self.home / "tmp", ignore_errors=True)


def _receive(process: subprocess.Popen[str], messages: queue.Queue[Message | None]) -> None:
    for line in process.stdout:
        with contextlib.suppress(ValueError):
            messages.put(json.loads(line))
    messages.put(None)


def main() -> None:
    """Work on jobs until the standard input ends, then remove the private folder."""
    settings = json.loads(sys.argv[1])
    jobs: queue.Queue[Message] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs, Path(settings["home"])), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not mix with messages

    def send(**content: Any) -> None:
        print(json.dumps(content), file=out, flush=True)

    try:
        model = Path(settings["model"])
        classifier, examples = model_file.load(model, trusted=True), read_examples(model)
    except StudyError as error:
        send(error=str(error))
        return
    apply_theme()
    _limit_memory(settings["memory_mb"])
    send(ready=True)
    while True:
        _work(jobs.get(), classifier, settings | {"examples": examples}, send)


def _listen(jobs: queue.Queue[Message], home: Path) -> None:
    """Queue incoming jobs; when the form is gone, remove the private folder and end at once."""
    for line in sys.stdin:
        jobs.put(json.loads(line))
    shutil.rmtree(home, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


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


def _work(job: Message, classifier: model_file.Classifier, settings: dict[str, Any], send: Send) -> None:
    try:
        _classify(job, classifier, settings, send)
        send(done=True)
    except StudyError as error:
        send(error=str(error))
    except MemoryError:
        send(error=f"needs more than {settings['memory_mb']} MiB of memory (classify.memory_mb); resample it to 1 mm")
    except Exception as error:  # an unforeseen error of a library must not end the process
        send(error=f"cannot be processed ({type(error).__name__}: {error}); convert it to NIfTI and try again")


def _classify(job: Message, classifier: model_file.Classifier, settings: dict[str, Any], send: Send) -> None:
    """Classify the scan of a job and write record, figures and volumes of the viewer to its folder."""
    folder = Path(job["folder"])
    prediction = predict_file(
        job["path"], classifier, stage=lambda title: send(stage=title), person=job["person"],
        coverage=settings["coverage"], examples=settings["examples"],
    )  # fmt: skip
    send(stage=DRAWING)
    write_text(json.dumps(as_record(prediction)), folder / "record.json")  # classes keep their order
    write_png(plot_prediction(prediction), folder / "summary.png")
    if prediction.nearest:
        write_png(plot_nearest(prediction), folder / "nearest.png")
    view = view_arrays(prediction)
    if job["explain"] and prediction.predicted:
        send(stage=EXPLAINING)
        card, method = prediction.card, settings["method"]
        target, apart = card.classes.index(prediction.predicted), card.input.plane in THREE_PLANES
        maps = attribute(classifier.network, prediction.seen, target, method, apart)
        write_png(plot_attribution(prediction, maps, TITLES[method]), folder / "evidence.png")
        view["evidence"] = evidence_volume(prediction, maps)
    np.savez_compressed(folder / "view.npz", **view)  # type: ignore[arg-type]


def evidence_volume(prediction: Prediction, maps: np.ndarray) -> np.ndarray:
    """Attribution maps on the grid of the template.

    Parameters
    ----------
    prediction : Prediction
    maps : (n, 3, H, W) float
        Attribution of each slice.

    Returns
    -------
    (X, Y, Z) int16
        Scaled to ±`EVIDENCE_MAX`; 0 outside the slices.
    """
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


if __name__ == "__main__":
    main()
