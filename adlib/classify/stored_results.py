"""Scores, predictions and example scans of a study's model: from its last run or, before it, as released."""

from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from adlib.classify import model_store
from adlib.classify.model_store import find_model, list_examples, simulated_files, was_run
from adlib.classify.nearest import write_examples
from adlib.phantom.cohort import draw_cohort, write_cohort
from adlib.study.metrics import file_run, read_metrics
from adlib.study.params import StudyParams
from adlib.study.records import ANSWERS, PREDICTIONS, read_table
from adlib.study.source_params import PhantomSource
from adlib.training.pooling import pool_level


def store_examples(params: StudyParams) -> None:
    """Store training scans next to the model of the study's last run, see `adlib.classify.nearest.write_examples`.

    Parameters
    ----------
    params : StudyParams
    """
    if was_run(params):
        write_examples(params, params.folder / model_store.WEIGHTS)


def stored_scores(params: StudyParams) -> pd.DataFrame:
    """Scores of the study's last run, else of the released model.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    DataFrame
        See `adlib.study.metrics.read_metrics`.
    """
    return read_metrics(params.folder if was_run(params) else find_model(params).with_name(model_store.SCORES))


def stored_predictions(params: StudyParams) -> pd.DataFrame:
    """The study's predictions for the scans of its test participants.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    DataFrame
        Schema `records.ANSWERS` with columns ``p_<class>``, and ``predicted``; one row per scan.
    """
    columns = [f"p_{name}" for name in params.classes]
    if was_run(params):
        table = read_table(params.folder / model_store.PREDICTED, PREDICTIONS)
        tested = table[(table["run"] == file_run(table["run"])) & (table["split"] == "test")]
        pooled = pool_level(tested, "scan", params.classes, params.input.pooling)
    else:
        pooled = read_table(find_model(params).with_name(model_store.STORED), ANSWERS)
    return pooled.assign(predicted=np.array(params.classes)[pooled[columns].to_numpy().argmax(axis=1)])


def example_scans(params: StudyParams) -> pd.DataFrame:
    """The scans of `list_examples`, with their files; those of a simulated study without a run are simulated now.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    DataFrame
        See `list_examples`.
    """
    chosen = list_examples(params)
    if not was_run(params) and len(chosen):
        simulate_scans(params, params.folder / "examples", set(chosen["participant_id"]))
    return chosen


def simulate_scans(params: StudyParams, folder: Path, participants: set[str] | None = None) -> pd.DataFrame:
    """Simulate scans of the study's phantom cohort.

    Parameters
    ----------
    params : StudyParams
    folder : path
        Receives the scan files.
    participants : set of str, optional
        Only these.

    Returns
    -------
    DataFrame
        See `adlib.phantom.cohort.draw_cohort`, with ``path``.
    """
    source, classes, seed = cast(PhantomSource, params.source), params.classes, params.seed
    root = write_cohort(source, classes, seed, folder, pool=params.pool, only=participants)
    scans = draw_cohort(source, classes, seed)
    if participants is not None:
        scans = scans[scans["participant_id"].isin(participants)]
    return scans.assign(path=simulated_files(scans, root))
