"""The model file: what it keeps, and what is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from adlib.study.params import InputParams, PreprocessParams
from adlib.study.records import StudyError
from adlib.training.model_file import Classifier, ModelCard, classify_slices, load, save
from adlib.training.network import ResNet50, load_initial_weights

CLASSES = ("CN", "AD")


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    network, origin = ResNet50(2), "random initialisation"
    card = ModelCard(
        "tiny", CLASSES, True, InputParams(), PreprocessParams(), 1.5, {"participants": {"CN": 1}}, origin, "s", "c", 1
    )
    return Classifier(network.eval(), card)


def test_a_saved_classifier_answers_the_same_after_loading(classifier, tmp_path):
    save(classifier, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    assert loaded.card == classifier.card
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    p, weights = classify_slices(loaded, x)
    np.testing.assert_array_equal(p, classify_slices(classifier, x)[0])
    assert p.sum(1) == pytest.approx(1)
    assert weights == pytest.approx([0.5, 0.5])


def test_the_same_classifier_makes_the_same_file(classifier, tmp_path):
    for number in range(8):
        save(classifier, tmp_path / f"{number}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def damaged(kind, classifier, path):
    save(classifier, path)
    state = {k: v.clone() for k, v in classifier.network.state_dict().items()}
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "pickle":
        torch.save(state, path)
    elif kind == "foreign":
        save_file(state, path)
    elif kind == "nan":
        classifier.network.fc.weight.data[0, 0] = float("nan")
        save(classifier, path)
    elif kind == "classes":
        fields = {**classifier.card.__dict__, "classes": ("CN", "MCI", "AD")}
        save(Classifier(classifier.network, ModelCard(**fields)), path)
    elif kind == "missing":
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "not a whole safetensors file"),
        ("pickle", "not a whole safetensors file"),
        ("foreign", "use a file that adlib wrote"),
        ("nan", "not finite"),
        ("classes", "does not fit ResNet50"),
        ("missing", "does not exist"),
    ],
)
def test_a_wrong_model_file_is_refused(kind, words, classifier, tmp_path):
    damaged(kind, classifier, tmp_path / "m.safetensors")
    with pytest.raises(StudyError, match=words):
        load(tmp_path / "m.safetensors")


def test_weights_from_a_file_and_unknown_names(classifier, tmp_path):
    save(classifier, tmp_path / "m.safetensors")
    network = ResNet50(4)
    origin = load_initial_weights(network, f"path:{tmp_path / 'm.safetensors'}")
    assert origin == "weights of m.safetensors"
    assert torch.equal(network.layer1[0].conv1.weight, classifier.network.layer1[0].conv1.weight)
    assert network.fc.out_features == 4
    with pytest.raises(StudyError, match="expected random, imagenet, path:FILE or adlib:FILE"):
        load_initial_weights(ResNet50(4), "alexnet")


def test_imagenet_weights_offline_stop_the_training(monkeypatch):
    from torchvision.models import ResNet50_Weights

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", unreachable)
    with pytest.raises(StudyError, match=r"cannot be downloaded.*or copy http.*path:FILE"):
        load_initial_weights(ResNet50(4), "imagenet")
