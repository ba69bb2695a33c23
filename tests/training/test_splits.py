import pandas as pd
import pytest

from adlib.study.params import SplitParams
from adlib.study.records import StudyError
from adlib.training.splits import check_disjoint, make_splits


def cohort(per_class=20, sessions=3, classes=("CN", "AD")):
    return pd.DataFrame(
        [
            {"participant_id": f"sub-{label}{k}", "session_id": f"ses-{s}", "diagnosis": label}
            for label in classes
            for k in range(per_class)
            for s in range(1 + k % sessions)
        ]
    )


@pytest.mark.parametrize("protocol", ["holdout", "kfold"])
def test_every_participant_is_in_one_part(protocol):
    splits = make_splits(cohort(), SplitParams(protocol=protocol), seed=1)
    assert (splits.groupby(["fold", "participant_id"])["split"].nunique() == 1).all()
    assert (splits.groupby("fold")["participant_id"].nunique() == 40).all()
    for _, part in splits.groupby(["fold", "split"]):
        assert part["diagnosis"].nunique() == 2


def test_splits_depend_on_the_seed():
    first, again, other = (make_splits(cohort(), SplitParams(), seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first["split"].equals(other["split"])


def test_a_leaking_table_is_refused():
    splits = make_splits(cohort(), SplitParams(), seed=1)
    leak = pd.concat([splits, splits.iloc[:1].assign(split="other")])
    with pytest.raises(StudyError, match="leakage: sub-"):
        check_disjoint(leak)


def test_smallest_accepted_cohorts_are_split():
    twelve = make_splits(cohort(12, classes=("CN", "MCI", "LMCI", "AD")), SplitParams(), seed=20)
    assert (twelve.groupby("split")["diagnosis"].nunique() == 4).all()
    for per_class in range(5, 30):
        try:
            splits = make_splits(cohort(per_class), SplitParams(protocol="kfold"), seed=1)
        except StudyError:
            continue
        assert (splits.groupby(["fold", "split"])["diagnosis"].nunique() == 2).all()


def multicentre(sites=4, per_site=15):
    """Participants of two classes at sites that differ in their share of AD; a follow-up at another site."""
    rows = []
    for k in range(sites * per_site):
        site = k // per_site
        label = "AD" if (k % per_site) < (3 + 3 * site) else "CN"
        rows.append({"participant_id": f"sub-{k:03d}", "session_id": "ses-1", "diagnosis": label, "site": f"s{site}"})
        rows.append(rows[-1] | {"session_id": "ses-2", "site": "elsewhere"})
    return pd.DataFrame(rows)


def test_each_site_is_tested_once_by_the_others():
    splits = make_splits(multicentre(), SplitParams(protocol="leave_out"), seed=1)
    home = multicentre().drop_duplicates("participant_id").set_index("participant_id")["site"]
    for number, fold in splits.groupby("fold"):
        by_site = fold["participant_id"].map(home).groupby(fold["split"]).unique()
        assert by_site["test"].tolist() == [f"s{number}"]
        assert f"s{number}" not in {*by_site["train"], *by_site["validation"]}
    assert splits["fold"].nunique() == 4


def test_any_column_can_be_left_out():
    table = cohort(18).assign(phase=lambda t: t["participant_id"].str.extract(r"(\d+)$")[0].astype(int) % 3 + 1.5)
    splits = make_splits(table, SplitParams(protocol="leave_out", leave_out="phase"), seed=1)
    home = table.drop_duplicates("participant_id").set_index("participant_id")["phase"]
    tested = splits[splits["split"] == "test"]
    assert tested.groupby("fold")["participant_id"].agg(lambda ids: set(home[ids])).tolist() == [{1.5}, {2.5}, {3.5}]
    with pytest.raises(StudyError, match="the cohort of sub-AD0 is missing"):
        make_splits(table, SplitParams(protocol="leave_out", leave_out="cohort"), seed=1)


@pytest.mark.parametrize("protocol", ["holdout", "kfold", "leave_out"])
def test_linked_people_stay_on_one_side(protocol):
    number = cohort(30)["participant_id"].str.extract(r"(\d+)$")[0].astype(int)
    family = (number // 3).where(number < 9)  # CN and AD of one family, three of each
    table = cohort(30).assign(family=family, same_person=None, site=[f"s{k % 3}" for k in number])
    for name in ("sub-CN0", "sub-CN29"):  # links the first family with a single person
        table.loc[table["participant_id"] == name, "same_person"] = "sub-CN0"
    splits = make_splits(table, SplitParams(protocol=protocol, groups=("family", "same_person")), seed=3)
    assert (splits.groupby("fold")["participant_id"].nunique() == 60).all()
    people = table.drop_duplicates("participant_id")
    families = [set(rows) for _, rows in people.groupby("family")["participant_id"]]
    families[0] |= {"sub-CN29"}
    for _, fold in splits.groupby("fold"):
        part = fold.set_index("participant_id")["split"]
        assert all(part[sorted(linked)].nunique() == 1 for linked in families)
    alone = make_splits(table.drop(columns=["family", "same_person"]), SplitParams(protocol=protocol), seed=3)
    parts = alone.set_index(["fold", "participant_id"])["split"].unstack("participant_id")
    assert any((parts[sorted(linked)].nunique(axis=1) > 1).any() for linked in families)


def test_an_unknown_column_of_groups_is_refused():
    with pytest.raises(StudyError, match=r"splits\.groups names \['family'\], which the manifest lacks"):
        make_splits(cohort(), SplitParams(groups=("family",)), seed=1)


def test_balanced_sites_have_equal_test_shares():
    table = multicentre(sites=4, per_site=20)
    home = table.drop_duplicates("participant_id").set_index("participant_id")
    for seed in range(5):
        params = SplitParams(test_fraction=0.5, balance_sites=True)
        splits = make_splits(table, params, seed)
        tested = splits.loc[splits["split"] == "test", "participant_id"]
        counts = home.loc[tested].groupby("diagnosis")["site"].value_counts()
        whole = home.groupby("diagnosis")["site"].value_counts()
        assert (abs(counts.reindex(whole.index, fill_value=0) - whole / 2) <= 1).all()


def test_repeats_are_different_splits():
    once = make_splits(cohort(), SplitParams(protocol="kfold"), seed=1)
    thrice = make_splits(cohort(), SplitParams(protocol="kfold", repeats=3), seed=1)
    pd.testing.assert_frame_equal(thrice[thrice["fold"] < 5], once)
    tested = thrice[thrice["split"] == "test"]
    assert (tested["participant_id"].value_counts() == 3).all()
    sets = [frozenset(part["participant_id"]) for _, part in tested.groupby("fold")]
    assert len(set(sets)) == 15


@pytest.mark.parametrize(
    ("table", "params", "words"),
    [
        (cohort(3), SplitParams(protocol="kfold"), "participants, kfold needs 5 in each"),
        (cohort(7), SplitParams(validation_fraction=0.05), "leave 1 for validation, which needs one for each of 2"),
        (multicentre(), SplitParams(protocol="external"), "external tests .. of site ..s0'.*expected some, not all"),
        (multicentre(), SplitParams(protocol="external", test_sites=("s9",)), "external tests ..s9.. of"),
        (multicentre(2), SplitParams(protocol="external", test_sites=("s0", "s1")), "expected some, not all"),
        (cohort(), SplitParams(protocol="leave_out"), "the site of sub-AD0 is missing"),
        (cohort(), SplitParams(balance_sites=True), "the site of sub-AD0 is missing"),
        (cohort().assign(site="one"), SplitParams(protocol="leave_out"), "leave_out tests ..one.. of site ..one"),
        (
            cohort().assign(site=lambda t: t["diagnosis"].map({"CN": "a", "AD": "b"})),
            SplitParams(protocol="leave_out"),
            "without site 'a' 0 participants of class CN are left",
        ),
    ],
)
def test_cohorts_that_cannot_be_split_are_refused(table, params, words):
    with pytest.raises(StudyError, match=words):
        make_splits(table, params, seed=1)


def test_small_sites_are_stratified_together():
    table = cohort(30).assign(site=lambda t: t["participant_id"].str.extract(r"(\d+)$")[0])
    splits = make_splits(table, SplitParams(protocol="kfold", balance_sites=True), seed=1)
    assert (splits.groupby(["fold", "split"])["diagnosis"].nunique() == 2).all()


def test_the_named_sites_are_tested_by_all_others():
    splits = make_splits(multicentre(), SplitParams(protocol="external", test_sites=("s1", "s3")), seed=1)
    home = multicentre().drop_duplicates("participant_id").set_index("participant_id")["site"]
    sites = splits["participant_id"].map(home).groupby(splits["split"]).unique()
    assert set(sites["test"]) == {"s1", "s3"}
    assert set(sites["train"]) == {"s0", "s2"}
