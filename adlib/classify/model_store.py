"""A study's model with its scores, predictions and example scans: from its last run or, before it, as released."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from adlib.classify.nearest import write_examples
from adlib.phantom.cohort import draw_cohort, write_cohort
from adlib.study.metrics import NETWORK, read_metrics
from adlib.study.params import StudyParams
from adlib.study.records import ANSWERS, MANIFEST, PREDICTIONS, TISSUE_MAPS, StudyError, read_table
from adlib.study.source_params import PhantomSource
from adlib.training.pooling import pool_level

RELEASED = Path(__file__).resolve().parents[2] / "models"
WEIGHTS, SCORES, STORED = "model.safetensors", "scores.json", "answers.tsv"
PREDICTED = "predictions.parquet"
REAL = RELEASED / "oasis1" / WEIGHTS  # trained on people
EXAMPLES = 4  # test scans offered by the form


def was_run(params: StudyParams) -> bool:
    """Whether the study has trained its model.

    Parameters
    ----------
    params : StudyParams
    """
    return (params.folder / WEIGHTS).is_file()


def find_model(params: StudyParams) -> Path:
    """Weights of a study: those of its last run, else the released ones.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    path

    Raises
    ------
    StudyError
        If there are neither.
    """
    places = (params.folder / WEIGHTS, RELEASED / params.study / WEIGHTS)
    for place in places:
        if place.is_file():
            return place
    raise StudyError(f"no model of the study {params.study!r} at {' or '.join(map(str, places))}; run the study first")


def find_models(params: StudyParams) -> dict[str, Path]:
    """Weights that may classify a scan, by title: for a simulated study first those trained on people.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    dict of str to path
        The last is that of the study, see `find_model`.
    """
    study = {f"study {params.study!r}": find_model(params)}
    if params.source.kind != "phantom" or not REAL.is_file():
        return study
    people = {"real people of 60 years or more (OASIS-1)": REAL}
    return people | {f"simulated heads: {title}": path for title, path in study.items()}


def store_examples(params: StudyParams) -> None:
    """Store training scans next to the model of the study's last run, see `adlib.classify.nearest.write_examples`.

    Parameters
    ----------
    params : StudyParams
    """
    if was_run(params):
        write_examples(params, params.folder / WEIGHTS)


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
    return read_metrics(params.folder if was_run(params) else find_model(params).with_name(SCORES))


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
        table = read_table(params.folder / PREDICTED, PREDICTIONS)
        tested = table[(table["run"] == NETWORK) & (table["split"] == "test")]
        pooled = pool_level(tested, "scan", params.classes, params.input.pooling)
    else:
        pooled = read_table(find_model(params).with_name(STORED), ANSWERS)
    return pooled.assign(predicted=np.array(params.classes)[pooled[columns].to_numpy().argmax(axis=1)])


def example_scans(params: StudyParams) -> pd.DataFrame:
    """Test scans of the first fold, alternating between classes, one per participant.

    Scans of a simulated study without a run are simulated now.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    DataFrame
        Columns scan_id, path and diagnosis; at most `EXAMPLES` rows, none if the model takes no heads
        or has not predicted yet.
    """
    if params.input.flat or (was_run(params) and not (params.folder / PREDICTED).is_file()):
        return pd.DataFrame(columns=["scan_id", "path", "diagnosis"])
    table = stored_predictions(params)
    scans = table[table["fold"] == 0].sort_values("scan_id").drop_duplicates("participant_id")
    if not was_run(params):
        chosen = _alternating(scans, params)
        scans = simulate_scans(params, params.folder / "examples", set(chosen["participant_id"]))
        paths = scans.set_index("scan_id")["path"]
    else:
        manifest = read_table(params.folder / "manifest.tsv", MANIFEST).set_index("scan_id")
        if "space" in manifest:
            scans = scans[~scans["scan_id"].map(manifest["space"]).eq(TISSUE_MAPS)]
        chosen, paths = _alternating(scans, params), manifest["path"]
    columns = {"scan_id": chosen["scan_id"], "path": chosen["scan_id"].map(paths), "diagnosis": chosen["truth"]}
    return pd.DataFrame(columns).reset_index(drop=True)


def _alternating(scans: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    turns = scans.assign(turn=scans.groupby("truth").cumcount(), order=scans["truth"].map(params.classes.index))
    return turns.sort_values(["turn", "order"]).head(EXAMPLES)


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
    files = scans["participant_id"] + "/" + scans["session_id"] + "/anat/" + scans["scan_id"] + ".nii.gz"
    return scans.assign(path=[str(root / file) for file in files])
