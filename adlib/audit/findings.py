"""Findings of the audit: every check with its severity, meaning and remedy, and the stop of a study."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from adlib.study.params import AuditParams
from adlib.study.records import AUDIT, StudyError, check_table

Finding = dict[str, str]
_SHOWN = 5
_ORDER = {"stop": 0, "warn": 1, "info": 2}


class AuditStop(StudyError):
    """A finding of the audit invalidates every result."""


@dataclass(frozen=True)
class Check:
    """One kind of finding.

    Attributes
    ----------
    severities : tuple of str
        Possible severities of the finding: info, warn, stop.
    meaning : str
        Consequence for the results.
    remedy : str
        What to do; empty where nothing is to be done.
    """

    severities: tuple[str, ...]
    meaning: str
    remedy: str = ""


_INSPECT = "Inspect the scans listed; correct or remove them."
_INFLATED = "Accuracy is inflated by participants in both training and test set."

CHECKS: dict[str, Check] = {
    "source-left-out": Check(
        ("info",), "The source excludes these scans for the reason given.", "Check that the reason is right."
    ),
    "label-missing": Check(
        ("warn",),
        "The scan has no diagnosis and is excluded.",
        "Complete the table of labels if these scans should count.",
    ),
    "label-outside": Check(
        ("warn",),
        "The diagnosis is not among the study's classes; the scan is excluded.",
        "Map it in source.labels or add it to classes if it should count.",
    ),
    "scan-two-labels": Check(("stop",), "One scan has several diagnoses.", "Keep one row per scan."),
    "image-two-labels": Check(
        ("stop",),
        "One image id has several diagnoses, so one image would be trained on as two classes.",
        "Keep each image once, with the diagnosis of its visit.",
    ),
    "visit-two-labels": Check(
        ("stop",), "One visit of a participant has contradictory diagnoses.", "Settle the diagnosis of that visit."
    ),
    "scan-repeated": Check(
        ("warn",), "The scan id occurs in several rows; the first is used.", "Give each file its own scan id."
    ),
    "image-repeated": Check(
        ("warn",), "One image id belongs to several scans: copies count twice.", "Keep one version of each image."
    ),
    "same-image": Check(
        ("warn", "stop"),
        "Identical files with different names; across participants or diagnoses they leak from training to test set.",
        "Keep one of them.",
    ),
    "same-pixels": Check(
        ("warn", "stop"),
        "Different files with identical pixels; across participants or diagnoses they leak from training to test set.",
        "Keep one of them.",
    ),
    "near-duplicate": Check(
        ("info", "stop"),
        "Images so similar, also mirrored or shifted, that they show one head; across participants they leak.",
        _INSPECT,
    ),
    "mirrored-scan": Check(
        ("warn",),
        "Two scans of a participant match only if one is mirrored: left and right, or up and down, are swapped in one.",
        "Check the orientation in the header against the source.",
    ),
    "same-person": Check(
        ("warn",),
        "Participants with equal sex, age and intracranial volume at a visit; beyond the number expected by chance "
        f"they are one person under several ids, whom a split does not keep together. {_INFLATED}",
        "Compare their other facts and images, and give them one participant_id.",
    ),
    "participants-unknown": Check(
        ("stop",),
        "Participant IDs are unknown, so a split cannot keep a participant's scans together. Groups recovered by image "
        "similarity replace them; two groups may still be one person. Results by participant are refused until this "
        "is accepted.",
        "Give source.participant or source.table, or accept the groups.",
    ),
    "participants-recovered": Check(
        ("info",), "Groups of images of one head, recovered by similarity alone.", "Inspect some of them."
    ),
    "groups-unclear": Check(
        ("warn",),
        "Similarity does not separate images of one head from images of different heads, so each image without a "
        "participant counts as one participant: leakage is likely.",
        "Find the participant IDs.",
    ),
    "group-two-labels": Check(
        ("warn",),
        "A group recovered by similarity has several diagnoses: it mixes participants, or a diagnosis changed.",
        _INSPECT,
    ),
    "given-split-leaks": Check(
        ("stop",),
        f"Participants occur in several parts of the split as shipped. {_INFLATED}",
        "Let adlib split by participant; accept this to use the images without that split.",
    ),
    "pixels-unchecked": Check(
        ("info",), "Images were not compared: copies with other names are not found.", "Give pixels."
    ),
    "sequence-not-t1w": Check(
        ("warn", "stop"),
        "The scan is not a T1w head. A few are excluded; a cohort in which most scans are not T1w is stopped.",
        "Choose the T1w series in the source.",
    ),
    "sequence-unstated": Check(
        ("info",),
        "File name, series description and timing do not state the sequence; preprocessing only tests whether the scan "
        "registers to a T1w template.",
        "Add series descriptions where the source has them.",
    ),
    "unreadable": Check(
        ("warn",),
        "The header or the pixels cannot be read; preprocessing gives the reason and excludes the scan.",
        "Copy the file again.",
    ),
    "not-3d": Check(
        ("warn", "stop"), "The file has several volumes, as a time series does; it is not a T1w scan.", _INSPECT
    ),
    "few-slices": Check(
        ("warn",), "So few slices indicate a localiser or a 2-D clinical scan; volumes are imprecise.", _INSPECT
    ),
    "anisotropic": Check(
        ("warn",),
        "Voxels are much longer along one axis, so slices across it are blurred.",
        "Compare results without these scans.",
    ),
    "field-of-view": Check(
        ("warn",), "The field of view fits no adult head: wrong voxel sizes, or part of the head is cut.", _INSPECT
    ),
    "affine": Check(
        ("warn", "stop"), "The affine is missing or singular; the position of the scan in space is unknown.", _INSPECT
    ),
    "orientation-unstated": Check(
        ("warn",), "The header states no orientation: left and right may be swapped.", "Convert again from DICOM."
    ),
    "dtype": Check(("warn", "stop"), "Values are complex or colours, not the grey values of a T1w scan.", _INSPECT),
    "nan-values": Check(
        ("warn",), "The image has NaN or infinite values; they are read as 0.", "Convert the image again."
    ),
    "constant": Check(("warn",), "All values are equal: the scan is excluded.", "Copy the file again."),
    "participants": Check(
        ("info", "stop"), "Participants with a scan of this class; too few do not suffice for training and testing."
    ),
    "imbalance": Check(("warn",), "Class sizes differ much.", "Read balanced accuracy, not accuracy."),
    "followups": Check(("info",), "Participants with several sessions; a split keeps all of them together."),
    "label-changes": Check(
        ("info",), "The diagnosis of these participants changes between visits; splits are stratified by the first."
    ),
    "age-missing": Check(
        ("warn",), "The age is unknown; baselines use the median instead.", "Complete the table of ages."
    ),
    "phase-tells-label": Check(
        ("info", "warn", "stop"),
        "ROC AUC of the label from the study phase alone: a classifier may learn the phase, not the disease.",
        "Keep one phase (source.phases), or join the classes that it separates.",
    ),
    "slices-tell-label": Check(
        ("info", "warn", "stop"),
        "ROC AUC of the label from slice count and slice index alone: the position of a slice predicts its label.",
        "Take slices at the same position in template space from every scan.",
    ),
    "sequence-tells-label": Check(
        ("info", "warn", "stop"),
        "ROC AUC of the label from series description and timing alone: a classifier may learn the sequence.",
        "Keep one kind of sequence, or balance it over the classes.",
    ),
    "acquisition-tells-label": Check(
        ("info", "warn", "stop"),
        "ROC AUC of the label from site, scanner, voxel size and date alone, without any image.",
        "Balance the classes over sites and scanners, or report it with every score.",
    ),
    "demographics-tell-label": Check(
        ("info", "warn"),
        "ROC AUC of the label from age and sex alone, the baseline of an image classifier.",
        "Match the classes, or report it with every score.",
    ),
}


def finding(check: str, severity: str, subject: str, value: str, limit: str = "0") -> Finding:
    """One row of the audit.

    Parameters
    ----------
    check : str
        A key of `CHECKS`, which has the meaning.
    severity : str
        One of the check's severities.
    subject : str
        The scans or participants concerned, see `named`.
    value, limit : str
        The value and the limit it is compared with.

    Raises
    ------
    ValueError
        If the check does not have the severity.
    """
    about = CHECKS[check]
    if severity not in about.severities:
        raise ValueError(f"check {check} has severities {about.severities}, not {severity}")
    meaning = f"{about.meaning} {about.remedy}".strip()
    return {
        "check": check,
        "severity": severity,
        "subject": subject,
        "value": value,
        "limit": limit,
        "meaning": meaning,
    }


def named(names: Iterable[object]) -> str:
    """The first few names in order, and the number of the others.

    Parameters
    ----------
    names : iterable
        Scans or participants; repeated ones count once.
    """
    names = sorted({str(name) for name in names})
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def share(part: int, whole: int) -> str:
    """A count with its whole and percentage, such as ``3 of 12 (25 %)``.

    Parameters
    ----------
    part, whole : int
    """
    return f"{part} of {whole} ({100 * part / max(whole, 1):.0f} %)"


def findings_table(findings: list[Finding], params: AuditParams) -> pd.DataFrame:
    """The findings with the decision of the params on each, the gravest first.

    Parameters
    ----------
    findings : list of Finding
    params : AuditParams

    Returns
    -------
    DataFrame
        Schema `records.AUDIT`.
    """
    table = pd.DataFrame(findings, columns=[name for name in AUDIT.columns if name != "decision"])
    accepted = table["check"].isin(params.accept)
    table["decision"] = np.where(table["severity"] != "stop", "go on", np.where(accepted, "accepted by params", "stop"))
    return check_table(table.iloc[np.argsort(table["severity"].map(_ORDER), kind="stable")], AUDIT, "audit")


def check_accepted(params: AuditParams) -> None:
    """Refuse ids in `audit.accept` that are not those of a check with severity stop.

    Parameters
    ----------
    params : AuditParams

    Raises
    ------
    StudyError
        With the nearest id.
    """
    stops = [name for name, check in CHECKS.items() if "stop" in check.severities]
    for name in params.accept:
        if name not in stops:
            near = difflib.get_close_matches(name, stops, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"checks that stop: {', '.join(stops)}"
            raise StudyError(f"audit.accept has {name!r}, which is not a check that stops a study; {hint}")


def enforce(findings: pd.DataFrame) -> None:
    """Stop the study on any stop finding that the params do not accept.

    Parameters
    ----------
    findings : DataFrame
        Schema `records.AUDIT`.

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
            + "\nCorrect the data, or accept a finding with audit.accept: [its id]; every report then states it."
        )
