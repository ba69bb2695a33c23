"""Scans outside the training distribution are refused with a reason, others get a prediction set."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from bad_uploads import head
from made_head import add_noise, spoil
from test_cohort_reference import norms_table

from adlib.classify.input_checks import FAILED, UNCHECKED, check_input
from adlib.classify.plot_prediction import plot_prediction
from adlib.classify.prediction import predict_image
from adlib.classify.result import as_record
from adlib.study.records import StudyError
from adlib.training import model_file
from adlib.training.cohort_reference import IMAGE, QUALITY, VOLUMES, describe, fit_distribution, healthy_norms
from adlib.training.network import image_features


def space_around(values: dict[str, float]):
    """A space whose scans lie about given values."""
    mean = np.array(list(values.values()))
    spread = np.maximum(0.05 * np.abs(mean), 0.05)
    return fit_distribution(mean + spread * np.random.default_rng(0).normal(size=(60, len(mean))), tuple(values))


@pytest.fixture(scope="module")
def with_reference(classifier, prediction):
    """The classifier with a cohort reference around one head."""
    values = describe(prediction.prepared.features | prediction.prepared.qc)
    values[IMAGE] = pd.Series(image_features(classifier.network, prediction.seen).mean(0)).to_dict()
    spaces = {name: space_around(values[name]) for name in (IMAGE, VOLUMES, QUALITY)}
    spaces[IMAGE] = replace(spaces[IMAGE], names=())
    gate = {"centre": dict.fromkeys(spaces, 0.0), "spread": dict.fromkeys(spaces, 0.2), "threshold": 3.0}
    reference = {
        "gate": gate, "sets": {"0.9": 0.0, "0.95": 0.0}, "norms": healthy_norms(*norms_table(400, 12)),
        "names": {name: list(space.names) for name, space in spaces.items()},
    }  # fmt: skip
    return replace(classifier, card=replace(classifier.card, reference=reference), distributions=spaces)


def test_distances_unchecked_without_reference(prediction):
    assert [check.status for check in prediction.checks].count(UNCHECKED) == 3
    assert prediction.predicted and not prediction.refusals
    assert "stores no bounds" in prediction.statement and "stores no volumes" in prediction.percentiles_note


def test_similar_scan_has_set_and_percentiles(with_reference, scan):
    result = predict_image(scan, "made", with_reference, person={"age": 70.0, "sex": 1.0})
    assert result.predicted, result.refusals
    assert result.statement.startswith("Undecided: at 90 % no class is excluded. Most probable: ")
    assert 0 <= result.percentiles["hippocampus_ml"] <= 100
    assert "200 simulated CN" in result.percentiles_note
    record = json.loads(json.dumps(as_record(result), allow_nan=False))
    assert record["set"] == list(result.card.classes) and len(record["checks"]) == 7
    assert record["agreement"].startswith(("1", "2", "3"))


def test_set_excludes_classes_below_the_bound(prediction):
    p = {"CN": 0.5, "MCI": 0.3, "LMCI": 0.15, "AD": 0.05}
    card = replace(prediction.card, reference={"sets": {"0.9": 0.2, "0.95": 0.1, "0.85": 0.4}})
    result = replace(prediction, predicted="CN", probabilities=p, card=card)
    assert result.statement.endswith("At 90 %: CN or MCI; LMCI and AD excluded")
    assert replace(result, coverage=0.93).possible == ("CN", "MCI", "LMCI")
    assert replace(result, coverage=0.99).possible == ()


@pytest.mark.parametrize("kind", ["inverted", "noisy", "half brain"])
def test_refused_scan_has_reason_and_advice_but_no_class(with_reference, kind):
    image, rng = head(2.5), np.random.default_rng(0)
    data = add_noise(image.dataobj, 0.5, rng) if kind == "noisy" else spoil(image.dataobj, image.affine, kind, 1.0, rng)
    try:
        result = predict_image(type(image)(data, image.affine), kind, with_reference)
    except StudyError as error:
        assert "expected" in str(error)
        return
    assert result.predicted is None and result.probabilities == {} and not len(result.slices)
    failed = next(check for check in result.checks if check.status == FAILED)
    assert result.statement == f"Not classified: {failed.problem}" and result.possible == () and result.agreement == ""
    record = as_record(result)
    assert record["refused"] and record["probabilities"] == {} and record["slice_probabilities"] == []
    assert all(any(advice in reason for advice in ("Use", "use", "Check")) for reason in record["refused"])
    assert result.advice == failed.advice and result.statement[:20] in plot_prediction(result).subfigs[0].get_suptitle()


@pytest.mark.parametrize("name", [IMAGE, VOLUMES, QUALITY])
def test_each_distance_refuses_by_itself(with_reference, prediction, name):
    features = image_features(with_reference.network, prediction.seen).mean(0)
    space = with_reference.distributions[name]
    away = replace(space, mean=space.mean + 40 * space.sd)
    other = replace(with_reference, distributions=with_reference.distributions | {name: away})
    (failed,) = [check for check in check_input(prediction.prepared, features, other) if check.status == FAILED]
    assert "relative to held-out scans (limit 3.00)" in failed.message
    assert name == IMAGE or "(training" in failed.message


def test_reference_is_saved_and_older_files_load(with_reference, classifier, tmp_path):
    model_file.save(with_reference, tmp_path / "m.safetensors")
    loaded = model_file.load(tmp_path / "m.safetensors")
    assert loaded.card == with_reference.card and loaded.distributions.keys() == with_reference.distributions.keys()
    for name, space in with_reference.distributions.items():
        assert loaded.distributions[name].names == space.names
        assert np.array_equal(loaded.distributions[name].axes, space.axes)
    old = json.loads(classifier.card.to_json())
    del old["reference"]
    assert model_file.ModelCard.from_json(json.dumps(old)) == classifier.card


@pytest.mark.parametrize(("age", "status"), [(59.0, FAILED), (60.0, "passed"), (None, UNCHECKED)])
def test_people_younger_than_the_cohort_get_no_class(classifier, scan, age, status):
    old = replace(classifier, card=replace(classifier.card, cohort=classifier.card.cohort | {"min_age": 60.0}))
    result = predict_image(scan, "made", old, person={} if age is None else {"age": age})
    (check,) = [check for check in result.checks if check.title.startswith("Age")]
    assert check.status == status and "60 or more" in check.message
    assert (result.predicted is None) == (status == FAILED)
    assert len(result.refusals) == (status == FAILED)
