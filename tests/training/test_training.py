"""Training on tiny made slices: what is learnt, kept, resumed, and told to the model file."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_study import CLASSES, accuracy, load, train_study

from adlib.preprocess.intensity import LANDMARKS, fit_landmarks, standard_slices
from adlib.study.params import PreprocessParams
from adlib.study.records import FEATURES, MANIFEST, SPLITS, read_table, write_table
from adlib.training import loop as fit
from adlib.training.folds import make_fold
from adlib.training.slices import load_slices


def test_a_planted_signal_is_learnt_and_kept_results_are_not_recomputed(study, capsys):
    predictions = train_study(study)
    assert accuracy(predictions, "resnet50") == 1.0
    assert set(predictions["split"]) == {"validation", "test"}
    card = load(study.folder / "model.safetensors").card
    assert card.classes == CLASSES
    assert card.simulated
    assert card.cohort["participants"] == {"CN": 12, "AD": 12}
    capsys.readouterr()
    again = train_study(study)
    assert "kept, nothing changed" in capsys.readouterr().out
    pd.testing.assert_frame_equal(again, predictions)


def test_landmarks_are_of_the_training_scans_and_travel_with_the_model(study):
    study = study.model_copy(update={"preprocess": PreprocessParams(normalise="landmarks")})
    rng, path = np.random.default_rng(1), study.folder / "features.tsv"
    own = np.sort(rng.uniform(0, 3, (40, len(LANDMARKS))), axis=1)
    columns = [f"intensity_p{n}" for n in LANDMARKS]
    write_table(read_table(path, FEATURES).join(pd.DataFrame(own, columns=columns)), path, FEATURES)
    slices, table = load_slices(study)
    fold = make_fold(0, slices, table, read_table(study.folder / "splits.tsv", SPLITS), study)
    np.testing.assert_allclose(fold.landmarks, fit_landmarks(own[:24]))
    for row in (0, 39):
        wanted = standard_slices(slices[row], own[row], fit_landmarks(own[:24]))
        np.testing.assert_allclose(fold.slices[row], wanted, rtol=2e-3, atol=1e-3)
    train_study(study)
    card = load(study.folder / "model.safetensors").card
    assert card.landmarks == fold.landmarks
    assert card.preprocess.normalise == "landmarks"


def test_a_model_file_says_nothing_of_the_folder(study, tmp_path):
    train_study(study)
    other = study.model_copy(update={"exec": study.exec.model_copy(update={"outputs": tmp_path / "second"})})
    other.folder.mkdir(parents=True)
    for name in ("slices.npy", "slices.tsv", "features.tsv", "splits.tsv"):
        (other.folder / name).write_bytes((study.folder / name).read_bytes())
    moved = read_table(study.folder / "manifest.tsv", MANIFEST).assign(path="elsewhere")
    write_table(moved, other.folder / "manifest.tsv", MANIFEST)
    train_study(other)
    first, second = ((one.folder / "model.safetensors").read_bytes() for one in (study, other))
    assert first == second


def test_a_resumed_training_ends_with_the_same_weights(study, monkeypatch, tmp_path):
    whole = train_study(study)
    whole_weights = load(study.folder / "model.safetensors").network.state_dict()
    other = study.model_copy(update={"exec": study.exec.model_copy(update={"outputs": tmp_path / "second"})})
    other.folder.mkdir(parents=True)
    for path in study.folder.glob("*.*"):
        if path.name not in ("predictions.parquet", "model.safetensors"):
            (other.folder / path.name).write_bytes(path.read_bytes())
    validate, calls = fit._validate, []

    def stop_at_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return validate(*args)

    monkeypatch.setattr(fit, "_validate", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        train_study(other)
    monkeypatch.setattr(fit, "_validate", validate)
    resumed = train_study(other)
    pd.testing.assert_frame_equal(resumed, whole)
    for name, value in load(other.folder / "model.safetensors").network.state_dict().items():
        assert torch.equal(value, whole_weights[name]), name
