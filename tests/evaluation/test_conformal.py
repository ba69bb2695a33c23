"""Prediction sets hold the truth as often as promised."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import betabinom, norm

from adlib.evaluation.prediction_sets import LEVELS, coverage_curve, prediction_sets, set_scores
from adlib.training.calibration import fit_calibration
from adlib.training.conformal import lowest_probability
from adlib.training.network import softmax

CLASSES = ("CN", "MCI", "LMCI", "AD")
MEANS = np.array([0.1, 0.4, 0.65, 1.0])


def cohort(n, rng, sharpness=1.0):
    """True classes and logits of people whose stage is read with noise; sharpness 1 is near the true posterior."""
    y = rng.permutation(np.arange(n) % 4)
    stage = rng.normal(MEANS[y], 0.5)
    return y, sharpness * norm.logpdf(stage[:, None], MEANS, 0.5)


def table(y, p, fold=0):
    names = [f"sub-{k:04d}" for k in range(len(y))]
    made = pd.DataFrame({"fold": fold, "participant_id": names, "truth": np.array(CLASSES)[y]})
    made[[f"p_{name}" for name in CLASSES]] = p
    return made


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("sharpness", [1.0, 6.0])
def test_mean_coverage_over_fifty_random_splits_is_nominal(coverage, sharpness):
    """Good probabilities or far too confident ones: the promise is the same."""
    rng = np.random.default_rng(1)
    y, logits = cohort(600, rng, sharpness)
    held = []
    for _ in range(50):
        order = rng.permutation(600)
        validation, tested = (table(y[part], softmax(logits[part])) for part in (order[:80], order[80:]))
        sets = prediction_sets(validation, tested, CLASSES, coverage)
        held.append(sets[np.arange(520), y[order[80:]]].mean())
    assert abs(np.mean(held) - coverage) < 0.02


def test_calibrating_on_the_participants_that_set_the_bound_costs_little_coverage():
    """Against a calibration by 34 others, the bound set by the same 34 people, over 150 studies; docs/evaluation.md."""
    rng, lost = np.random.default_rng(2), []
    for _ in range(150):
        (y, logits), (other, others), (truth, unseen) = (cohort(n, rng, 4.0) for n in (34, 34, 300))
        held = []
        for fitted in (fit_calibration(logits, y), fit_calibration(others, other)):
            validation, tested = table(y, softmax(logits, *fitted)), table(truth, softmax(unseen, *fitted))
            held.append(prediction_sets(validation, tested, CLASSES, 0.9)[np.arange(300), truth].mean())
        lost.append(held[1] - held[0])
    assert abs(np.mean(lost)) < 0.02


def test_a_class_is_in_the_set_where_its_conformal_p_value_is_above_the_error():
    """The definition of Vovk et al.: count, for each class of each participant, who conforms no better."""
    rng = np.random.default_rng(3)
    for n, coverage in ((19, 0.9), (34, 0.9), (57, 0.75)):
        y, logits = cohort(n, rng)
        p = np.round(softmax(logits), 2)  # ties
        _, logits_new = cohort(50, rng)
        tested = np.round(softmax(logits_new), 2)
        known = p[np.arange(n), y]
        by_definition = [[(1 + np.sum(known <= one)) / (n + 1) > 1 - coverage + 1e-12 for one in row] for row in tested]
        assert ((tested >= lowest_probability(y, p, coverage)) == np.array(by_definition)).all()


def test_a_network_that_knows_nothing_keeps_the_promise_with_large_sets():
    rng = np.random.default_rng(4)
    y = np.arange(400) % 4
    tables = [table(y, rng.dirichlet(np.ones(4), 400)) for _ in range(2)]
    sets = prediction_sets(*tables, CLASSES, 0.9)
    assert abs(sets[np.arange(400), y].mean() - 0.9) < 0.05
    assert sets.sum(1).mean() > 3.4


def test_too_few_validation_participants_promise_nothing_less_than_all_classes():
    y, p = np.arange(8) % 4, np.tile([0.7, 0.1, 0.1, 0.1], (8, 1))
    assert lowest_probability(y, p, 0.9) == 0
    assert prediction_sets(table(y, p), table(y, p), CLASSES, 0.9).all()
    assert lowest_probability(np.zeros(9, int), np.linspace(0.1, 0.9, 9)[:, None] * np.ones(4), 0.9) == pytest.approx(
        0.1
    )


def test_each_fold_has_its_own_bound_and_no_set_is_empty():
    y = np.zeros(20, int)
    sure, unsure = np.tile([0.97, 0.01, 0.01, 0.01], (20, 1)), np.tile([0.28, 0.24, 0.24, 0.24], (20, 1))
    validation = pd.concat([table(y, sure, 0), table(y, unsure, 1)])
    tested = pd.concat([table(y[:2], [[0.4, 0.3, 0.2, 0.1], [0.97, 0.03, 0.0, 0.0]], fold) for fold in (0, 1)])
    sets = prediction_sets(validation, tested, CLASSES, 0.9)
    assert sets.astype(int).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]


def test_set_scores_count_by_class_and_weight():
    y = np.array([0, 0, 1])
    sets = np.array([[1, 1, 0], [0, 1, 1], [0, 1, 0]], bool)
    found = set_scores(y, sets, np.array([[1.0, 1, 1], [3, 1, 0]]), ("a", "b", "c"))
    assert found["coverage", None].tolist() == [pytest.approx(2 / 3), 0.75]
    assert found["coverage", "a"].tolist() == [0.5, 0.75]
    assert found["set_size", None].tolist() == [pytest.approx(5 / 3), 2]
    assert np.isnan(found["coverage", "b"][1])
    assert np.isnan(found["set_size", "c"]).all()


def test_the_range_by_chance_is_that_of_the_beta_binomial():
    rng = np.random.default_rng(5)
    parts = [cohort(n, rng) for n in (34, 120)]
    curve = coverage_curve(*(table(y, softmax(logits)) for y, logits in parts), CLASSES, 200, 1)
    assert curve["nominal"].tolist() == list(LEVELS)
    row = curve[curve["nominal"] == 0.9].iloc[0]
    exact = betabinom(120, 32, 3).ppf([0.025, 0.975]) / 120  # ceil(35 x 0.9) = 32
    assert row[["expected_low", "expected_high"]].tolist() == pytest.approx(exact, abs=0.011)
    assert row["low"] <= row["coverage"] <= row["high"]
