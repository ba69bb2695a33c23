"""Confounds: association of acquisition and demographic facts with the label, and its prediction without any image."""

from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from adlib.audit import acquisition
from adlib.audit.acquisition import ACQUISITION, IMAGE_QUALITY, acquisition_encoder, first_scans
from adlib.audit.advice import CHECKS, Finding, findings_of
from adlib.study.params import AuditParams

DEMOGRAPHIC = ("age", "sex")
_SINGLE = {
    "cohort-tells-label": acquisition.COHORT,
    "phase-tells-label": acquisition.PHASE,
    "slices-tell-label": acquisition.SLICES,
    "sequence-tells-label": acquisition.SEQUENCE,
}
_RESAMPLES = 500
_MIN_PEOPLE = 10  # of each of two classes, for the AUC of that pair
_AUC_WARN = 0.7  # ROC AUC without any image above which a finding is a warning
_CHANCE_SD = 3.5  # beyond which the AUC of one pair among many exceeds chance


def associations(manifest: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Measure the association of each fact about a participant's first scan with the label.

    Cramér's V with Bergsma's bias correction (2013, doi:10.1016/j.jkss.2012.10.002) for categories, the correlation
    ratio eta for numbers; percentile intervals from a bootstrap over participants; p values with Holm's correction.

    Parameters
    ----------
    manifest : DataFrame
        Schema `records.MANIFEST`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        Columns column, measure, association in [0, 1], ci_low, ci_high (95 %), p_holm, by p value. Constant and
        empty columns are left out.
    """
    people = first_scans(manifest)
    rows = []
    for name in (*ACQUISITION, *DEMOGRAPHIC):
        present = people[people[name].notna()]
        if present[name].nunique() < 2 or present["diagnosis"].nunique() < 2:
            continue
        numeric = pd.api.types.is_numeric_dtype(present[name])
        measure, strength = ("eta", _eta) if numeric else ("Cramér's V", _cramers_v)
        values = strength(present[name], present["diagnosis"], _resamples(len(present), seed))
        drawn = values[1:] - (np.nanmean(values[1:]) - values[0])  # drawing people twice adds association
        low, high = np.clip(np.nanpercentile(drawn, (2.5, 97.5)), 0, 1)
        p = _p_value(present[name], present["diagnosis"], numeric)
        rows.append((name, measure, values[0], low, high, p))
    columns = ["column", "measure", "association", "ci_low", "ci_high", "p"]
    table = pd.DataFrame(rows, columns=columns).sort_values("p", kind="stable")
    steps = table["p"] * np.arange(len(table), 0, -1)
    return table.assign(p_holm=np.minimum(steps.cummax(), 1)).drop(columns="p").reset_index(drop=True)


@lru_cache(2)
def _resamples(people: int, seed: int) -> np.ndarray:
    """(1 + _RESAMPLES, people) float64: how often each person counts; first once each, then as the bootstrap drew."""
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), _RESAMPLES)
    return np.concatenate([np.ones((1, people)), drawn])


def _cramers_v(values: pd.Series, labels: pd.Series, counts: np.ndarray) -> np.ndarray:
    """(B,) bias-corrected Cramér's V of each row of `counts`."""
    levels, classes = (pd.get_dummies(column).to_numpy(float) for column in (values, labels))
    table = np.stack([counts @ (levels * classes[:, [k]]) for k in range(classes.shape[1])], axis=2)
    n = counts.sum(axis=1)
    by_level, by_class = table.sum(axis=2), table.sum(axis=1)
    expected = by_level[:, :, None] * by_class[:, None, :] / n[:, None, None]
    chi2 = np.divide((table - expected) ** 2, expected, out=np.zeros_like(table), where=expected > 0).sum(axis=(1, 2))
    rows, columns = (by_level > 0).sum(axis=1), (by_class > 0).sum(axis=1)
    phi2 = np.maximum(0, chi2 / n - (rows - 1) * (columns - 1) / (n - 1))
    size = np.minimum(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)) - 1
    return np.sqrt(np.divide(phi2, size, out=np.zeros_like(phi2), where=size > 0))


def _eta(values: pd.Series, labels: pd.Series, counts: np.ndarray) -> np.ndarray:
    """(B,) correlation ratio of each row of `counts` less its share by chance (Kelley, doi:10.1073/pnas.21.9.554)."""
    x = values.to_numpy(float) - values.mean()
    classes = pd.get_dummies(labels).to_numpy(float)
    n, sums = counts @ classes, counts @ (classes * x[:, None])
    mean = sums.sum(axis=1) / n.sum(axis=1)
    total = counts @ x**2 - n.sum(axis=1) * mean**2
    means = np.divide(sums, n, out=np.zeros_like(sums), where=n > 0)
    within = total - (n * (means - mean[:, None]) ** 2).sum(axis=1)
    people, groups = n.sum(axis=1), (n > 0).sum(axis=1)
    share = np.divide(within, total, out=np.ones_like(total), where=total > 1e-12)
    return np.sqrt(np.clip(1 - share * (people - 1) / np.maximum(people - groups, 1), 0, 1))


def _p_value(values: pd.Series, labels: pd.Series, numeric: bool) -> float:
    if not numeric:
        return float(stats.chi2_contingency(pd.crosstab(values, labels), correction=False).pvalue)
    groups = [group.to_numpy(float) for _, group in values.groupby(labels) if len(group) > 1]
    if len(groups) < 2:
        return 1.0
    if all(np.ptp(group) == 0 for group in groups):
        return 0.0 if len({group[0] for group in groups}) > 1 else 1.0
    return float(np.nan_to_num(stats.f_oneway(*groups).pvalue, nan=1.0))  # equal means to the last bit give no F


def check_confounds(manifest: pd.DataFrame, params: AuditParams, seed: int) -> list[Finding]:
    """Score classifiers without images: on cohort, phase, slices, sequence each, then all acquisition facts together.

    A score stops the study where the macro AUC or that of a pair of classes is above the limit, so that a phase that
    separates MCI from LMCI counts among other classes. Facts that stop by themselves are left out of the last score.

    Parameters
    ----------
    manifest : DataFrame
        Schema `records.MANIFEST`.
    params : AuditParams
    seed : int
        Of the folds.
    """
    people = first_scans(manifest)
    findings: list[Finding] = []
    rest: tuple[str, ...] = ACQUISITION
    for check, columns in _SINGLE.items():
        for scored in _confound(check, people, columns, params, seed):
            if scored["severity"] == "stop":
                rest = tuple(name for name in rest if name not in columns)
            if scored["severity"] != "info":
                findings.append(scored)
    findings += _confound("acquisition-tells-label", people, rest, params, seed)
    return findings + _confound("demographics-tell-label", people, DEMOGRAPHIC, params, seed)


def check_quality(manifest: pd.DataFrame, features: pd.DataFrame, params: AuditParams, seed: int) -> list[Finding]:
    """Score a classifier on noise, motion and artefacts of participants' first scans alone.

    Parameters
    ----------
    manifest : DataFrame
        Schema `records.MANIFEST`.
    features : DataFrame
        Schema `records.FEATURES`; scans that fail quality control do not count.
    params : AuditParams
    seed : int
        Of the folds.
    """
    columns = tuple(features.columns.intersection(IMAGE_QUALITY))
    usable = features.loc[features["qc_verdict"] != "fail", ["scan_id", *columns]]
    people = first_scans(manifest[manifest["scan_id"].isin(usable["scan_id"])]).merge(usable, on="scan_id")
    return _confound("quality-tells-label", people, columns, params, seed)


def _confound(
    check: str, people: pd.DataFrame, columns: tuple[str, ...], params: AuditParams, seed: int
) -> list[Finding]:
    labels = people["diagnosis"]
    facts = people[[name for name in columns if people[name].nunique() > 1]]
    if facts.empty or labels.value_counts().min() < 5 or labels.nunique() < 2:
        return []
    model = LogisticRegression(max_iter=2000, class_weight="balanced")
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    encoded = acquisition_encoder().fit_transform(facts)  # no label enters the encoding of all people at once
    p = cross_val_predict(model, encoded, labels, cv=folds, method="predict_proba")
    classes = sorted(labels.unique())
    macro = float(np.mean([roc_auc_score(labels == name, p[:, k]) for k, name in enumerate(classes)]))
    auc, pair, chance = _best_pair(labels.to_numpy(), p, classes)
    value = f"{macro:.2f}" + (f", {pair} {auc:.2f}" if len(classes) > 2 and pair else "")
    limit, stops = f"warn {_AUC_WARN}", "stop" in CHECKS[check].severities
    limit += f", stop {params.metadata_auc_stop}" if stops else ""
    severity = "warn" if macro > _AUC_WARN or auc > max(_AUC_WARN, chance) else "info"
    if stops and max(macro, auc) > params.metadata_auc_stop:
        severity = "stop"
    return findings_of(check, severity, ["all participants"], value, limit)


def _best_pair(labels: np.ndarray, p: np.ndarray, classes: list[str]) -> tuple[float, str, float]:
    """The highest ROC AUC of two classes, their names, and the AUC that chance may reach.

    Hand & Till 2001, doi:10.1023/A:1010920819831 (AUC of pairs); Mann & Whitney 1947, doi:10.1214/aoms/1177730491
    (standard deviation of the AUC by chance).
    """
    best = (0.0, "", 1.0)
    for (i, first), (k, second) in combinations(enumerate(classes), 2):
        two = (labels == first) | (labels == second)
        sizes = (labels == first).sum(), (labels == second).sum()
        if min(sizes) >= _MIN_PEOPLE:
            score = float(roc_auc_score(labels[two] == second, p[two, k] / np.maximum(p[two, i] + p[two, k], 1e-12)))
            chance = 0.5 + _CHANCE_SD * np.sqrt((sum(sizes) + 1) / (12 * sizes[0] * sizes[1]))
            best = max(best, (score, f"{first} against {second}", float(chance)))
    return best
