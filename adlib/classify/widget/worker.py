"""The process that classifies for the form: it can be stopped at any time, and a crash in it harms nobody else.

``python -m adlib.classify.widget.worker SETTINGS`` takes jobs as lines of JSON and answers in lines of JSON;
results are files.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from adlib.classify.nearest import read_examples
from adlib.classify.picture import plot_attribution, plot_nearest
from adlib.classify.prediction import draw, predict_file
from adlib.classify.result import Prediction, as_record
from adlib.classify.widget.jobs import DRAWING, EXPLAINING
from adlib.classify.widget.scene import STRONGEST
from adlib.evaluation.explain.attribution import TITLES, attribute
from adlib.evaluation.explain.maps import THREE_PLANES
from adlib.evaluation.explain.space import in_volume, slice_voxels
from adlib.figures.theme import apply_theme
from adlib.study.records import StudyError, write_text
from adlib.training import model_file

Say = Callable[..., None]


def main() -> None:
    """Serve jobs until the standard input ends, then leave nothing behind."""
    settings = json.loads(sys.argv[1])
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs, Path(settings["home"])), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(**content: Any) -> None:
        print(json.dumps(content), file=out, flush=True)

    try:
        classifier, examples = model_file.load(settings["model"], trusted=True), read_examples(Path(settings["model"]))
    except StudyError as error:
        say(error=str(error))
        return
    apply_theme()
    limit_memory(settings["memory_mb"])
    say(ready=True)
    while True:
        _serve(jobs.get(), classifier, settings | {"examples": examples}, say)


def _listen(jobs: queue.Queue[dict[str, Any]], home: Path) -> None:
    """Queue what comes in; where the other side is gone, remove the private folder and end, whatever is being done."""
    for line in sys.stdin:
        jobs.put(json.loads(line))
    shutil.rmtree(home, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def limit_memory(megabytes: int) -> None:
    """Refuse this process and its children more memory than they have now and so much more, where the system can."""
    try:
        import resource

        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except (ImportError, OSError):
        return
    taken = int(re.search(r"VmData:\s+(\d+) kB", status)[1]) * 2**10
    resource.setrlimit(resource.RLIMIT_DATA, (taken + megabytes * 2**20, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve(job: dict[str, Any], classifier: model_file.Classifier, settings: dict[str, Any], say: Say) -> None:
    try:
        work(job, classifier, settings, say)
        say(done=True)
    except StudyError as error:
        say(error=str(error))
    except MemoryError:
        say(error=f"it needs more than {settings['memory_mb']} MiB of memory (classify.memory_mb); resample it to 1 mm")
    except Exception as error:  # whatever a library raises on a file that nobody foresaw must not end the process
        say(error=f"it could not be worked on ({type(error).__name__}: {error}); convert it to NIfTI and try again")


def work(job: dict[str, Any], classifier: model_file.Classifier, settings: dict[str, Any], say: Say) -> None:
    """Classify the scan of a job and write record, pictures and volumes for the viewer to its folder.

    Parameters
    ----------
    job : dict
        ``path``, ``name``, ``person``, ``folder`` and whether to ``explain``.
    classifier : Classifier
    settings : dict
        ``coverage``, ``method`` of attribution and ``examples``, the training scans to compare with.
    say : callable
        Told each stage.
    """
    folder = Path(job["folder"])
    asked = {"coverage": settings["coverage"], "examples": settings["examples"]}
    found = predict_file(job["path"], classifier, lambda words: say(stage=words), job["person"], **asked)
    say(stage=DRAWING)
    write_text(json.dumps(as_record(found)), folder / "record.json")  # classes keep their order
    _save(draw(found), folder / "summary.png")
    if found.nearest:
        _save(plot_nearest(found), folder / "nearest.png")
    view = view_arrays(found)
    if job["explain"] and found.predicted:
        say(stage=EXPLAINING)
        explained = explain(found, classifier, settings["method"])
        _save(plot_attribution(found, explained, TITLES[settings["method"]]), folder / "evidence.png")
        view["evidence"] = evidence_volume(found, explained)
    np.savez_compressed(folder / "view.npz", **view)


def explain(found: Prediction, classifier: model_file.Classifier, method: str) -> np.ndarray:
    """Evidence (n, 3, H, W) for the predicted class in the slices that the network saw."""
    card = found.card
    target, apart = card.classes.index(found.predicted), card.input.plane in THREE_PLANES
    return attribute(classifier.network, found.seen, target, method, apart)


def evidence_volume(found: Prediction, explained: np.ndarray) -> np.ndarray:
    """Evidence (n, 3, H, W) on the template's grid, int16: `STRONGEST` at most, 0 where no slice was cut."""
    placed = in_volume(explained, slice_voxels(found.card), found.prepared.mask.shape)
    return np.rint(placed / (float(np.abs(placed).max()) or 1.0) * STRONGEST).astype(np.int16)


def view_arrays(found: Prediction) -> dict[str, np.ndarray]:
    """Head (uint8), tissue (0 none, 1 GM, 2 WM, 3 CSF) and brain mask on the template's grid, for the viewer."""
    prepared = found.prepared
    inside = prepared.native[prepared.mask]
    top = float(np.percentile(inside, 99.5)) * 1.2 if inside.size else float(prepared.native.max())
    head = np.clip(prepared.native / max(top, 1e-9) * 255, 0, 255).astype(np.uint8)
    tissue = (prepared.tissues.argmax(-1) + 1) * (prepared.tissues.sum(-1) > 0.5) * prepared.mask
    mask = prepared.mask.astype(np.uint8)
    return {"head": head, "tissue": tissue.astype(np.uint8), "mask": mask, "affine": prepared.affine}


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
