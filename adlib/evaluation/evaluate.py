"""Pool slices to scans to participants and score every run with intervals by bootstrap over participants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from adlib.evaluation import scores
from adlib.evaluation.baselines import predict_baselines
from adlib.evaluation.prediction_sets import prediction_sets, set_scores
from adlib.evaluation.subgroups import divided, groups_of_people
from adlib.phantom.cohort import TRUTH, bayes_probabilities
from adlib.study.metrics import CEILING, NETWORK
from adlib.study.params import EvaluateParams, StudyParams
from adlib.study.records import (
    AUDIT,
    FEATURES,
    MANIFEST,
    PREDICTIONS,
    SPLITS,
    content_digest,
    read_json,
    read_table,
    write_json,
    write_table,
)
from adlib.training.pooling import LEVELS, arrays, pool_level, uncalibrated
from adlib.training.splits import check_disjoint

LEAK = "slice_split"  # the control that shows what a split without regard to participants adds
Scores = dict[Any, np.ndarray]  # by metric, or metric and class: (weightings,)
SOURCES = ("manifest.tsv", "features.tsv", "splits.tsv", "predictions.parquet", "model.safetensors")


def evaluate_study(params: StudyParams) -> dict[str, Any]:
    """Score the network, its controls, the baselines and, for a phantom, the best possible classifier.

    Writes ``baselines.parquet`` (the baselines' predictions, as `records.PREDICTIONS`) and ``metrics.json``.

    Returns
    -------
    dict
        The content of ``metrics.json``: ``entries`` with run, level, metric, class, n, point and ci95; ``confusion`` by
        run (participants); ``subgroups``, entries of the network with their ``group``, and ``small_groups``, names of
        groups with too few participants; ``ceiling``; ``left_out`` scans; ``accepted``, the audit's stop findings that
        the params accept; ``sources`` with the digest of every table the numbers come from.
    """
    folder = params.folder
    predictions = read_table(folder / "predictions.parquet", PREDICTIONS)
    splits = read_table(folder / "splits.tsv", SPLITS)
    check_disjoint(splits)
    check_unseen(predictions, splits)
    manifest = read_table(folder / "manifest.tsv", MANIFEST)
    features = read_table(folder / "features.tsv", FEATURES)
    baselines = predict_baselines(manifest, features, splits, params)
    write_table(baselines, folder / "baselines.parquet", PREDICTIONS)
    runs = pd.concat([predictions, baselines, *best_possible(predictions, params)], ignore_index=True)
    tested = runs[runs["split"] == "test"]
    entries: list[dict[str, Any]] = []
    for run, table in tested.groupby("run", sort=False):
        levels = LEVELS if run in set(predictions["run"]) else {k: v for k, v in LEVELS.items() if k != "slice"}
        for level in levels:
            entries += score_run(_pooled(table, level, params), str(run), level, params)
        entries += _sets(runs[runs["run"] == run], str(run), params)
        if run in set(predictions["run"]):
            entries += _before_calibration(table, str(run), params)
    entries += _against_baselines(tested, params)
    subgroups, small = _subgroups(tested[tested["run"] == NETWORK], manifest, params)
    metrics = {
        "study": params.study,
        "classes": list(params.classes),
        "bootstrap": params.evaluate.bootstrap,
        "entries": [_plain(entry) for entry in entries],
        "subgroups": [_plain(entry) for entry in subgroups],
        "small_groups": small,
        "confusion": {str(run): _confusion(t, params) for run, t in tested.groupby("run", sort=False)},
        "left_out": _left_out(features),
        "accepted": accepted_findings(read_table(folder / "audit.tsv", AUDIT)),
        "sources": {name: content_digest(folder / name) for name in SOURCES},
    }
    if params.source.kind == "phantom":
        metrics["ceiling"] = read_json(folder / "source" / "truth" / "ceiling.json")
        metrics["entries"] += [_plain(e) for e in _share_of_ceiling(metrics["entries"], metrics["ceiling"])]
    write_json(metrics, folder / "metrics.json")
    return metrics


def check_unseen(predictions: pd.DataFrame, splits: pd.DataFrame) -> None:
    """Refuse predictions of participants that stand in another part of the split than they claim, `LEAK` excepted.

    Raises
    ------
    StudyError
        From `check_disjoint`, with the participant.
    """
    claimed = predictions[predictions["run"] != LEAK][["participant_id", "fold", "split"]].drop_duplicates()
    check_disjoint(pd.concat([splits[["participant_id", "fold", "split"]], claimed]).drop_duplicates())


def _pooled(table: pd.DataFrame, level: str, params: StudyParams) -> pd.DataFrame:
    return pool_level(table, level, params.classes, params.input.pooling)


def score_run(pooled: pd.DataFrame, run: str, level: str, params: StudyParams) -> list[dict[str, Any]]:
    """All scores of one run at one level, each with its 95 % percentile interval over participants."""
    y, p, groups = arrays(pooled, params.classes)
    found = _resampled(lambda weights: _scores(y, p, weights, params), groups, params)
    return [_entry(run, level, metric, label, len(y), values) for (metric, label), values in found.items()]


def _resampled(score: Callable[[np.ndarray], Scores], groups: np.ndarray, params: StudyParams) -> Scores:
    return scores.resampled(score, groups, params.evaluate.bootstrap, params.seed)


def _scores(y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams) -> Scores:
    matrix = scores.confusion(y, p, weights)
    found = scores.from_confusion(matrix, params.classes)
    found |= {("kappa_linear", None): scores.kappa(matrix), ("matthews", None): scores.matthews(matrix)}
    aucs = {name: scores.roc_auc(y == k, p[:, k], weights) for k, name in enumerate(params.classes)}
    found |= {("roc_auc", name): values for name, values in aucs.items()}
    found["roc_auc", "macro"] = np.mean(list(aucs.values()), axis=0)
    for k, name in enumerate(params.classes):
        found["average_precision", name] = scores.average_precision(y == k, p[:, k], weights)
    found["roc_auc_binary", None] = binary_auc(y, p, weights, params.classes, params.evaluate)
    found["log_loss", None] = scores.log_loss(y, p, weights)
    found["brier", None] = scores.brier(y, p, weights)
    found["calibration_error", None] = scores.calibration_error(y, p, weights)
    return found


def _sets(table: pd.DataFrame, run: str, params: StudyParams) -> list[dict[str, Any]]:
    """Coverage and size of the prediction sets of one run's tested participants."""
    validation, tested = (_pooled(table[table["split"] == part], "subject", params) for part in ("validation", "test"))
    y, _, groups = arrays(tested, params.classes)
    sets = prediction_sets(validation, tested, params.classes, params.evaluate.coverage)
    found = _resampled(lambda weights: set_scores(y, sets, weights, params.classes), groups, params)
    return [_entry(run, "subject", metric, label, len(y), values) for (metric, label), values in found.items()]


def _before_calibration(table: pd.DataFrame, run: str, params: StudyParams) -> list[dict[str, Any]]:
    """Log loss and calibration error of participants as the network itself says them."""
    y, p, groups = arrays(_pooled(uncalibrated(table), "subject", params), params.classes)
    found = _resampled(
        lambda weights: {
            "log_loss_uncalibrated": scores.log_loss(y, p, weights),
            "calibration_error_uncalibrated": scores.calibration_error(y, p, weights),
        },
        groups,
        params,
    )
    return [_entry(run, "subject", metric, None, len(y), values) for metric, values in found.items()]


def _subgroups(
    tested: pd.DataFrame, manifest: pd.DataFrame, params: StudyParams
) -> tuple[list[dict[str, Any]], list[str]]:
    """Two scores of the network in each group of participants, and the names of groups that are too small."""
    entries, small = [], []
    groups = groups_of_people(manifest, params.evaluate.age_bands)
    for name, part in divided(_pooled(tested, "subject", params), groups):
        n = part["participant_id"].nunique()
        if n < params.evaluate.subgroup_minimum:
            small.append(name)
            continue
        found = _group_scores(part, params)
        entries += [_entry(NETWORK, "subject", k, None, n, values) | {"group": name} for k, values in found.items()]
    return entries, small


def _group_scores(pooled: pd.DataFrame, params: StudyParams) -> Scores:
    """As `_two_scores`, but NaN where they would mislead.

    Without one of the classes balanced accuracy has another chance level; with a handful of participants on one side of
    the binary view its AUC is often 1 in every resample.
    """
    y, p, groups = arrays(pooled, params.classes)
    return _resampled(lambda weights: _scores_where_complete(pooled, y, p, weights, params), groups, params)


def _scores_where_complete(
    pooled: pd.DataFrame, y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams
) -> Scores:
    complete = (weights @ np.eye(len(params.classes))[y] > 0).all(1)
    balanced = np.full(len(weights), np.nan)
    matrix = scores.confusion(y, p, weights[complete])
    balanced[complete] = scores.from_confusion(matrix, params.classes)["balanced_accuracy", None]
    sides = [pooled["truth"].isin(names).sum() for names in params.evaluate.binary.values()]
    enough = 2 * min(sides) >= params.evaluate.subgroup_minimum
    area = binary_auc(y, p, weights, params.classes, params.evaluate) if enough else np.full(len(weights), np.nan)
    return {"balanced_accuracy": balanced, "roc_auc_binary": area}


def binary_auc(
    y: np.ndarray, p: np.ndarray, weights: np.ndarray, classes: tuple[str, ...], params: EvaluateParams
) -> np.ndarray:
    """ROC AUC (B,) of the positive against the negative classes, among the items of these classes."""
    negative, positive = ([classes.index(c) for c in params.binary[side]] for side in ("negative", "positive"))
    taken = np.isin(y, negative + positive)
    up, down = p[taken][:, positive].sum(1), p[taken][:, negative].sum(1)
    return scores.roc_auc(np.isin(y[taken], positive), up / np.maximum(up + down, 1e-12), weights[:, taken])


def _entry(run: str, level: str, metric: str, label: str | None, n: int, values: np.ndarray) -> dict[str, Any]:
    resampled = values[1:][np.isfinite(values[1:])]
    interval = np.percentile(resampled, [2.5, 97.5]).tolist() if len(resampled) else None
    return {
        "run": run,
        "level": level,
        "metric": metric,
        "class": label,
        "n": n,
        "point": float(values[0]),
        "ci95": interval,
    }


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "point": entry["point"] if np.isfinite(entry["point"]) else None}


def _against_baselines(tested: pd.DataFrame, params: StudyParams) -> list[dict[str, Any]]:
    """The network's p value by permutation, and its paired differences to every other run.

    Differences are taken on the same resamples of participants; McNemar's test is of the decisions.
    """
    pooled = {run: _pooled(t, "subject", params) for run, t in tested.groupby("run", sort=False)}
    network = pooled.pop(NETWORK)
    y, p, _ = arrays(network, params.classes)
    chance = scores.permutation_p(y, p, params.evaluate.bootstrap, params.seed)
    entries = [_p_value(NETWORK, "permutation_p", len(y), chance)]
    for run, other in pooled.items():
        if list(other["participant_id"]) != list(network["participant_id"]):
            continue
        mine, theirs = (_two_scores(table, params) for table in (network, other))
        for metric, values in mine.items():
            name = f"{metric}_difference"
            entries.append(_entry(f"{NETWORK} - {run}", "subject", name, None, len(network), values - theirs[metric]))
        right = [p.argmax(1) == y for y, p, _ in (arrays(table, params.classes) for table in (network, other))]
        entries.append(_p_value(f"{NETWORK} - {run}", "mcnemar_p", len(network), scores.mcnemar(*right)))
    return entries


def _p_value(run: str, metric: str, n: int, value: float) -> dict[str, Any]:
    return {"run": run, "level": "subject", "metric": metric, "class": None, "n": n, "point": value, "ci95": None}


def _two_scores(pooled: pd.DataFrame, params: StudyParams) -> Scores:
    y, p, groups = arrays(pooled, params.classes)

    def both(weights: np.ndarray) -> Scores:
        balanced = scores.from_confusion(scores.confusion(y, p, weights), params.classes)["balanced_accuracy", None]
        area = binary_auc(y, p, weights, params.classes, params.evaluate)
        return {"balanced_accuracy": balanced, "roc_auc_binary": area}

    return _resampled(both, groups, params)


def _confusion(table: pd.DataFrame, params: StudyParams) -> list[list[int]]:
    y, p, _ = arrays(_pooled(table, "subject", params), params.classes)
    return scores.confusion(y, p, np.ones((1, len(y))))[0].astype(int).tolist()


def _left_out(features: pd.DataFrame) -> list[dict[str, str]]:
    failed = features[features["qc_verdict"] == "fail"]
    return failed[["scan_id", "qc_reasons"]].to_dict("records")


def accepted_findings(audit: pd.DataFrame) -> list[dict[str, str]]:
    """Check, subject, value and meaning of each stop finding of `records.AUDIT` with which the study went on."""
    accepted = audit[audit["decision"] == "accepted by params"]
    return accepted[["check", "subject", "value", "meaning"]].to_dict("records")


def best_possible(predictions: pd.DataFrame, params: StudyParams) -> list[pd.DataFrame]:
    """Predictions of the classifier that knows a phantom's true severity and age; empty for real data."""
    if params.source.kind != "phantom":
        return []
    truth = read_table(params.folder / "source" / "truth" / "truth.tsv", TRUTH)
    p = bayes_probabilities(truth, params.source, params.classes)
    known = truth[["scan_id"]].assign(**{f"p_{name}": p[:, k] for k, name in enumerate(params.classes)})
    scans = predictions[predictions["run"] == NETWORK].drop_duplicates(["fold", "scan_id"])
    scans = scans[["participant_id", "session_id", "scan_id", "fold", "split", "truth"]]
    return [scans.assign(run=CEILING, slice=0, temperature=1.0).merge(known, on="scan_id")]


def _share_of_ceiling(entries: list[dict[str, Any]], ceiling: dict[str, float]) -> list[dict[str, Any]]:
    best = max(ceiling.values())
    shares = []
    for entry in entries:
        if entry["metric"] == "balanced_accuracy" and entry["level"] == "subject" and entry["run"] != CEILING:
            share = {"metric": "share_of_bayes_ceiling", "point": entry["point"] / best}
            shares.append({**entry, **share, "ci95": [bound / best for bound in entry["ci95"]]})
    return shares
