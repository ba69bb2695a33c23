"""Dataset, model file and training on tiny made slices."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from adlib import model, train
from adlib.augment import augment
from adlib.auxiliary import auxiliary_targets
from adlib.calibration import fit_calibration
from adlib.dataset import load_slices
from adlib.device import takes_bf16
from adlib.model import Classifier, ModelCard, build_network, load, pool, save, slice_probabilities, softmax
from adlib.params import InputParams, PreprocessParams, load_params
from adlib.preprocess.normalise import LANDMARKS, fit_landmarks, standard_slices
from adlib.records import FEATURES, MANIFEST, SLICES, SPLITS, StudyError, read_table, write_table

CLASSES = ("CN", "AD")


class Tiny(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 5, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten()
        )
        self.fc = torch.nn.Linear(128, classes)

    def forward(self, x):
        return self.fc(self.body(x))


def tiny_network(classes, weights):
    return Tiny(classes), "random initialisation"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A small network stands in for ResNet50, which the smoke study trains.

    Forty participants whose label is a bright square: a network must find it, and shuffled labels must not."""
    sets = (
        f"exec.outputs={tmp_path}", "study=tiny", "classes=[CN, AD]", "source.severity_mean=[0.1, 1.0]",
        "train.epochs=6", "train.batch_size=8", "train.weights=random", "train.learning_rate=0.003",
        "input.size=32", "input.positions_mm=[0.0]", "train.augment=false", "exec.device=cpu",
        "evaluate.binary={negative: [CN], positive: [AD]}",
    )  # fmt: skip
    params = load_params("params/phantom.yaml", sets)
    for module in (train, model):
        monkeypatch.setattr(module, "build_network", tiny_network)
    rng = np.random.default_rng(0)
    people = [f"sub-{k:02d}" for k in range(40)]
    labels = [CLASSES[k % 2] for k in range(40)]
    slices = rng.normal(0, 0.3, (40, 3, 32, 32)).astype(np.float16)
    slices[1::2, :, 8:24, 8:24] += 1.5
    params.folder.mkdir(parents=True)
    np.save(params.folder / "slices.npy", slices)
    base = pd.DataFrame({"participant_id": people, "session_id": "ses-01", "scan_id": people, "diagnosis": labels})
    write_table(base.assign(row=range(40), slice=0), params.folder / "slices.tsv", SLICES)
    write_table(base.assign(path="p", sha256="s", age=70.0, sex="F"), params.folder / "manifest.tsv", MANIFEST)
    features = base.drop(columns="diagnosis").assign(qc_verdict="pass", gm_ml=600.0, nbv=0.75)
    write_table(features, params.folder / "features.tsv", FEATURES)
    parts = ["train"] * 24 + ["validation"] * 6 + ["test"] * 10
    splits = base[["participant_id", "diagnosis"]].assign(fold=0, split=parts)
    write_table(splits, params.folder / "splits.tsv", SPLITS)
    return params


def accuracy(predictions, run):
    tested = predictions[(predictions["run"] == run) & (predictions["split"] == "test")]
    return (tested[["p_CN", "p_AD"]].to_numpy().argmax(1) == tested["truth"].map({"CN": 0, "AD": 1})).mean()


def test_a_planted_signal_is_learnt_and_kept_results_are_not_recomputed(study, capsys):
    predictions = train.train_study(study)
    assert accuracy(predictions, "resnet50") == 1.0
    assert set(predictions["split"]) == {"validation", "test"}
    card = load(study.folder / "model.safetensors").card
    assert card.classes == CLASSES
    assert card.simulated
    assert card.cohort["participants"] == {"CN": 12, "AD": 12}
    capsys.readouterr()
    again = train.train_study(study)
    assert "kept, nothing changed" in capsys.readouterr().out
    pd.testing.assert_frame_equal(again, predictions)


def test_landmarks_are_of_the_training_scans_and_travel_with_the_model(study):
    study = study.model_copy(update={"preprocess": PreprocessParams(normalise="landmarks")})
    rng, path = np.random.default_rng(1), study.folder / "features.tsv"
    own = np.sort(rng.uniform(0, 3, (40, len(LANDMARKS))), axis=1)
    columns = [f"intensity_p{n}" for n in LANDMARKS]
    write_table(read_table(path, FEATURES).join(pd.DataFrame(own, columns=columns)), path, FEATURES)
    slices, table = load_slices(study)
    fold = train.make_fold("resnet50", 0, slices, table, read_table(study.folder / "splits.tsv", SPLITS), study)
    np.testing.assert_allclose(fold.landmarks, fit_landmarks(own[:24]))
    for row in (0, 39):
        wanted = standard_slices(slices[row], own[row], fit_landmarks(own[:24]))
        np.testing.assert_allclose(fold.slices[row], wanted, rtol=2e-3, atol=1e-3)
    train.train_study(study)
    card = load(study.folder / "model.safetensors").card
    assert card.landmarks == fold.landmarks
    assert card.preprocess.normalise == "landmarks"


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_taken_only_where_the_processor_has_it_or_where_it_is_asked_for(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert takes_bf16("auto", torch.device("cpu")) == native
    assert takes_bf16("bf16", torch.device("cpu"))
    assert not takes_bf16("fp32", torch.device("cpu"))


def test_a_model_file_says_nothing_of_the_folder(study, tmp_path):
    train.train_study(study)
    other = study.model_copy(update={"exec": study.exec.model_copy(update={"outputs": tmp_path / "second"})})
    other.folder.mkdir(parents=True)
    for name in ("slices.npy", "slices.tsv", "features.tsv", "splits.tsv"):
        (other.folder / name).write_bytes((study.folder / name).read_bytes())
    moved = read_table(study.folder / "manifest.tsv", MANIFEST).assign(path="elsewhere")
    write_table(moved, other.folder / "manifest.tsv", MANIFEST)
    train.train_study(other)
    first, second = ((one.folder / "model.safetensors").read_bytes() for one in (study, other))
    assert first == second


def test_a_resumed_training_ends_with_the_same_weights(study, monkeypatch, tmp_path):
    whole = train.train_study(study)
    whole_weights = load(study.folder / "model.safetensors").network.state_dict()
    other = study.model_copy(update={"exec": study.exec.model_copy(update={"outputs": tmp_path / "second"})})
    other.folder.mkdir(parents=True)
    for path in study.folder.glob("*.*"):
        if path.name not in ("predictions.parquet", "model.safetensors"):
            (other.folder / path.name).write_bytes(path.read_bytes())
    validate, calls = train._validate, []

    def stop_at_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return validate(*args)

    monkeypatch.setattr(train, "_validate", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        train.train_study(other)
    monkeypatch.setattr(train, "_validate", validate)
    resumed = train.train_study(other)
    pd.testing.assert_frame_equal(resumed, whole)
    for name, value in load(other.folder / "model.safetensors").network.state_dict().items():
        assert torch.equal(value, whole_weights[name]), name


def test_shuffled_labels_keep_class_sizes_and_persons_but_lose_the_truth(study):
    slices, table = train.load_slices(study)
    splits = pd.read_csv(study.folder / "splits.tsv", sep="\t")
    twice = pd.concat([table, table], ignore_index=True)
    fold = train.make_fold("shuffled_labels", 0, slices, twice, splits, study)
    true = train.make_fold("resnet50", 0, slices, twice, splits, study).targets
    assert np.bincount(fold.targets).tolist() == np.bincount(true).tolist()
    assert pd.Series(fold.targets).groupby(twice["participant_id"]).nunique().max() == 1
    assert 0.2 < (fold.targets == true).mean() < 0.8
    assert [CLASSES.index(name) for name in fold.table["diagnosis"]] == fold.targets.tolist()


def test_shuffled_labels_take_age_and_volumes_with_them(study):
    slices, table = train.load_slices(study)
    manifest = read_table(study.folder / "manifest.tsv", MANIFEST)
    write_table(manifest.assign(age=np.arange(40.0)), study.folder / "manifest.tsv", MANIFEST)
    splits = read_table(study.folder / "splits.tsv", SPLITS)
    fold = train.make_fold("shuffled_labels", 0, slices, table, splits, study)
    true = train.make_fold("resnet50", 0, slices, table, splits, study)
    donor = np.array([np.flatnonzero(true.auxiliary[:, 0] == age)[0] for age in fold.auxiliary[:, 0]])
    assert sorted(donor) == list(range(40))
    assert (donor == np.arange(40)).mean() < 0.2
    assert np.array_equal(fold.targets, true.targets[donor])


def test_auxiliary_targets_are_standardised_on_training_rows_and_may_be_missing():
    table = pd.DataFrame({"scan_id": ["a", "b", "c", "a"]})
    manifest = pd.DataFrame({"scan_id": ["a", "b", "c"], "age": [60.0, 80.0, np.nan]})
    features = pd.DataFrame(
        {"scan_id": ["c", "b", "a"], "icv_ml": [1500.0, 1000.0, 2000.0], "gm_ml": [750.0, 600.0, 800.0]}
    )
    found = auxiliary_targets(table, manifest, features, train=np.array([0, 1]))
    np.testing.assert_allclose(found[:, 0], [-1, 1, 0, -1])
    np.testing.assert_allclose(found[:, 1], [1, -1, 0, 1])
    np.testing.assert_allclose(found[:, 2], [-1, 1, 0, -1], atol=1e-5)
    nothing = auxiliary_targets(table, manifest[["scan_id"]], features[["scan_id"]], np.array([0]))
    assert nothing.shape == (4, 0)


def test_calibration_recovers_a_known_overconfidence_and_a_known_bias():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1.5, (4000, 3))
    y = np.array([rng.choice(3, p=row) for row in softmax(logits)])
    distorted = (logits - [0.0, 0.8, 0.0]) * 2.5
    temperature, bias = fit_calibration(distorted, y)
    assert temperature == pytest.approx(2.5, rel=0.1)
    assert bias - bias[0] == pytest.approx([0, 0.8, 0], abs=0.15)
    np.testing.assert_allclose(softmax(distorted, temperature, bias), softmax(logits), atol=0.05)


def test_augmentation_repeats_by_seed_keeps_shape_and_background_level():
    x = torch.zeros(4, 3, 32, 32)
    x[:, :, 10:22, 6:14] = 1
    first, again = (augment(x, torch.Generator().manual_seed(3), flip=True) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == x.shape
    assert (first[:, :, 0, 0] == 0).all()
    mirrored = (first[:, 0, :, 16:].sum((1, 2)) > first[:, 0, :, :16].sum((1, 2))).sum()
    plain = augment(x, torch.Generator().manual_seed(3), flip=False)
    assert mirrored > 0
    assert (plain[:, 0, :, :16].sum((1, 2)) > plain[:, 0, :, 16:].sum((1, 2))).all()


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    network, origin = build_network(2, "random")
    card = ModelCard(
        "tiny", CLASSES, True, InputParams(), PreprocessParams(), 1.5, {"participants": {"CN": 1}}, origin, "s", "c", 1
    )
    return Classifier(network.eval(), card)


def test_a_saved_classifier_answers_the_same_after_loading(classifier, tmp_path):
    save(classifier, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    assert loaded.card == classifier.card
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    p = slice_probabilities(loaded, x)
    np.testing.assert_array_equal(p, slice_probabilities(classifier, x))
    assert p.sum(1) == pytest.approx(1)
    assert pool(p) == pytest.approx(p.mean(0))


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
    network, origin = build_network(4, f"path:{tmp_path / 'm.safetensors'}")
    assert origin == "weights of m.safetensors"
    assert torch.equal(network.layer1[0].conv1.weight, classifier.network.layer1[0].conv1.weight)
    assert network.fc.out_features == 4
    with pytest.raises(StudyError, match="expected random, imagenet or path:FILE"):
        build_network(4, "alexnet")


def test_imagenet_falls_back_to_random_aloud(monkeypatch):
    from torchvision.models import ResNet50_Weights

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", unreachable)
    _, origin = build_network(4, "imagenet")
    assert origin == "random initialisation (ImageNet weights could not be had: OSError)"


def test_the_shuffled_control_tells_a_leak_from_none(study):
    """Two scans of everybody, the second on the other side of the split: dealt labels are then known by heart."""
    long = study.model_copy(update={"train": study.train.model_copy(update={"epochs": 60, "auxiliary_weight": 0.0})})
    slices, table = train.load_slices(long)
    splits = read_table(long.folder / "splits.tsv", SPLITS)
    both = pd.concat([table, table], ignore_index=True)
    fold = train.make_fold("shuffled_labels", 0, np.concatenate([slices, slices]), both, splits, long)
    parts = np.repeat(["train", "test"], 40).astype(object)
    parts[[0, 1, 2, 3]] = "validation"
    found = {}
    for name, split in (("leak", parts), ("none", fold.table["split"])):
        tried = replace(fold, table=fold.table.assign(split=split))
        network, _ = train.fit(tried, long, long.folder / name, name)
        found[name] = accuracy(train.predict_fold(tried, network, long), "shuffled_labels")
    assert found["leak"] > 0.8
    assert abs(found["none"] - 0.5) < 0.25
