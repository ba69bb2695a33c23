"""Score every run at each level, with intervals by bootstrap over participants, and write ``metrics.json``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from adlib.evaluation import scores
from adlib.evaluation.baselines import predict_baselines
from adlib.evaluation.prediction_sets import prediction_sets, set_scores
from adlib.phantom.cohort import TRUTH, bayes_probabilities
from adlib.study.metrics import CEILING, MEMBER, NETWORK
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

LEAK = "slice_split"  # the control with a split that disregards participants
Scores = dict[tuple[str, str | None], np.ndarray]  # by metric and class, None for all: (weightings,)
Score = Callable[[np.ndarray, np.ndarray, np.ndarray, StudyParams], Scores]  # of y, p, weights, params
SOURCES = ("manifest.tsv", "features.tsv", "splits.tsv", "predictions.parquet", "model.safetensors")


def evaluate_study(params: StudyParams) -> dict[str, Any]:
    """Score the network, its controls, the baselines and, for a phantom, the best possible classifier.

    Writes ``baselines.parquet`` (the baselines' predictions, as `records.PREDICTIONS`) and ``metrics.json``.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    dict
        The content of ``metrics.json``: ``entries`` and ``subgroups``, see `adlib.study.metrics.metrics_table`;
        ``confusion`` by run (participants); ``small_groups``, names of groups with too few participants;
        ``ceiling``; ``left_out`` scans; ``accepted``, the audit's stop findings that the params accept; ``sources``
        with the digest of every table the numbers come from.

    Raises
    ------
    StudyError
        If a table is missing, or a participant is in two parts of a fold.
    """
    folder = params.folder
    predictions = read_table(folder / "predictions.parquet", PREDICTIONS)
    splits = read_table(folder / "splits.tsv", SPLITS)
    check_disjoint(splits)
    check_unseen(predictions, splits)
    manifest = read_table(folder / "manifest.tsv", MANIFEST)
    features = read_table(folder / "features.tsv", FEATURES)
    audit = read_table(folder / "audit.tsv", AUDIT)
    baselines = predict_baselines(manifest, features, splits, params)
    write_table(baselines, folder / "baselines.parquet", PREDICTIONS)
    runs = pd.concat([predictions, baselines, *_best_possible(predictions, params)], ignore_index=True)
    trained = set(predictions["run"])
    tables = {str(run): table for run, table in runs.groupby("run", sort=False)}
    entries = [entry for run, table in tables.items() for entry in _score_levels(table, run, run in trained, params)]
    tested = {run: _tested(table, params) for run, table in tables.items() if not run.startswith(MEMBER)}
    entries += _against_baselines(tested, params)
    groups, small = _score_subgroups(tested[NETWORK], manifest, params)
    left_out = features.loc[features["qc_verdict"] == "fail", ["scan_id", "qc_reasons"]]
    accepted = audit.loc[audit["decision"] == "accepted by params", ["check", "subject", "value", "meaning"]]
    metrics: dict[str, Any] = {
        "study": params.study,
        "classes": list(params.classes),
        "bootstrap": params.evaluate.bootstrap,
        "entries": entries,
        "subgroups": groups,
        "small_groups": small,
        "confusion": {run: _confusion(pooled, params) for run, pooled in tested.items()},
        "left_out": left_out.to_dict("records"),
        "accepted": accepted.to_dict("records"),
        "sources": {name: content_digest(folder / name) for name in SOURCES},
    }
    if params.source.kind == "phantom":
        metrics["ceiling"] = read_json(folder / "source" / "truth" / "ceiling.json")
        metrics["entries"] += _share_of_ceiling(entries, max(metrics["ceiling"].values()))
    write_json(metrics, folder / "metrics.json")
    return metrics


def check_unseen(predictions: pd.DataFrame, splits: pd.DataFrame) -> None:
    """Refuse predictions that claim another part of the split than their participant's, `LEAK` excepted.

    Parameters
    ----------
    predictions : DataFrame
        Schema `records.PREDICTIONS`.
    splits : DataFrame
        Schema `records.SPLITS`.

    Raises
    ------
    StudyError
        From `check_disjoint`, with the participant.
    """
    names = ["participant_id", "fold", "split"]
    for run, claimed in predictions[predictions["run"] != LEAK].groupby("run"):
        member = str(run).removeprefix(MEMBER)
        left_out = splits["member"] == member if member != run else splits["member"].notna()
        expected = splits.assign(split=splits["split"].mask(left_out, "validation"))
        check_disjoint(pd.concat([expected[names], claimed[names]]).drop_duplicates())


def score_run(pooled: pd.DataFrame, run: str, level: str, params: StudyParams) -> list[dict[str, Any]]:
    """All scores of one run at one level, each with its 95 % percentile interval over participants.

    Parameters
    ----------
    pooled : DataFrame
        From `adlib.training.pooling.pool_level`.
    run, level : str
    params : StudyParams

    Returns
    -------
    list of dict
        Entries of ``metrics.json``.
    """
    return _entries(_scores, pooled, run, level, params)


def _score_levels(table: pd.DataFrame, run: str, trained: bool, params: StudyParams) -> list[dict[str, Any]]:
    """Entries of a run: scores by level, prediction sets and, of a trained network, scores before calibration."""
    people = _tested(table, params)
    if run.startswith(MEMBER):
        return score_run(people, run, "subject", params)
    tested, entries = table[table["split"] == "test"], []
    for level in LEVELS:
        if trained or level != "slice":
            entries += score_run(_pooled(tested, level, params), run, level, params)
    validation = _pooled(table[table["split"] == "validation"], "subject", params)
    sets = prediction_sets(validation, people, params.classes, params.evaluate.coverage)

    def score_sets(y: np.ndarray, _: np.ndarray, weights: np.ndarray, params: StudyParams) -> Scores:
        return set_scores(y, sets, weights, params.classes)

    entries += _entries(score_sets, people, run, "subject", params)
    if trained:
        entries += _entries(_uncalibrated_scores, _tested(uncalibrated(table), params), run, "subject", params)
    return entries


def _pooled(table: pd.DataFrame, level: str, params: StudyParams) -> pd.DataFrame:
    return pool_level(table, level, params.classes, params.input.pooling)


def _tested(table: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    return _pooled(table[table["split"] == "test"], "subject", params)


def _entries(
    score: Score, pooled: pd.DataFrame, run: str, level: str, params: StudyParams, **group: str
) -> list[dict[str, Any]]:
    """Entries of scores with intervals by bootstrap over participants."""
    values = _resampled(score, pooled, params).items()
    return [_entry(run, level, metric, label, len(pooled), each) | group for (metric, label), each in values]


def _resampled(score: Score, pooled: pd.DataFrame, params: StudyParams) -> Scores:
    """Scores of the sample, then of the resamples of participants."""
    y, p, groups = arrays(pooled, params.classes)
    return scores.resampled(lambda w: score(y, p, w, params), groups, params.evaluate.bootstrap, params.seed)


def _entry(run: str, level: str, metric: str, label: str | None, n: int, values: np.ndarray) -> dict[str, Any]:
    """An entry from the score (first) and its resamples."""
    point, resamples = float(values[0]), values[1:][np.isfinite(values[1:])]
    return {
        "run": run,
        "level": level,
        "metric": metric,
        "class": label,
        "n": n,
        "point": point if np.isfinite(point) else None,
        "ci95": np.percentile(resamples, [2.5, 97.5]).tolist() if len(resamples) else None,
    }


def _scores(y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams) -> Scores:
    matrix = scores.confusion(y, p, weights)
    values = scores.from_confusion(matrix, params.classes)
    values |= {("kappa_linear", None): scores.kappa(matrix), ("matthews", None): scores.matthews(matrix)}
    aucs = {name: scores.roc_auc(y == k, p[:, k], weights) for k, name in enumerate(params.classes)}
    values |= {("roc_auc", name): auc for name, auc in aucs.items()}
    values["roc_auc", "macro"] = np.mean(list(aucs.values()), axis=0)
    for k, name in enumerate(params.classes):
        values["average_precision", name] = scores.average_precision(y == k, p[:, k], weights)
    values["roc_auc_binary", None] = _binary_auc(y, p, weights, params.classes, params.evaluate)
    values["log_loss", None] = scores.log_loss(y, p, weights)
    values["brier", None] = scores.brier(y, p, weights)
    values["calibration_error", None] = scores.calibration_error(y, p, weights)
    return values


def _uncalibrated_scores(y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams) -> Scores:
    return {
        ("log_loss_uncalibrated", None): scores.log_loss(y, p, weights),
        ("calibration_error_uncalibrated", None): scores.calibration_error(y, p, weights),
    }


def _two_scores(y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams) -> Scores:
    balanced = scores.from_confusion(scores.confusion(y, p, weights), params.classes)["balanced_accuracy", None]
    area = _binary_auc(y, p, weights, params.classes, params.evaluate)
    return {("balanced_accuracy", None): balanced, ("roc_auc_binary", None): area}


def _subgroup_scores(y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams) -> Scores:
    """As `_two_scores`, but NaN where they would mislead.

    Without one of the classes balanced accuracy has another chance level; with a handful of participants on one side of
    the binary view its AUC is often 1 in every resample.
    """
    complete = (weights @ np.eye(len(params.classes))[y] > 0).all(1)
    smaller = min(np.isin(np.array(params.classes)[y], names).sum() for names in params.evaluate.binary.values())
    valid = (complete, 2 * smaller >= params.evaluate.subgroup_minimum)
    values = _two_scores(y, p, weights, params)
    return {name: np.where(kept, values[name], np.nan) for name, kept in zip(values, valid, strict=True)}


def participant_groups(manifest: pd.DataFrame, age_bands: tuple[float, ...]) -> pd.DataFrame:
    """Group names of each participant, by the facts of the first session.

    Parameters
    ----------
    manifest : DataFrame
        As `records.MANIFEST`.
    age_bands : tuple of float
        Rising ages that divide bands, years.

    Returns
    -------
    DataFrame
        Index participant_id; columns sex, age, site, manufacturer, field strength (text, missing where unknown), and
        only those in which participants differ.
    """
    first = manifest.sort_values(["participant_id", "session_id"]).drop_duplicates("participant_id")
    first = first.set_index("participant_id")
    groups = pd.DataFrame(
        {
            "sex": first["sex"].astype("string").str.upper().str[0],
            "age": _bands(first["age"], age_bands),
            "site": first["site"].astype("string"),
            "manufacturer": first["manufacturer"].astype("string").str.strip(),
            "field strength": first["field_strength_T"].map("{:g} T".format, na_action="ignore").astype("string"),
        }
    )
    return groups.loc[:, groups.nunique() > 1]


def _bands(age: pd.Series, edges: tuple[float, ...]) -> pd.Series:
    names = [f"under {edges[0]:g}", *(f"{low:g} to under {high:g}" for low, high in pairwise(edges))]
    names.append(f"{edges[-1]:g} and over")
    return pd.cut(age, [-np.inf, *edges, np.inf], right=False, labels=names, ordered=True)


def subgroups(pooled: pd.DataFrame, groups: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of each group of each column; age bands rise.

    Parameters
    ----------
    pooled : DataFrame
        Participants, from `adlib.training.pooling.pool_level`.
    groups : DataFrame
        From `participant_groups`.

    Yields
    ------
    name : str
        Such as ``sex F``.
    rows : DataFrame
        Of `pooled`; never empty.
    """
    for column in groups:
        for name, rows in pooled.groupby(pooled["participant_id"].map(groups[column]), observed=True):
            yield f"{column} {name}", rows


def _score_subgroups(
    tested: pd.DataFrame, manifest: pd.DataFrame, params: StudyParams
) -> tuple[list[dict[str, Any]], list[str]]:
    """Two scores of the network in each group of participants, and the names of groups that are too small."""
    entries, small = [], []
    for name, part in subgroups(tested, participant_groups(manifest, params.evaluate.age_bands)):
        if part["participant_id"].nunique() < params.evaluate.subgroup_minimum:
            small.append(name)
        else:
            entries += _entries(_subgroup_scores, part, NETWORK, "subject", params, group=name)
    return entries, small


def _binary_auc(
    y: np.ndarray, p: np.ndarray, weights: np.ndarray, classes: tuple[str, ...], params: EvaluateParams
) -> np.ndarray:
    """ROC AUC (B,) of the positive against the negative classes, among the items of these classes."""
    negative, positive = ([classes.index(c) for c in params.binary[side]] for side in ("negative", "positive"))
    taken = np.isin(y, negative + positive)
    up, down = p[taken][:, positive].sum(1), p[taken][:, negative].sum(1)
    return scores.roc_auc(np.isin(y[taken], positive), up / np.maximum(up + down, 1e-12), weights[:, taken])


def _against_baselines(tested: dict[str, pd.DataFrame], params: StudyParams) -> list[dict[str, Any]]:
    """The network's p value by permutation, and its paired differences to every run on the same participants.

    Differences are taken on the same resamples of participants; McNemar's test is of the decisions.
    """
    network, n = tested[NETWORK], len(tested[NETWORK])
    y, p, _ = arrays(network, params.classes)
    p_value = scores.permutation_p(y, p, params.evaluate.bootstrap, params.seed)
    entries = [_entry(NETWORK, "subject", "permutation_p", None, n, np.array([p_value]))]
    for run, other in tested.items():
        if run == NETWORK or list(other["participant_id"]) != list(network["participant_id"]):
            continue
        name = f"{NETWORK} - {run}"
        values, others = (_resampled(_two_scores, table, params) for table in (network, other))
        for metric, label in values:
            difference = values[metric, label] - others[metric, label]
            entries.append(_entry(name, "subject", f"{metric}_difference", label, n, difference))
        right = [p.argmax(1) == y for y, p, _ in (arrays(table, params.classes) for table in (network, other))]
        entries.append(_entry(name, "subject", "mcnemar_p", None, n, np.array([scores.mcnemar(*right)])))
    return entries


def _confusion(pooled: pd.DataFrame, params: StudyParams) -> list[list[int]]:
    y, p, _ = arrays(pooled, params.classes)
    return scores.confusion(y, p, np.ones((1, len(y))))[0].astype(int).tolist()


def _best_possible(predictions: pd.DataFrame, params: StudyParams) -> list[pd.DataFrame]:
    """Predictions of the classifier that has a phantom's true severity and age; empty for real data."""
    if params.source.kind != "phantom":
        return []
    truth = read_table(params.folder / "source" / "truth" / "truth.tsv", TRUTH)
    p = bayes_probabilities(truth, params.source, params.classes)
    probabilities = truth[["scan_id"]].assign(**{f"p_{name}": p[:, k] for k, name in enumerate(params.classes)})
    scans = predictions[predictions["run"] == NETWORK].drop_duplicates(["fold", "scan_id"])
    scans = scans[["participant_id", "session_id", "scan_id", "fold", "split", "truth"]]
    return [scans.assign(run=CEILING, slice=0, temperature=1.0).merge(probabilities, on="scan_id")]


def _share_of_ceiling(entries: list[dict[str, Any]], best: float) -> list[dict[str, Any]]:
    shares = []
    for entry in entries:
        if entry["metric"] == "balanced_accuracy" and entry["level"] == "subject" and entry["run"] != CEILING:
            share = {"metric": "share_of_bayes_ceiling", "point": entry["point"] / best}
            shares.append({**entry, **share, "ci95": [bound / best for bound in entry["ci95"]]})
    return shares
