"""The pieces of a training: batches, augmentation, auxiliary targets, calibration, precision."""

import numpy as np
import pandas as pd
import pytest
import torch

from adlib.training.augmentation import augment_light, augment_mri, mirror
from adlib.training.devices import takes_bf16
from adlib.training.folds import auxiliary_targets
from adlib.training.network import softmax
from adlib.training.pooling import fit_calibration


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_taken_only_where_the_processor_has_it_or_where_it_is_asked_for(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert takes_bf16("auto", torch.device("cpu")) == native
    assert takes_bf16("bf16", torch.device("cpu"))
    assert not takes_bf16("fp32", torch.device("cpu"))


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


def test_calibration_counts_participants_and_not_their_rows():
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 1.5, (40, 3))
    y = np.array([rng.choice(3, p=row) for row in softmax(logits / 2)])
    repeats = np.where(np.arange(40) < 10, 5, 1)
    once = fit_calibration(logits, y)
    again = fit_calibration(
        np.repeat(logits, repeats, axis=0), np.repeat(y, repeats), np.repeat(np.arange(40), repeats)
    )
    assert again[0] == pytest.approx(once[0], rel=1e-3)
    np.testing.assert_allclose(again[1], once[1], atol=1e-3)


def test_calibration_by_few_participants_helps_others_on_average():
    """What a fit without a prior does not do: 34 participants, 100 times, log loss of 500 others."""
    rng, gained = np.random.default_rng(3), []
    for _ in range(100):
        logits = rng.normal(0, 1.2, (534, 4))
        y = np.array([rng.choice(4, p=row) for row in softmax(logits)])
        said = logits * 1.3 - [0.0, 0.3, 0.0, -0.3]
        temperature, bias = fit_calibration(said[:34], y[:34])
        before, after = (
            softmax(said[34:], *values)[np.arange(500), y[34:]] for values in ((1.0,), (temperature, bias))
        )
        gained.append(np.log(after).mean() - np.log(before).mean())
    assert np.mean(gained) > 0


def block():
    x = torch.zeros(6, 3, 32, 32)
    x[:, :, 10:22, 6:14] = 1
    return x


@pytest.mark.parametrize("vary", [augment_light, augment_mri])
def test_augmentation_repeats_by_seed_moves_little_and_keeps_the_background(vary):
    torch.manual_seed(1)
    first = vary(block(), torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    again, other = (vary(block(), torch.Generator().manual_seed(seed)) for seed in (3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (6, 3, 32, 32) and first.isfinite().all()
    assert (first[:, 0, :, :16].sum((1, 2)) > first[:, 0, :, 16:].sum((1, 2))).all()
    assert first[:, :, 0, 0].abs().median() < 0.1


def test_the_lent_random_state_comes_back():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    augment_mri(block(), torch.Generator().manual_seed(3))
    assert torch.equal(torch.rand(1), expected)


def test_only_the_channels_with_a_left_and_a_right_are_mirrored():
    found = mirror(block(), torch.Generator().manual_seed(0), (0, 1))
    turned = found[:, 0, :, 16:].sum((1, 2)) > 0
    assert 0 < turned.sum() < 6
    assert torch.equal(found[turned][:, 1], block()[turned][:, 1].flip(-1))
    assert torch.equal(found[:, 2], block()[:, 2])
