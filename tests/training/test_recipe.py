"""Another network, loss, optimizer and augmentation: trained, recorded, stored and loaded again."""

import linecache
import sys

import numpy as np
import pytest
import torch
from tiny_study import Tiny, accuracy, make_study

from adlib.study.metrics import NETWORK
from adlib.study.records import StudyError
from adlib.training.model_file import classify_slices, load
from adlib.training.network import ImageNetwork, ResNet50, check_network
from adlib.training.recipe import LOSSES, Recipe, ordinal, record_differences, training_record, written_source
from adlib.training.runs import Training, train_study

NOTEBOOK = """
from torch import nn

from adlib.training.augmentation import augment_slices
from adlib.training.network import ImageNetwork

WIDTH = 8


def body():
    return nn.Sequential(nn.Conv2d(3, WIDTH, 5, 2), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.AdaptiveAvgPool2d(4))


def small(outputs, covariates, dropout):
    return ImageNetwork(body(), 16 * WIDTH, "2", outputs, covariates, dropout)


def focal(logits, targets, weights, params):
    p = logits.softmax(1).gather(1, targets[:, None])
    return (-((1 - p) ** 2) * p.log()).mean()


def with_gain(x, generator, params):
    return augment_slices(x, generator, params) * 1.1


class Own(nn.Module):
    def __init__(self, outputs, covariates, dropout):
        super().__init__()
        self.base = small(outputs, covariates, dropout)


def uses_table(outputs, covariates, dropout):
    return table
"""


@pytest.fixture
def cells(monkeypatch):
    """Functions as the cells of a notebook define them."""
    main, name = sys.modules["__main__"], "<ipython-input-1>"
    space = {"__name__": "__main__", "table": np.zeros(2)}
    monkeypatch.setitem(linecache.cache, name, (len(NOTEBOOK), None, NOTEBOOK.splitlines(keepends=True), name))
    exec(compile(NOTEBOOK, name, "exec"), space)
    monkeypatch.setattr(main, "small", space["small"], raising=False)
    return space


def parts(cells):
    return {"build_network": cells["small"], "loss": cells["focal"], "augment": cells["with_gain"]}


def test_another_network_is_trained_stored_and_loaded(tmp_path, cells):
    study = make_study(tmp_path, "train.epochs=12", "train.covariates=[age]")
    assert accuracy(train_study(study, **parts(cells)), NETWORK) >= 0.9
    path = study.folder / "model.safetensors"
    own, given = load(path, trusted=True), load(path, cells["small"])
    x = np.load(study.folder / "slices.npy")[:2]
    np.testing.assert_array_equal(classify_slices(own, x)[0], classify_slices(given, x)[0])
    assert own.card.network == "ImageNetwork" and "IMAGE" not in own.distributions
    with pytest.raises(StudyError, match="was trained with the network '__main__:small'"):
        load(path)
    code = study.folder / "network.py"
    code.write_text(code.read_text() + "\nprint('changed')\n")
    with pytest.raises(StudyError, match="is not the file that the training"):
        load(path, trusted=True)


def test_the_record_names_what_was_trained(tmp_path, cells):
    study = make_study(tmp_path, "train.controls=[]")
    edited = study.model_copy(update={"train": study.train.model_copy(update={"epochs": 2})})
    train_study(edited, **parts(cells))
    record = training_record(study.folder)
    assert record["runs"] == {NETWORK: {"0": 2}} and record["train"]["epochs"] == 2
    assert "1 - p" in record["loss"]["source"] and record["network"]["parameters"] > 0
    assert record == {**load(study.folder / "model.safetensors", cells["small"]).card.training, "runs": record["runs"]}
    found = record_differences(record, study)
    assert found["train.epochs"] == (study.train.epochs, 2)
    assert {"network", "loss", "augment"} < set(found) and "optimizer" not in found
    assert not record_differences(record, edited).keys() - {"network", "loss", "augment"}


def test_a_changed_loss_trains_again_and_a_kept_one_does_not(tmp_path, cells, capsys):
    study = make_study(tmp_path, "train.controls=[]", "train.epochs=1")
    train_study(study, build_network=Tiny)
    train_study(study, build_network=Tiny)
    assert "stored, nothing changed" in capsys.readouterr().out
    train_study(study, build_network=Tiny, loss=cells["focal"])
    assert "stored" not in capsys.readouterr().out


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ordinal_loss_is_the_ranked_ignorance_score(study, smoothing):
    params = study.model_copy(update={"train": study.train.model_copy(update={"label_smoothing": smoothing})})
    rng = np.random.default_rng(0)
    logits, targets, weights = rng.normal(0, 2, (7, 4)), rng.integers(0, 4, 7), np.array([1.0, 2.0, 0.5, 1.5])
    p, expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True), np.zeros(7)
    for i in range(7):
        for bound in range(3):
            below, true = p[i, : bound + 1].sum(), (targets[i] <= bound) * (1 - smoothing) + smoothing * (bound + 1) / 4
            expected[i] -= (true * np.log(below) + (1 - true) * np.log(1 - below)) / 3
    tensors = torch.from_numpy(logits), torch.from_numpy(targets)
    assert float(ordinal(*tensors, None, params)) == pytest.approx(expected.mean(), rel=1e-9)
    weighted = np.average(expected, weights=weights[targets])
    assert float(ordinal(*tensors, torch.from_numpy(weights), params)) == pytest.approx(weighted, rel=1e-9)
    extreme = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    ordinal(extreme, torch.tensor([2]), None, params).backward()
    assert torch.isfinite(extreme.grad).all()


def test_ordinal_loss_trains_and_is_recorded_as_the_params_say(tmp_path):
    study = make_study(tmp_path, "train.loss=ordinal", "train.epochs=12")
    assert accuracy(train_study(study, build_network=Tiny, loss=LOSSES[study.train.loss]), NETWORK) >= 0.9
    assert "loss" not in record_differences(training_record(study.folder), study)


def test_source_of_a_cell_holds_all_it_uses(cells):
    source = written_source(cells["small"])
    assert "WIDTH = 8" in source and "def body():" in source and source.index("def body") < source.index("def small")
    space = {}
    exec(source, space)
    assert isinstance(space["small"](2, 0, 0.0), ImageNetwork)
    assert "class Own" in written_source(cells["Own"])
    assert written_source(ResNet50) == "from adlib.training.network import ResNet50\n"
    with pytest.raises(StudyError, match="uses 'table' of the notebook, a ndarray"):
        written_source(cells["uses_table"])


def test_networks_without_what_is_needed_are_refused():
    with pytest.raises(StudyError, match="has 2 outputs, expected 3"):
        check_network(Tiny(2), 3)
    with pytest.raises(StudyError, match=r"no method features\(x\)"):
        check_network(torch.nn.Sequential(torch.nn.Linear(2, 3)), 3)
    with pytest.raises(StudyError, match="no attribute explained_layer"):
        check_network(ImageNetwork(torch.nn.Identity(), 2, "none", 3), 3)


def test_a_cell_cannot_train_on_several_devices(tmp_path, cells):
    study = make_study(tmp_path, "exec.devices=2", "train.micro_batches=2")
    with pytest.raises(StudyError, match="loss is focal, defined in the notebook"):
        Training(study, Recipe(loss=cells["focal"]))


def test_the_default_recipe_is_named_by_import():
    assert not Recipe().changed() and len(Recipe(build_network=Tiny).changed()) == 1
