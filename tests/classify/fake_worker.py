"""Replaces the worker process of the form: the result depends on the file name alone."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np


def send(**content):
    print(json.dumps(content), flush=True)


def write_result(job):
    """Write the files that `adlib.classify.worker` writes."""
    folder, name = Path(job["folder"]), Path(job["path"]).name.split(".nii")[0].removesuffix(".mgz")
    record = json.loads(Path(os.environ["FAKE_RECORD"]).read_text()) | {"name": name, "person": job["person"]}
    record["bytes"] = Path(job["path"]).stat().st_size if Path(job["path"]).exists() else None
    (folder / "record.json").write_text(json.dumps(record))
    asked = ["evidence"] if job["explain"] else []
    for picture in ("summary", *asked, *(["nearest"] if record["nearest"] else [])):
        (folder / f"{picture}.png").write_bytes(Path(os.environ["FAKE_PICTURE"]).read_bytes())
    volume = np.zeros((6, 7, 5), np.uint8)
    volume[2:4, 2:5, 1:4] = 1
    view = {"head": volume * 200, "tissue": volume, "mask": volume, "affine": np.diag([3.0, 3, 3, 1])}
    if asked:
        view["evidence"] = np.zeros(volume.shape, np.int16)
        view["evidence"][1, 6, 2] = -127
    np.savez(folder / "view.npz", **view)


def serve(job):
    name = Path(job["path"]).name
    send(stage="reading the file")
    if "bad" in name:
        send(error="<b>bad</b> is no scan; copy it again")
    elif "crash" in name:
        os.abort()
    else:
        send(stage="classifying slices")
        if "slow" in name:
            (Path(os.environ["TMPDIR"]) / "half-done").write_text("somebody's head")
            time.sleep(60)
        write_result(job)
        send(done=True)


if __name__ == "__main__":
    send(ready=True)
    for line in sys.stdin:
        serve(json.loads(line))
