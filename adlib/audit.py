"""Findings about a manifest; their severity decides whether the study may go on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from adlib.params import AuditParams
from adlib.records import AUDIT, MANIFEST, StudyError, check_table

ACQUISITION = (
    "site",
    "manufacturer",
    "model",
    "field_strength_T",
    "phase",
    "series_description",
    "voxel_x_mm",
    "voxel_y_mm",
    "voxel_z_mm",
    "shape",
    "acquisition_year",
)
DEMOGRAPHIC = ("age", "sex")


class AuditStop(StudyError):
    """The audit found what makes every later number meaningless."""


@dataclass(frozen=True)
class Audit:
    """What the audit of a manifest concludes.

    Attributes
    ----------
    manifest : DataFrame
        The scans that go on, one diagnosis each.
    findings : DataFrame
        Schema `records.AUDIT`, the worst first.
    flow : DataFrame
        Columns step, scans, participants: what was left after each exclusion.
    confounds : DataFrame
        Columns column, measure, association, p_holm: how far each fact about a scan tells its label.
    """

    manifest: pd.DataFrame
    findings: pd.DataFrame
    flow: pd.DataFrame
    confounds: pd.DataFrame


def run_audit(listed: pd.DataFrame, classes: tuple[str, ...], params: AuditParams, seed: int) -> Audit:
    """Check a source's listing and decide which scans go on.

    Parameters
    ----------
    listed : DataFrame
        As `adlib.sources.read_source` returns it: diagnosis may be empty or outside `classes`.
    classes : tuple of str
    params : AuditParams
    seed : int
        Of the cross-validation behind the metadata-only score.

    Raises
    ------
    StudyError
        If no scan of any class is left.
    """
    findings: list[dict] = []
    flow = [("listed", listed)]
    labelled = listed[listed["diagnosis"].notna()]
    _report_dropped(findings, listed, labelled, "label-missing", "has no diagnosis")
    flow.append(("with a diagnosis", labelled))
    chosen = labelled[labelled["diagnosis"].isin(classes)]
    _report_dropped(findings, labelled, chosen, "label-outside", f"has a diagnosis outside {list(classes)}")
    flow.append(("of the study's classes", chosen))
    if chosen.empty:
        found = sorted(map(str, labelled["diagnosis"].unique()))
        raise StudyError(f"empty cohort: no scan has a diagnosis among {list(classes)}; the source has {found}")
    findings += _identity(chosen) + _geometry(chosen) + _counts(chosen, classes, params)
    manifest = check_table(chosen.drop_duplicates("scan_id"), MANIFEST, "manifest")
    confounds = associations(manifest)
    findings += _metadata(manifest, params, seed) + _demographics(manifest)
    table = _decided(findings, params)
    steps = [{"step": s, "scans": len(t), "participants": t["participant_id"].nunique()} for s, t in flow]
    return Audit(manifest, table, pd.DataFrame(steps), confounds)


def enforce(findings: pd.DataFrame) -> None:
    """Stop the study on any stop finding that the params do not accept.

    Raises
    ------
    AuditStop
        With one line per finding.
    """
    stops = findings[findings["decision"] == "stop"]
    if not stops.empty:
        lines = [f"[{f.check}] {f.subject}: {f.value} (limit {f.limit}). {f.meaning}" for f in stops.itertuples()]
        raise AuditStop(
            "the audit stops this study:\n  "
            + "\n  ".join(lines)
            + "\nMend the data, or accept a finding knowingly with audit.accept: [its id]; every report will say so."
        )


def _finding(check: str, severity: str, subject: str, value: str, limit: str, meaning: str) -> dict:
    names = ("check", "severity", "subject", "value", "limit", "meaning")
    return dict(zip(names, (check, severity, subject, value, limit, meaning), strict=True))


def _decided(findings: list[dict], params: AuditParams) -> pd.DataFrame:
    table = pd.DataFrame(findings, columns=["check", "severity", "subject", "value", "limit", "meaning"])
    accepted = table["check"].isin(params.accept)
    table["decision"] = np.where(table["severity"] != "stop", "go on", np.where(accepted, "accepted by params", "stop"))
    order = table["severity"].map({"stop": 0, "warn": 1, "info": 2})
    return check_table(table.iloc[np.argsort(order, kind="stable")], AUDIT, "audit")


def _named(values: pd.Series) -> str:
    names = sorted({str(v) for v in values})
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _report_dropped(findings: list[dict], before: pd.DataFrame, after: pd.DataFrame, check: str, why: str) -> None:
    dropped = before.loc[before.index.difference(after.index)]
    if len(dropped):
        text = f"{len(dropped)} scans left out"
        findings.append(_finding(check, "warn", _named(dropped["scan_id"]), text, "0", f"The scan {why}."))


def _identity(scans: pd.DataFrame) -> list[dict]:
    found = []
    labels = scans.groupby("scan_id")["diagnosis"].nunique()
    for name in labels[labels > 1].index:
        found.append(
            _finding(
                "scan-two-labels", "stop", name, f"{labels[name]} labels", "1", "One scan cannot be two diagnoses."
            )
        )
    visits = scans.groupby(["participant_id", "session_id"])["diagnosis"].nunique()
    for name in visits[visits > 1].index:
        meaning = "One visit of one person has contradictory labels."
        found.append(_finding("visit-two-labels", "stop", " ".join(name), f"{visits[name]} labels", "1", meaning))
    unique = scans.drop_duplicates("scan_id")
    for _, twins in unique[unique.duplicated("sha256", keep=False)].groupby("sha256"):
        crossing = twins["participant_id"].nunique() > 1 or twins["diagnosis"].nunique() > 1
        meaning = (
            "The same image under different people or labels can be trained on and tested on."
            if crossing
            else "The same image is counted more than once for one person."
        )
        severity = "stop" if crossing else "warn"
        found.append(
            _finding("same-image", severity, _named(twins["scan_id"]), f"{len(twins)} identical files", "1", meaning)
        )
    return found


def _geometry(scans: pd.DataFrame) -> list[dict]:
    unreadable = scans[scans["shape"].isna()]
    if unreadable.empty:
        return []
    meaning = "The header cannot be read; preprocessing will say why and leave the scan out."
    text = f"{len(unreadable)} scans"
    return [_finding("unreadable", "warn", _named(unreadable["scan_id"]), text, "0", meaning)]


def _counts(scans: pd.DataFrame, classes: tuple[str, ...], params: AuditParams) -> list[dict]:
    people = scans.groupby("diagnosis")["participant_id"].nunique().reindex(classes, fill_value=0)
    limit = str(params.min_participants_per_class)
    found = []
    for name, count in people.items():
        severity = "stop" if count < params.min_participants_per_class else "info"
        meaning = (
            "Too few people to train and test on." if severity == "stop" else "Participants with a scan of this class."
        )
        found.append(_finding("participants", severity, str(name), str(count), f">= {limit}", meaning))
    if people.max() > 4 * max(people.min(), 1):
        ratio = f"{people.max() / max(people.min(), 1):.1f} : 1"
        found.append(_finding("imbalance", "warn", "classes", ratio, "4 : 1", "Read balanced accuracy, not accuracy."))
    return found


def _demographics(manifest: pd.DataFrame) -> list[dict]:
    missing = manifest[manifest["age"].isna()]
    if missing.empty:
        return []
    meaning = "Age-based baselines fill in the median for them."
    return [_finding("age-missing", "warn", _named(missing["scan_id"]), f"{len(missing)} scans", "0", meaning)]


def _with_year(manifest: pd.DataFrame) -> pd.DataFrame:
    first = manifest.sort_values("session_id").drop_duplicates("participant_id")
    year = pd.to_datetime(first["acquisition_date"], errors="coerce").dt.year
    return first.assign(acquisition_year=year.astype(float))


def associations(manifest: pd.DataFrame) -> pd.DataFrame:
    """Measure how far each fact about the first scan of a participant tells the label.

    Cramér's V with Bergsma's bias correction (2013, doi:10.1016/j.jkss.2012.10.002) for categories, the correlation
    ratio eta for numbers; p values with Holm's correction.

    Returns
    -------
    DataFrame
        Columns column, measure, association in [0, 1], p_holm. Constant and empty columns are left out.
    """
    people = _with_year(manifest)
    rows = []
    for name in (*ACQUISITION, *DEMOGRAPHIC):
        known = people[people[name].notna()]
        if known[name].nunique() < 2 or known["diagnosis"].nunique() < 2:
            continue
        numeric = pd.api.types.is_numeric_dtype(known[name])
        value, p = (_eta if numeric else _cramers_v)(known[name], known["diagnosis"])
        rows.append({"column": name, "measure": "eta" if numeric else "Cramér's V", "association": value, "p": p})
    table = pd.DataFrame(rows, columns=["column", "measure", "association", "p"]).sort_values("p")
    steps = table["p"] * np.arange(len(table), 0, -1)
    return table.assign(p_holm=np.minimum(steps.cummax(), 1)).drop(columns="p").reset_index(drop=True)


def _cramers_v(values: pd.Series, labels: pd.Series) -> tuple[float, float]:
    counts = pd.crosstab(values, labels)
    chi2, p, _, _ = stats.chi2_contingency(counts, correction=False)
    n, (rows, columns) = counts.to_numpy().sum(), counts.shape
    phi2 = max(0.0, chi2 / n - (rows - 1) * (columns - 1) / (n - 1))
    size = min(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)) - 1
    return float(np.sqrt(phi2 / size)) if size > 0 else 0.0, float(p)


def _eta(values: pd.Series, labels: pd.Series) -> tuple[float, float]:
    groups = [group.to_numpy(float) for _, group in values.groupby(labels) if len(group) > 1]
    total = ((values - values.mean()) ** 2).sum()
    between = sum(len(g) * (g.mean() - values.mean()) ** 2 for g in groups)
    return float(np.sqrt(between / total)), float(stats.f_oneway(*groups).pvalue)


def metadata_auc(manifest: pd.DataFrame, columns: tuple[str, ...], seed: int) -> float | None:
    """Cross-validated macro one-vs-rest ROC AUC of a classifier that sees no image, only `columns`.

    Returns
    -------
    float or None
        None where no column varies or a class has fewer than five participants.
    """
    people = _with_year(manifest)
    varying = [name for name in columns if people[name].nunique() > 1]
    labels = people["diagnosis"]
    if not varying or labels.value_counts().min() < 5 or labels.nunique() < 2:
        return None
    numeric = [name for name in varying if pd.api.types.is_numeric_dtype(people[name])]
    categories = [name for name in varying if name not in numeric]
    encode = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numeric),
        (OneHotEncoder(handle_unknown="ignore", min_frequency=5), categories),
    )
    model = make_pipeline(encode, LogisticRegression(max_iter=2000, class_weight="balanced"))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    table = people[varying].assign(**{name: people[name].astype(object).fillna("missing") for name in categories})
    p = cross_val_predict(model, table, labels, cv=folds, method="predict_proba")
    names = sorted(labels.unique())
    return float(np.mean([roc_auc_score(labels == name, p[:, k]) for k, name in enumerate(names)]))


def _metadata(manifest: pd.DataFrame, params: AuditParams, seed: int) -> list[dict]:
    found = []
    score = metadata_auc(manifest, ACQUISITION, seed)
    if score is not None:
        severity = "info"
        if score > params.metadata_auc_warn:
            severity = "stop" if score > params.metadata_auc_stop else "warn"
        meaning = "ROC AUC of the label from site, scanner, voxel size and date alone, without any image."
        limit = f"warn {params.metadata_auc_warn}, stop {params.metadata_auc_stop}"
        found.append(_finding("acquisition-tells-label", severity, "all scans", f"{score:.2f}", limit, meaning))
    score = metadata_auc(manifest, DEMOGRAPHIC, seed)
    if score is not None:
        severity = "warn" if score > params.metadata_auc_warn else "info"
        meaning = "ROC AUC of the label from age and sex alone: what an image classifier has to beat."
        limit = f"warn {params.metadata_auc_warn}"
        found.append(_finding("demographics-tell-label", severity, "all scans", f"{score:.2f}", limit, meaning))
    return found
