import pandas as pd
import pytest

from adlib.params import SplitParams
from adlib.records import StudyError
from adlib.splits import check_disjoint, make_splits


def cohort(per_class=20, sessions=3):
    return pd.DataFrame(
        [
            {"participant_id": f"sub-{label}{k}", "session_id": f"ses-{s}", "diagnosis": label}
            for label in ("CN", "AD")
            for k in range(per_class)
            for s in range(1 + k % sessions)
        ]
    )


@pytest.mark.parametrize("protocol", ["holdout", "kfold"])
def test_no_participant_is_in_two_parts_and_everyone_is_placed(protocol):
    splits = make_splits(cohort(), SplitParams(protocol=protocol), seed=1)
    assert (splits.groupby(["fold", "participant_id"])["split"].nunique() == 1).all()
    assert (splits.groupby("fold")["participant_id"].nunique() == 40).all()
    for _, part in splits.groupby(["fold", "split"]):
        assert part["diagnosis"].nunique() == 2


def test_kfold_tests_everyone_exactly_once():
    splits = make_splits(cohort(), SplitParams(protocol="kfold", folds=5), seed=1)
    tested = splits[splits["split"] == "test"]["participant_id"]
    assert sorted(tested) == sorted(cohort()["participant_id"].unique())


def test_splits_repeat_for_a_seed_and_change_with_it():
    first, again, other = (make_splits(cohort(), SplitParams(), seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first["split"].equals(other["split"])


def test_a_leaking_table_is_refused():
    splits = make_splits(cohort(), SplitParams(), seed=1)
    leak = pd.concat([splits, splits.iloc[:1].assign(split="other")])
    with pytest.raises(StudyError, match="leakage: sub-"):
        check_disjoint(leak)


def test_too_small_a_class_is_refused_by_name():
    with pytest.raises(StudyError, match="participants, kfold needs 5 in each"):
        make_splits(cohort(per_class=3), SplitParams(protocol="kfold"), seed=1)


def test_too_few_participants_for_validation_are_refused():
    with pytest.raises(StudyError, match="leave 1 for validation, which needs one for each of 2"):
        make_splits(cohort(per_class=7), SplitParams(validation_fraction=0.05), seed=1)


def test_the_smallest_cohorts_that_are_accepted_are_split():
    for per_class in range(5, 30):
        try:
            splits = make_splits(cohort(per_class), SplitParams(protocol="kfold"), seed=1)
        except StudyError:
            continue
        assert (splits.groupby(["fold", "split"])["diagnosis"].nunique() == 2).all()


def test_twelve_participants_of_four_classes_are_enough():
    four = pd.concat(
        [
            cohort(12)
            .assign(diagnosis=lambda t, k=k: t["diagnosis"] + k)
            .assign(participant_id=lambda t, k=k: t["participant_id"] + k)
            for k in "ab"
        ]
    )
    splits = make_splits(four, SplitParams(), seed=20)
    assert (splits.groupby("split")["diagnosis"].nunique() == 4).all()
