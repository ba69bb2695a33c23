"""Splits that pass between studies: by names, by hashes; tables that do not fit are refused with names and lines."""

import math
import statistics

import numpy as np
import pandas as pd
import pytest
from test_splits import cohort

from adlib.audit.run import run_audit
from adlib.sources.reading import list_source
from adlib.study.exec_params import HERE
from adlib.study.params import AuditParams, SplitParams
from adlib.study.records import SPLITS, StudyError, read_table
from adlib.study.source_params import OasisSlicesSource
from adlib.training.split_balance import BALANCE, balance_table
from adlib.training.split_table import HASH, write_splits
from adlib.training.splits import make_splits


@pytest.fixture
def salt(tmp_path):
    path = tmp_path / "salt.txt"
    path.write_text("a secret of two studies\n")
    return path


def given(tmp_path, text, **settings):
    path = tmp_path / "given.csv"
    path.write_text(text)
    return SplitParams(protocol="given", table=path, **settings)


def rows(table, split=lambda k: ("train", "train", "validation", "test")[k % 4]):
    return [f"{name},{split(k)}" for k, name in enumerate(table["participant_id"].unique())]


def text_of(lines):
    return "\n".join(["participant_id,split", *lines])


def test_the_table_of_another_study_gives_its_folds(tmp_path):
    drawn = make_splits(cohort(), SplitParams(protocol="kfold", repeats=2), seed=1)
    written = write_splits(drawn, None, tmp_path)
    assert not (tmp_path / "splits_hashed.tsv").exists()
    taken = make_splits(cohort(), SplitParams(protocol="given", table=tmp_path / "splits.tsv"), seed=9)
    pd.testing.assert_frame_equal(taken, written)
    pd.testing.assert_frame_equal(read_table(tmp_path / "splits.tsv", SPLITS), drawn)


def test_hashes_of_names_written_otherwise_give_the_same_folds(tmp_path, salt):
    drawn = make_splits(cohort(), SplitParams(protocol="kfold"), seed=1)
    write_splits(drawn, salt, tmp_path)
    hashed = pd.read_csv(tmp_path / "splits_hashed.tsv", sep="\t")
    assert list(hashed) == [HASH, "fold", "split"] and "sub-" not in (tmp_path / "splits_hashed.tsv").read_text()
    assert hashed.groupby("fold")[HASH].apply(lambda names: names.is_monotonic_increasing).all()
    other = cohort()
    other["participant_id"] = other["participant_id"].str.replace(r"sub-(..)(\d+)", r"\1_00\2", regex=True).str.lower()
    params = SplitParams(protocol="given", table=tmp_path / "splits_hashed.tsv", salt=salt)
    taken = make_splits(other, params, seed=9)
    back = taken["participant_id"].str.replace("_00", "").str.upper()
    parts = taken.assign(participant_id="sub-" + back).set_index(["fold", "participant_id"])["split"]
    pd.testing.assert_series_equal(
        parts.sort_index(), drawn.set_index(["fold", "participant_id"])["split"].sort_index()
    )


@pytest.mark.realdata
def test_real_people_are_split_by_a_table_and_by_its_hashes(realdata, tmp_path, salt):
    source = OasisSlicesSource(kind="oasis_slices", root=realdata / "oasis2_mid_slices")
    listed = list_source(source, tmp_path, pool=HERE)
    manifest = run_audit(listed, ("CN", "MCI", "AD"), AuditParams(), 1).manifest
    names = sorted(manifest["participant_id"].unique())
    assert len(names) == 83
    lines = [f"OAS2_{name[-4:]},{('train', 'train', 'validation', 'test')[k % 4]}" for k, name in enumerate(names)]
    by_name = make_splits(manifest, given(tmp_path, text_of(lines)), seed=1)
    assert by_name.set_index("participant_id")["split"].tolist() == [line.split(",")[1] for line in lines]
    write_splits(by_name, salt, tmp_path)
    params = SplitParams(protocol="given", table=tmp_path / "splits_hashed.tsv", salt=salt)
    pd.testing.assert_frame_equal(make_splits(manifest, params, seed=2), by_name)
    with pytest.raises(StudyError, match=rf"two sides: line 2: OAS2_{names[0][-4:]} .train., line 85: {names[0]} "):
        make_splits(manifest, given(tmp_path, text_of([*lines, f"{names[0]},test"])), seed=1)


def test_another_salt_matches_nobody(tmp_path, salt):
    write_splits(make_splits(cohort(), SplitParams(), seed=1), salt, tmp_path)
    salt.write_text("a secret of other studies")
    params = SplitParams(protocol="given", table=tmp_path / "splits_hashed.tsv", salt=salt)
    with pytest.raises(StudyError, match=r"not of this study.*: line 2: \w{64} \("):
        make_splits(cohort(), params, seed=1)
    with pytest.raises(StudyError, match="name the file of their secret in"):
        make_splits(cohort(), params.model_copy(update={"salt": None}), seed=1)


@pytest.mark.parametrize("content", [None, "short"])
def test_a_weak_salt_is_refused(tmp_path, salt, content):
    salt.unlink() if content is None else salt.write_text(content)
    with pytest.raises(StudyError, match="at least 16 are needed"):
        write_splits(make_splits(cohort(), SplitParams(), seed=1), salt, tmp_path)


def test_validation_is_drawn_where_the_table_has_none(tmp_path):
    lines = rows(cohort(), lambda k: "test" if k % 4 == 0 else "train")
    splits = make_splits(cohort(), given(tmp_path, text_of(lines)), seed=1)
    counts = splits.groupby("split")["participant_id"].nunique()
    assert counts.to_dict() == {"test": 10, "train": 26, "validation": 4}
    assert set(splits.loc[splits["split"] == "test", "participant_id"]) == {x.split(",")[0] for x in lines[::4]}


def test_rows_by_scan_and_people_without_a_usable_scan_are_taken(tmp_path):
    lines = [*rows(cohort()), *rows(cohort()), "sub-left,train"]
    manifest = cohort().assign(scan_id=lambda t: t["participant_id"] + t["session_id"])
    left = manifest.iloc[:1].assign(participant_id="sub-left", scan_id="left")
    params = given(tmp_path, text_of(lines))
    splits = make_splits(pd.concat([manifest, left]), params, seed=1, usable=manifest["scan_id"])
    assert splits["participant_id"].nunique() == 40 and "sub-left" not in set(splits["participant_id"])


def test_the_parts_of_the_source_are_taken_without_a_table():
    parts = {name: ("train", "train", "test")[k % 3] for k, name in enumerate(cohort()["participant_id"].unique())}
    table = cohort().assign(given_split=lambda t: t["participant_id"].map(parts))
    splits = make_splits(table, SplitParams(protocol="given"), seed=1).set_index("participant_id")["split"]
    assert splits.replace("validation", "train").to_dict() == parts
    table.loc[1, "given_split"] = "test"
    with pytest.raises(
        StudyError,
        match=r"^manifest.tsv, as splits.table is empty: .*: line 3: sub-CN1 \(test\), line 4",
    ):
        make_splits(table, SplitParams(protocol="given"), seed=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda x: [*x, "CN_00,test", "sub-CN1,train"],
            r"two sides: line 2: sub-CN0 \(train\), line 42: CN_00 \(test\)$",
        ),
        (
            lambda x: [*x, "sub-X1,test", "X2,train"],
            r"not of this study.*: line 42: sub-X1 \(test\), line 43: X2 \(train\)$",
        ),
        (lambda x: ["sub-CN0,held out", *x[1:]], r"none of train, validation, test: line 2: sub-CN0 \(held out\)$"),
        (lambda x: x[2:], "no part in some fold for sub-CN0, sub-CN1; add or"),
        (lambda x: [line.replace("test", "train") for line in x], "nobody in test of fold 0"),
        (lambda x: [",test", *x[1:]], r"not of this study.*line 2: None \(test\)$"),
        (lambda x: [line.replace("train", "test") for line in x[:20]] + x[20:], "0 participants of class CN are left"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, change, words):
    with pytest.raises(StudyError, match=words):
        make_splits(cohort(), given(tmp_path, text_of(change(rows(cohort())))), seed=1)


def test_linked_people_on_two_sides_are_refused(tmp_path):
    table = cohort().assign(family=lambda t: t["participant_id"].map({"sub-CN0": "a", "sub-AD3": "a"}))
    params = given(tmp_path, text_of(rows(table)), groups=("family",))
    with pytest.raises(StudyError, match=r"two sides: line 2: sub-CN0 \(train\), line 25: sub-AD3 \(test\)$"):
        make_splits(table, params, seed=1)


def test_people_whose_names_differ_in_zeros_only_are_refused(tmp_path):
    table = pd.concat([cohort(), cohort().query("participant_id == 'sub-CN1'").assign(participant_id="sub-CN01")])
    with pytest.raises(StudyError, match="sub-CN1 and sub-CN01 differ only in zeros"):
        make_splits(table, given(tmp_path, text_of(rows(cohort()))), seed=1)


def test_balance_finds_the_part_of_old_women():
    table = cohort(30).drop_duplicates("participant_id").assign(site="one")
    splits = make_splits(table, SplitParams(), seed=1)
    tested = table["participant_id"].isin(splits.loc[splits["split"] == "test", "participant_id"])
    number = table["participant_id"].str.extract(r"(\d+)$")[0].astype(int)
    even = balance_table(splits, table.assign(age=60.0 + number, sex=["F", "M"] * 30))
    odd = balance_table(
        splits, table.assign(age=60.0 + number + 40 * tested, sex=tested.map({True: "f", False: "Male"}))
    )
    assert list(odd["fact"]) == ["age", "sex", "sex"] and set(odd) == set(BALANCE.columns)
    assert (even["p"] > 0.05).all() and (odd["p"] < 1e-6).all()
    ages, part = 60.0 + number, splits.set_index("participant_id")["split"].loc[table["participant_id"]].to_numpy()
    kinds = {name: ages[part == name] for name in ("train", "test")}
    mean, variance = ({name: f(x) for name, x in kinds.items()} for f in (statistics.mean, statistics.variance))
    expected = (mean["test"] - mean["train"]) / math.sqrt((variance["train"] + variance["test"]) / 2)
    assert even["smd_test"].iloc[0] == pytest.approx(expected)
    share = {name: np.mean(np.array(["F", "M"] * 30)[part == name] == "F") for name in ("train", "test")}
    spread = math.sqrt(sum(p * (1 - p) for p in share.values()) / 2)
    assert even.query("value == 'F'")["smd_test"].item() == pytest.approx((share["test"] - share["train"]) / spread)
    women = odd.query("value == 'F'").iloc[0]
    assert women["test"] == f"{tested.sum()} (100 %)" and women["train"] == "0 (0 %)"
    assert women["least_expected"] == pytest.approx(tested.sum() * (splits["split"] == "validation").sum() / 60)
