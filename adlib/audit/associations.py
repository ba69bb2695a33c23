"""Association of acquisition and demographic facts with the label, without any image: Cramér's V, eta, ROC AUC."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from adlib.audit.acquisition import ACQUISITION, acquisition_encoder, first_scans

DEMOGRAPHIC = ("age", "sex")
_RESAMPLES = 500
_MIN_PEOPLE = 10  # of each of two classes, for the AUC of that pair
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
    rows, counts = [], _resamples(len(people), seed)
    for name in (*ACQUISITION, *DEMOGRAPHIC):
        present = people[people[name].notna()]
        if present[name].nunique() < 2 or present["diagnosis"].nunique() < 2:
            continue
        numeric = pd.api.types.is_numeric_dtype(present[name])
        strength = _eta if numeric else _cramers_v
        if counts.shape[1] != len(present):
            counts = _resamples(len(present), seed)
        values = strength(present[name], present["diagnosis"], counts)
        low, high = _interval(values)
        p = _p_value(present[name], present["diagnosis"], numeric)
        rows.append((name, "eta" if numeric else "Cramér's V", values[0], low, high, p))
    columns = ["column", "measure", "association", "ci_low", "ci_high", "p"]
    table = pd.DataFrame(rows, columns=columns).sort_values("p", kind="stable")
    steps = table["p"] * np.arange(len(table), 0, -1)
    return table.assign(p_holm=np.minimum(steps.cummax(), 1)).drop(columns="p").reset_index(drop=True)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the resamples, moved by their bias: drawing people twice adds association."""
    drawn = values[1:] - (np.nanmean(values[1:]) - values[0])
    low, high = np.clip(np.nanpercentile(drawn, (2.5, 97.5)), 0, 1)
    return float(low), float(high)


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


def predict_label(people: pd.DataFrame, columns: tuple[str, ...], seed: int) -> tuple[pd.Series, np.ndarray] | None:
    """Cross-validated predictions of a logistic regression that sees no image, only `columns`.

    No label enters the encoding of all people at once.

    Parameters
    ----------
    people : DataFrame
        See `acquisition.first_scans`.
    columns : tuple of str
    seed : int
        Of the folds.

    Returns
    -------
    labels : Series of str
    probabilities : (people, classes) float64
        In the order of the sorted labels. None instead of both where no column varies or a class has fewer than five
        participants.
    """
    labels = people["diagnosis"]
    facts = people[[name for name in columns if people[name].nunique() > 1]]
    if facts.empty or labels.value_counts().min() < 5 or labels.nunique() < 2:
        return None
    model = LogisticRegression(max_iter=2000, class_weight="balanced")
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    encoded = acquisition_encoder().fit_transform(facts)
    return labels, cross_val_predict(model, encoded, labels, cv=folds, method="predict_proba")


def macro_auc(labels: pd.Series, p: np.ndarray) -> float:
    """Mean one-versus-rest ROC AUC of the classes.

    Parameters
    ----------
    labels : Series of str
    p : (n, K) array
        Probabilities, in the order of the sorted labels.
    """
    return float(np.mean([roc_auc_score(labels == name, p[:, k]) for k, name in enumerate(sorted(labels.unique()))]))


def best_pair(labels: pd.Series, p: np.ndarray) -> tuple[float, str, float]:
    """The highest ROC AUC of two classes.

    Parameters
    ----------
    labels : Series of str
    p : (n, K) array
        Probabilities, in the order of the sorted labels.

    Returns
    -------
    auc : float
    pair : str
        The two classes.
    chance : float
        AUC that chance may reach.

    References
    ----------
    Hand & Till 2001, doi:10.1023/A:1010920819831 (AUC of pairs); Mann & Whitney 1947, doi:10.1214/aoms/1177730491
    (standard deviation of the AUC by chance).
    """
    best, names, truth = (0.0, "", 1.0), sorted(labels.unique()), labels.to_numpy()
    for (i, first), (k, second) in combinations(enumerate(names), 2):
        two = (truth == first) | (truth == second)
        sizes = (truth == first).sum(), (truth == second).sum()
        if min(sizes) >= _MIN_PEOPLE:
            score = float(roc_auc_score(truth[two] == second, p[two, k] / np.maximum(p[two, i] + p[two, k], 1e-12)))
            chance = 0.5 + _CHANCE_SD * np.sqrt((sum(sizes) + 1) / (12 * sizes[0] * sizes[1]))
            best = max(best, (score, f"{first} against {second}", float(chance)))
    return best
