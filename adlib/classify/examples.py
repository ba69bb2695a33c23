"""Example scans of the form: test scans of the study."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from adlib.classify.model_store import PREDICTED, STORED, find_model, was_run
from adlib.study.metrics import NETWORK
from adlib.study.params import StudyParams
from adlib.study.records import ANSWERS, MANIFEST, PREDICTIONS, TISSUE_MAPS, read_table

EXAMPLES = 4


def list_examples(params: StudyParams) -> pd.DataFrame:
    """Test scans of the first fold, alternating between classes, one per participant.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    DataFrame
        Columns scan_id, participant_id, path and diagnosis; at most `EXAMPLES` rows, none if the model takes no heads
        or has not predicted yet. Before the first run of a simulated study the files are made by
        `adlib.classify.stored_results.example_scans`.
    """
    if params.input.flat or (was_run(params) and not (params.folder / PREDICTED).is_file()):
        return pd.DataFrame(columns=["scan_id", "participant_id", "path", "diagnosis"])
    if was_run(params):
        table = read_table(params.folder / PREDICTED, PREDICTIONS)
        table = table[(table["run"] == NETWORK) & (table["split"] == "test")]
        manifest = read_table(params.folder / "manifest.tsv", MANIFEST)
        heads = manifest[manifest["space"].ne(TISSUE_MAPS)] if "space" in manifest else manifest
        table = table.merge(heads[["scan_id", "path"]], on="scan_id")
    else:
        table = read_table(find_model(params).with_name(STORED), ANSWERS)
        table = table.assign(path=simulated_files(table, params.folder / "examples" / "bids"))
    scans = table[table["fold"] == 0].sort_values("scan_id").drop_duplicates("participant_id")
    turns = scans.assign(turn=scans.groupby("truth").cumcount(), order=scans["truth"].map(params.classes.index))
    chosen = turns.sort_values(["turn", "order"]).head(EXAMPLES).rename(columns={"truth": "diagnosis"})
    return chosen[["scan_id", "participant_id", "path", "diagnosis"]].reset_index(drop=True)


def simulated_files(scans: pd.DataFrame, root: Path) -> pd.Series:
    """Files of simulated scans.

    Parameters
    ----------
    scans : DataFrame
        Columns participant_id, session_id and scan_id.
    root : path
        Of the BIDS dataset.

    Returns
    -------
    Series of str
    """
    folders = scans["participant_id"] + "/" + scans["session_id"] + "/anat/"
    return f"{root}/" + folders + scans["scan_id"] + ".nii.gz"
