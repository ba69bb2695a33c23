"""The ResNet50 and first weights from files."""

import pickle
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet50_Weights, resnet50

from adlib.study.records import StudyError
from adlib.training.network import ResNet50, ResNet50Stage3, load_body, load_initial_weights


def wrapped(state):
    return {"epoch": 3, "state_dict": {f"module.encoder.{name}": value for name, value in state.items()}}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return resnet50(weights=None, num_classes=7).state_dict()


def test_resnet50_equals_torchvision():
    torch.manual_seed(0)
    network = ResNet50(4).eval()
    theirs = resnet50(num_classes=4).eval()
    theirs.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(x), theirs(x))
    with_covariates = ResNet50(4, covariates=2).eval()
    assert torch.equal(with_covariates(x), with_covariates(x, torch.tensor([[1.0, -2.0], [0.5, 3.0]])))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.safetensors", lambda s, p: save_file(s, p)),
        ("a.pth", lambda s, p: torch.save(s, p)),
        ("wrapped.pt", lambda s, p: torch.save(wrapped(s), p)),
        ("model.pt", lambda s, p: torch.save({"model": s}, p)),
    ],
)
def test_body_weights_are_read_from_a_file(state, tmp_path, name, write):
    write(state, tmp_path / name)
    network = ResNet50(4)
    assert load_initial_weights(network, f"path:{tmp_path / name}") == f"weights of {name}"
    loaded = network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items() if not key.startswith("fc."))
    assert loaded["fc.weight"].shape == (4, 2048)


class Hostile:
    def __reduce__(self):
        return (print, ("this must not be run",))


def changed(state, weight):
    return {**state, "conv1.weight": weight}


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("none.pth", lambda s, p: None, "does not exist"),
        ("hostile.pth", lambda s, p: p.write_bytes(pickle.dumps(Hostile())), "not a file of tensors alone"),
        ("text.pth", lambda s, p: p.write_text("x"), "not a file of tensors alone"),
        ("other.pth", lambda s, p: torch.save({"a": 1}, p), "holds no state dict"),
        ("vgg.pth", lambda s, p: torch.save({"features.0.weight": torch.zeros(3)}, p), "is not a ResNet50 in the"),
        ("small.pth", lambda s, p: torch.save(changed(s, torch.zeros(1, 3, 7, 7)), p), "does not fit ResNet50"),
        ("nan.pth", lambda s, p: torch.save(changed(s, s["conv1.weight"] / 0), p), "not finite, first in 'conv1.w"),
    ],
)
def test_other_weight_files_are_refused(state, tmp_path, capsys, name, write, words):
    write(state, tmp_path / name)
    with pytest.raises(StudyError, match=words):
        load_initial_weights(ResNet50(4), f"path:{tmp_path / name}")
    assert "must not be run" not in capsys.readouterr().out


def test_imagenet_weights_offline_stop_the_training(monkeypatch):
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", Mock(side_effect=OSError("no network")))
    with pytest.raises(StudyError, match=r"cannot be downloaded.*or copy http.*path:FILE"):
        load_initial_weights(ResNet50(4), "imagenet")


def test_body_up_to_stage_three_takes_weights_of_the_whole():
    torch.manual_seed(0)
    whole, network, x = resnet50().eval(), ResNet50Stage3(3).eval(), torch.rand(1, 3, 64, 64)
    load_body(network, whole.state_dict(), "torchvision")
    maps = {}
    whole.layer3.register_forward_hook(lambda *values: maps.update(out=values[-1]))
    with torch.no_grad():
        whole((x - network.mean) / network.sd)
        torch.testing.assert_close(network.features(x), maps["out"].mean((2, 3)))
