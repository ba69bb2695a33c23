"""Release the model of a simulated study: 16-bit weights, model card, datasheet and reproducible scores.

The scores of the model of people, `models/oasis1`, are verified with the data it is trained on.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from adlib.classify.model_store import REAL, RELEASED, SCORES, STORED, WEIGHTS
from adlib.classify.nearest import write_examples
from adlib.classify.prediction import predict_file
from adlib.classify.stored_results import simulate_scans
from adlib.evaluation.evaluate import NETWORK, score_run
from adlib.parallel.mapping import map_scans
from adlib.phantom.cohort import draw_cohort
from adlib.report.content import read_study
from adlib.report.pages import INDEXED, datasheet, model_card
from adlib.study.metrics import file_run
from adlib.study.params import StudyParams, dump_params, load_params
from adlib.study.records import (
    ANSWERS,
    StudyError,
    content_digest,
    read_json,
    read_table,
    write_json,
    write_table,
    write_text,
)
from adlib.study.source_params import PhantomSource
from adlib.training import model_file
from adlib.training.pooling import pool_level
from adlib.training.splits import make_splits

CARD, DATASHEET, HUB, PARAMS = "README.md", "datasheet.md", "config.json", "params.yaml"
TOLERANCE = 0.01  # of a score, between processors
PEOPLE_DATA = ("oasis1_coronal", "imagenet_resnet50")  # needed by the benchmark of models/oasis1

Entries = list[dict[str, Any]]


def release(params: StudyParams, folder: Path) -> pd.DataFrame:
    """Write weights, card, datasheet, scores and params of a finished simulated study to a folder for publication.

    The scores are those of the 16-bit weights on the scan files of the test participants, through
    `adlib.classify.prediction`.

    Parameters
    ----------
    params : StudyParams
    folder : path
        Receives ``model.safetensors``, ``README.md``, ``datasheet.md``, ``config.json``, ``scores.json``,
        ``params.yaml`` and, for the interactive classifier, ``answers.tsv`` with predictions of the test scans and
        ``examples.npz`` with training scans.

    Returns
    -------
    DataFrame
        Columns metric, stored (the study's score), computed (that of the released weights), difference, n and ci95.

    Raises
    ------
    StudyError
        If the study is not finished, or is not simulated: the terms of the data apply to a model of people.
    """
    if params.source.kind != "phantom":
        raise StudyError(
            f"study {params.study!r} was trained on {params.source.kind} data, whose terms apply to its model; only "
            "models of simulated cohorts are released"
        )
    study = read_study(params)
    classifier = model_file.load(params.folder / WEIGHTS)
    manifest, tested = study.manifest, study.splits.query("fold == 0 and split == 'test'")["participant_id"]
    model_file.save(classifier, folder / WEIGHTS, half=True)
    predictions = _predict_scans(folder / WEIGHTS, manifest[manifest["participant_id"].isin(tested)], params)
    scores = _score_predictions(predictions, params)
    write_table(predictions.drop(columns=["slice", "temperature"]), folder / STORED, ANSWERS)
    write_examples(params, folder / WEIGHTS)
    write_json({"splits": content_digest(params.folder / "splits.tsv"), "entries": scores}, folder / SCORES)
    write_text(model_card(study, scores), folder / CARD)
    write_text(datasheet(study), folder / DATASHEET)
    network = {"outputs": model_file.outputs(params.classes, params.input), "covariates": len(params.train.covariates)}
    write_json(network | {"adlib": json.loads(classifier.card.to_json())}, folder / HUB)
    write_text(dump_params(params.model_copy(update={"exec": type(params.exec)()})), folder / PARAMS)
    run = file_run(entry["run"] for entry in study.metrics["entries"])
    stored = [e for e in study.metrics["entries"] if (e["run"], e["level"]) == (run, "subject")]
    return _compare_scores(stored, scores)


def _predict_scans(weights: Path, scans: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """Predictions (schema `records.ANSWERS`) for scan files; scans that fail quality control are left out."""
    function = partial(_predict, weights=str(weights))
    rows = map_scans(function, scans.to_dict("records"), pool=params.pool, label="classifying scans")
    return pd.DataFrame([row for row in rows if row]).assign(fold=0, slice=0, temperature=1.0)


def _score_predictions(predictions: pd.DataFrame, params: StudyParams) -> Entries:
    """Scores by participant for the model card, as entries of ``metrics.json``."""
    entries = score_run(pool_level(predictions, "subject", params.classes), NETWORK, "subject", params)
    return [entry for entry in entries if (entry["metric"], entry.get("class")) in INDEXED]


@cache
def load_without_reference(weights: str) -> model_file.Classifier:
    """Load a model without its distance checks: every scan that passes quality control is classified.

    Parameters
    ----------
    weights : str
        Path of the weights file.

    Returns
    -------
    Classifier
    """
    classifier = model_file.load(weights)
    return replace(classifier, card=replace(classifier.card, reference={}), distributions={})


def _predict(scan: dict[str, Any], weights: str) -> dict[str, Any] | None:
    prediction = predict_file(scan["path"], load_without_reference(weights))
    if prediction.predicted is None:
        return None
    names = {name: scan[name] for name in ("participant_id", "session_id", "scan_id")}
    return names | {"truth": scan["diagnosis"], **{f"p_{k}": p for k, p in prediction.probabilities.items()}}


def verify(folder: Path, participants: int | None = None) -> pd.DataFrame:
    """Simulate the test participants of a released model again, classify their scans, and compare the scores.

    Parameters
    ----------
    folder : path
        Of the released model.
    participants : int, optional
        Simulate about so many; the others keep their stored predictions.

    Returns
    -------
    DataFrame
        Columns metric, stored, computed, difference, n and ci95.

    Raises
    ------
    StudyError
        If a file is missing.
    """
    params = load_params(folder / PARAMS)
    cohort = draw_cohort(cast(PhantomSource, params.source), params.classes, params.seed)
    splits = make_splits(cohort, params.splits, params.seed)
    tested = sorted(splits.query("fold == 0 and split == 'test'")["participant_id"])
    again = set(tested[:: max(1, len(tested) // participants) if participants else 1])
    with tempfile.TemporaryDirectory() as place:
        scans = simulate_scans(params, Path(place), again)
        predictions = _predict_scans(folder / WEIGHTS, scans, params)
    if participants:
        stored = read_table(folder / STORED, ANSWERS).assign(slice=0, temperature=1.0)
        predictions = pd.concat([stored[~stored["participant_id"].isin(again)], predictions], ignore_index=True)
    return _compare_scores(read_json(folder / SCORES)["entries"], _score_predictions(predictions, params))


def verify_people() -> int:
    """Score `models/oasis1` again by its benchmark, and compare the scores with those of the card.

    Returns
    -------
    int
        1 if a score is not reproduced.

    Raises
    ------
    StudyError
        If the data are not present.
    """
    root = os.environ.get("ADLIB_REALDATA", "")
    missing = [name for name in PEOPLE_DATA if not (root and Path(root, name).is_dir())]
    if missing:
        raise StudyError(
            f"{REAL.parent.name} is not verified: its scores need the slices of OASIS-1 and the ImageNet weights, "
            f"{' and '.join(missing)} in the folder that ADLIB_REALDATA names ({root or 'not set'}); its terms forbid "
            "copies of the data here"
        )
    script = RELEASED.parent / "benchmarks" / "oasis1.py"
    return int(subprocess.run([sys.executable, str(script), "verify"], check=False).returncode != 0)


def _compare_scores(stored: Entries, computed: Entries) -> pd.DataFrame:
    """One row per computed score; its n and interval are those of the computed ones."""
    points = {(entry["metric"], entry.get("class")): entry["point"] for entry in stored}
    rows = []
    for entry in computed:
        name, point = (entry["metric"], entry.get("class")), entry["point"]
        before = points.get(name, np.nan)
        row = {"metric": " ".join(filter(None, name)), "stored": before, "computed": point}
        rows.append(row | {"difference": point - before, "n": entry["n"], "ci95": entry["ci95"]})
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> int:
    """Release a study's model, or verify one; 1 if a score is not reproduced.

    Parameters
    ----------
    arguments : list of str, optional
        Default: `sys.argv`.

    Returns
    -------
    int
        Exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m adlib.release", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params/phantom.yaml"), help="of the study to release")
    parser.add_argument("--model", type=Path, default=RELEASED / "phantom", help="folder of a released model")
    parser.add_argument("--verify", action="store_true", help="reproduce the scores of the released model")
    parser.add_argument("--participants", type=int, help="to simulate again for --verify; all if left out")
    options = parser.parse_args(arguments)
    try:
        if options.verify and options.model.resolve() == REAL.parent:
            return verify_people()
        params = load_params(options.params)
        table = (
            verify(options.model, options.participants) if options.verify else release(params, RELEASED / params.study)
        )
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table.round(4).to_string(index=False))
    worst = table["difference"].abs().max(skipna=False)
    print(f"largest difference {worst:.4f} (limit {TOLERANCE})")
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
