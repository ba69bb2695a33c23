"""Training on tiny made slices: what is learnt, kept, resumed and stored with the model."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny_study import CLASSES, TINY, accuracy, fold_of, load, make_study, train_study

from adlib.evaluation.evaluate import check_unseen
from adlib.preprocess.intensity import LANDMARKS, fit_landmarks, standard_slices
from adlib.study.params import PreprocessParams
from adlib.study.records import FEATURES, MANIFEST, StudyError, read_table, write_table
from adlib.training import loop as fit
from adlib.training import runs as train
from adlib.training.devices import make_fabric
from adlib.training.model_file import classify_slices
from adlib.training.split_table import write_splits
from adlib.training.splits import make_splits


def test_a_planted_signal_is_learnt_and_finished_folds_are_kept(study, capsys):
    predictions = train_study(study)
    assert accuracy(predictions, "resnet50") == 1.0
    assert set(predictions["split"]) == {"validation", "test"}
    card = load(study.folder / "model.safetensors").card
    assert card.classes == CLASSES
    assert card.simulated
    assert card.cohort["participants"] == {"CN": 12, "AD": 12}
    capsys.readouterr()
    again = train_study(study)
    assert "stored, nothing changed" in capsys.readouterr().out
    pd.testing.assert_frame_equal(again, predictions)


def test_landmarks_come_from_training_scans_only(study):
    study = study.model_copy(update={"preprocess": PreprocessParams(normalise="landmarks")})
    rng, path = np.random.default_rng(1), study.folder / "features.tsv"
    own = np.sort(rng.uniform(0, 3, (40, len(LANDMARKS))), axis=1)
    columns = [f"intensity_p{n}" for n in LANDMARKS]
    write_table(read_table(path, FEATURES).join(pd.DataFrame(own, columns=columns)), path, FEATURES)
    fold, slices = fold_of(study), np.load(study.folder / "slices.npy")
    np.testing.assert_allclose(fold.landmarks, fit_landmarks(own[:24]))
    for row in (0, 39):
        wanted = standard_slices(slices[row], own[row], fit_landmarks(own[:24]))
        np.testing.assert_allclose(fold.slices[row], wanted, rtol=2e-3, atol=1e-3)
    train_study(study)
    card = load(study.folder / "model.safetensors").card
    assert card.landmarks == fold.landmarks
    assert card.preprocess.normalise == "landmarks"


def test_model_file_does_not_depend_on_the_folder(study, tmp_path):
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


def test_covariates_are_standardised_and_stored(tmp_path):
    study = make_study(tmp_path, "train.covariates=[age, sex]", "train.controls=[]")
    path = study.folder / "manifest.tsv"
    manifest = read_table(path, MANIFEST)
    sexes = np.where(np.arange(40) % 3 == 0, "F", "male")
    ages = np.where(np.arange(40) == 30, np.nan, 60.0 + np.arange(40))
    write_table(manifest.assign(age=ages, sex=sexes), path, MANIFEST)
    fold = fold_of(study)
    assert fold.covariate_stats["age"] == pytest.approx((71.5, np.arange(24).std()))
    assert fold.covariate_stats["sex"][0] == pytest.approx(8 / 24)
    assert fold.covariates[30, 0] == 0 and (fold.covariates[:, 1] > 0).tolist() == (sexes == "F").tolist()
    train_study(study)
    classifier = load(study.folder / "model.safetensors")
    assert classifier.card.covariates == fold.covariate_stats
    classifier.network.fc.weight.data[1, -2] = 50.0  # age tells AD
    x = np.asarray(fold.slices[:1], np.float32)
    young, mean, old = (classify_slices(classifier, x, person)[0][0, 1] for person in ({"age": 40}, {}, {"age": 99}))
    assert young < mean < old
    with pytest.raises(StudyError, match="no training scan of the manifest has"):
        write_table(manifest.assign(age=np.nan), path, MANIFEST)
        fold_of(study)


def test_ensemble_is_the_mean_of_its_members(tmp_path):
    both = make_study(tmp_path / "both", "train.members=2", "train.controls=[]")
    together = train_study(both)
    fold, parts = fold_of(both), []
    for member in (1, 2):
        network, _ = fit.fit(replace(fold, member=member), both, tmp_path / str(member), "k", make_fabric(both), TINY)
        parts.append(train.predict_fold(fold, network, both)[["p_CN", "p_AD"]].to_numpy())
    assert not np.allclose(*parts, atol=1e-3)
    mean, *own = (
        together.loc[together["run"] == run, ["p_CN", "p_AD"]] for run in ("resnet50", "member_1", "member_2")
    )
    np.testing.assert_allclose(mean, np.mean(parts, axis=0), atol=1e-9)
    np.testing.assert_allclose(own, parts, atol=1e-9)


def test_cross_fitted_members_predict_everyone_they_left_out(tmp_path):
    study = make_study(tmp_path, "train.members=3")
    manifest = read_table(study.folder / "manifest.tsv", MANIFEST)
    splits = make_splits(manifest, study.splits, study.seed, members=3)
    write_splits(splits, None, study.folder)
    predictions = train_study(study)
    check_unseen(predictions, splits)
    splits = splits.set_index("participant_id")
    own = predictions[predictions["run"] == "resnet50"].set_index("participant_id")
    assert set(own.index) == set(splits.index)
    assert (own["split"] == splits["split"].replace("train", "validation").loc[own.index]).all()
    for member in ("1", "2", "3"):
        left_out = predictions.query(f"run == 'member_{member}' and split == 'validation'")
        assert set(left_out["participant_id"]) == set(splits.index[splits["member"] == member])
    control = predictions.query("run == 'shuffled_labels' and split == 'validation'")
    assert set(control["participant_id"]) == set(splits.index[splits["member"] == "1"])
    card, tested = load(study.folder / "model.safetensors").card, own[own["split"] == "test"]
    assert card.temperature == tested["temperature"].iloc[0]
    assert len(card.reference["sets"]["0.9"]) == 2
    with pytest.raises(StudyError, match="more than one part"):
        check_unseen(predictions.replace({"run": {"member_1": "member_2"}}), splits.reset_index())
