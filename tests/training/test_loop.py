"""Each option of a training does what its name says, and an interruption changes nothing."""

import pandas as pd
import pytest
import torch
from tiny_study import SETS, TINY, accuracy, fold_of, load, make_study, train_study

from adlib.study.params import load_params
from adlib.study.records import StudyError, read_json
from adlib.training import loop as fit

ALL = (
    "train.micro_batches=2", "train.mixup=0.2", "train.average=0.8", "train.patience=5", "train.dropout=0.2",
    "train.covariates=[age]", "train.augment=light", "train.balance=sampling", "train.controls=[]",
)  # fmt: skip


@pytest.mark.parametrize("option", [*ALL, "train.augment=mri", "input.pooling=attention", "train.members=2"])
def test_a_planted_signal_is_learnt_with_every_option(tmp_path, option):
    study = make_study(tmp_path, "train.controls=[]", "train.epochs=12", option)
    assert accuracy(train_study(study), "resnet50") >= 0.9


def test_resume_with_all_options(tmp_path, monkeypatch):
    whole, cut = (make_study(tmp_path / name, *ALL) for name in ("whole", "cut"))
    predictions = train_study(whole)
    validate, epochs = fit._validate, []

    def stop_in_the_third(*args):
        epochs.append(args)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return validate(*args)

    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(fit, "_validate", stop_in_the_third)
        train_study(cut)
    pd.testing.assert_frame_equal(train_study(cut), predictions)
    first, second = (load(one.folder / "model.safetensors").network.state_dict() for one in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_frozen_stages_keep_their_weights_and_statistics(tmp_path):
    study = make_study(tmp_path, "train.frozen_stages=2", "train.controls=[]")
    torch.manual_seed(study.seed)
    start = fit.initial_network(fold_of(study), study, TINY)[0].state_dict()
    train_study(study)
    found = load(study.folder / "model.safetensors").network.state_dict()
    for name, value in found.items():
        same = torch.equal(value, start[name]) if value.shape == start[name].shape else False
        assert same == name.startswith(("conv1", "bn1", "layer1", "layer2")), name


def test_patience_stops_and_takes_the_first_best_epoch(tmp_path):
    study = make_study(tmp_path, "train.patience=2", "train.epochs=40", "train.controls=[]")
    train_study(study)
    history = read_json(study.folder / "training" / "resnet50" / "fold-0" / "history.json")
    best = fit.best_epoch(history)
    assert len(history) == best + 3 < 40
    assert history[best]["validation_balanced_accuracy"] == max(row["validation_balanced_accuracy"] for row in history)


def test_moving_average_of_weights(tmp_path):
    study = make_study(tmp_path, "train.average=0.999", "train.controls=[]", "train.epochs=1")
    torch.manual_seed(study.seed)
    start = fit.initial_network(fold_of(study), study, TINY)[0].state_dict()["conv1.weight"]
    train_study(study)
    slow = load(study.folder / "model.safetensors").network.state_dict()["conv1.weight"]
    assert 0 < (slow - start).abs().max() < 1e-3


def test_infinite_loss_stops_the_training(tmp_path):
    study = make_study(tmp_path, "train.learning_rate=1.0e+30", "train.controls=[]")
    with pytest.raises(StudyError, match=r"not finite; lower train\.learning_rate"):
        train_study(study)


def test_incompatible_params_are_refused():
    for setting, words in (
        ("exec.devices=2", "2 devices share train.micro_batches, which is 1"),
        ("input.plane=three_planes", "takes three input.positions_mm"),
    ):
        with pytest.raises(StudyError, match=words):
            load_params("params/phantom.yaml", (*SETS, setting))
    with pytest.raises(StudyError, match="mixes single slices"):
        load_params("params/phantom.yaml", ("train.mixup=0.2", "input.pooling=attention"))
