"""Distances from the training scans, norms of healthy volumes and bounds of prediction sets."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from adlib.training.cohort_reference import (
    farthest,
    fit_distribution,
    gate_bounds,
    healthy_norms,
    mahalanobis_distances,
    set_bounds,
    volume_percentiles,
)
from adlib.training.conformal import staged

CLASSES = ("CN", "MCI", "LMCI", "AD")


def scans(n: int, seed: int, p: int = 30) -> np.ndarray:
    """Normal values of which the first ten go together."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, p))
    values[:, :10] += 3 * rng.normal(size=(n, 1))
    return 5 + 2 * values


def test_distances_equal_mahalanobis_with_many_scans():
    values, others = scans(20_000, 0), scans(50, 1)
    covariance, mean = np.cov(values.T), values.mean(0)
    centred = others - mean
    expected = np.sqrt(np.einsum("ij,jk,ik->i", centred, np.linalg.inv(covariance), centred) / 30)
    assert np.allclose(mahalanobis_distances(others, fit_distribution(values)), expected, rtol=0.02)


def test_outliers_are_far_with_fewer_scans_than_values():
    space = fit_distribution(scans(40, 2, 500))
    inside = mahalanobis_distances(scans(50, 3, 500), space)
    outside = mahalanobis_distances(scans(50, 4, 500) + 4 * np.eye(1, 500, 300).clip(0) * 10, space)
    assert outside.min() > inside.max()


def test_constant_training_values_add_no_distance():
    values = scans(100, 5)
    values[:, 20] = 1.0
    space = fit_distribution(values)
    usual, moved = scans(1, 6), scans(1, 6)
    usual[:, 20], moved[:, 20] = 1.0, 1.001
    assert mahalanobis_distances(moved, space) == pytest.approx(mahalanobis_distances(usual, space), rel=0.01)
    assert np.isfinite(mahalanobis_distances(moved * np.nan, space)).all()


def test_farthest_values():
    space = fit_distribution(scans(200, 7, 3), ("a", "b", "c"))
    mean = space.mean.astype(float).copy()
    mean[1] += 9 * space.sd[1]
    (name, value, known, sd), *others = farthest(mean, space)
    assert name == "b" and value == pytest.approx(known + 9 * sd) and not others


def test_gate_bounds_keep_their_level():
    """Over many cohorts, the share of new participants refused is what the level says or less."""
    refused = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        off = pd.DataFrame(np.exp(rng.normal([0, 1, 2], [0.1, 0.2, 0.4], (361, 3))), columns=["a", "b", "c"])
        bounds = gate_bounds(off.iloc[:61], np.arange(61))
        new = ((np.log(off.iloc[61:]) - pd.Series(bounds["centre"])) / pd.Series(bounds["spread"])).max(axis=1)
        refused.append((new > bounds["threshold"]).mean())
    assert bounds["participants"] == 61
    assert 0.002 < np.mean(refused) < 0.03


def test_gate_bounds_count_participants_once():
    off = pd.DataFrame({"a": np.exp(np.r_[np.linspace(-1, 1, 98), 9.0, 9.5])})
    people = np.r_[np.arange(98), 98, 98]
    assert gate_bounds(off, people)["participants"] == 99


def norms_table(n: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Healthy volumes with a known slope in age, sex and head size, and ill ones far below."""
    rng = np.random.default_rng(seed)
    age, female = rng.uniform(50, 90, n), rng.integers(0, 2, n)
    icv = rng.normal(1500, 130, n)
    healthy = np.arange(n) % 2 == 0
    hippocampus = 7 - 0.4 * (age - 70) / 10 - 0.3 * female + 1.5 * (icv - 1500) / 1000 + rng.normal(0, 0.4, n)
    names = [f"s{k}" for k in range(n)]
    manifest = pd.DataFrame(
        {"participant_id": names, "age": age, "sex": np.where(female, "F", "M"),
         "diagnosis": np.where(healthy, "CN", "AD")}, index=names,
    )  # fmt: skip
    return manifest, pd.DataFrame({"hippocampus_ml": hippocampus - 3 * ~healthy, "icv_ml": icv}, index=names)


def test_percentiles_of_age_sex_and_head_size():
    norms = healthy_norms(*norms_table(4000, 8))
    person = {"age": 80.0, "sex": 1.0}
    expected = 7 - 0.4 - 0.3 + 1.5 * 0.2
    found = volume_percentiles({"hippocampus_ml": expected - 0.4, "icv_ml": 1700.0}, person, norms)
    assert found["hippocampus_ml"] == pytest.approx(100 * stats.norm.cdf(-1), abs=1.5)
    assert norms["participants"] == 2000 and json.dumps(norms, allow_nan=False)


@pytest.mark.parametrize("person", [{}, {"age": 70.0}, {"sex": 0.0}, {"age": 99.0, "sex": 0.0}])
def test_no_percentiles_without_age_and_sex_in_range(person):
    assert volume_percentiles({"hippocampus_ml": 5, "icv_ml": 1500}, person, healthy_norms(*norms_table(200, 9))) == {}


def test_norms_need_20_healthy_participants():
    assert healthy_norms(*norms_table(38, 10)) == {}
    assert healthy_norms(*norms_table(40, 10))["participants"] == 20


def test_set_bounds_fall_with_coverage():
    rng = np.random.default_rng(11)
    p = rng.dirichlet(np.ones(4), 80)
    table = pd.DataFrame(p, columns=[f"p_{name}" for name in CLASSES]).assign(
        participant_id=[f"s{k}" for k in range(80)], session_id="1", slice=0, fold=0, temperature=1.0,
        split="validation", truth=[CLASSES[k] for k in rng.integers(0, 4, 80)],
    )  # fmt: skip
    table["scan_id"] = table["participant_id"]
    bounds = set_bounds(table, CLASSES, "mean")
    truth = staged(p)[np.arange(80), [CLASSES.index(name) for name in table["truth"]]]
    assert bounds["0.9"] == pytest.approx(np.full(4, np.sort(truth)[80 - 73]))
    assert list(bounds.values()) == sorted(bounds.values(), reverse=True)
    assert set_bounds(table.assign(split="test"), CLASSES, "mean") == {}
