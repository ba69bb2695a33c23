"""Release a simulated study's model: weights in 16 bit, a card with the scores of those weights, and their proof."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adlib.classify.model_store import RELEASED, SCORES, STORED, WEIGHTS
from adlib.classify.nearest import write_examples
from adlib.classify.prediction import predict_file
from adlib.evaluation.evaluate import NETWORK, score_run
from adlib.parallel.mapping import map_scans
from adlib.phantom.cohort import draw_cohort, write_cohort
from adlib.report.cards import INDEXED, model_card
from adlib.report.content import read_study
from adlib.study.params import StudyParams, dump_params, load_params
from adlib.study.records import (
    ANSWERS,
    MANIFEST,
    SPLITS,
    StudyError,
    content_digest,
    read_json,
    read_table,
    write_json,
    write_table,
    write_text,
)
from adlib.training import model_file
from adlib.training.pooling import pool_level
from adlib.training.splits import make_splits

CARD, HUB, PARAMS = "README.md", "config.json", "params.yaml"
TOLERANCE = 0.01  # of a score, between processors


def release(params: StudyParams, folder: Path) -> pd.DataFrame:
    """Write weights, card, scores and params of a finished simulated study to a folder that can be given away.

    The scores are those of the 16-bit weights on the scan files of the test participants, through
    `adlib.classify.prediction`.

    Parameters
    ----------
    params : StudyParams
    folder : path
        Receives ``model.safetensors``, ``README.md``, ``config.json``, ``scores.json``, ``params.yaml`` and, for the
        interactive classifier, ``answers.tsv`` of the test scans and ``examples.npz`` of training scans.

    Returns
    -------
    DataFrame
        As from `compared`: the study's own scores beside those of the released weights.

    Raises
    ------
    StudyError
        If the study is not finished, or is not simulated: a model of people falls under the terms of their data.
    """
    if params.source.kind != "phantom":
        raise StudyError(
            f"study {params.study!r} was trained on {params.source.kind} data, whose terms decide who may have its "
            "model; only models of simulated cohorts are released"
        )
    study = read_study(params)
    classifier = model_file.load(params.folder / WEIGHTS)
    splits = read_table(params.folder / "splits.tsv", SPLITS)
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST)
    tested = splits.query("fold == 0 and split == 'test'")["participant_id"]
    model_file.save(classifier, folder / WEIGHTS, half=True)
    answers = answer_scans(folder / WEIGHTS, manifest[manifest["participant_id"].isin(tested)], params)
    scores = score_answers(answers, params)
    write_table(answers.drop(columns=["slice", "temperature"]), folder / STORED, ANSWERS)
    write_examples(params, folder / WEIGHTS, folder)
    write_json({"splits": content_digest(params.folder / "splits.tsv"), "entries": scores}, folder / SCORES)
    write_text(model_card(study, scores), folder / CARD)
    network = {"outputs": model_file.outputs(params.classes, params.input), "covariates": len(params.train.covariates)}
    write_json(network | {"adlib": json.loads(classifier.card.to_json())}, folder / HUB)
    write_text(dump_params(params.model_copy(update={"exec": type(params.exec)()})), folder / PARAMS)
    return compared([entry for entry in study.metrics["entries"] if _is_network(entry)], scores)


def _is_network(entry: dict[str, Any]) -> bool:
    return (entry["run"], entry["level"]) == (NETWORK, "subject")


def answer_scans(weights: Path, scans: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """Answers of a weights file to scan files, each prepared anew; those that fail checks are left out.

    Parameters
    ----------
    weights : path
    scans : DataFrame
        Columns path, participant_id, session_id, scan_id and diagnosis.
    params : StudyParams

    Returns
    -------
    DataFrame
        Schema `records.ANSWERS`, and what `adlib.training.pooling.pool_level` needs.
    """
    answer = partial(_answer, weights=str(weights))
    rows = map_scans(answer, scans.to_dict("records"), pool=params.pool, label="classifying scans")
    return pd.DataFrame([row for row in rows if row]).assign(fold=0, slice=0, temperature=1.0)


def score_answers(answers: pd.DataFrame, params: StudyParams) -> list[dict[str, Any]]:
    """The scores by participant that a model card carries, as entries of ``metrics.json``."""
    entries = score_run(pool_level(answers, "subject", params.classes), NETWORK, "subject", params)
    return [entry for entry in entries if (entry["metric"], entry.get("class")) in INDEXED]


@cache
def ungated(weights: str) -> model_file.Classifier:
    """A model that refuses no scan as unlike its cohort, as the study, too, scores all whose quality does not fail."""
    classifier = model_file.load(weights)
    return replace(classifier, card=replace(classifier.card, reference={}), spaces={})


def _answer(scan: dict[str, Any], weights: str) -> dict[str, Any] | None:
    prediction = predict_file(scan["path"], ungated(weights))
    if prediction.predicted is None:
        return None
    kept = {name: scan[name] for name in ("participant_id", "session_id", "scan_id")}
    return kept | {"truth": scan["diagnosis"], **{f"p_{k}": p for k, p in prediction.probabilities.items()}}


def verify(folder: Path) -> pd.DataFrame:
    """Simulate the test participants of a released model again, classify their scans, and compare with its scores.

    Returns
    -------
    DataFrame
        As from `compared`.

    Raises
    ------
    StudyError
        If a file is missing, or the split drawn here is not the one that the model was trained on.
    """
    params, stored = load_params(folder / PARAMS), read_json(folder / SCORES)
    cohort = draw_cohort(params.source, params.classes, params.seed)
    splits = make_splits(cohort, params.splits, params.seed)
    tested = splits.query("fold == 0 and split == 'test'")["participant_id"]
    return compared(stored["entries"], _simulated(folder, params, params.seed, set(tested)))


def score_others(folder: Path, seed: int, per_class: int) -> pd.DataFrame:
    """Score a released model on people of another seed, whom neither training nor any choice has seen.

    Returns
    -------
    DataFrame
        As from `compared`, beside the model's own scores.
    """
    params, stored = load_params(folder / PARAMS), read_json(folder / SCORES)
    source = params.source.model_copy(update={"participants_per_class": per_class})
    other = params.model_copy(update={"source": source})
    return compared(stored["entries"], _simulated(folder, other, seed, None))


def _simulated(folder: Path, params: StudyParams, seed: int, only: set[str] | None) -> list[dict[str, Any]]:
    cohort = draw_cohort(params.source, params.classes, seed)
    cohort = cohort if only is None else cohort[cohort["participant_id"].isin(only)]
    with tempfile.TemporaryDirectory() as place:
        pool = params.pool
        root = write_cohort(params.source, params.classes, seed, Path(place), pool=pool, only=only)
        files = cohort["participant_id"] + "/" + cohort["session_id"] + "/anat/" + cohort["scan_id"] + ".nii.gz"
        scans = cohort.assign(path=[str(root / file) for file in files])
        return score_answers(answer_scans(folder / WEIGHTS, scans, params), params)


def compared(stored: list[dict[str, Any]], found: list[dict[str, Any]]) -> pd.DataFrame:
    """Two sets of scores side by side: metric, stored, found, difference, and n and interval of what was found."""
    known = {(entry["metric"], entry.get("class")): entry["point"] for entry in stored}
    rows = []
    for entry in found:
        name = entry["metric"], entry.get("class")
        stored_point = known.get(name, np.nan)
        row = {"metric": " ".join(filter(None, name)), "stored": stored_point, "found": entry["point"]}
        rows.append(row | {"difference": entry["point"] - stored_point, "n": entry["n"], "ci95": entry["ci95"]})
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> int:
    """Release a study's model, or prove one; 1 where a score is not found again."""
    options = _parser().parse_args(arguments)
    try:
        if options.others is not None:
            print(score_others(options.model, options.others, options.people).round(4).to_string(index=False))
            return 0
        params = load_params(options.params)
        table = verify(options.model) if options.verify else release(params, RELEASED / params.study)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table.round(4).to_string(index=False))
    worst = table["difference"].abs().max(skipna=False)
    print(f"largest difference {worst:.4f}, allowed {TOLERANCE}")
    return int(not worst <= TOLERANCE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m adlib.release", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params/phantom.yaml"), help="of the study to release")
    parser.add_argument("--model", type=Path, default=RELEASED / "phantom", help="folder of a released model")
    parser.add_argument("--verify", action="store_true", help="find the scores of the released model again")
    parser.add_argument("--others", type=int, metavar="SEED", help="score the model on people simulated with this seed")
    parser.add_argument("--people", type=int, default=25, help="of each class, with --others")
    return parser


if __name__ == "__main__":
    sys.exit(main())
