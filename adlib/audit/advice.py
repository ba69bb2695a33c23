"""Advice of the audit: the severities of every check, its meaning for the results, and what to do."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from adlib.study.records import some

Finding = dict[str, Any]
LINKED = "linked"  # key of a finding: groups of ids that are of one person, if it is right


@dataclass(frozen=True)
class Check:
    """One kind of finding.

    Attributes
    ----------
    severities : str
        Possible severities of the finding: info, warn, stop.
    meaning : str
        Consequence for the results.
    remedy : str
        What to do; empty where nothing is to be done.
    """

    severities: str
    meaning: str
    remedy: str = ""


_INSPECT = "Inspect the scans listed; correct or remove them."
_INFLATED = "Accuracy is inflated by participants in both training and test set."

CHECKS: dict[str, Check] = {
    "source-left-out": Check(
        "info", "The source excludes these scans for the reason given.", "Check that the reason is right."
    ),
    "source-note": Check(
        "warn",
        "A cell of a table or a sidecar is not as expected: it was read as said, or counts as unknown.",
        "Correct the file where the reading is wrong.",
    ),
    "label-missing": Check(
        "warn",
        "The scan has no diagnosis and is excluded.",
        "Complete the table of labels if these scans should count.",
    ),
    "label-outside": Check(
        "warn",
        "The diagnosis is not among the study's classes; the scan is excluded.",
        "Map it in source.labels or add it to classes if it should count.",
    ),
    "too-young": Check(
        "info",
        "The person is younger than audit.min_age, or of unknown age; the scan is excluded, so that scores are no "
        "contrast of ages.",
    ),
    "scan-two-labels": Check("stop", "One scan has several diagnoses.", "Keep one row per scan."),
    "image-two-labels": Check(
        "stop",
        "One image id has several diagnoses, so one image would be trained on as two classes.",
        "Keep each image once, with the diagnosis of its visit.",
    ),
    "visit-two-labels": Check(
        "stop", "One visit of a participant has contradictory diagnoses.", "Settle the diagnosis of that visit."
    ),
    "scan-repeated": Check(
        "warn", "The scan id occurs in several rows; the first is used.", "Give each file its own scan id."
    ),
    "image-repeated": Check(
        "warn", "One image id belongs to several scans: copies count twice.", "Keep one version of each image."
    ),
    "same-image": Check(
        "warn, stop",
        "Identical files with different names; across participants or diagnoses they leak from training to test set.",
        "Keep one of them.",
    ),
    "same-pixels": Check(
        "warn, stop",
        "Different files with identical pixels; across participants or diagnoses they leak from training to test set.",
        "Keep one of them.",
    ),
    "near-duplicate": Check(
        "info, stop",
        "Images so similar, also mirrored or shifted, that they show one head; across participants they leak.",
        _INSPECT,
    ),
    "mirrored-scan": Check(
        "warn",
        "Two scans of a participant match only if one is mirrored: left and right, or up and down, are swapped in one.",
        "Check the orientation in the header against the source.",
    ),
    "same-person": Check(
        "warn",
        "Participants with equal sex, age and intracranial volume at a visit; beyond the number expected by chance "
        "they are one person under several ids. Splits keep them on one side; counts of participants, intervals and "
        "tests take them for several people.",
        "Compare their other facts and images, and give them one participant_id.",
    ),
    "participants-unknown": Check(
        "stop",
        "Participant IDs are unknown, so a split cannot keep a participant's scans together. Groups recovered by image "
        "similarity replace them; two groups may still be one person. Results by participant are refused until this "
        "is accepted.",
        "Give source.participant or source.table, or accept the groups.",
    ),
    "participants-recovered": Check(
        "info", "Groups of images of one head, recovered by similarity alone.", "Inspect some of them."
    ),
    "groups-unclear": Check(
        "warn",
        "Similarity does not separate images of one head from images of different heads, so each image without a "
        "participant counts as one participant: leakage is likely.",
        "Find the participant IDs.",
    ),
    "group-two-labels": Check(
        "warn",
        "A group recovered by similarity has several diagnoses: it mixes participants, or a diagnosis changed.",
        _INSPECT,
    ),
    "given-split-leaks": Check(
        "stop",
        f"Participants occur in several parts of the split as shipped. {_INFLATED}",
        "Let adlib split by participant; accept this to use the images without that split.",
    ),
    "pixels-unchecked": Check(
        "info", "Images were not compared: copies with other names are not found.", "Give pixels."
    ),
    "sequence-not-t1w": Check(
        "warn, stop",
        "The scan is not a T1w head. A few are excluded; a cohort in which most scans are not T1w is stopped.",
        "Choose the T1w series in the source.",
    ),
    "sequence-unstated": Check(
        "info",
        "File name, series description and timing do not state the sequence; preprocessing only tests whether the scan "
        "registers to a T1w template.",
        "Add series descriptions where the source has them.",
    ),
    "unreadable": Check(
        "warn",
        "The header or the pixels cannot be read; preprocessing gives the reason and excludes the scan.",
        "Copy the file again.",
    ),
    "not-3d": Check(
        "warn, stop", "The file has several volumes, as a time series does; it is not a T1w scan.", _INSPECT
    ),
    "few-slices": Check(
        "warn", "So few slices indicate a localiser or a 2-D clinical scan; volumes are imprecise.", _INSPECT
    ),
    "anisotropic": Check(
        "warn",
        "Voxels are much longer along one axis, so slices across it are blurred.",
        "Compare results without these scans.",
    ),
    "field-of-view": Check(
        "warn", "The field of view fits no adult head: wrong voxel sizes, or part of the head is cut.", _INSPECT
    ),
    "affine": Check(
        "warn, stop", "The affine is missing or singular; the position of the scan in space is unknown.", _INSPECT
    ),
    "orientation-unstated": Check(
        "warn", "The header states no orientation: left and right may be swapped.", "Convert again from DICOM."
    ),
    "dtype": Check("warn, stop", "Values are complex or colours, not the grey values of a T1w scan.", _INSPECT),
    "nan-values": Check(
        "warn", "The image has NaN or infinite values; they are read as 0.", "Convert the image again."
    ),
    "constant": Check("warn", "All values are equal: the scan is excluded.", "Copy the file again."),
    "participants": Check(
        "info, stop", "Participants with a scan of this class; too few do not suffice for training and testing."
    ),
    "imbalance": Check("warn", "Class sizes differ much.", "Read balanced accuracy, not accuracy."),
    "followups": Check("info", "Participants with several sessions; a split keeps all of them together."),
    "label-changes": Check(
        "info", "The diagnosis of these participants changes between visits; splits are stratified by the first."
    ),
    "age-missing": Check(
        "warn", "The age is unknown; baselines use the median instead.", "Complete the table of ages."
    ),
    "phase-tells-label": Check(
        "info, warn, stop",
        "ROC AUC of the label from the study phase alone: a classifier may learn the phase, not the disease.",
        "Keep one phase (source.phases), or join the classes that it separates.",
    ),
    "slices-tell-label": Check(
        "info, warn, stop",
        "ROC AUC of the label from slice count and slice index alone: the position of a slice predicts its label.",
        "Take slices at the same position in template space from every scan.",
    ),
    "sequence-tells-label": Check(
        "info, warn, stop",
        "ROC AUC of the label from series description and timing alone: a classifier may learn the sequence.",
        "Keep one kind of sequence, or balance it over the classes.",
    ),
    "acquisition-tells-label": Check(
        "info, warn, stop",
        "ROC AUC of the label from site, scanner, voxel size and date alone, without any image.",
        "Balance the classes over sites and scanners, or report it with every score.",
    ),
    "demographics-tell-label": Check(
        "info, warn",
        "ROC AUC of the label from age and sex alone, the baseline of an image classifier.",
        "Match the classes, or report it with every score.",
    ),
}


def findings_of(
    check: str,
    severity: str,
    subjects: Collection[object],
    value: str = "",
    limit: str = "0",
    linked: Iterable[Collection[str]] = (),
) -> list[Finding]:
    """The finding of a check about scans, participants or classes; none where there are no subjects.

    Parameters
    ----------
    check : str
        A key of `CHECKS`, which has the meaning.
    severity : str
        One of the check's severities.
    subjects : collection
        Names; the finding has the first few in order, and the number of the others.
    value, limit : str
        The value, by default the number of scans, and the limit it is compared with.
    linked : iterable of collection of str
        Groups of participants that are one person, if the finding is right.

    Returns
    -------
    list of dict

    Raises
    ------
    ValueError
        If the check has no such severity.
    """
    if severity not in CHECKS[check].severities.split(", "):
        raise ValueError(f"{check} is never {severity!r}, only {CHECKS[check].severities}")
    if not len(subjects):
        return []
    about = {"check": check, "severity": severity, "subject": some(sorted({str(name) for name in subjects}))}
    meaning = f"{CHECKS[check].meaning} {CHECKS[check].remedy}".strip()
    value = value or f"{len(subjects)} scans"
    return [about | {"value": value, "limit": limit, "meaning": meaning, LINKED: linked}]


def share(part: int, whole: int) -> str:
    """A count with its whole and percentage, such as ``3 of 12 (25 %)``.

    Parameters
    ----------
    part, whole : int
    """
    return f"{part} of {whole} ({100 * part / max(whole, 1):.0f} %)"
