"""A scan unlike the training cohort is refused in words, one like it is not, and the answer keeps its promises."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from made_head import made_head, random_affine
from scipy import stats

from adlib.classify import prediction as predict
from adlib.classify.input_checks import REFUSED, UNCHECKED, judge
from adlib.classify.result import as_record
from adlib.study.params import InputParams, PreprocessParams
from adlib.training import model_file
from adlib.training import network as model
from adlib.training.cohort_reference import (
    IMAGE,
    QUALITY,
    VOLUMES,
    describe,
    gate_bounds,
    healthy_norms,
    set_bounds,
    volume_percentiles,
)
from adlib.training.mahalanobis import Space, distances, farthest, fit_space

CLASSES = ("CN", "MCI", "LMCI", "AD")


def scans(n: int, seed: int, p: int = 30) -> np.ndarray:
    """Normal values of which the first ten go together."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, p))
    values[:, :10] += 3 * rng.normal(size=(n, 1))
    return 5 + 2 * values


def test_distances_are_those_of_mahalanobis_where_scans_abound():
    values, others = scans(20_000, 0), scans(50, 1)
    covariance, mean = np.cov(values.T), values.mean(0)
    centred = others - mean
    expected = np.sqrt(np.einsum("ij,jk,ik->i", centred, np.linalg.inv(covariance), centred) / 30)
    assert np.allclose(distances(others, fit_space(values)), expected, rtol=0.02)


def test_a_scan_outside_is_far_with_fewer_scans_than_values():
    space = fit_space(scans(40, 2, 500))
    inside = distances(scans(50, 3, 500), space)
    outside = distances(scans(50, 4, 500) + 4 * np.eye(1, 500, 300).clip(0) * 10, space)
    assert outside.min() > inside.max()


def test_what_never_varied_in_training_does_not_refuse_by_itself():
    values = scans(100, 5)
    values[:, 20] = 1.0
    space = fit_space(values)
    usual, moved = scans(1, 6), scans(1, 6)
    usual[:, 20], moved[:, 20] = 1.0, 1.001
    assert distances(moved, space) == pytest.approx(distances(usual, space), rel=0.01)
    assert np.isfinite(distances(moved * np.nan, space)).all()


def test_the_farthest_values_are_named():
    space = fit_space(scans(200, 7, 3), ("a", "b", "c"))
    mean = space.mean.astype(float).copy()
    mean[1] += 9 * space.sd[1]
    (name, value, known, sd), *others = farthest(mean, space)
    assert name == "b" and value == pytest.approx(known + 9 * sd) and not others


def test_the_gate_lets_in_as_many_as_it_promises():
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


def test_of_several_scans_of_a_person_the_farthest_counts_once():
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


def test_percentiles_are_those_of_age_sex_and_head_size():
    norms = healthy_norms(*norms_table(4000, 8))
    person = {"age": 80.0, "sex": 1.0}
    expected = 7 - 0.4 - 0.3 + 1.5 * 0.2
    found = volume_percentiles({"hippocampus_ml": expected - 0.4, "icv_ml": 1700.0}, person, norms)
    assert found["hippocampus_ml"] == pytest.approx(100 * stats.norm.cdf(-1), abs=1.5)
    assert norms["participants"] == 2000 and json.dumps(norms, allow_nan=False)


@pytest.mark.parametrize("person", [{}, {"age": 70.0}, {"sex": 0.0}, {"age": 99.0, "sex": 0.0}])
def test_no_percentiles_without_age_and_sex_or_beyond_the_norms(person):
    assert volume_percentiles({"hippocampus_ml": 5, "icv_ml": 1500}, person, healthy_norms(*norms_table(200, 9))) == {}


def test_too_few_healthy_participants_make_no_norms():
    assert healthy_norms(*norms_table(38, 10)) == {}
    assert healthy_norms(*norms_table(40, 10))["participants"] == 20


def test_set_bounds_fall_as_more_is_promised():
    rng = np.random.default_rng(11)
    p = rng.dirichlet(np.ones(4), 80)
    table = pd.DataFrame(p, columns=[f"p_{name}" for name in CLASSES]).assign(
        participant_id=[f"s{k}" for k in range(80)], session_id="1", slice=0, fold=0, temperature=1.0,
        split="validation", truth=[CLASSES[k] for k in rng.integers(0, 4, 80)],
    )  # fmt: skip
    table["scan_id"] = table["participant_id"]
    bounds = set_bounds(table, CLASSES, "mean")
    truth = p[np.arange(80), [CLASSES.index(name) for name in table["truth"]]]
    assert bounds["0.9"] == pytest.approx(np.sort(truth)[80 - 73])
    assert list(bounds.values()) == sorted(bounds.values(), reverse=True)
    assert set_bounds(table.assign(split="test"), CLASSES, "mean") == {}


def made(seed: int, **changed):
    pose = random_affine(seed, scale=0.0)
    pose[:3, :3] *= 0.9
    return made_head(seed=seed, pose=pose, voxel_mm=(2.5, 2.5, 2.5), **changed).image


@pytest.fixture(scope="module")
def plain():
    """A network with random weights and no stored reference."""
    torch.manual_seed(3)
    network, origin = model.ResNet50(len(CLASSES)), "random initialisation"
    card = model_file.ModelCard(
        "phantom", CLASSES, True, InputParams(size=64), PreprocessParams(resolution_mm=3.0), 1.0,
        {"participants": dict.fromkeys(CLASSES, 5)}, origin, "", "", 3,
    )  # fmt: skip
    return model_file.Classifier(network.eval(), card)


@pytest.fixture(scope="module")
def answered(plain):
    return predict.predict_image(made(4), "made", plain, person={"age": 70.0, "sex": 1.0})


def near(values: np.ndarray, names: tuple[str, ...] = ()) -> Space:
    """A space whose scans lie about given values."""
    spread = np.maximum(0.05 * np.abs(values), 0.05)
    return fit_space(values + spread * np.random.default_rng(0).normal(size=(60, len(values))), names)


@pytest.fixture(scope="module")
def stocked(plain, answered):
    """The same with a cohort that looks like one made head."""
    image = model.image_features(plain.network, answered.seen).mean(0)
    values = describe(answered.prepared.features | answered.prepared.qc)
    spaces = {IMAGE: near(image)}
    spaces |= {name: near(np.array(list(values[name].values())), tuple(values[name])) for name in (VOLUMES, QUALITY)}
    gate = {"centre": dict.fromkeys(spaces, 0.0), "spread": dict.fromkeys(spaces, 0.2), "threshold": 3.0}
    norms = healthy_norms(*norms_table(400, 12))
    reference = {"gate": gate, "sets": {"0.9": 0.0, "0.95": 0.0}, "norms": norms}
    reference["names"] = {name: list(space.names) for name, space in spaces.items()}
    return replace(plain, card=replace(plain.card, reference=reference), spaces=spaces)


def test_a_file_without_a_reference_answers_and_says_that_likeness_was_not_checked(answered):
    verdicts = {check.question: check.verdict for check in answered.gate.checks}
    assert list(verdicts.values()).count(UNCHECKED) == 3
    assert answered.predicted and answered.gate.accepted
    assert "stores no bound" in answered.statement and "stores no healthy volumes" in answered.percentiles_note


def test_a_scan_like_the_cohort_is_answered_with_its_set_and_percentiles(stocked):
    found = predict.predict_image(made(4), "made", stocked, person={"age": 70.0, "sex": 1.0})
    assert found.gate.accepted, found.refusals
    assert found.statement == "CN, MCI, LMCI or AD: no class excluded at 90 %"
    assert 0 <= found.percentiles["hippocampus_ml"] <= 100
    assert "400" not in found.percentiles_note and "200 simulated CN" in found.percentiles_note
    record = json.loads(json.dumps(as_record(found), allow_nan=False))
    assert (
        record["set"] == list(CLASSES) and len(record["gate"]) == 7 and record["agreement"].startswith(("2", "3", "1"))
    )


def test_the_set_excludes_what_lies_below_its_bound(answered):
    p = {"CN": 0.5, "MCI": 0.3, "LMCI": 0.15, "AD": 0.05}
    card = replace(answered.card, reference={"sets": {"0.9": 0.2, "0.95": 0.1, "0.85": 0.4}})
    one = replace(answered, predicted="CN", probabilities=p, card=card)
    assert one.statement == "CN or MCI; LMCI and AD excluded at 90 %"
    assert replace(one, coverage=0.93).possible == ("CN", "MCI", "LMCI")
    assert replace(one, coverage=0.99).possible == ()


def spoilt(kind: str):
    """Made heads that are not whole, not T1w, or not good enough."""
    image = made(4)
    data, rng = np.asarray(image.dataobj, dtype=np.float32).copy(), np.random.default_rng(0)
    top = np.percentile(data, 99)
    if kind == "inverted":
        data = np.where(data > 0.1 * top, np.maximum(1.1 * top - data, 0), data)
    elif kind == "noisy":
        data = np.abs(data + 0.5 * top * rng.normal(size=data.shape))
    elif kind == "half":
        data[: data.shape[0] // 2] = 0
    return type(image)(data.astype(np.float32), image.affine)


@pytest.mark.parametrize("kind", ["inverted", "noisy", "half"])
def test_scans_outside_show_no_class_but_a_reason_and_what_to_do(stocked, kind):
    from adlib.study.records import StudyError

    try:
        found = predict.predict_image(spoilt(kind), kind, stocked)
    except StudyError as error:
        assert "expected" in str(error)
        return
    assert found.predicted is None and found.probabilities == {} and not len(found.slices)
    assert found.statement == "No answer" and found.possible == () and found.agreement == ""
    record = as_record(found)
    assert record["refused"] and record["probabilities"] == {} and record["slice_probabilities"] == []
    assert all(any(word in reason for word in ("Give", "give", "Look", "Use")) for reason in record["refused"])
    assert "no answer" in predict.draw(found).subfigs[0].get_suptitle()


@pytest.mark.parametrize("name", [IMAGE, VOLUMES, QUALITY])
def test_each_space_refuses_by_itself(stocked, answered, name):
    image = model.image_features(stocked.network, answered.seen).mean(0)
    space = stocked.spaces[name]
    away = replace(space, mean=space.mean + 40 * space.sd)
    other = replace(stocked, spaces=stocked.spaces | {name: away})
    refused = [check for check in judge(answered.prepared, image, other).checks if check.verdict == REFUSED]
    assert len(refused) == 1 and "accepted up to +3.0" in refused[0].found
    assert name == IMAGE or "training" in refused[0].found


def test_the_reference_travels_with_the_file_and_old_files_load(stocked, plain, tmp_path):
    model_file.save(stocked, tmp_path / "m.safetensors")
    loaded = model_file.load(tmp_path / "m.safetensors")
    assert loaded.card == stocked.card and loaded.spaces.keys() == stocked.spaces.keys()
    for name, space in stocked.spaces.items():
        assert loaded.spaces[name].names == space.names
        assert np.array_equal(loaded.spaces[name].axes, space.axes)
    old = json.loads(plain.card.to_json())
    del old["reference"]
    assert model_file.ModelCard.from_json(json.dumps(old)) == plain.card
