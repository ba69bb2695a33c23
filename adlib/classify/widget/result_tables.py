"""Tables of classified scans, from the records that a prediction makes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from adlib.classify.model_store import find_model
from adlib.classify.nearest import read_examples
from adlib.classify.prediction import predict_file
from adlib.classify.result import Prediction, as_record
from adlib.study.params import StudyParams
from adlib.training import model_file

Record = dict[str, Any]


def classify_scans(params: StudyParams, paths: Iterable[str]) -> list[Prediction]:
    """Classify scans from their files, exactly as uploaded ones would be."""
    weights = find_model(params)
    classifier, examples = model_file.load(weights, trusted=True), read_examples(weights)
    settings = {"coverage": params.evaluate.coverage, "examples": examples}
    return [predict_file(path, classifier, **settings) for path in paths]


def records(predictions: Iterable[Prediction | Record]) -> list[Record]:
    """Records of predictions; what is a record already stays as it is."""
    return [as_record(one) if isinstance(one, Prediction) else one for one in predictions]


def probability_table(predictions: Iterable[Prediction | Record], truth: dict[str, str] | None = None) -> pd.DataFrame:
    """One row per scan: known diagnosis where there is one, answer, and the probability of each class."""
    rows = []
    for one in records(predictions):
        known = {"diagnosis": (truth or {}).get(one["name"], "unknown")} if truth is not None else {}
        answer = {"scan": one["name"], **known, "answer": one["predicted"] or "none", "quality control": one["verdict"]}
        rows.append({**answer, **{f"p({name})": value for name, value in one["probabilities"].items()}})
    return pd.DataFrame(rows).round(3)


def volume_table(predictions: Iterable[Prediction | Record]) -> pd.DataFrame:
    """One column per scan: tissue and regional volumes, ml, and the brain volume as a share (nbv)."""
    rows = records(predictions)
    return pd.DataFrame([one["volumes"] for one in rows], index=[one["name"] for one in rows]).T.round(2)


def summary_table(predictions: Iterable[Prediction | Record]) -> pd.DataFrame:
    """Number of scans, mean, standard deviation and range of probabilities and volumes; empty without scans."""
    rows = [
        {f"p({name})": p for name, p in one["probabilities"].items()} | one["volumes"] for one in records(predictions)
    ]
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).astype(float).agg(["count", "mean", "std", "min", "max"]).T.round(2)
    return table.astype({"count": int})


def batch_table(predictions: Iterable[Prediction | Record]) -> pd.DataFrame:
    """One row per scan with all that one compares scans by: answer, set, probabilities, volumes, percentiles."""
    rows = []
    for one in records(predictions):
        volumes = {name: value for name, value in one["volumes"].items() if name.endswith(("_ml", "nbv"))}
        placed = {f"{name} percentile": value for name, value in one["percentiles"].items()}
        p = {f"p({name})": value for name, value in one["probabilities"].items()}
        rows.append(
            {"scan": one["name"], "answer": one["predicted"] or "none", "set": " or ".join(one["set"]), **p}
            | {"slices": one["agreement"], "quality control": one["verdict"], **volumes, **placed}
        )
    return pd.DataFrame(rows).round(3)
