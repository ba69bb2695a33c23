"""Scores of a risk against brute force and other libraries, for weightings as well as repeated items."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from adlib.evaluation import risk
from adlib.evaluation.scores import cluster_weights, ranked_probability

RNG = np.random.default_rng(3)
LOGIT = RNG.normal(0.3, 1.4, 90)
ILL = RNG.random(90) < 1 / (1 + np.exp(-(0.4 + 0.6 * LOGIT)))  # risks are too extreme and too low
RISK = np.round(1 / (1 + np.exp(-LOGIT)), 2)  # some are tied
WEIGHTS = cluster_weights(np.arange(90) // 2, 12, 1)
ROWS = [(row, np.repeat(ILL, row.astype(int)), np.repeat(RISK, row.astype(int))) for row in WEIGHTS]


def test_net_benefit_is_that_of_counting_the_treated():
    found = risk.net_benefit(ILL, RISK, WEIGHTS)
    everyone = risk.net_benefit(ILL, np.ones(90), WEIGHTS)
    for curve, treat_all, (_, ill, risks) in zip(found, everyone, ROWS, strict=True):
        for value, best, threshold in zip(curve, treat_all, risk.THRESHOLDS, strict=True):
            treated, odds = risks >= threshold, threshold / (1 - threshold)
            expected = (np.sum(treated & ill) - odds * np.sum(treated & ~ill)) / len(ill)
            assert value == pytest.approx(expected, abs=1e-12)
            assert best == pytest.approx(ill.mean() - odds * (1 - ill.mean()), abs=1e-12)


def test_slope_and_intercept_are_those_of_logistic_regression():
    intercept, slope = risk.calibration_line(ILL, RISK, WEIGHTS)
    assert slope[0] < 1 and intercept[0] > 0
    for a, b, (_, ill, risks) in zip(intercept, slope, ROWS, strict=True):
        logit = np.log(risks / (1 - risks))
        model = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky").fit(logit[:, None], ill)
        assert b == pytest.approx(model.coef_[0, 0], abs=1e-6)
        assert np.sum(ill - 1 / (1 + np.exp(-a - logit))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("values", [np.full(90, 0.3), np.where(ILL, 0.8, 0.2), np.where(ILL, 1.0, 0.0)])
def test_constant_and_separating_risks_have_no_slope(values):
    assert np.isnan(risk.calibration_line(ILL, values, WEIGHTS[:2])[1]).all()


def test_one_outcome_alone_has_neither_slope_nor_sensitivity():
    intercept, slope = risk.calibration_line(np.ones(90, bool), RISK, WEIGHTS[:2])
    assert np.isnan([*intercept, *slope, *risk.sensitivity_at(np.ones(90, bool), RISK, WEIGHTS[:2])]).all()


def test_the_smoothed_curve_is_a_weighted_line_at_each_risk():
    found = risk.smoothed(ILL, RISK, WEIGHTS)
    reach = np.ceil(risk.SPAN * 90).astype(int) - 1
    for curve, row in zip(found, WEIGHTS, strict=True):
        for at, value in zip(risk.GRID, curve, strict=True):
            if not RISK.min() <= at <= RISK.max():
                assert np.isnan(value)
                continue
            distance = np.abs(RISK - at)
            near = np.clip(1 - (distance / np.sort(distance)[reach]) ** 3, 0, None) ** 3
            line = np.polyfit(RISK, ILL.astype(float), 1, w=np.sqrt(near * row))
            assert value == pytest.approx(np.clip(np.polyval(line, at), 0, 1), abs=1e-6)


def test_a_calibrated_risk_lies_on_the_diagonal():
    p = RNG.random(20_000)
    curve = risk.smoothed(RNG.random(20_000) < p, p, np.ones((1, 20_000)))[0]
    assert np.nanmax(np.abs(curve - risk.GRID)) < 0.03
    assert np.ravel(risk.calibration_line(RNG.random(20_000) < p, p, np.ones((1, 20_000)))) == pytest.approx(
        [0, 1], abs=0.06
    )


def test_predictive_values_follow_the_prevalence_by_bayes():
    for prevalence in (None, 0.02):
        for (_, ill, risks), up, down in zip(
            ROWS, *risk.predictive_values(ILL, RISK, WEIGHTS, prevalence), strict=True
        ):
            sensitivity, specificity = np.mean(risks[ill] >= 0.5), np.mean(risks[~ill] < 0.5)
            share = ill.mean() if prevalence is None else prevalence
            true, false = share * sensitivity, (1 - share) * (1 - specificity)
            assert up == pytest.approx(true / (true + false), abs=1e-12)
            rejected, missed = (1 - share) * specificity, share * (1 - sensitivity)
            assert down == pytest.approx(rejected / (rejected + missed), abs=1e-12)


@pytest.mark.parametrize("specificity", [0.5, 0.9, 1.0])
def test_sensitivity_is_the_best_of_the_roc_curve_at_specificity(specificity):
    found = risk.sensitivity_at(ILL, RISK, WEIGHTS, specificity)
    for value, (row, *_) in zip(found, ROWS, strict=True):
        false, true, _ = roc_curve(ILL, RISK, sample_weight=row, drop_intermediate=False)
        assert value == pytest.approx(true[1 - false >= specificity - 1e-9].max(), abs=1e-12)


def test_ranked_probability_follows_its_definition_and_order():
    y, p = np.array([0, 2]), np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    each = [((0.5 - 1) ** 2 + (0.8 - 1) ** 2) / 2, (0.5**2 + 0.8**2) / 2]
    found = ranked_probability(y, p, np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 3.0]]))
    assert found == pytest.approx([*each, (each[0] + 3 * each[1]) / 4], abs=1e-12)
    sure = np.eye(3)[[1, 2]]
    near, far = ranked_probability(np.zeros(2, int), sure, np.eye(2))
    assert (near, far) == (0.5, 1.0)
