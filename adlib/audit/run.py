"""The audit as a whole: a listing in, the manifest of the included scans and all findings out; a stop ends it."""

import difflib
import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd

from adlib.audit import checks
from adlib.audit.acquisition import with_phase
from adlib.audit.advice import CHECKS, LINKED, Finding, findings_of
from adlib.audit.confounds import associations, check_confounds
from adlib.audit.similarity import PIXEL_FACTS
from adlib.sources.adni_tables import group_name
from adlib.study.linked import first_of_linked
from adlib.study.params import AuditParams
from adlib.study.records import AUDIT, AUDITED, LISTING, MANIFEST, SAME_PERSON, StudyError, check_table

_ALWAYS_SHOWN = ("listed", "with a diagnosis", "of the study's classes")
_GRAVEST_FIRST = ["stop", "warn", "info"]
_SHOWN = 120  # characters of a finding's value


class AuditStop(StudyError):
    """A finding of the audit invalidates every result."""


@dataclass(frozen=True)
class Audit:
    """Result of the audit of a listing.

    Attributes
    ----------
    manifest : DataFrame
        Schema `records.MANIFEST`: the included scans, one diagnosis each; where participants may be one person, also
        the column `records.SAME_PERSON`.
    findings : DataFrame
        Schema `records.AUDIT`, the gravest first.
    flow : DataFrame
        Columns step, scans, participants: scans left after each exclusion.
    confounds : DataFrame
        See `confounds.associations`: association of each fact about a scan with its label.
    """

    manifest: pd.DataFrame
    findings: pd.DataFrame
    flow: pd.DataFrame
    confounds: pd.DataFrame


def run_audit(
    listed: pd.DataFrame, classes: tuple[str, ...], params: AuditParams, seed: int, pixels: pd.DataFrame | None = None
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
    _check_accepted(params)
    scans = with_phase(check_table(listed, LISTING, "listing"))
    findings, flow, kept = _eligible(scans, classes, params.min_age)
    if pixels is None:
        facts = pd.DataFrame(index=scans.index, columns=PIXEL_FACTS)
    elif pixels.index.equals(listed.index):
        facts = pixels.set_axis(scans.index)
    else:
        raise StudyError(f"pixels has {len(pixels)} rows, not those of the {len(listed)} scans; read them again")
    sequence, kept = checks.check_sequence(kept)
    flow.append(("T1w", kept))
    geometry, kept = checks.check_geometry(kept, facts.loc[kept.index])
    flow.append(("with varying values", kept))
    if kept.empty:
        raise StudyError("empty cohort: in every scan of the study's classes all values are equal")
    kept, participants = checks.assign_participants(kept, facts, params, seed)
    findings += sequence + participants + checks.check_given_split(kept) + checks.check_labels(kept)
    findings += checks.check_copies(kept, facts, params)
    if pixels is None:
        findings += findings_of("pixels-unchecked", "info", ["all scans"], f"{len(kept)} scans")
    findings += checks.check_cohorts(kept) + checks.check_people(kept) + geometry
    kept = kept.fillna({"session_id": "ses-01", "sha256": "unread"}).drop_duplicates("scan_id")
    manifest = check_table(kept.drop(columns=["excluded", "notes"], errors="ignore"), MANIFEST, "manifest")
    groups = [set(people) for finding in findings for people in finding[LINKED]]
    if linked := first_of_linked(people for people in groups if len(people) > 1):
        manifest[SAME_PERSON] = manifest["participant_id"].map(linked)
    findings += checks.check_cohort(manifest, classes, params) + check_confounds(manifest, params, seed)
    return Audit(manifest, _findings_table(findings, params), _flow_table(flow), associations(manifest, seed))


def _check_accepted(params: AuditParams) -> None:
    """Refuse ids in `audit.accept` that are not those of a check with severity stop."""
    stops = [name for name, check in CHECKS.items() if "stop" in check.severities]
    for name in params.accept:
        if name not in stops:
            near = difflib.get_close_matches(name, stops, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"checks that stop: {', '.join(stops)}"
            raise StudyError(f"audit.accept has {name!r}, which is not a check that stops a study; {hint}")


def _eligible(
    scans: pd.DataFrame, classes: tuple[str, ...], min_age: float
) -> tuple[list[Finding], list[tuple[str, pd.DataFrame]], pd.DataFrame]:
    """Findings, flow and scans: those that the source does not exclude, whose label is a class, and of the age."""
    findings = []
    for reason, rows in scans.groupby("excluded"):
        findings += findings_of("source-left-out", "info", rows["scan_id"], f"{len(rows)} scans: {reason}")
    used = scans[scans["excluded"].isna()]
    noted = used.dropna(subset="notes") if "notes" in used else used[:0].assign(notes="")
    kinds = noted["notes"].str.replace(r"\S*[\d/]\S*", "", regex=True)  # without names, lines and values
    for _, rows in noted.groupby(kinds):
        findings += findings_of("source-note", "warn", rows["scan_id"], f"{len(rows)} scans: {rows['notes'].iloc[0]}")
    missing, labelled = used[used["diagnosis"].isna()], used[used["diagnosis"].notna()]
    eligible = labelled["diagnosis"].isin(classes)
    chosen, outside = labelled[eligible], labelled[~eligible]
    findings += findings_of("label-missing", "warn", missing["scan_id"])
    counts = ", ".join(f"{n} x {label}" for label, n in outside["diagnosis"].value_counts().items())
    named = ", ".join(f"{label}: {_class_like(label, classes)}" for label in sorted(outside["diagnosis"].unique()))
    remedy = f"for others add to the params source.labels: {{{named}}}"
    findings += findings_of("label-outside", "warn", outside["scan_id"], f"{counts}; {remedy}", ", ".join(classes))
    if chosen.empty:
        labels = sorted(labelled["diagnosis"].unique())
        expected = f"no scan has a diagnosis among {list(classes)}; the source has {labels}"
        raise StudyError(f"empty cohort: {expected}; {remedy}")
    flow = [("listed", scans), ("not excluded by the source", used), ("with a diagnosis", labelled)]
    flow.append(("of the study's classes", chosen))
    young = chosen[~(chosen["age"] >= min_age)] if min_age else chosen.iloc[:0]
    findings += findings_of("too-young", "info", young["scan_id"], limit=f"{min_age:g} years")
    if len(young) == len(chosen):
        raise StudyError(f"empty cohort: no scan with a diagnosis is of a person of audit.min_age {min_age:g} or more")
    kept = chosen.drop(young.index)
    if min_age:
        flow.append((f"aged {min_age:g} or more", kept))
    return findings, flow, kept


def _class_like(label: str, classes: tuple[str, ...]) -> str:
    """The class that a label seems to mean, else a gap to fill in."""
    meant = group_name(label)
    return meant if meant in classes else "..."


def _flow_table(flow: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """The steps that exclude scans, and the first and the last of the selection by label."""
    rows = [(step, len(scans), scans["participant_id"].nunique()) for step, scans in flow]
    table = pd.DataFrame(rows, columns=["step", "scans", "participants"])
    return table[table["step"].isin(_ALWAYS_SHOWN) | (table["scans"].diff() != 0)].reset_index(drop=True)


def _findings_table(findings: list[Finding], params: AuditParams) -> pd.DataFrame:
    """Schema `records.AUDIT`: the findings with the decision of the params on each, the gravest first."""
    table = pd.DataFrame(findings).sort_values("severity", key=lambda s: s.map(_GRAVEST_FIRST.index), kind="stable")
    accepted = table["check"].isin(params.accept)
    table["decision"] = np.where(table["severity"] != "stop", "go on", np.where(accepted, "accepted by params", "stop"))
    return check_table(table.drop(columns=LINKED), AUDIT, "audit")


def enforce(findings: pd.DataFrame) -> None:
    """Name the warnings on standard error, and stop the study on any stop finding that the params do not accept.

    Parameters
    ----------
    findings : DataFrame
        Schema `records.AUDIT`.

    Raises
    ------
    AuditStop
        With one line per finding.
    """
    named = findings[(findings["severity"] != "info") & (findings["decision"] != "stop")]
    for (severity, check), alike in named.groupby(["severity", "check"], sort=False)["value"]:
        more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
        print(f"{AUDITED} {severity} [{check}] {alike.iloc[0]:.{_SHOWN}}{more}", file=sys.stderr)
    pages = "notebooks/01_data_audit.html in the study's folder has their meaning, docs/audit.md remedies"
    print(f"{AUDITED} {len(named)} warnings; {pages}" if len(named) else f"{AUDITED} no warnings", file=sys.stderr)
    stops = findings[findings["decision"] == "stop"]
    if not stops.empty:
        lines = [f"[{f.check}] {f.subject}: {f.value} (limit {f.limit}). {f.meaning}" for f in stops.itertuples()]
        raise AuditStop(
            "the audit stops this study:\n  "
            + "\n  ".join(lines)
            + "\nCorrect the data, or accept a finding with audit.accept: [its id]; every report then states it."
        )
