"""How far facts about a scan tell its label without any image: associations and metadata-only classifiers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from adlib.audit.findings import finding
from adlib.study.params import AuditParams

PHASE = ("phase",)
SLICES = ("slice_count", "slice_index")
SEQUENCE = ("series_description", "echo_time_ms", "repetition_time_ms", "inversion_time_ms")
SCANNER = ("site", "manufacturer", "model", "field_strength_T", "orientation", "dtype", "matrix")
VOXELS = ("voxel_x_mm", "voxel_y_mm", "voxel_z_mm", "acquisition_year")
ACQUISITION = (*PHASE, *SLICES, *SEQUENCE, *SCANNER, *VOXELS)
DEMOGRAPHIC = ("age", "sex")
RESAMPLES = 500
AUC_WARN = 0.7  # metadata-only AUC above which a finding is a warning
MIN_PEOPLE = 10  # of each of two classes, for a score of telling them apart
CHANCE_SD = 3.5  # beyond which the score of one pair among many is no chance
MIN_CATEGORY = 5  # people; rarer categories count as one
_SINGLE = {"phase-tells-label": PHASE, "slices-tell-label": SLICES, "sequence-tells-label": SEQUENCE}


def first_scans(manifest: pd.DataFrame) -> pd.DataFrame:
    """The first scan of each participant, with the columns of `with_facts`."""
    first = manifest.sort_values(["session_id", "scan_id"], kind="stable").drop_duplicates("participant_id")
    return with_facts(first)


def with_facts(scans: pd.DataFrame) -> pd.DataFrame:
    """The scans with year, in-plane matrix, slice count and slice index as columns, the rest of `ACQUISITION`.

    ``slice_index`` is known only where the source lists it.
    """
    sizes = scans["shape"].str.extract(r"^(\d+x\d+)(?:x(\d+))?")
    year = pd.to_datetime(scans["acquisition_date"], errors="coerce", format="mixed").dt.year
    index = scans["slice_index"] if "slice_index" in scans else pd.Series(np.nan, index=scans.index)
    return scans.assign(
        acquisition_year=year.astype(float),
        matrix=sizes[0].astype(object),
        slice_count=sizes[1].astype(float),
        slice_index=pd.to_numeric(index, errors="coerce"),
    )


def associations(manifest: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Measure how far each fact about the first scan of a participant tells the label.

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
        Columns column, measure, association in [0, 1], ci_low, ci_high (95 %), p_holm, the surest first. Constant and
        empty columns are left out.
    """
    people = first_scans(manifest)
    rows, counts = [], _resamples(len(people), seed)
    for name in (*ACQUISITION, *DEMOGRAPHIC):
        known = people[people[name].notna()]
        if known[name].nunique() < 2 or known["diagnosis"].nunique() < 2:
            continue
        numeric = pd.api.types.is_numeric_dtype(known[name])
        strength = _eta if numeric else _cramers_v
        if counts.shape[1] != len(known):
            counts = _resamples(len(known), seed)
        values = strength(known[name], known["diagnosis"], counts)
        low, high = _interval(values)
        p = _p_value(known[name], known["diagnosis"], numeric)
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
    """(1 + RESAMPLES, people) float64: how often each person counts; first once each, then as the bootstrap drew."""
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), RESAMPLES)
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


def metadata_auc(manifest: pd.DataFrame, columns: tuple[str, ...], seed: int) -> float | None:
    """Cross-validated macro one-vs-rest ROC AUC of a classifier that sees no image, only `columns`.

    Returns
    -------
    float or None
        None where no column varies or a class has fewer than five participants.
    """
    scored = _predicted(first_scans(manifest), columns, seed)
    return None if scored is None else _macro(*scored)


def _predicted(people: pd.DataFrame, columns: tuple[str, ...], seed: int) -> tuple[pd.Series, np.ndarray] | None:
    """Labels and out-of-fold probabilities, (people, classes) in the labels' order."""
    labels = people["diagnosis"]
    facts = _encoded(people[list(columns)])
    if not facts.shape[1] or labels.value_counts().min() < 5 or labels.nunique() < 2:
        return None
    model = LogisticRegression(max_iter=2000, class_weight="balanced")
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return labels, cross_val_predict(model, facts, labels, cv=folds, method="predict_proba")


def _encoded(facts: pd.DataFrame) -> np.ndarray:
    """(people, features) float64: numbers scaled, the median where missing; one column per frequent category.

    No label enters here, so that encoding all people at once gives nothing away to the cross-validation.
    """
    columns = []
    for name in facts.columns[facts.nunique() > 1]:
        values = facts[name]
        if pd.api.types.is_numeric_dtype(values):
            filled = values.fillna(values.median()).to_numpy(float)
            columns.append((filled - filled.mean())[:, None] / max(filled.std(), 1e-12))
        else:
            counts = values.value_counts()
            frequent = values.where(values.isna() | values.map(counts).ge(MIN_CATEGORY), "rare").fillna("missing")
            columns.append(pd.get_dummies(frequent).to_numpy(float))
    return np.concatenate(columns, axis=1) if columns else np.empty((len(facts), 0))


def _auc(truth: np.ndarray, score: np.ndarray) -> float:
    ranks, positive = stats.rankdata(score), int(truth.sum())
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


def _macro(labels: pd.Series, p: np.ndarray) -> float:
    return float(
        np.mean([_auc((labels == name).to_numpy(), p[:, k]) for k, name in enumerate(sorted(labels.unique()))])
    )


def _worst_pair(labels: pd.Series, p: np.ndarray) -> tuple[float, str, float]:
    """The highest AUC with which two classes are told apart, which two, and what chance alone may reach.

    References
    ----------
    Hand & Till 2001, doi:10.1023/A:1010920819831 (scores of pairs); Mann & Whitney 1947, doi:10.1214/aoms/1177730491
    (spread of the AUC by chance).
    """
    best, names, truth = (0.0, "", 1.0), sorted(labels.unique()), labels.to_numpy()
    for (i, one), (k, other) in combinations(enumerate(names), 2):
        two = (truth == one) | (truth == other)
        sizes = (truth == one).sum(), (truth == other).sum()
        if min(sizes) >= MIN_PEOPLE:
            score = _auc(truth[two] == other, p[two, k] / np.maximum(p[two, i] + p[two, k], 1e-12))
            chance = 0.5 + CHANCE_SD * np.sqrt((sum(sizes) + 1) / (12 * sizes[0] * sizes[1]))
            best = max(best, (score, f"{one} against {other}", float(chance)))
    return best


def check_confounds(manifest: pd.DataFrame, params: AuditParams, seed: int) -> list[dict[str, str]]:
    """Score metadata-only classifiers: phase, slices and sequence each by itself, then all other facts together.

    A score stops the study where either the macro AUC or that of one pair of classes is above the limit, so that a
    phase that stands for MCI or LMCI is seen among other classes. What stops by itself is left out of the last score.
    """
    people = first_scans(manifest)
    found, told = [], set()
    for check, columns in _SINGLE.items():
        one = _scored(check, people, columns, params, seed)
        told |= set(columns) if one and one["severity"] == "stop" else set()
        found += [one] if one and one["severity"] != "info" else []
    rest = tuple(name for name in ACQUISITION if name not in told)
    found.append(_scored("acquisition-tells-label", people, rest, params, seed))
    found.append(_scored("demographics-tell-label", people, DEMOGRAPHIC, params, seed))
    return [one for one in found if one]


def _scored(
    check: str, people: pd.DataFrame, columns: tuple[str, ...], params: AuditParams, seed: int
) -> dict[str, str] | None:
    predicted = _predicted(people, columns, seed)
    if predicted is None:
        return None
    macro, (pair, names, chance) = _macro(*predicted), _worst_pair(*predicted)
    value = f"{macro:.2f}" + (f", {names} {pair:.2f}" if len(predicted[1][0]) > 2 and names else "")
    limit, stops = f"warn {AUC_WARN}", check != "demographics-tell-label"
    limit += f", stop {params.metadata_auc_stop}" if stops else ""
    severity = "warn" if macro > AUC_WARN or pair > max(AUC_WARN, chance) else "info"
    if stops and max(macro, pair) > params.metadata_auc_stop:
        severity = "stop"
    return finding(check, severity, "all participants", value, limit)
