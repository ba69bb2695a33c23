"""Each way to train does what its name says, and goes on exactly after an interruption."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_study import SETS, Tiny, accuracy, load, make_study, train_study

from adlib.study.params import load_params
from adlib.study.records import MANIFEST, SPLITS, StudyError, read_json, read_table, write_table
from adlib.training import loop as fit
from adlib.training import runs as train
from adlib.training.augmentation import augment_slices
from adlib.training.devices import make_fabric
from adlib.training.folds import Batch, epoch_rows, load_parts, make_fold
from adlib.training.model_file import classify_slices
from adlib.training.network import ResNet50
from adlib.training.pooling import pool_level, pool_slices, within_scan
from adlib.training.recipe import Recipe
from adlib.training.slices import load_slices

TINY = Recipe(build_network=Tiny)
ALL = (
    "train.micro_batches=2", "train.mixup=0.2", "train.average=0.8", "train.patience=5", "train.dropout=0.2",
    "train.covariates=[age]", "train.augment=light", "train.balance=sampling", "train.controls=[]",
)  # fmt: skip


def fold_of(study):
    slices, table = load_slices(study)
    return make_fold(0, slices, table, read_table(study.folder / "splits.tsv", SPLITS), study)


@pytest.mark.parametrize("option", [*ALL, "train.augment=mri", "input.pooling=attention", "train.members=2"])
def test_a_planted_signal_is_learnt_with_every_option(tmp_path, option):
    study = make_study(tmp_path, "train.controls=[]", "train.epochs=12", option)
    assert accuracy(train_study(study), "resnet50") >= 0.9


def test_with_all_options_a_resumed_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole, cut = (make_study(tmp_path / name, *ALL) for name in ("whole", "cut"))
    predictions = train_study(whole)
    save_progress, saved = fit.Progress.save, []

    def stop_after_second(self, path, key):
        save_progress(self, path, key)
        saved.append(path)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit.Progress, "save", stop_after_second)
    with pytest.raises(KeyboardInterrupt):
        train_study(cut)
    monkeypatch.setattr(fit.Progress, "save", save_progress)
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


def test_a_moving_average_of_weights_answers(tmp_path):
    study = make_study(tmp_path, "train.average=0.999", "train.controls=[]", "train.epochs=1")
    torch.manual_seed(study.seed)
    start = fit.initial_network(fold_of(study), study, TINY)[0].state_dict()["conv1.weight"]
    train_study(study)
    slow = load(study.folder / "model.safetensors").network.state_dict()["conv1.weight"]
    assert 0 < (slow - start).abs().max() < 1e-3


def test_covariates_are_standardised_told_and_travel_with_the_model(tmp_path):
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


def test_every_slice_is_drawn_once_or_classes_evenly(tmp_path):
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


def test_devices_share_the_parts_of_each_step_and_vary_them_alike(tmp_path):
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
    slices, table = load_slices(study)
    pairs = table.assign(scan_id=table["participant_id"] + "_ses-01")  # two slices of one scan
    fold = make_fold(0, slices, pairs, read_table(study.folder / "splits.tsv", SPLITS), study)
    for step in epoch_rows(fold, study, np.random.default_rng(0)):
        for part in step:
            assert np.unique(fold.scans[part], return_counts=True)[1].tolist() == [2] * (len(part) // 2)


def test_pooled_by_attention_is_the_softmax_of_the_weighted_logits():
    rng = np.random.default_rng(0)
    logits, scores, groups = rng.normal(size=(6, 3)), rng.normal(size=6), np.array([0, 0, 1, 1, 1, 1])
    weights = within_scan(scores, groups)
    assert np.bincount(groups, weights).tolist() == pytest.approx([1, 1])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = np.exp(np.stack([(logits * weights[:, None])[groups == g].sum(0) for g in (0, 1)]))
    found = pool_slices(p, weights, groups, "attention")
    np.testing.assert_allclose(found, wanted / wanted.sum(1, keepdims=True))
    batch = Batch(0, None, torch.tensor([2, 2, 1, 1, 1, 1]), None, None, torch.from_numpy(groups))
    trained, y = fit._attended(torch.from_numpy(logits), torch.from_numpy(scores), batch)
    np.testing.assert_allclose(trained.softmax(1).numpy(), found)
    assert y.tolist() == [2, 1]


def test_slices_vote_or_give_their_greatest_evidence():
    p = np.array([[0.6, 0.4, 0.0], [0.1, 0.5, 0.4], [0.0, 0.9, 0.1]])
    same = np.zeros(3, int)
    np.testing.assert_allclose(pool_slices(p, np.ones(3), same, "vote")[0], [1 / 3, 2 / 3, 0])
    np.testing.assert_allclose(pool_slices(p, np.ones(3), same, "maximum")[0], np.array([0.6, 0.9, 0.4]) / 1.9)
    np.testing.assert_allclose(pool_slices(p, np.ones(3), same, "mean")[0], p.mean(0))


def test_the_slices_of_a_scan_do_not_outweigh_another_scan():
    rows = [("a", "s1", 0, 0.9), ("a", "s1", 1, 0.9), ("a", "s2", 0, 0.3)]
    table = pd.DataFrame(rows, columns=["participant_id", "session_id", "slice", "p_x"])
    table = table.assign(p_y=1 - table["p_x"], fold=0, scan_id=table["session_id"], truth="x", temperature=1.0)
    assert pool_level(table, "subject", ("x", "y"))["p_x"].tolist() == pytest.approx([0.6])


def test_an_ensemble_answers_with_the_mean_of_its_members(tmp_path):
    both = make_study(tmp_path / "both", "train.members=2", "train.controls=[]")
    together = train_study(both)
    fold, parts = fold_of(both), []
    for member in (0, 1):
        network, _ = fit.fit(fold, both, tmp_path / str(member), "k", make_fabric(both), TINY, member)
        parts.append(train.predict_fold(fold, [network], both)[["p_CN", "p_AD"]].to_numpy())
    assert not np.allclose(*parts, atol=1e-3)
    np.testing.assert_allclose(together[["p_CN", "p_AD"]], np.mean(parts, axis=0), atol=1e-9)


def test_a_model_of_this_project_is_gone_on_from_only_where_all_agrees(tmp_path, monkeypatch):
    study = make_study(tmp_path, "train.controls=[]")
    train_study(study)
    path = study.folder / "model.safetensors"
    known = load(path)
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


def test_a_loss_that_is_not_finite_stops_with_words(tmp_path):
    study = make_study(tmp_path, "train.learning_rate=1.0e+30", "train.controls=[]")
    with pytest.raises(StudyError, match=r"not finite; lower train\.learning_rate"):
        train_study(study)


def test_params_that_cannot_go_together_are_refused():
    for setting, words in (
        ("exec.devices=2", "2 devices share train.micro_batches, which is 1"),
        ("input.plane=three_planes", "takes three input.positions_mm"),
        ("search.space={epohcs: [1]}", "no keys of train"),
    ):
        with pytest.raises(StudyError, match=words):
            load_params("params/phantom.yaml", (*SETS, setting))
    with pytest.raises(StudyError, match="mixes single slices"):
        load_params("params/phantom.yaml", ("train.mixup=0.2", "input.pooling=attention"))


def test_the_real_network_is_torchvisions_and_ignores_untold_covariates(tmp_path):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network = ResNet50(4).eval()
    theirs = resnet50(num_classes=4).eval()
    theirs.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(x), theirs(x))
    told = ResNet50(4, covariates=2).eval()
    assert torch.equal(told(x), told(x, torch.tensor([[1.0, -2.0], [0.5, 3.0]])))
