"""A study's model and what is known of it: from the study's last run or, before there is one, as it was released."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from adlib.classify.nearest import write_examples
from adlib.phantom.cohort import draw_cohort, write_cohort
from adlib.study.metrics import read_metrics
from adlib.study.params import StudyParams
from adlib.study.records import ANSWERS, MANIFEST, PREDICTIONS, TISSUE_MAPS, StudyError, read_table
from adlib.training.folds import RUN
from adlib.training.pooling import pool_level

RELEASED = Path(__file__).resolve().parents[2] / "models"
WEIGHTS, SCORES, STORED = "model.safetensors", "scores.json", "answers.tsv"
PREDICTED = "predictions.parquet"
EXAMPLES = 4  # test scans offered by the interactive classifier


def was_run(params: StudyParams) -> bool:
    """Whether the study has a model of its own."""
    return (params.folder / WEIGHTS).is_file()


def find_model(params: StudyParams) -> Path:
    """Weights of a study: those of its last run, else the released ones.

    Raises
    ------
    StudyError
        If there are neither.
    """
    places = (params.folder / WEIGHTS, RELEASED / params.study / WEIGHTS)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise StudyError(
            f"no model of the study {params.study!r} at {' or '.join(map(str, places))}; run the study first"
        )
    return found


def keep_examples(params: StudyParams) -> None:
    """Store training scans beside the model of the study's own run, see `adlib.classify.nearest.write_examples`."""
    if was_run(params):
        write_examples(params, params.folder / WEIGHTS, params.folder)


def stored_scores(params: StudyParams) -> pd.DataFrame:
    """The metrics of the study or, before it was run, of the released model, as `read_metrics`."""
    return read_metrics(params.folder if was_run(params) else find_model(params).with_name(SCORES))


def stored_answers(params: StudyParams) -> pd.DataFrame:
    """What the study's network answered for each scan of its test participants.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    DataFrame
        Schema `records.ANSWERS` with columns ``p_<class>``; one row per scan.
    """
    columns = [f"p_{name}" for name in params.classes]
    if was_run(params):
        table = read_table(params.folder / PREDICTED, PREDICTIONS)
        tested = table[(table["run"] == RUN) & (table["split"] == "test")]
        pooled = pool_level(tested, "scan", params.classes, params.input.pooling)
    else:
        pooled = read_table(find_model(params).with_name(STORED), ANSWERS)
    return pooled.assign(answer=np.array(params.classes)[pooled[columns].to_numpy().argmax(axis=1)])


def example_scans(params: StudyParams) -> pd.DataFrame:
    """Test scans of the model's own fold, one class after the other, one per participant.

    Those of a simulated study that was not run are simulated now.

    Returns
    -------
    DataFrame
        Columns scan_id, path and diagnosis; at most `EXAMPLES` rows, none where the model takes no
        heads or has not answered yet.
    """
    unanswered = was_run(params) and not (params.folder / PREDICTED).is_file()
    if params.input.flat or unanswered:
        return pd.DataFrame({"scan_id": [], "path": [], "diagnosis": []})
    answers = stored_answers(params)
    scans = answers[answers["fold"] == 0].sort_values("scan_id").drop_duplicates("participant_id")
    if was_run(params):
        manifest = read_table(params.folder / "manifest.tsv", MANIFEST).set_index("scan_id")
        if "space" in manifest:
            scans = scans[~scans["scan_id"].map(manifest["space"]).eq(TISSUE_MAPS)]
        chosen = _in_turns(scans, params)
        paths = chosen["scan_id"].map(manifest["path"])
    else:
        chosen = _in_turns(scans, params)
        paths = chosen["scan_id"].map(_simulated(params, set(chosen["participant_id"])))
    return pd.DataFrame({"scan_id": chosen["scan_id"], "path": paths, "diagnosis": chosen["truth"]}).reset_index(
        drop=True
    )


def _in_turns(scans: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    turns = scans.assign(turn=scans.groupby("truth").cumcount(), order=scans["truth"].map(params.classes.index))
    return turns.sort_values(["turn", "order"]).head(EXAMPLES)


def _simulated(params: StudyParams, participants: set[str]) -> dict[str, str]:
    """Paths by scan_id of the scans of some participants of a simulated study."""
    known, classes, seed = params.source, params.classes, params.seed
    folder = params.folder / "examples"
    root = write_cohort(known, classes, seed, folder, pool=params.pool, only=participants)
    cohort = draw_cohort(known, classes, seed)
    cohort = cohort[cohort["participant_id"].isin(participants)]
    return {
        scan.scan_id: str(root / scan.participant_id / scan.session_id / "anat" / f"{scan.scan_id}.nii.gz")
        for scan in cohort.itertuples()
    }
