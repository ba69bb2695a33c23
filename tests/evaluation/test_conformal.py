"""Prediction sets hold the truth as often as promised."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import betabinom, norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from adlib.evaluation.prediction_sets import LEVELS, coverage_curve, prediction_sets, set_scores
from adlib.training.calibration import calibrate
from adlib.training.conformal import by_class, lowest_probabilities, sets_of, staged
from adlib.training.network import softmax
from adlib.training.pooling import arrays

CLASSES = ("CN", "MCI", "LMCI", "AD")
MEANS = np.array([0.1, 0.4, 0.65, 1.0])


def cohort(n, rng, sharpness=1.0):
    """True classes and logits of people whose stage is read with noise; sharpness 1 is near the true posterior."""
    y = rng.permutation(np.arange(n) % 4)
    stage = rng.normal(MEANS[y], 0.5)
    return y, sharpness * norm.logpdf(stage[:, None], MEANS, 0.5)


def table(y, p, fold=0, names=None):
    names = [f"sub-{k:04d}" for k in (range(len(y)) if names is None else names)]
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


def members_of(y, x, people, seed):
    """Predictions of an ensemble of five regressions, each of which leaves out a fifth of the first `people`."""
    parts, tested = [], np.arange(people, len(y))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed).split(x[:people], y[:people])
    for member, (train, left) in enumerate(folds, 1):
        p = LogisticRegression(C=10).fit(x[train], y[train]).predict_proba(x)
        parts += [
            table(y[rows], p[rows], names=rows).assign(split=part, run=f"member_{member}")
            for part, rows in (("validation", left), ("test", tested))
        ]
    whole = pd.concat(parts).assign(session_id="", slice=0)
    whole["scan_id"] = whole["participant_id"]
    mean = whole.groupby(["fold", "participant_id", "truth", "split", "session_id", "scan_id", "slice"])
    mean = mean.mean(numeric_only=True).reset_index().assign(run="resnet50")
    return pd.concat([whole, mean]).assign(temperature=1.0)


def test_an_ensemble_keeps_the_promise_over_fifty_splits():
    """Everybody who is not tested bounds the sets: mean coverage within 0.02 at each level, and no set has a hole."""
    rng, levels = np.random.default_rng(5), (0.8, 0.9, 0.95)
    held = {level: [] for level in levels}
    for split in range(50):
        y, x = cohort(680, rng)
        predictions = members_of(y, x + rng.normal(0, 0.5, x.shape), 280, split).query("run == 'resnet50'")
        validation, tested = (predictions[predictions["split"] == part] for part in ("validation", "test"))
        for level in levels:
            sets = prediction_sets(validation, tested, CLASSES, level)
            held[level].append(sets[np.arange(400), arrays(tested, CLASSES)[0]].mean())
            assert (np.diff(sets.astype(int), axis=1, prepend=0) == 1).sum(1).max() == 1
    for level in levels:
        assert abs(np.mean(held[level]) - level) < 0.02


def test_every_class_is_promised_the_coverage_with_enough_people():
    rng = np.random.default_rng(6)
    (y, logits), (truth, unseen) = cohort(4000, rng, 6.0), cohort(8000, rng, 6.0)
    p = softmax(logits)
    sets = sets_of(softmax(unseen), lowest_probabilities(y, p, 0.9))
    assert by_class(y, 4, 0.9)
    assert all(abs(sets[truth == k, k].mean() - 0.9) < 0.03 for k in range(4))
    assert not by_class(y[:390], 4, 0.9)
    assert len(set(lowest_probabilities(y[:390], p[:390], 0.9))) == 1


def test_classes_between_two_more_probable_ones_are_raised():
    p = np.array([[0.4, 0.1, 0.2, 0.3], [0.1, 0.4, 0.3, 0.2]])
    assert staged(p).tolist() == [[0.4, 0.3, 0.3, 0.3], [0.1, 0.4, 0.3, 0.2]]
    assert sets_of(p, np.full(4, 0.25)).tolist() == [[True] * 4, [False, True, True, False]]
    assert sets_of(p, np.array([0.9, 0.9, 0.9, 0.3])).tolist() == [[True] * 4, [False, True, False, False]]


def test_bounds_are_of_people_that_did_not_fit_the_calibration():
    """Each validation participant has the temperature that the others give, those tested that of all."""
    rng = np.random.default_rng(2)
    y, logits = cohort(34, rng, 4.0)
    rows = table(y, softmax(logits)).assign(split="validation", scan_id="s", temperature=1.0)
    unseen = table(y, softmax(logits), names=range(100, 134)).assign(split="test", scan_id="s", temperature=1.0)
    fitted = calibrate(pd.concat([rows, unseen], ignore_index=True), CLASSES, "mean")
    held_out, tested = (fitted[fitted["split"] == part] for part in ("validation", "test"))
    assert held_out["temperature"].nunique() == 5
    assert tested["temperature"].nunique() == 1
    changed = rows.assign(truth=rows["truth"].where(rows.index != 0, "AD" if y[0] != 3 else "CN"))
    again = calibrate(changed, CLASSES, "mean")
    assert again["temperature"].iloc[0] == held_out["temperature"].iloc[0]
    assert (again["temperature"] != held_out["temperature"]).sum() > 20


def test_a_class_is_in_the_set_where_its_conformal_p_value_is_above_the_error():
    """The definition of Vovk et al.: count, for each class of each participant, who conforms no better."""
    rng = np.random.default_rng(3)
    for n, coverage in ((19, 0.9), (34, 0.9), (57, 0.75)):
        y, logits = cohort(n, rng)
        p = staged(np.round(softmax(logits), 2))  # ties
        _, logits_new = cohort(50, rng)
        tested = staged(np.round(softmax(logits_new), 2))
        known = p[np.arange(n), y]
        by_definition = [[(1 + np.sum(known <= one)) / (n + 1) > 1 - coverage + 1e-12 for one in row] for row in tested]
        assert ((tested >= lowest_probabilities(y, p, coverage)) == np.array(by_definition)).all()


def test_a_network_that_knows_nothing_keeps_the_promise_with_large_sets():
    rng = np.random.default_rng(4)
    y = np.arange(400) % 4
    tables = [table(y, rng.dirichlet(np.ones(4), 400)) for _ in range(2)]
    sets = prediction_sets(*tables, CLASSES, 0.9)
    assert abs(sets[np.arange(400), y].mean() - 0.9) < 0.05
    assert sets.sum(1).mean() > 3.4


def test_too_few_validation_participants_promise_nothing_less_than_all_classes():
    y, p = np.arange(8) % 4, np.tile([0.7, 0.1, 0.1, 0.1], (8, 1))
    assert (lowest_probabilities(y, p, 0.9) == 0).all()
    assert prediction_sets(table(y, p), table(y, p), CLASSES, 0.9).all()
    nine = lowest_probabilities(np.zeros(9, int), np.linspace(0.1, 0.9, 9)[:, None] * np.ones(4), 0.9)
    assert nine == pytest.approx(np.full(4, 0.1))


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
    pair = tuple(table(y, softmax(logits)) for y, logits in parts)
    curve = coverage_curve(*pair, CLASSES, 200, 1)
    assert curve["nominal"].tolist() == list(LEVELS)
    row = curve[curve["nominal"] == 0.9].iloc[0]
    exact = betabinom(120, 32, 3).ppf([0.025, 0.975]) / 120  # ceil(35 x 0.9) = 32
    assert row[["expected_low", "expected_high"]].tolist() == pytest.approx(exact, abs=0.011)
    assert row["low"] <= row["coverage"] <= row["high"]
