"""The model file: what it keeps, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_study import CLASSES, TINY, Tiny, fold_of, make_study, train_study

from adlib.study.params import InputParams, PreprocessParams
from adlib.study.records import StudyError
from adlib.training import loop as fit
from adlib.training.model_file import Classifier, ModelCard, classify_slices, load, save
from adlib.training.network import ResNet50


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    network, origin = ResNet50(2), "random initialisation"
    card = ModelCard(
        "tiny", CLASSES, True, InputParams(), PreprocessParams(), 1.5, {"participants": {"CN": 1}}, origin, "s", "c", 1
    )
    return Classifier(network.eval(), card)


def test_saved_classifier_predicts_the_same(classifier, tmp_path):
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


def with_other_classes(classifier):
    return Classifier(classifier.network, replace(classifier.card, classes=("CN", "MCI", "AD")))


def with_nan(classifier):
    classifier.network.fc.weight.data[0, 0] = float("nan")
    return classifier


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path, c: path.write_bytes(path.read_bytes()[:-1000]), "not a whole safetensors file"),
        (lambda path, c: torch.save(c.network.state_dict(), path), "not a whole safetensors file"),
        (lambda path, c: save_file(c.network.state_dict(), path), "use a file that adlib wrote"),
        (lambda path, c: save(with_nan(c), path), "not finite"),
        (lambda path, c: save(with_other_classes(c), path), "does not fit ResNet50"),
        (lambda path, c: path.unlink(), "does not exist"),
    ],
    ids=["truncated", "pickle", "foreign", "nan", "classes", "missing"],
)
def test_a_wrong_model_file_is_refused(damage, words, classifier, tmp_path):
    path = tmp_path / "m.safetensors"
    save(classifier, path)
    damage(path, classifier)
    with pytest.raises(StudyError, match=words):
        load(path)


def test_continuing_from_a_model_needs_the_same_input(tmp_path, monkeypatch):
    study = make_study(tmp_path, "train.controls=[]")
    train_study(study)
    path = study.folder / "model.safetensors"
    known = load(path, Tiny)
    onward = study.model_copy(update={"train": study.train.model_copy(update={"weights": f"adlib:{path}"})})
    network, origin = fit.initial_network(fold_of(onward), onward, TINY)
    assert origin == "the model of 'tiny' in model.safetensors"
    for name, value in known.network.state_dict().items():
        mine = network.state_dict()[name]
        assert torch.equal(mine[: len(value)] if name.startswith("fc.") else mine, value), name
    for changed, words in (
        ({"classes": ("AD", "CN")}, r"the classes \['CN', 'AD'\], the study \['AD', 'CN'\]"),
        ({"input": onward.input.model_copy(update={"size": 64})}, "trained with size = 32, the study has 64"),
        ({"preprocess": onward.preprocess.model_copy(update={"bias_correction": False})}, "bias_correction"),
    ):
        with pytest.raises(StudyError, match=words):
            fit.initial_network(fold_of(study), onward.model_copy(update=changed), TINY)
