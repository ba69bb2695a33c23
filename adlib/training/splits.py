"""Splits of participants into training, validation and test, drawn within diagnoses, by a column, or given."""

from collections.abc import Collection
from math import ceil

import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit

from adlib.study.linked import first_of_linked
from adlib.study.params import SplitParams
from adlib.study.records import SAME_PERSON, SPLITS, StudyError, check_table, some
from adlib.training.split_table import PARTS, read_given


def make_splits(
    manifest: pd.DataFrame,
    params: SplitParams,
    seed: int,
    usable: Collection[str] | None = None,
    members: int = 1,
) -> pd.DataFrame:
    """Assign every participant to train, validation or test, once per fold.

    Participants are stratified by the diagnosis of their first session. All scans and slices of a participant follow
    the participant, so that nothing of a tested person was trained on (Wen et al. 2020,
    doi:10.1016/j.media.2020.101694). Linked participants count as one, with the diagnosis and site of the first.

    Parameters
    ----------
    manifest : DataFrame
        Columns participant_id, session_id and diagnosis and, where the params ask for them, site or that of
        ``leave_out``, and those of ``groups``, whose equal values link participants. A participant seen at several
        sites belongs to that of the first session.
    params : SplitParams
    seed : int
    usable : collection of str, optional
        The scans to be used, by scan_id; all by default. A given table may name participants without any.
    members : int
        Networks of an ensemble. Where there are several and no table names validation participants, each member leaves
        another part of the training participants out of its training, so that every one of them is predicted by a
        network that never saw them (cross-fitting).

    Returns
    -------
    DataFrame
        Columns participant_id, fold, split, diagnosis and member, the member that leaves the participant out, empty
        where `members` is 1; one row per participant and fold.

    Raises
    ------
    StudyError
        If a class has too few participants for the protocol, a column is needed and missing, or a given table does not
        fit the participants.
    """
    linked = _linked(manifest, params.groups)
    scans = manifest if usable is None else manifest[manifest["scan_id"].isin(usable)]
    people = scans.sort_values("session_id").drop_duplicates("participant_id").sort_values("participant_id")
    people = people.assign(unit=people["participant_id"].map(lambda name: linked.get(name, name)))
    units = people.drop_duplicates("unit").reset_index(drop=True)
    if params.protocol == "given":
        parts = _given(units, read_given(params, manifest, linked), params)
    else:
        tested = _tested(units, params, seed)
        parts = [pd.Series("train", units.index).mask(units.index.isin(rows), "test") for rows in tested]
    folds = []
    for fold, split in enumerate(parts):
        member = pd.Series(None, units.index, dtype=object)
        if "validation" not in set(split) and members == 1:
            split[_drawn(units.loc[split == "train", "diagnosis"], params, seed + fold)] = "validation"
        elif "validation" not in set(split):
            member = _dealt(units.loc[split == "train", "diagnosis"], members, seed + fold).reindex(units.index)
        by_unit = pd.DataFrame({"split": split, "member": member}).set_index(units["unit"]).loc[people["unit"]]
        by_unit.index = people.index
        folds.append(people[["participant_id", "diagnosis"]].assign(fold=fold).join(by_unit))
    table = check_table(pd.concat(folds, ignore_index=True), SPLITS, "splits")
    check_disjoint(table)
    return table


def _linked(manifest: pd.DataFrame, columns: tuple[str, ...]) -> dict[str, str]:
    """The first of the participants that each linked one is linked to."""
    present = [name for name in columns if name in manifest]
    if missing := set(columns) - {*present, SAME_PERSON}:
        raise StudyError(f"splits.groups names {sorted(missing)}, which the manifest lacks; see source.columns")
    return first_of_linked(ids.unique() for name in present for _, ids in manifest.groupby(name)["participant_id"])


def _given(units: pd.DataFrame, table: pd.DataFrame, params: SplitParams) -> list[pd.Series]:
    """Parts of each fold of a given table."""
    table = table.reindex(units["unit"]).set_axis(units.index)
    if (lacking := table.isna().any(axis=1)).any():
        names = some(units.loc[lacking, "participant_id"].tolist())
        raise StudyError(f"splits.table has no part in some fold for {names}; add or exclude them")
    for fold, split in table.items():
        if "test" not in set(split):
            raise StudyError(f"splits.table has nobody in test of fold {fold}; add participants")
        needed = 1 if "validation" in set(split) else 2
        _check_rest(units, units.index[split != "train"], f"those held out in fold {fold} of splits.table", needed)
    return [split for _, split in table.items()]


def _drawn(diagnosis: pd.Series, params: SplitParams, seed: int) -> pd.Index:
    """Rows of the validation participants among those that are not tested."""
    held_out, classes = ceil(params.validation_fraction * len(diagnosis)), diagnosis.nunique()
    if held_out < classes:
        raise StudyError(
            f"{len(diagnosis)} participants leave {held_out} for validation, which needs one for each of {classes} "
            "classes: add participants or raise splits.validation_fraction"
        )
    chooser = StratifiedShuffleSplit(1, test_size=params.validation_fraction, random_state=seed)
    _, positions = next(chooser.split(diagnosis, diagnosis))
    return diagnosis.index[positions]


def _dealt(diagnosis: pd.Series, members: int, seed: int) -> pd.Series:
    """The member that leaves out each of the participants that are not tested."""
    if diagnosis.value_counts().min() < members:
        raise StudyError(
            f"train.members is {members}, and class {diagnosis.value_counts().idxmin()} has only "
            f"{diagnosis.value_counts().min()} participants outside the test part: take fewer members"
        )
    cutter = StratifiedKFold(members, shuffle=True, random_state=seed)
    dealt = pd.Series("", diagnosis.index)
    for member, (_, left_out) in enumerate(cutter.split(diagnosis, diagnosis), 1):
        dealt.iloc[left_out] = str(member)
    return dealt


def member_parts(splits: pd.DataFrame, fold: int, member: int = 1) -> pd.Series:
    """The part of each participant in the training of one member of a fold.

    Parameters
    ----------
    splits : DataFrame
        Schema `records.SPLITS`.
    fold : int
        From 0.
    member : int
        From 1.

    Returns
    -------
    Series of str
        ``train``, ``validation`` or ``test``, by participant_id.
    """
    rows = splits[splits["fold"] == fold].set_index("participant_id")
    return rows["split"].mask(rows["member"] == str(member), "validation")


def _check_counts(counts: pd.Series, params: SplitParams) -> None:
    needed = params.folds if params.protocol == "kfold" else 4
    if counts.min() < needed:
        raise StudyError(
            f"class {counts.idxmin()} has {counts.min()} participants, {params.protocol} needs {needed} in each: "
            "add participants, drop the class from `classes`, or lower splits.folds"
        )


def _tested(people: pd.DataFrame, params: SplitParams, seed: int) -> list[pd.Index]:
    """Rows of the tested participants of each fold, one repetition after the other."""
    if params.protocol in ("leave_out", "external"):
        return _by_column(people, params)
    _check_counts(people["diagnosis"].value_counts(), params)
    strata = _strata(people, params) if params.balance_sites else people["diagnosis"]
    seeds = [seed + 1000 * repeat for repeat in range(params.repeats)]
    if params.protocol == "kfold":
        cutters = [StratifiedGroupKFold(params.folds, shuffle=True, random_state=value) for value in seeds]
        groups = people["participant_id"]
        return [people.index[test] for cutter in cutters for _, test in cutter.split(people, strata, groups)]
    cutters = [StratifiedShuffleSplit(1, test_size=params.test_fraction, random_state=value) for value in seeds]
    return [people.index[test] for cutter in cutters for _, test in cutter.split(people, strata)]


def _by_column(people: pd.DataFrame, params: SplitParams) -> list[pd.Index]:
    """Of each value of the column ``leave_out`` or, for external, of the named values together."""
    column, values = params.leave_out, _complete(people, params.leave_out).astype(str)
    names = sorted(values.unique())
    tested = [[name] for name in names] if params.protocol == "leave_out" else [list(params.test_sites)]
    if not tested[0] or not set(tested[0]) < set(names):
        raise StudyError(
            f"{params.protocol} tests {tested[0]} of {column} {names}, expected some, not all: set splits.test_sites "
            "or use kfold"
        )
    rows = [people.index[values.isin(chosen)] for chosen in tested]
    for chosen, held_out in zip(tested, rows, strict=True):
        _check_rest(people, held_out, f"{column} {', '.join(map(repr, chosen))}")
    return rows


def _check_rest(people: pd.DataFrame, held_out: pd.Index, what: str, needed: int = 2) -> None:
    counts = people.drop(held_out)["diagnosis"].value_counts().reindex(people["diagnosis"].unique(), fill_value=0)
    if counts.min() < needed:
        raise StudyError(
            f"without {what} {counts.min()} participants of class {counts.idxmin()} are left to train on, {needed} "
            "needed; hold out fewer, drop the class, or use kfold with splits.balance_sites"
        )


def _strata(people: pd.DataFrame, params: SplitParams) -> pd.Series:
    """Diagnosis and site of each participant; within a diagnosis, sites too small to be spread count together."""
    share = 1 / params.folds if params.protocol == "kfold" else min(params.test_fraction, 1 - params.test_fraction)
    strata = people["diagnosis"] + " " + _complete(people, "site")
    for name, rows in people.groupby("diagnosis"):
        sizes = rows["site"].value_counts(ascending=True)
        joined = int((sizes < 1 / share).sum())
        joined += int(0 < sizes.iloc[:joined].sum() < 1 / share)
        strata[rows.index[rows["site"].isin(sizes.index[:joined])]] = name
    return strata


def _complete(people: pd.DataFrame, column: str) -> pd.Series:
    """A column that every participant has."""
    values = people.get(column, pd.Series(None, index=people.index, dtype=object))
    if values.isna().any():
        name = people.loc[values.isna(), "participant_id"].iloc[0]
        raise StudyError(f"the {column} of {name} is missing, and the split needs it; complete the source or use kfold")
    return values


def check_disjoint(splits: pd.DataFrame) -> None:
    """Refuse a table in which a participant is in two parts of one fold.

    Parameters
    ----------
    splits : DataFrame
        Columns participant_id, fold, split.

    Raises
    ------
    StudyError
        With the first such participant, or a part that is none of `PARTS`.
    """
    parts = splits.groupby(["fold", "participant_id"])["split"].nunique()
    if (parts > 1).any():
        fold, participant = parts[parts > 1].index[0]
        raise StudyError(f"leakage: {participant} is in more than one part of fold {fold}; split whole participants")
    unknown = set(splits["split"]) - set(PARTS)
    if unknown:
        raise StudyError(f"splits name the parts {sorted(unknown)}, expected {PARTS}")


def fold_numbers(splits: pd.DataFrame) -> list[int]:
    """The folds of a split, in order.

    Parameters
    ----------
    splits : DataFrame
        Schema `records.SPLITS`.

    Returns
    -------
    list of int
    """
    return sorted(int(number) for number in splits["fold"].unique())
