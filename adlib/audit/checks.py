"""Checks of sequence, geometry and values of scans, of the cohort, and of facts that predict the label.

The checks of copies and participants are in `identity`. Preprocessing checks the image itself, which it registers to a
T1w template.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePath

import numpy as np
import pandas as pd

from adlib.audit.acquisition import ACQUISITION, PHASE, SEQUENCE, SLICES, first_scans
from adlib.audit.associations import DEMOGRAPHIC, best_pair, macro_auc, predict_label
from adlib.audit.findings import Finding, finding, named, share
from adlib.sources.image_files import SEPARATOR
from adlib.sources.sidecars import MAPS, NOT_T1W, REFORMATTED, T1W
from adlib.study.params import AuditParams

# T1 weighting needs an echo time well below the T2 of brain, about 70 to 100 ms at 1.5 T and 3 T (Stanisz et al. 2005,
# doi:10.1002/mrm.20605). ADNI's MPRAGE has about 3 to 4 ms, its PD and T2 echoes 10 to 13 and 95 to 105 ms with a
# repetition time of 3 s (Jack et al. 2008, doi:10.1002/jmri.21049).
_T1W_ECHO_MS = 25.0
_PD_ECHO_MS = 8.0
_PD_REPETITION_MS = 2000.0
_NAMES = {
    *("t2w", "t2", "t2star", "t2starw", "pdw", "pd", "pdt2", "flair", "bold", "sbref", "fmri", "rest", "dwi", "dti"),
    *("asl", "m0scan", "cbf", "swi", "angio", "fieldmap", "phasediff", "magnitude1", "magnitude2", "epi", "adc"),
    *("localizer", "localiser", "scout", "t1map", "t2map", "unit1"),
}
_T1W_NAMES = {"t1w", "t1", "mprage", "mpr", "spgr", "fspgr"}
_MIN_SLICES = 40  # as for DICOM: below it, a localiser or a 2-D clinical series
_MAX_ANISOTROPY = 2.5  # 3-D T1w of ADNI and OASIS-1 have 1.25 to 1.3; 5 mm clinical slices have 5
_VIEW_MM = (100.0, 400.0)  # an adult brain alone measures about 130 mm across at least
_EDGES = ["voxel_x_mm", "voxel_y_mm", "voxel_z_mm"]
_IMBALANCE = 4.0
_AUC_WARN = 0.7  # ROC AUC without any image above which a finding is a warning
_SINGLE = {"phase-tells-label": PHASE, "slices-tell-label": SLICES, "sequence-tells-label": SEQUENCE}


def check_sequence(scans: pd.DataFrame) -> tuple[list[Finding], pd.DataFrame]:
    """Find scans that are not T1w by name, series description or timing; exclude them unless most scans are such.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.

    Returns
    -------
    findings : list of dict
    kept : DataFrame
        All scans where the finding stops the study.
    """
    if scans.empty:
        return [], scans
    reasons = scans.apply(_unlike_t1w, axis=1)
    other = scans[reasons != ""]
    unstated = scans[(reasons == "") & ~scans.apply(_named_t1w, axis=1).astype(bool)]
    found = []
    if len(other):
        severity = "stop" if 2 * len(other) > len(scans) else "warn"
        counts = reasons[reasons != ""].value_counts()
        value = f"{share(len(other), len(scans))}: " + ", ".join(f"{n} x {reason}" for reason, n in counts[:5].items())
        found.append(finding("sequence-not-t1w", severity, named(other["scan_id"]), value))
        if severity == "warn":
            scans = scans.drop(index=other.index)
    if len(unstated):
        found.append(finding("sequence-unstated", "info", named(unstated["scan_id"]), f"{len(unstated)} scans"))
    return found, scans


def _unlike_t1w(scan: pd.Series) -> str:
    """The surest sign that a scan is not T1w, empty where there is none."""
    modality = _text(scan["modality"])
    if modality and modality.upper() not in ("MR", "MRI"):
        return f"modality {modality}"
    kinds = {part.strip().upper() for part in re.split(r"[/\\,]", _text(scan["image_type"]))}
    if derived := kinds & ((REFORMATTED - {"MPR"}) | MAPS):
        return f"image type {'/'.join(sorted(derived))}"
    return _by_timing(scan) or _by_description(_text(scan["series_description"])) or _by_name(scan["path"])


def _by_timing(scan: pd.Series) -> str:
    echo, repetition, inversion = (scan[f"{name}_time_ms"] for name in ("echo", "repetition", "inversion"))
    if echo > _T1W_ECHO_MS:
        return f"echo time over {_T1W_ECHO_MS:g} ms"
    if echo >= _PD_ECHO_MS and repetition >= _PD_REPETITION_MS and np.isnan(inversion):
        return "proton density by its timing"
    return ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _by_description(description: str) -> str:
    unlike = NOT_T1W.search(description)
    return f"series named '{unlike[0].lower()}'" if unlike else ""


def _tokens(path: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", PurePath(path.split(SEPARATOR)[0]).name.lower()))


def _by_name(path: str) -> str:
    tokens = _tokens(path)
    if tokens & _T1W_NAMES or not tokens & _NAMES:
        return ""
    return f"file named '{sorted(tokens & _NAMES)[0]}'"


def _named_t1w(scan: pd.Series) -> bool:
    described = T1W.search(_text(scan["series_description"]))
    return bool(described or pd.notna(scan["echo_time_ms"]) or _tokens(scan["path"]) & _T1W_NAMES)


def check_geometry(scans: pd.DataFrame, pixels: pd.DataFrame | None) -> tuple[list[Finding], pd.DataFrame]:
    """Find implausible headers and values; exclude constant images.

    2-D images and joined slices have no spatial header and skip the checks of it. A fault that makes a scan unusable
    stops the study where more than half of the scans have it.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.
    pixels : DataFrame or None
        See `similarity.pixel_facts`; indexed as `scans`.

    Returns
    -------
    findings : list of dict
    kept : DataFrame
    """
    sizes = scans["shape"].str.extract(r"^(\d+)x(\d+)(?:x(\d+))?(?:x(\d+))?").astype(float).fillna(1)
    sizes.columns = ["nx", "ny", "nz", "nt"]
    volume = ~(scans["path"].str.contains(SEPARATOR, regex=False) | (sizes["nz"] == 1))
    facts = scans.assign(**sizes, volume=volume)
    if "affine_fault" not in facts:
        facts["affine_fault"] = None
    wrong = {name: check(facts) for name, check in _HEADER_CHECKS.items()}
    if pixels is not None:
        wrong["unreadable"] |= pixels["fault"].notna() & scans["shape"].notna()
        wrong |= {"nan-values": pixels["nan_share"] > 0, "constant": pixels["constant"].eq(True)}
        kept = scans[~wrong["constant"]]
    else:
        kept = scans
    return [_geometry_finding(name, scans[rows], len(scans)) for name, rows in wrong.items() if rows.any()], kept


def _odd_view(facts: pd.DataFrame) -> pd.Series:
    view = facts[["nx", "ny", "nz"]].to_numpy() * facts[_EDGES]
    stated = facts["volume"] & facts["shape"].notna() & facts[_EDGES].notna().all(axis=1)
    return stated & ((view.min(axis=1) < _VIEW_MM[0]) | (view.max(axis=1) > _VIEW_MM[1]))


_HEADER_CHECKS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "unreadable": lambda f: f["shape"].isna(),
    "not-3d": lambda f: f["volume"] & (f["nt"] > 1),
    "few-slices": lambda f: f["volume"] & f["shape"].notna() & (f[["nx", "ny", "nz"]].min(axis=1) < _MIN_SLICES),
    "anisotropic": lambda f: f["volume"] & (f[_EDGES].max(axis=1) > _MAX_ANISOTROPY * f[_EDGES].min(axis=1)),
    "field-of-view": _odd_view,
    "affine": lambda f: f["volume"] & f["affine_fault"].isin(["singular", "missing"]),
    "orientation-unstated": lambda f: f["volume"] & f["affine_fault"].eq("unstated"),
    "dtype": lambda f: f["dtype"].fillna("").str.contains("complex|rgb", case=False),
}
_UNUSABLE = ("not-3d", "affine", "dtype")


def _geometry_finding(check: str, wrong: pd.DataFrame, scans: int) -> Finding:
    severity = "stop" if check in _UNUSABLE and 2 * len(wrong) > scans else "warn"
    return finding(check, severity, named(wrong["scan_id"]), share(len(wrong), scans) + " scans")


def check_cohort(scans: pd.DataFrame, classes: tuple[str, ...], params: AuditParams) -> list[Finding]:
    """Count participants by class, follow-ups, changes of diagnosis and missing ages.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.MANIFEST`.
    classes : tuple of str
    params : AuditParams
    """
    return _counts(scans, classes, params) + _visits(scans) + _ages(scans)


def _counts(scans: pd.DataFrame, classes: tuple[str, ...], params: AuditParams) -> list[Finding]:
    people = scans.groupby("diagnosis")["participant_id"].nunique().reindex(classes, fill_value=0)
    least = params.min_participants_per_class
    found = [
        finding("participants", "stop" if count < least else "info", str(name), str(count), f">= {least}")
        for name, count in people.items()
    ]
    if people.max() > _IMBALANCE * max(people.min(), 1):
        ratio = f"{people.max() / max(people.min(), 1):.1f} : 1"
        found.append(finding("imbalance", "warn", "classes", ratio, f"{_IMBALANCE:g} : 1"))
    return found


def _visits(scans: pd.DataFrame) -> list[Finding]:
    by_person = scans.groupby("participant_id")
    several = by_person["session_id"].nunique()
    several = several[several > 1]
    changed = scans.drop_duplicates("participant_id").set_index("participant_id").loc[several.index]
    labels = by_person["diagnosis"].nunique().loc[several.index]
    changed = changed[labels.to_numpy() > 1]
    found = []
    if len(several):
        found.append(finding("followups", "info", named(several.index), f"{len(several)} participants", "any"))
    if len(changed):
        found.append(finding("label-changes", "info", named(changed.index), f"{len(changed)} participants", "any"))
    return found


def _ages(scans: pd.DataFrame) -> list[Finding]:
    missing = scans[scans["age"].isna()]
    return [finding("age-missing", "warn", named(missing["scan_id"]), f"{len(missing)} scans")] if len(missing) else []


def check_confounds(manifest: pd.DataFrame, params: AuditParams, seed: int) -> list[Finding]:
    """Score classifiers without images: on phase, slices and sequence each, then on all acquisition facts together.

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
    found, separating = [], set()
    for check, columns in _SINGLE.items():
        scored = _confound(check, people, columns, params, seed)
        separating |= set(columns) if scored and scored["severity"] == "stop" else set()
        found += [scored] if scored and scored["severity"] != "info" else []
    rest = tuple(name for name in ACQUISITION if name not in separating)
    found.append(_confound("acquisition-tells-label", people, rest, params, seed))
    found.append(_confound("demographics-tell-label", people, DEMOGRAPHIC, params, seed))
    return [scored for scored in found if scored]


def _confound(
    check: str, people: pd.DataFrame, columns: tuple[str, ...], params: AuditParams, seed: int
) -> Finding | None:
    predicted = predict_label(people, columns, seed)
    if predicted is None:
        return None
    macro, (pair, names, chance) = macro_auc(*predicted), best_pair(*predicted)
    value = f"{macro:.2f}" + (f", {names} {pair:.2f}" if len(predicted[1][0]) > 2 and names else "")
    limit, stops = f"warn {_AUC_WARN}", check != "demographics-tell-label"
    limit += f", stop {params.metadata_auc_stop}" if stops else ""
    severity = "warn" if macro > _AUC_WARN or pair > max(_AUC_WARN, chance) else "info"
    if stops and max(macro, pair) > params.metadata_auc_stop:
        severity = "stop"
    return finding(check, severity, "all participants", value, limit)
