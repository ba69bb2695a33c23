import numpy as np
import pytest
from sklearn import metrics as sk

from adlib.evaluation import scores

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 120)
    p = rng.dirichlet(np.ones(3), 120) * 0.6 + 0.4 * np.eye(3)[y] * rng.random((120, 1))
    p = np.round(p / p.sum(1, keepdims=True), 2)  # ties
    p = p / p.sum(1, keepdims=True)
    weights = np.vstack([np.ones(120), rng.integers(0, 3, (6, 120))]).astype(float)
    return y, p, weights


def test_scores_equal_scikit_learn_for_every_weighting(sample):
    y, p, weights = sample
    found = scores.from_confusion(scores.confusion(y, p, weights), CLASSES)
    decided = p.argmax(1)
    for b, w in enumerate(weights):
        kept = w > 0
        args = {"sample_weight": w[kept]}
        assert found["accuracy", None][b] == pytest.approx(sk.accuracy_score(y[kept], decided[kept], **args), abs=1e-12)
        expected = sk.balanced_accuracy_score(y[kept], decided[kept], **args)
        assert found["balanced_accuracy", None][b] == pytest.approx(expected, abs=1e-12)
        table = sk.precision_recall_fscore_support(y[kept], decided[kept], labels=[0, 1, 2], zero_division=0, **args)
        for name, values in zip(("precision", "recall", "f1"), table[:3], strict=True):
            assert [found[name, c][b] for c in CLASSES] == pytest.approx(values.tolist(), abs=1e-12)
            assert found[name, "macro"][b] == pytest.approx(values.mean(), abs=1e-12)
        expected = sk.roc_auc_score(y == 1, p[:, 1], sample_weight=w)
        assert scores.roc_auc(y == 1, p[:, 1], weights)[b] == pytest.approx(expected, abs=1e-12)
        expected = sk.average_precision_score(y == 1, p[:, 1], sample_weight=w)
        assert scores.average_precision(y == 1, p[:, 1], weights)[b] == pytest.approx(expected, abs=1e-12)
        expected = sk.log_loss(y, p, sample_weight=w, labels=[0, 1, 2])
        assert scores.log_loss(y, p, weights)[b] == pytest.approx(expected, abs=1e-12)


def test_agreement_equals_scikit_learn_for_every_weighting(sample):
    y, p, weights = sample
    matrix, decided = scores.confusion(y, p, weights), p.argmax(1)
    for b, w in enumerate(weights):
        expected = sk.cohen_kappa_score(y, decided, weights="linear", sample_weight=w)
        assert scores.kappa(matrix)[b] == pytest.approx(expected, abs=1e-12)
        assert scores.matthews(matrix)[b] == pytest.approx(sk.matthews_corrcoef(y, decided, sample_weight=w), abs=1e-12)
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
    found = scores.from_confusion(scores.confusion(y, p, np.ones((1, 3))), CLASSES)
    assert np.isnan(found["recall", "c"][0])
    assert found["balanced_accuracy", None][0] == pytest.approx((0.5 + 1) / 2)


def test_whole_participants_are_drawn():
    groups = np.array([0, 0, 0, 1, 2, 2])
    weights = scores.cluster_weights(groups, 50, 1)
    assert weights.shape == (51, 6)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 3, 4]].sum(1) == 3).all()


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
