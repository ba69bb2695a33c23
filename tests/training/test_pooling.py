"""Pooling and calibration of probabilities."""

import numpy as np
import pytest
import torch

from adlib.training import loop as fit
from adlib.training.calibration import fit_calibration
from adlib.training.folds import Batch
from adlib.training.network import softmax
from adlib.training.pooling import pool_slices, within_scan


def test_attention_pooling_equals_the_trained_softmax():
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


def test_vote_maximum_and_mean_pooling():
    p = np.array([[0.6, 0.4, 0.0], [0.1, 0.5, 0.4], [0.0, 0.9, 0.1]])
    same = np.zeros(3, int)
    np.testing.assert_allclose(pool_slices(p, np.ones(3), same, "vote")[0], [1 / 3, 2 / 3, 0])
    np.testing.assert_allclose(pool_slices(p, np.ones(3), same, "maximum")[0], np.array([0.6, 0.9, 0.4]) / 1.9)
    np.testing.assert_allclose(pool_slices(p, np.ones(3), same, "mean")[0], p.mean(0))


def test_calibration_recovers_temperature_and_bias():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1.5, (4000, 3))
    y = np.array([rng.choice(3, p=row) for row in softmax(logits)])
    distorted = (logits - [0.0, 0.8, 0.0]) * 2.5
    temperature, bias = fit_calibration(distorted, y)
    assert temperature == pytest.approx(2.5, rel=0.1)
    assert bias - bias[0] == pytest.approx([0, 0.8, 0], abs=0.15)
    np.testing.assert_allclose(softmax(distorted, temperature, bias), softmax(logits), atol=0.05)


def test_calibration_counts_participants_once():
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


def test_calibration_by_few_participants_helps_others():
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
