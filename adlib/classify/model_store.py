"""Where a study's model and example scans are: those of its last run or, before it, the released ones."""

from pathlib import Path

import pandas as pd

from adlib.study.metrics import NETWORK
from adlib.study.params import StudyParams
from adlib.study.records import ANSWERS, MANIFEST, PREDICTIONS, TISSUE_MAPS, StudyError, read_table

RELEASED = Path(__file__).resolve().parents[2] / "models"
WEIGHTS, SCORES, STORED = "model.safetensors", "scores.json", "answers.tsv"
PREDICTED = "predictions.parquet"
EXAMPLES = 4
REAL = RELEASED / "oasis1" / WEIGHTS  # trained on people


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
