"""Groups of participants: who is in them, and what is said of them."""

import numpy as np
import pandas as pd
import pytest

from adlib.evaluation.evaluate import _score_subgroups, participant_groups, subgroups
from adlib.study.metrics import metrics_table, subgroup_table
from adlib.study.params import load_params
from adlib.study.records import MANIFEST, StudyError, check_table

CLASSES = ("CN", "MCI", "LMCI", "AD")
PARAMS = load_params("params/phantom.yaml", ("evaluate.bootstrap=200", "evaluate.subgroup_minimum=12"))


def people(**columns):
    count = len(next(iter(columns.values())))
    names = [f"sub-{k:03d}" for k in range(count)]
    table = {"participant_id": names, "session_id": "ses-1", "scan_id": names, "path": "p", "sha256": "s"}
    return check_table(pd.DataFrame({**table, "diagnosis": "CN", **columns}), MANIFEST, "made")


def test_groups_are_those_of_the_first_session_and_unknown_facts_are_in_none():
    manifest = people(
        age=[64.9, 65.0, 90.0, None],
        sex=["female", "M", None, "f"],
        site=["a", "a", "b", "b"],
        manufacturer="one",
        field_strength_T=[1.5, 3.0, 3.0, None],
    )
    later = manifest.head(1).assign(session_id="ses-2", scan_id="later", age=66.9, site="b")
    groups = participant_groups(pd.concat([later, manifest]), (65.0, 75.0))
    assert list(groups) == ["sex", "age", "site", "field strength"]  # one manufacturer divides nobody
    expected = ["F", "under 65", "a", "1.5 T"], ["M", "65 to under 75", "a", "3 T"]
    assert [groups.loc[name].tolist() for name in ("sub-000", "sub-001")] == list(expected)
    pooled = manifest[["participant_id"]].assign(fold=0)
    last = pooled["participant_id"].str[-1]
    found = {name: last[inside].tolist() for name, inside, _ in subgroups(pooled, groups)}
    assert found == {
        "sex F": ["0", "3"], "sex M": ["1"],
        "age under 65": ["0"], "age 65 to under 75": ["1"], "age 75 and over": ["2"],
        "site a": ["0", "1"], "site b": ["2", "3"],
        "field strength 1.5 T": ["0"], "field strength 3 T": ["1", "2"],
    }  # fmt: skip


def test_a_study_that_knows_nothing_of_its_people_has_no_groups():
    assert list(participant_groups(people(age=[None, None]), (65.0,))) == []


@pytest.fixture(scope="module")
def made():
    """Two hundred people; the network reads site good and guesses at site bad; eleven are of site small."""
    rng = np.random.default_rng(0)
    y, site = np.arange(200) % 4, np.repeat(["good", "bad", "small"], [100, 89, 11])
    p = rng.dirichlet(np.ones(4), 200)
    p[:100] = 0.7 * p[:100] + 0.3 * np.eye(4)[y[:100]]
    ages = np.where(y == 3, 80.0, np.where(np.arange(200) % 2, 70.0, 80.0))
    manifest = people(site=site, age=ages, diagnosis=np.array(CLASSES)[y])
    tested = manifest[["participant_id", "session_id", "scan_id"]].assign(fold=0, truth=manifest["diagnosis"])
    tested[[f"p_{name}" for name in CLASSES]] = p
    sets = np.random.default_rng(1).random((200, 4)) < 0.9
    sets[100:, :] = True
    return ages, *_score_subgroups(tested, sets, manifest, PARAMS)


def test_groups_differ_and_small_ones_are_left_out(made):
    entries, small = made[1:]
    assert small == ["site small"]
    found = {(entry["group"], entry["metric"]): entry["ci95"] for entry in entries}
    assert not any(group == "site small" for group, _ in found)
    (low, high), good = (found[f"site {name}", "balanced_accuracy"] for name in ("bad", "good"))
    assert good[0] > high
    assert low < 0.25 < high


def test_a_group_without_one_of_the_classes_has_no_balanced_accuracy(made):
    ages, entries, _ = made
    assert (ages == 70).sum() > 12
    lacking = {e["metric"]: e for e in entries if e["group"] == "age 65 to under 75"}
    assert lacking["balanced_accuracy"]["point"] is None and lacking["balanced_accuracy"]["ci95"] is None
    assert lacking["roc_auc_binary"]["point"] is None
    table = subgroup_table(metrics_table({"entries": [], "subgroups": entries}))
    assert table.loc["age 65 to under 75"].tolist()[1:3] == ["undefined"] * 2


def test_gaps_are_to_all_others_and_have_intervals(made):
    found = {(e["group"], e["metric"]): e for e in made[1]}
    gaps = [found[f"site {name}", "balanced_accuracy_gap"] for name in ("good", "bad")]
    assert gaps[0]["ci95"][0] > 0 and gaps[1]["ci95"][1] < 0
    assert (gaps[0]["n"], gaps[1]["n"]) == (100, 89)


def test_sets_that_always_hold_the_truth_have_no_interval(made):
    found = {e["group"]: e for e in made[1] if e["metric"] == "coverage"}
    assert found["site good"]["point"] < 1 and found["site good"]["ci95"][0] < found["site good"]["point"]
    assert (found["site bad"]["point"], found["site bad"]["ci95"]) == (1.0, None)


@pytest.mark.parametrize(("single", "scored"), [(5, False), (6, True)])
def test_a_group_with_few_of_one_class_has_no_score(single, scored):
    y = np.concatenate([np.repeat(np.arange(3), 12), np.full(single, 3), np.arange(40) % 4])
    manifest = people(site=np.repeat(["one", "two"], [36 + single, 40]), diagnosis=np.array(CLASSES)[y])
    tested = manifest[["participant_id"]].assign(fold=0, truth=manifest["diagnosis"])
    tested[[f"p_{name}" for name in CLASSES]] = np.random.default_rng(2).dirichlet(np.ones(4), len(y))
    entries, _ = _score_subgroups(tested, np.ones((len(y), 4), bool), manifest, PARAMS)
    points = {e["metric"]: e["point"] for e in entries if e["group"] == "site one"}
    assert [points[name] is not None for name in ("balanced_accuracy", "roc_auc_binary")] == [scored, scored]


def test_age_bands_must_rise():
    with pytest.raises(StudyError, match="age_bands must rise"):
        load_params("params/phantom.yaml", ("evaluate.age_bands=[75.0, 65.0]",))
