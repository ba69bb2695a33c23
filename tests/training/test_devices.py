"""Two processes train as one does, and a lost one is said in words and gone on from."""

import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from tiny_study import make_study

from adlib.study.params import dump_params, load_params
from adlib.study.records import StudyError, read_json
from adlib.training import devices
from adlib.training import runs as train
from adlib.training.devices import takes_bf16
from adlib.training.model_file import load

TOGETHER = ("train.micro_batches=2", "train.epochs=2", "train.controls=[]", "train.batch_size=12", "train.warmup=0.5")


def history(study):
    return read_json(study.folder / "training" / "resnet50" / "fold-0" / "history.json")


@pytest.mark.studies
def test_two_processes_match_one(tmp_path, capfd):
    one = make_study(tmp_path / "one", *TOGETHER)
    two = make_study(tmp_path / "two", *TOGETHER, "exec.devices=2")
    alone, together = train.train_study(one), train.train_study(two)
    assert "on 2 × cpu" in capfd.readouterr().out
    assert [row["train_loss"] for row in history(two)] == pytest.approx(
        [row["train_loss"] for row in history(one)], rel=1e-3
    )
    first, second = (load(study.folder / "model.safetensors").network for study in (one, two))
    a, b = (torch.cat([value.flatten() for value in network.parameters()]) for network in (first, second))
    assert (a - b).norm() < 0.01 * a.norm()
    np.testing.assert_allclose(together[["p_CN", "p_AD"]], alone[["p_CN", "p_AD"]], atol=0.02)


def command_lines():
    """Words of the command of each process; none of one that has ended."""
    return {process: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}


def kill_one(folder):
    """End the second process of a training as soon as an epoch is stored."""
    deadline = time.monotonic() + 120
    while not (folder / "training" / "resnet50" / "fold-0" / "checkpoint.pt").is_file():
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    for process, words in command_lines().items():
        ours = str(folder / "training" / "job.yaml") in words and "torch.distributed.run" not in words
        if ours and process.environ().get("LOCAL_RANK") == "1":
            process.kill()


def kill_training(folder, name):
    """End a training as soon as one of its epochs is stored."""
    deadline = time.monotonic() + 120
    while not any(folder.glob("training/resnet50/fold-0/member-2/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process, words in command_lines().items():
        if name in words:
            process.kill()


@pytest.mark.studies
def test_killed_process_is_reported_and_resumed(tmp_path, capfd):
    study = make_study(tmp_path, *TOGETHER, "exec.devices=2", "train.epochs=12")
    watcher = threading.Thread(target=kill_one, args=(study.folder,))
    watcher.start()
    with pytest.raises(StudyError, match="one of them failed or was killed"):
        train.train_study(study)
    watcher.join()
    capfd.readouterr()
    assert set(train.train_study(study)["run"]) == {"resnet50"}
    assert "resuming after epoch" in capfd.readouterr().out
    assert [row["epoch"] for row in history(study)] == list(range(1, 13))


def test_several_computers_need_a_rendezvous():
    sets = ("exec.devices=4", "exec.nodes=2", "train.micro_batches=8")
    with pytest.raises(StudyError, match=r"set exec\.rendezvous"):
        devices.command(load_params("params/phantom.yaml", sets))
    found = devices.command(load_params("params/phantom.yaml", (*sets, "exec.rendezvous=head:29500")))
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=head:29500"} <= set(found)
    assert devices.main(["--params", "params/phantom.yaml"]) == 1


@pytest.mark.studies
def test_trainings_side_by_side_match_those_one_after_the_other(tmp_path, capfd):
    """Two processes of one core each give the numbers of one core, show their curves, and are not trained again."""
    sets = "train.epochs=2", "train.members=2", "train.controls=[shuffled_labels]"
    one = make_study(tmp_path / "one", *sets)
    two = make_study(tmp_path / "two", *sets, "exec.trainings=2", "exec.device=cpu")
    shown = {}
    alone = train.train_study(one)
    capfd.readouterr()
    together = train.train_study(two, on_epoch=lambda title, history: shown.update({title: len(history)}))
    printed = capfd.readouterr().out
    assert printed.count("stored, nothing changed") == 3 and printed.count("epoch   2/2") == 3
    names = "resnet50, fold 0, member 1", "resnet50, fold 0, member 2", "shuffled_labels, fold 0, member 1"
    assert shown == dict.fromkeys(names, 2)
    pd.testing.assert_frame_equal(together, alone)


@pytest.mark.studies
def test_a_killed_training_ends_those_at_its_side(tmp_path, capfd):
    study = make_study(tmp_path, "train.epochs=5", "train.members=2", "train.controls=[]", "exec.trainings=2")
    watcher = threading.Thread(target=kill_training, args=(study.folder, "resnet50/0/2"))
    watcher.start()
    with pytest.raises(StudyError, match="on 2 processes ended with code -9"):
        train.train_study(study)
    watcher.join()
    job = str(study.folder / "training" / "job.yaml")
    assert not [words for words in command_lines().values() if job in words]
    capfd.readouterr()
    assert set(train.train_study(study)["run"]) == {"resnet50", "member_1", "member_2"}
    assert "resuming after epoch" in capfd.readouterr().out


@pytest.mark.studies
def test_second_computer_joins_the_training(tmp_path):
    """Both agents of torchrun run here, each as on a computer of its own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        place = f"exec.rendezvous=127.0.0.1:{found.getsockname()[1]}"
    two = make_study(tmp_path / "two", *TOGETHER, "exec.devices=2")
    apart = make_study(tmp_path / "apart", *TOGETHER, "exec.nodes=2", place)
    (tmp_path / "apart.yaml").write_text(dump_params(apart))
    command = [sys.executable, "-m", "adlib.training.devices", "--params", str(tmp_path / "apart.yaml")]
    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first = train.train_study(apart)
    assert second.communicate(timeout=120)[0] and second.returncode == 0
    together = train.train_study(two)
    np.testing.assert_allclose(first[["p_CN", "p_AD"]], together[["p_CN", "p_AD"]], atol=1e-6)


@pytest.mark.parametrize("native", [True, False])
def test_bf16_needs_native_instructions(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert takes_bf16("auto", torch.device("cpu")) == native
    assert takes_bf16("bf16", torch.device("cpu"))
    assert not takes_bf16("fp32", torch.device("cpu"))
