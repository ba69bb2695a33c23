"""The audit as a whole: a listing in, the manifest of the included scans and all findings out."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from adlib.audit.associations import associations
from adlib.audit.checks import check_cohort, check_confounds, check_geometry, check_sequence
from adlib.audit.findings import Finding, check_accepted, finding, findings_table, named
from adlib.audit.identity import assign_participants, check_copies, check_given_split, check_labels, check_people
from adlib.study.params import AuditParams
from adlib.study.records import LISTING, MANIFEST, StudyError, check_table

_UNREAD = "unread"


@dataclass(frozen=True)
class Audit:
    """Result of the audit of a listing.

    Attributes
    ----------
    manifest : DataFrame
        Schema `records.MANIFEST`: the included scans, one diagnosis each.
    findings : DataFrame
        Schema `records.AUDIT`, the gravest first.
    flow : DataFrame
        Columns step, scans, participants: scans left after each exclusion.
    confounds : DataFrame
        See `associations.associations`: association of each fact about a scan with its label.
    """

    manifest: pd.DataFrame
    findings: pd.DataFrame
    flow: pd.DataFrame
    confounds: pd.DataFrame


def run_audit(
    listed: pd.DataFrame,
    classes: tuple[str, ...],
    params: AuditParams,
    seed: int,
    pixels: pd.DataFrame | None = None,
) -> Audit:
    """Check a source's listing and select the scans of the study.

    Parameters
    ----------
    listed : DataFrame
        Schema `records.LISTING`: participant and diagnosis may be empty, diagnosis outside `classes`.
    classes : tuple of str
    params : AuditParams
    seed : int
        Of the cross-validations, the bootstrap and the recovery of groups.
    pixels : DataFrame, optional
        `similarity.pixel_facts` of `listed`; without it images are not compared.

    Raises
    ------
    StudyError
        If no scan of any class is left, `pixels` is of another listing, or `audit.accept` has an unknown id.
    """
    check_accepted(params)
    scans = check_table(listed, LISTING, "listing")
    if pixels is not None:
        if not pixels.index.equals(listed.index):
            raise StudyError(f"pixels has {len(pixels)} rows, not those of the {len(listed)} scans; read them again")
        pixels = pixels.set_axis(scans.index)
    chosen, flow, findings = _eligible(scans, classes)
    sequence, kept = check_sequence(chosen)
    flow.append(("T1w", kept))
    geometry, kept = check_geometry(kept, _rows(pixels, kept))
    flow.append(("with varying values", kept))
    kept, unknown = assign_participants(kept, _rows(pixels, kept), params, seed)
    findings += sequence + unknown + check_given_split(kept) + check_labels(kept)
    findings += check_copies(kept, _rows(pixels, kept), params) + check_people(kept) + geometry
    manifest = _manifest(kept)
    findings += check_cohort(manifest, classes, params) + check_confounds(manifest, params, seed)
    return Audit(manifest, findings_table(findings, params), _flow_table(flow), associations(manifest, seed))


def _rows(pixels: pd.DataFrame | None, scans: pd.DataFrame) -> pd.DataFrame | None:
    return None if pixels is None else pixels.loc[scans.index]


def _eligible(
    scans: pd.DataFrame, classes: tuple[str, ...]
) -> tuple[pd.DataFrame, list[tuple[str, pd.DataFrame]], list[Finding]]:
    """Scans that the source does not exclude and whose label is a class, with flow and findings so far."""
    findings = []
    for reason, rows in scans.groupby("excluded"):
        findings.append(finding("source-left-out", "info", named(rows["scan_id"]), f"{len(rows)} scans: {reason}"))
    used = scans[scans["excluded"].isna()]
    labelled = used[used["diagnosis"].notna()]
    chosen = labelled[labelled["diagnosis"].isin(classes)]
    outside = labelled[~labelled["diagnosis"].isin(classes)]
    if len(used) > len(labelled):
        missing = used[used["diagnosis"].isna()]
        findings.append(finding("label-missing", "warn", named(missing["scan_id"]), f"{len(missing)} scans"))
    if len(outside):
        counts = ", ".join(f"{n} x {label}" for label, n in outside["diagnosis"].value_counts().items())
        findings.append(finding("label-outside", "warn", named(outside["scan_id"]), counts, ", ".join(classes)))
    if chosen.empty:
        found = sorted(labelled["diagnosis"].unique())
        raise StudyError(f"empty cohort: no scan has a diagnosis among {list(classes)}; the source has {found}")
    flow = [("listed", scans), ("not excluded by the source", used), ("with a diagnosis", labelled)]
    return chosen, [*flow, ("of the study's classes", chosen)], findings


def _manifest(scans: pd.DataFrame) -> pd.DataFrame:
    if scans.empty:
        raise StudyError("empty cohort: in every scan of the study's classes all values are equal")
    filled = scans.fillna({"session_id": "ses-01", "sha256": _UNREAD}).drop(columns="excluded")
    return check_table(filled.drop_duplicates("scan_id"), MANIFEST, "manifest")


def _flow_table(flow: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """The steps that exclude scans, and the first and the last of the selection by label."""
    always = {"listed", "with a diagnosis", "of the study's classes"}
    rows, before = [], None
    for step, table in flow:
        if step in always or len(table) != before:
            rows.append({"step": step, "scans": len(table), "participants": table["participant_id"].nunique()})
        before = len(table)
    return pd.DataFrame(rows)
