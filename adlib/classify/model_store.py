"""Where the model of a study is: that of its last run or, before it, the released one."""

from __future__ import annotations

from pathlib import Path

from adlib.study.params import StudyParams
from adlib.study.records import StudyError

RELEASED = Path(__file__).resolve().parents[2] / "models"
WEIGHTS, SCORES, STORED = "model.safetensors", "scores.json", "answers.tsv"
PREDICTED = "predictions.parquet"
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
