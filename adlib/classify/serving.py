"""The process of a `Worker`: loads the model once and classifies scans until the form is gone."""

import contextlib
import os
import queue
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil

from adlib.classify.nearest import read_examples
from adlib.classify.plot_prediction import brightest, plot_attribution, plot_nearest, plot_prediction, plot_views
from adlib.classify.prediction import as_png, predict_file, stated_person
from adlib.classify.result import Prediction, as_record
from adlib.classify.worker import DRAWING, EVIDENCE_MAX, EXPLAINING
from adlib.evaluation.explain.attribution import THREE_PLANES, TITLES, attribute
from adlib.evaluation.explain.regions import in_volume, slice_voxels
from adlib.figures.theme import apply_theme
from adlib.study.records import StudyError
from adlib.training import model_file


def serve(pipe: Connection, model: Path, home: Path, coverage: float, method: str, memory_mb: int) -> None:
    """Classify scans until the form is gone, then remove the private folder.

    Parameters
    ----------
    pipe : Connection
        Receives path, age and sex, and whether to compute an attribution map; sends ``("stage", title)`` when a stage
        begins, and ``("result", record, pictures, view)``, see `Result`, or ``("error", message)``. For a path with
        None sends ``("stated", person)``, see `adlib.classify.prediction.stated_person`.
    model, home, coverage, method
        See `adlib.classify.worker.Worker`.
    memory_mb : int
        Memory of a scan, MiB.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # an interrupted notebook does not interrupt it, and its children end with it
    signal.signal(signal.SIGTERM, lambda *_: _end(home))  # of a kernel that shuts down
    jobs: queue.Queue[tuple[str, dict[str, float] | None, bool]] = queue.Queue()
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
            if person is None:
                pipe.send(("stated", stated_person(path)))
                continue
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
    for child in psutil.Process().children(recursive=True):
        child.kill()
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


def _draw(
    prediction: Prediction, classifier: model_file.Classifier, method: str | None, stage: Callable[[str], None]
) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Pictures and volumes of a `Result`, with an attribution map if there is a `method`."""
    stage(DRAWING)
    pictures = {"views": as_png(plot_views(prediction.prepared)), "summary": as_png(plot_prediction(prediction))}
    view = view_arrays(prediction)
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
