"""The data of a training: epochs, parts of a step, auxiliary targets."""

import numpy as np
import pandas as pd
import torch
from tiny_study import fold_of, make_study

from adlib.study.records import SLICES, read_table
from adlib.training.augmentation import augment_slices
from adlib.training.folds import epoch_rows, load_parts
from adlib.training.targets import auxiliary_targets


def test_epochs_draw_every_slice_once_or_classes_evenly(tmp_path):
    study = make_study(tmp_path, "train.balance=none")
    fold = fold_of(study)
    drawn = np.concatenate([part for step in epoch_rows(fold, study, np.random.default_rng(0)) for part in step])
    assert sorted(drawn) == fold.rows("train").tolist()
    balanced = study.model_copy(update={"train": study.train.model_copy(update={"balance": "sampling"})})
    few = np.r_[1, 3, np.arange(0, 24, 2)]
    uneven = fold.table.assign(split=np.where(np.isin(np.arange(40), few), "train", "test"))
    object.__setattr__(fold, "table", uneven)
    steps = epoch_rows(fold, balanced, np.random.default_rng(0))
    labels = fold.targets[np.concatenate([part for step in steps for part in step])]
    assert abs(labels.mean() - 0.5) < 0.15


def test_devices_share_the_parts_of_a_step(tmp_path):
    study = make_study(tmp_path, "train.micro_batches=4", "train.batch_size=12", "train.augment=light")
    fold = fold_of(study)
    steps = epoch_rows(fold, study, np.random.default_rng(0))
    alone = {batch.number: batch.x for batch in load_parts(fold, study, steps, [1], augment_slices)}
    shared = [{b.number: b.x for b in load_parts(fold, study, steps, [1], augment_slices, rank, 2)} for rank in (0, 1)]
    assert not set(shared[0]) & set(shared[1])
    joined = shared[0] | shared[1]
    assert joined.keys() == alone.keys() and all(torch.equal(joined[k], alone[k]) for k in alone)


def test_attention_batches_hold_whole_scans(tmp_path):
    study = make_study(tmp_path, "input.pooling=attention", scans=2)
    table = read_table(study.folder / "slices.tsv", SLICES)
    pairs = table.assign(scan_id=table["participant_id"] + "_ses-01")  # two slices of one scan
    fold = fold_of(study, table=pairs)
    for step in epoch_rows(fold, study, np.random.default_rng(0)):
        for part in step:
            assert np.unique(fold.scans[part], return_counts=True)[1].tolist() == [2] * (len(part) // 2)


def test_auxiliary_targets_are_standardised_on_training_rows():
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
