"""A training that is killed at random moments ends with the very same weights."""

import random
import subprocess
import sys
import threading
import time

import pytest
from tiny_study import make_study

from adlib.study.params import dump_params
from adlib.study.records import file_digest, read_json

KILLS = 3
ALL = (
    "train.epochs=30", "train.controls=[]", "train.mixup=0.2", "train.augment=light",
    "train.micro_batches=2", "train.batch_size=12",
)  # fmt: skip


def start(study):
    path = study.folder / "job.yaml"
    path.write_text(dump_params(study))
    command = [sys.executable, "-u", "-m", "adlib.training.devices", "--job", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_training(process):
    for line in process.stdout:
        if line.startswith("resnet50, fold 0:"):
            return
    raise AssertionError("the training ended before it began")


@pytest.mark.studies
@pytest.mark.timeout(1800)
def test_random_kills_end_with_the_same_weights(tmp_path):
    whole, cut = (make_study(tmp_path / name, *ALL) for name in ("whole", "cut"))
    process = start(whole)
    wait_for_training(process)
    began = time.monotonic()
    assert process.communicate() and process.returncode == 0
    longest = (time.monotonic() - began) / (2 * KILLS)  # most of the training is left, also on a machine twice as fast
    moments = random.Random()
    seed = moments.randrange(2**32)
    moments.seed(seed)
    history = cut.folder / "training" / "resnet50" / "fold-0" / "history.json"
    stored = []
    for _ in range(KILLS):
        process = start(cut)
        wait_for_training(process)
        timer = threading.Timer(moments.uniform(0.0, longest), process.kill)
        timer.start()
        process.communicate()
        timer.cancel()
        assert process.returncode == -9, "the training ended before it was killed"
        stored.append(len(read_json(history)) if history.is_file() else 0)
    process = start(cut)
    assert "resuming after epoch" in process.communicate()[0]
    assert process.returncode == 0
    assert stored == sorted(stored) and stored[-1] > 0, f"seed {seed}"
    for name in ("model.safetensors", "predictions.parquet"):
        first, second = (file_digest(study.folder / name) for study in (whole, cut))
        assert first == second, f"seed {seed}: {name}, epochs stored at each kill: {stored}"
