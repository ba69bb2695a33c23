"""Splits of participants into training, validation and test, stratified by diagnosis and optionally by site."""

from __future__ import annotations

from math import ceil, floor

import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

from adlib.study.params import SplitParams
from adlib.study.records import SPLITS, StudyError, check_table

PARTS = ("train", "validation", "test")


def make_splits(scans: pd.DataFrame, params: SplitParams, seed: int) -> pd.DataFrame:
    """Assign every participant to train, validation or test, once per fold.

    Participants are stratified by the diagnosis of their first session. All scans and slices of a participant follow
    the participant, so that nothing of a tested person was trained on (Wen et al. 2020,
    doi:10.1016/j.media.2020.101694).

    Parameters
    ----------
    scans : DataFrame
        Columns participant_id, session_id and diagnosis and, where the protocol asks for it, site; a participant seen
        at several sites belongs to that of the first session.
    params : SplitParams
    seed : int

    Returns
    -------
    DataFrame
        Columns participant_id, fold, split, diagnosis; one row per participant and fold.

    Raises
    ------
    StudyError
        If a class has too few participants for the protocol, or sites are needed and missing.
    """
    people = scans.sort_values("session_id").drop_duplicates("participant_id").sort_values("participant_id")
    people = people.reindex(columns=["participant_id", "diagnosis", "site"]).reset_index(drop=True)
    _check_counts(people["diagnosis"].value_counts(), params)
    folds = []
    for fold, tested in enumerate(_tested(people, params, seed)):
        rest = people.index.difference(tested)
        chooser = StratifiedShuffleSplit(1, test_size=params.validation_fraction, random_state=seed + fold)
        _, positions = next(chooser.split(rest, people.loc[rest, "diagnosis"]))
        split = pd.Series("train", index=people.index)
        split[tested] = "test"
        split[rest[positions]] = "validation"
        folds.append(people.drop(columns="site").assign(fold=fold, split=split))
    table = check_table(pd.concat(folds, ignore_index=True), SPLITS, "splits")
    check_disjoint(table)
    return table


def _check_counts(counts: pd.Series, params: SplitParams) -> None:
    by_fold = params.protocol == "kfold"
    needed, tested = (params.folds, 1 / params.folds) if by_fold else (4, params.test_fraction)
    if counts.min() < needed:
        raise StudyError(
            f"class {counts.idxmin()} has {counts.min()} participants, {params.protocol} needs {needed} in each: "
            "add participants, drop the class from `classes`, or lower splits.folds"
        )
    held_out = ceil(params.validation_fraction * floor(counts.sum() * (1 - tested)))
    if held_out < len(counts):
        raise StudyError(
            f"{counts.sum()} participants leave {held_out} for validation, which needs one for each "
            f"of {len(counts)} classes: add participants or raise splits.validation_fraction"
        )


def _tested(people: pd.DataFrame, params: SplitParams, seed: int) -> list[pd.Index]:
    """Rows of the tested participants of each fold, one repetition after the other."""
    if params.protocol == "leave_one_site_out":
        return _sites(people)
    if params.protocol == "external":
        return [_external(people, params.test_sites)]
    strata = _strata(people, params) if params.balance_sites else people["diagnosis"]
    seeds = [seed + 1000 * repeat for repeat in range(params.repeats)]
    if params.protocol == "kfold":
        cutters = [StratifiedGroupKFold(params.folds, shuffle=True, random_state=value) for value in seeds]
        groups = people["participant_id"]
        return [people.index[test] for cutter in cutters for _, test in cutter.split(people, strata, groups)]
    cutters = [StratifiedShuffleSplit(1, test_size=params.test_fraction, random_state=value) for value in seeds]
    return [people.index[test] for cutter in cutters for _, test in cutter.split(people, strata)]


def _sites(people: pd.DataFrame) -> list[pd.Index]:
    _check_sites(people)
    folds = [group.index for _, group in people.groupby("site")]
    if len(folds) < 2:
        raise StudyError(f"leave_one_site_out needs two sites, got only {people['site'].iloc[0]!r}; use kfold")
    for tested in folds:
        site = f"site {people.loc[tested[0], 'site']!r}"
        _check_rest(people, tested, site, "drop the class or use kfold with splits.balance_sites")
    return folds


def _external(people: pd.DataFrame, sites: tuple[str, ...]) -> pd.Index:
    _check_sites(people)
    names = sorted(people["site"].unique())
    unknown = sorted(set(sites) - set(names))
    if unknown or not sites or set(sites) == set(names):
        raise StudyError(f"splits.test_sites is {list(sites)}; external needs some, not all, of the sites {names}")
    tested = people.index[people["site"].isin(sites)]
    _check_rest(people, tested, f"the sites {list(sites)}", "test fewer sites or drop the class")
    return tested


def _check_rest(people: pd.DataFrame, tested: pd.Index, sites: str, advice: str) -> None:
    counts = people.drop(tested)["diagnosis"].value_counts().reindex(people["diagnosis"].unique(), fill_value=0)
    if counts.min() < 2:
        raise StudyError(
            f"without {sites} {counts.min()} participants of class {counts.idxmin()} are left to train on, two are "
            f"needed; {advice}"
        )


def _strata(people: pd.DataFrame, params: SplitParams) -> pd.Series:
    """Diagnosis and site of each participant; within a diagnosis, sites too small to be spread count together."""
    _check_sites(people)
    share = 1 / params.folds if params.protocol == "kfold" else min(params.test_fraction, 1 - params.test_fraction)
    strata = people["diagnosis"] + " " + people["site"]
    for name, rows in people.groupby("diagnosis"):
        sizes = rows["site"].value_counts(ascending=True)
        joined = int((sizes < 1 / share).sum())
        joined += int(0 < sizes.iloc[:joined].sum() < 1 / share)
        strata[rows.index[rows["site"].isin(sizes.index[:joined])]] = name
    return strata


def _check_sites(people: pd.DataFrame) -> None:
    if people["site"].isna().any():
        name = people.loc[people["site"].isna(), "participant_id"].iloc[0]
        raise StudyError(f"the site of {name} is missing, and the split needs it; complete the source or use kfold")


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
