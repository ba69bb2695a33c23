"""Who is trained on and who is tested: whole participants, stratified by diagnosis."""

from __future__ import annotations

from math import ceil, floor

import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

from adlib.params import SplitParams
from adlib.records import SPLITS, StudyError, check_table

PARTS = ("train", "validation", "test")


def make_splits(scans: pd.DataFrame, params: SplitParams, seed: int) -> pd.DataFrame:
    """Assign every participant to train, validation or test, once per fold.

    Participants are stratified by the diagnosis of their first session. All scans and slices of a participant follow
    the participant, so that nothing of a tested person was trained on (Wen et al. 2020,
    doi:10.1016/j.media.2020.101694).

    Parameters
    ----------
    scans : DataFrame
        Columns participant_id, session_id and diagnosis.
    params : SplitParams
    seed : int

    Returns
    -------
    DataFrame
        Columns participant_id, fold, split, diagnosis; one row per participant and fold.

    Raises
    ------
    StudyError
        If a class has too few participants for the protocol.
    """
    people = scans.sort_values("session_id").drop_duplicates("participant_id").sort_values("participant_id")
    people = people[["participant_id", "diagnosis"]].reset_index(drop=True)
    _check_counts(people["diagnosis"].value_counts(), params)
    folds = []
    for fold, tested in enumerate(_tested(people, params, seed)):
        rest = people.index.difference(tested)
        chooser = StratifiedShuffleSplit(1, test_size=params.validation_fraction, random_state=seed + fold)
        _, positions = next(chooser.split(rest, people.loc[rest, "diagnosis"]))
        split = pd.Series("train", index=people.index)
        split[tested] = "test"
        split[rest[positions]] = "validation"
        folds.append(people.assign(fold=fold, split=split))
    table = check_table(pd.concat(folds, ignore_index=True), SPLITS, "splits")
    check_disjoint(table)
    return table


def _check_counts(counts: pd.Series, params: SplitParams) -> None:
    needed, tested = (params.folds, 1 / params.folds) if params.protocol == "kfold" else (4, params.test_fraction)
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
    labels = people["diagnosis"]
    if params.protocol == "kfold":
        cutter = StratifiedGroupKFold(params.folds, shuffle=True, random_state=seed)
        return [people.index[test] for _, test in cutter.split(people, labels, people["participant_id"])]
    cutter = StratifiedShuffleSplit(1, test_size=params.test_fraction, random_state=seed)
    return [people.index[test] for _, test in cutter.split(people, labels)]


def check_disjoint(splits: pd.DataFrame) -> None:
    """Refuse a table in which a participant stands in two parts of one fold.

    Raises
    ------
    StudyError
        With the first such participant.
    """
    parts = splits.groupby(["fold", "participant_id"])["split"].nunique()
    if (parts > 1).any():
        fold, participant = parts[parts > 1].index[0]
        raise StudyError(f"leakage: {participant} is in more than one part of fold {fold}; split whole participants")
    unknown = set(splits["split"]) - set(PARTS)
    if unknown:
        raise StudyError(f"splits name the parts {sorted(unknown)}, expected {PARTS}")
