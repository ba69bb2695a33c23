"""Scores of special cases; test_traceable.py compares all scores with scikit-learn."""

import numpy as np
import pytest

from adlib.evaluation import scores


def test_agreement_with_a_constant_truth():
    constant = scores.confusion(np.zeros(5, int), np.tile([0.9, 0.1], (5, 1)), np.ones((1, 5)))
    assert np.isnan(scores.kappa(constant)[0])
    assert scores.matthews(constant)[0] == 0


def test_mcnemar_counts_only_the_participants_on_which_two_differ():
    mine, theirs = np.r_[np.ones(30), np.ones(9), np.zeros(1)], np.r_[np.ones(30), np.zeros(9), np.ones(1)]
    assert scores.mcnemar(mine == 1, theirs == 1) == pytest.approx(2 * 11 / 2**10)
    assert scores.mcnemar(mine == 1, mine == 1) == 1


def test_permutation_p_is_small_for_skill_and_uniform_without():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    assert scores.permutation_p(y, np.eye(3)[y] + rng.random((90, 3)), 999, 1) == pytest.approx(0.001)
    chance = [scores.permutation_p(y, rng.random((90, 3)), 199, seed) for seed in range(200)]
    assert abs(np.mean(chance) - 0.5) < 0.1
    assert np.mean(np.array(chance) <= 0.05) < 0.1


def test_an_absent_class_gives_no_recall_and_is_left_out_of_the_mean():
    y, p = np.array([0, 0, 1]), np.eye(3)[[0, 1, 1]]
    found = scores.from_confusion(scores.confusion(y, p, np.ones((1, 3))), ("a", "b", "c"))
    assert np.isnan(found["recall", "c"][0])
    assert found["balanced_accuracy", None][0] == pytest.approx((0.5 + 1) / 2)


def test_weights_held_in_blocks_give_the_same_scores(monkeypatch):
    groups = np.repeat(np.arange(40), 3)
    truth, score = groups % 2 == 0, np.random.default_rng(3).random(120)

    def both(weights):
        return {"auc": scores.roc_auc(truth, score, weights), "rows": np.full(len(weights), len(weights))}

    whole = scores.resampled(both, groups, 200, 5)
    monkeypatch.setattr(scores, "BLOCK", 120 * 7)
    parts = scores.resampled(both, groups, 200, 5)
    assert whole["rows"].max() == 201 and parts["rows"].max() == 7
    np.testing.assert_array_equal(parts["auc"], whole["auc"])
    np.testing.assert_array_equal(scores.roc_auc(truth, score, scores.cluster_weights(groups, 200, 5)), whole["auc"])
