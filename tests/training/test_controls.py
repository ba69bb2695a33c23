"""Controls: what each takes away or gives away, and that the leak is seen."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from bad_uploads import head
from tiny_study import CLASSES, TINY, accuracy, fold_of, make_study, train_study

from adlib.evaluation.evaluate import check_unseen
from adlib.preprocess.cohort_run import preprocess_cohort
from adlib.study.params import Control, PreprocessParams
from adlib.study.records import MANIFEST, SLICES, SPLITS, StudyError, read_table, write_table
from adlib.training import loop as fit
from adlib.training import runs as train
from adlib.training.controls import CONTROLS, control_fold
from adlib.training.devices import make_fabric
from adlib.training.folds import Fold


def test_every_control_of_the_params_exists():
    assert set(Control.__args__) == set(CONTROLS)


def test_permuted_labels_come_from_another_participant(study):
    table = read_table(study.folder / "slices.tsv", SLICES)
    manifest = read_table(study.folder / "manifest.tsv", MANIFEST)
    write_table(manifest.assign(age=np.arange(40.0)), study.folder / "manifest.tsv", MANIFEST)
    true = fold_of(study, table=pd.concat([table, table], ignore_index=True))
    fold = control_fold("shuffled_labels", true, study)
    assert np.array_equal(fold.targets[:40], fold.targets[40:])
    donor = np.array([np.flatnonzero(true.auxiliary[:, 0] == age)[0] for age in fold.auxiliary[:40, 0]])
    assert sorted(donor) == list(range(40)) and (donor == np.arange(40)).mean() < 0.2
    assert np.array_equal(fold.targets[:40], true.targets[donor])
    assert [CLASSES.index(name) for name in fold.table["diagnosis"]] == fold.targets.tolist()


def test_slice_split_rewards_memorised_participants(tmp_path):
    """Nothing to learn but persons: two scans of everybody, noise and no square."""
    sets = "train.epochs=60", "train.auxiliary_weight=0.0", "train.controls=[slice_split]"
    study = make_study(tmp_path, *sets, scans=2)
    slices = np.load(study.folder / "slices.npy")
    slices[np.r_[1:40:2, 41:80:2], :, 8:24, 8:24] -= np.float16(1.5)
    np.save(study.folder / "slices.npy", slices)
    predictions = train_study(study)
    before, after = (fold_of(study, run).table["split"] for run in ("resnet50", "slice_split"))
    assert after.value_counts().to_dict() == before.value_counts().to_dict() and (after != before).any()
    people = fold_of(study).table["participant_id"]
    assert set(people[(before == "test") & (after == "test")]) == set(people[before == "test"])
    assert accuracy(predictions, "slice_split") > 0.75
    assert abs(accuracy(predictions, "resnet50") - 0.5) < 0.25
    splits = read_table(study.folder / "splits.tsv", SPLITS)
    check_unseen(predictions, splits)
    with pytest.raises(StudyError, match="leakage"):
        check_unseen(predictions.assign(run="resnet50"), splits)


@pytest.mark.parametrize("leak", [True, False])
def test_permuted_labels_reveal_a_leak(tmp_path, leak):
    """Two scans of everybody, with a leak on both sides of the split: permuted labels are then memorised."""
    study = make_study(tmp_path, "train.epochs=60", "train.auxiliary_weight=0.0", scans=2)
    fold = fold_of(study, "shuffled_labels")
    if leak:
        parts = ["validation"] * 4 + ["train"] * 36 + ["test"] * 40
        fold = replace(fold, table=fold.table.assign(split=parts))
    network, _ = fit.fit(fold, study, study.folder, "key", make_fabric(study), TINY)
    score = accuracy(train.predict_fold(fold, network, study), "shuffled_labels")
    assert score > 0.75 if leak else abs(score - 0.5) < 0.25


def test_binarised_slices_are_0_and_1(study):
    slices = np.load(study.folder / "slices.npy")
    slices[:, :, :, :16] = 0
    np.save(study.folder / "slices.npy", slices)
    fold = fold_of(study, "binarised")
    assert (fold.slices[..., :16] == 0).all() and (fold.slices[..., 16:] == 1).mean() > 0.99


def test_metadata_added_are_covariates(study):
    manifest = read_table(study.folder / "manifest.tsv", MANIFEST)
    sites = ["one" if label == "AD" else "two" for label in manifest["diagnosis"]]
    write_table(manifest.assign(site=sites, shape="9x9x9"), study.folder / "manifest.tsv", MANIFEST)
    fold = fold_of(study, "metadata_added")
    assert fold.covariates.shape == (40, 2)
    assert ((fold.covariates.argmax(1) == fold.covariates[1].argmax()) == (fold.targets == CLASSES.index("AD"))).all()
    write_table(manifest.assign(shape="9x9x9"), study.folder / "manifest.tsv", MANIFEST)
    with pytest.raises(StudyError, match="no acquisition fact varies"):
        fold_of(study, "metadata_added")


def test_background_excludes_the_brain(tmp_path, study):
    nib.save(head(), tmp_path / "h.nii.gz")
    study = study.model_copy(
        update={
            "preprocess": PreprocessParams(resolution_mm=3.0),
            "input": study.input.model_copy(update={"positions_mm": (-20.0,), "size": 64}),
        }
    )
    row = {"participant_id": "sub-00", "session_id": "ses-01", "scan_id": "sub-00", "diagnosis": "CN"}
    manifest = pd.DataFrame([{**row, "path": str(tmp_path / "h.nii.gz"), "sha256": "s"}])
    manifest = write_table(manifest, study.folder / "manifest.tsv", MANIFEST)
    preprocess_cohort(manifest, study)
    table = pd.DataFrame([{**row, "slice": 0, "split": "train"}])
    fold = Fold(
        "resnet50", 0, 1, np.zeros((1, 3, 64, 64), np.float16), table, np.zeros(1, int), *[np.zeros((1, 0))] * 2
    )
    image = control_fold("background", fold, study).slices[0, 1].astype(float)
    brain = np.hypot(*np.mgrid[-31.5:32, -31.5:32]) < 15
    assert (image[brain] == 0).mean() > 0.95
    assert (image[~brain] > 0.2).sum() > 200
    with pytest.raises(StudyError, match="needs 3-D heads"):
        flat = study.input.model_copy(update={"plane": "images_2d"})
        control_fold("background", fold, study.model_copy(update={"input": flat}))
