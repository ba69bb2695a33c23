"""Replaces the process of the form's worker: the result depends on the file name alone."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np


def result(path, person, explain):
    """Record, pictures and volumes of a scan."""
    record = json.loads(Path(os.environ["FAKE_RECORD"]).read_text())
    record |= {"name": path.name.split(".nii")[0].removesuffix(".mgz"), "person": person}
    record["bytes"] = path.stat().st_size if path.exists() else None
    kinds = ["views", "summary"] + ["evidence"] * explain + ["nearest"] * bool(record["nearest"])
    pictures = dict.fromkeys(kinds, Path(os.environ["FAKE_PICTURE"]).read_bytes())
    volume = np.zeros((6, 7, 5), np.uint8)
    volume[2:4, 2:5, 1:4] = 1
    view = {"head": volume * 200, "tissue": volume, "mask": volume, "affine": np.diag([3.0, 3, 3, 1])}
    if explain:
        view["evidence"] = np.zeros(volume.shape, np.int16)
        view["evidence"][1, 6, 2] = -127
    return record, pictures, view


def serve(pipe, model, home, *settings):
    """Takes the place of `adlib.classify.worker.serve`."""
    os.setsid()
    while True:
        try:
            path, person, explain = pipe.recv()
        except EOFError:  # the form is gone
            return shutil.rmtree(home)
        name = Path(path).name
        if person is None:
            pipe.send(("stated", {"age": 63.0, "sex": 0.0}))
            continue
        pipe.send(("stage", "reading the file"))
        if "bad" in name:
            pipe.send(("error", "<b>bad</b> is no scan; copy it again"))
            continue
        if "crash" in name:
            os.abort()
        pipe.send(("stage", "classifying slices"))
        if "slow" in name:
            child = subprocess.Popen(["sleep", "60"])
            (home / "tmp" / "half-done").write_text(str(child.pid))
            time.sleep(60)
        pipe.send(("result", *result(Path(path), person, explain)))
