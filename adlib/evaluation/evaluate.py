"""Score every run at each level, with intervals by bootstrap over participants, and write ``metrics.json``."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from adlib.audit.advice import LINKED
from adlib.audit.confounds import check_quality
from adlib.evaluation import risk, scores
from adlib.evaluation.baselines import predict_baselines
from adlib.evaluation.prediction_sets import prediction_sets, set_scores
from adlib.phantom.cohort import TRUTH, bayes_probabilities
from adlib.study.metrics import CEILING, MEMBER, NETWORK
from adlib.study.params import StudyParams
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
GAPS = ("balanced_accuracy", "roc_auc_binary")
SHARED = {"slice": "shared_slice", "subject": "shared_subject"}  # levels of slices that network and `LEAK` both test
FIRST = "first_session"  # level of participants by their first session alone
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
        ``confusion`` by run (participants); ``decision_curve`` of the network; ``findings`` of the audit about image
        quality, which need this study's features; ``small_groups``, names of groups with too few participants;
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
    entries += _entries(_calibration_by_class, tested[NETWORK], NETWORK, "subject", params)
    entries += _against_baselines(tested, params)
    if LEAK in tables:
        entries += _against_leak(tables[NETWORK], tables[LEAK], params)
    groups, small = _score_subgroups(tested[NETWORK], _sets(tables[NETWORK], params), manifest, params)
    left_out = features.loc[features["qc_verdict"] == "fail", ["scan_id", "qc_reasons"]]
    findings = check_quality(manifest, features, params.audit, params.seed)
    accepted = audit.loc[audit["decision"] == "accepted by params", ["check", "subject", "value", "meaning"]]
    metrics: dict[str, Any] = {
        "study": params.study,
        "classes": list(params.classes),
        "bootstrap": params.evaluate.bootstrap,
        "entries": entries,
        "subgroups": groups,
        "small_groups": small,
        "confusion": {run: _confusion(pooled, params) for run, pooled in tested.items()},
        "decision_curve": _decision_curve(tested[NETWORK], params),
        "findings": [{name: value for name, value in found.items() if name != LINKED} for found in findings],
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
    people, member = _tested(table, params), run.startswith(MEMBER)
    tested, entries = table[table["split"] == "test"], []
    for level in LEVELS:
        if level == "subject" or not (member or (level == "slice" and not trained)):
            entries += score_run(_pooled(tested, level, params), run, level, params)
    first = first_sessions(tested)
    if len(first) < len(tested) and not member:
        entries += score_run(_pooled(first, "subject", params), run, FIRST, params)
    sets = _sets(table, params)

    def score_sets(y: np.ndarray, _: np.ndarray, weights: np.ndarray, params: StudyParams) -> Scores:
        return set_scores(y, sets, weights, params.classes)

    for score in (score_sets, _risk_scores):
        entries += _entries(score, people, run, "subject", params)
    if trained and not member:
        entries += _entries(_uncalibrated_scores, _tested(uncalibrated(table), params), run, "subject", params)
    return entries


def first_sessions(predictions: pd.DataFrame) -> pd.DataFrame:
    """Predictions of the first session of each participant that passed preprocessing, by the order of session_id.

    Parameters
    ----------
    predictions : DataFrame
        Schema `records.PREDICTIONS`.
    """
    sessions = predictions["session_id"].astype("string").fillna("")
    first = sessions.groupby([predictions["run"], predictions["fold"], predictions["participant_id"]]).transform("min")
    return predictions[sessions == first]


def _sets(table: pd.DataFrame, params: StudyParams) -> np.ndarray:
    """Prediction sets (n, K) of the tested participants of a run."""
    validation = _pooled(table[table["split"] == "validation"], "subject", params)
    return prediction_sets(validation, _tested(table, params), params.classes, params.evaluate.coverage)


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
    values["roc_auc_binary", None] = _of_risk(scores.roc_auc, y, p, weights, params)
    values["log_loss", None] = scores.log_loss(y, p, weights)
    values["brier", None] = scores.brier(y, p, weights)
    values["ranked_probability", None] = scores.ranked_probability(y, p, weights)
    values["calibration_error", None] = scores.calibration_error(y, p, weights)
    return values


def _uncalibrated_scores(y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams) -> Scores:
    return {
        ("log_loss_uncalibrated", None): scores.log_loss(y, p, weights),
        ("calibration_error_uncalibrated", None): scores.calibration_error(y, p, weights),
    }


def _two_scores(y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams) -> Scores:
    balanced = scores.from_confusion(scores.confusion(y, p, weights), params.classes)["balanced_accuracy", None]
    area = _of_risk(scores.roc_auc, y, p, weights, params)
    return {("balanced_accuracy", None): balanced, ("roc_auc_binary", None): area}


def _of_risk(
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], Any],
    y: np.ndarray,
    p: np.ndarray,
    weights: np.ndarray,
    params: StudyParams,
) -> Any:
    """A score of the binary view, among the items of its classes."""
    taken, positive, risks = risk.binary_view(y, p, params.classes, params.evaluate.binary)
    return score(positive, risks, weights[:, taken])


def _risk_scores(y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams) -> Scores:
    """Scores of the binary view other than its AUC."""
    taken, positive, risks = risk.binary_view(y, p, params.classes, params.evaluate.binary)
    view = positive, risks, weights[:, taken]
    intercept, slope = risk.calibration_line(*view)
    for_positive, for_negative = risk.predictive_values(*view, params.evaluate.prevalence)
    return {
        ("calibration_intercept", None): intercept,
        ("calibration_slope", None): slope,
        ("positive_predictive_value", None): for_positive,
        ("negative_predictive_value", None): for_negative,
        ("sensitivity_at_90_specificity", None): risk.sensitivity_at(*view),
    }


def _calibration_by_class(y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams) -> Scores:
    """Calibration intercept and slope of each class against the rest."""
    values: Scores = {}
    for k, name in enumerate(params.classes):
        lines = risk.calibration_line(y == k, p[:, k], weights)
        values |= {
            (f"calibration_{part}", name): line for part, line in zip(("intercept", "slope"), lines, strict=True)
        }
    return values


def _decision_curve(pooled: pd.DataFrame, params: StudyParams) -> dict[str, list[float]]:
    """Net benefit of the network by threshold, its interval, and that of treating all; empty if nobody is positive."""

    def curves(y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams) -> dict[str, np.ndarray]:
        taken, positive, risks = risk.binary_view(y, p, params.classes, params.evaluate.binary)
        view = {"network": risks, "treat_all": np.ones_like(risks)}
        return {name: risk.net_benefit(positive, values, weights[:, taken]) for name, values in view.items()}

    y, p, groups = arrays(pooled, params.classes)
    if not risk.binary_view(y, p, params.classes, params.evaluate.binary)[0].any():
        return {}
    found = scores.resampled(lambda w: curves(y, p, w, params), groups, params.evaluate.bootstrap, params.seed)
    low, high = np.nanpercentile(found["network"][1:], [2.5, 97.5], axis=0)
    columns = {"network": found["network"][0], "low": low, "high": high, "treat_all": found["treat_all"][0]}
    return {"threshold": risk.THRESHOLDS.tolist()} | {name: values.tolist() for name, values in columns.items()}


def _subgroup_scores(y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams) -> Scores:
    """Scores of a group, but NaN where they would mislead.

    Without one of the classes balanced accuracy has another chance level. With a handful of participants of a class, or
    on one side of the binary view, the score hardly varies over resamples, and its interval is too narrow.
    """
    enough = params.evaluate.subgroup_minimum / 2
    each = np.bincount(y, minlength=len(params.classes))
    complete = (weights @ np.eye(len(params.classes))[y] > 0).all(1) & (each.min() >= enough)
    sides = [sum(each[params.classes.index(c)] for c in names) for names in params.evaluate.binary.values()]
    values = _two_scores(y, p, weights, params)
    values["calibration_intercept", None] = _of_risk(risk.calibration_line, y, p, weights, params)[0]
    valid = dict.fromkeys(values, min(sides) >= enough) | {("balanced_accuracy", None): complete}
    return {name: np.where(valid[name], value, np.nan) for name, value in values.items()}


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


def subgroups(pooled: pd.DataFrame, groups: pd.DataFrame) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Rows of each group of each column, and those of its other groups; age bands rise.

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
    inside, outside : (n,) bool
        Rows of `pooled` in the group, of which there are some, and in another group of the column.
    """
    for column in groups:
        values = pooled["participant_id"].map(groups[column])
        present = values.cat.categories if isinstance(values.dtype, pd.CategoricalDtype) else sorted(values.dropna())
        for name in dict.fromkeys(present):
            inside = (values == name).fillna(False).to_numpy(bool)
            if inside.any():
                yield f"{column} {name}", inside, values.notna().to_numpy() & ~inside


def _score_subgroups(
    tested: pd.DataFrame, sets: np.ndarray, manifest: pd.DataFrame, params: StudyParams
) -> tuple[list[dict[str, Any]], list[str]]:
    """Scores of the network in each group of participants, and the names of groups that are too small.

    All groups are scored on the same resamples of all participants, so that a gap, the score of a group less that of
    all participants outside it whose group is known, has an interval. `sets` are the prediction sets (n, K).
    """
    entries, small = [], []
    groups = participant_groups(manifest, params.evaluate.age_bands)
    for name, inside, outside in subgroups(tested, groups):
        if tested.loc[inside, "participant_id"].nunique() < params.evaluate.subgroup_minimum:
            small.append(name)
            continue

        def score_group(
            y: np.ndarray, p: np.ndarray, weights: np.ndarray, params: StudyParams,
            inside: np.ndarray = inside, outside: np.ndarray = outside,
        ) -> Scores:  # fmt: skip
            mine, others = (_subgroup_scores(y[of], p[of], weights[:, of], params) for of in (inside, outside))
            gaps = {(f"{metric}_gap", None): mine[metric, None] - others[metric, None] for metric in GAPS}
            held = set_scores(y[inside], sets[inside], weights[:, inside], params.classes)["coverage", None]
            return mine | {("coverage", None): held} | gaps

        found = _entries(score_group, tested, NETWORK, "subject", params, group=name)
        entries += [_with_interval_or_none(entry) | {"n": int(inside.sum())} for entry in found]
    return entries, small


def _with_interval_or_none(entry: dict[str, Any]) -> dict[str, Any]:
    """Without an interval where all resamples agree: a few participants, not certainty, are the reason."""
    bounds = entry["ci95"]
    return entry | {"ci95": None} if bounds and bounds[0] == bounds[1] else entry


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
        entries += _differences(network, other, name, "subject", params)
        right = [p.argmax(1) == y for y, p, _ in (arrays(table, params.classes) for table in (network, other))]
        entries.append(_entry(name, "subject", "mcnemar_p", None, n, np.array([scores.mcnemar(*right)])))
    return entries


def _against_leak(network: pd.DataFrame, leak: pd.DataFrame, params: StudyParams) -> list[dict[str, Any]]:
    """Network and `LEAK` on the slices that both test, hence on the same participants, and their differences."""
    tables = [table[table["split"] == "test"] for table in (network, leak)]
    keys = ["fold", "participant_id", "scan_id", "slice"]
    shared = tables[0][keys].merge(tables[1][keys])
    if shared.empty:
        return []
    entries = []
    for level, name in SHARED.items():
        mine, theirs = (_pooled(table.merge(shared), level, params) for table in tables)
        for run, pooled in ((NETWORK, mine), (LEAK, theirs)):
            entries += _entries(_two_scores, pooled, run, name, params)
        entries += _differences(mine, theirs, f"{NETWORK} - {LEAK}", name, params)
    return entries


def _differences(
    network: pd.DataFrame, other: pd.DataFrame, name: str, level: str, params: StudyParams
) -> list[dict[str, Any]]:
    """Differences of two scores on the same items and the same resamples of participants."""
    values, others = (_resampled(_two_scores, table, params) for table in (network, other))
    return [
        _entry(name, level, f"{metric}_difference", label, len(network), values[metric, label] - others[metric, label])
        for metric, label in values
    ]


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
