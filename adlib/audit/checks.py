"""Every check of the audit: its id, how grave it can be, what it means for the result, and what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One kind of finding.

    Attributes
    ----------
    severities : tuple of str
        What a finding of this kind can be: info, warn, stop.
    meaning : str
        What it means for the result.
    remedy : str
        What to do; empty where nothing is to be done.
    """

    severities: tuple[str, ...]
    meaning: str
    remedy: str = ""


_LOOK = "Look at the scans named and mend or remove them."
_OWN = "Accuracy is inflated for people whose images were trained on."

CHECKS: dict[str, Check] = {
    "source-left-out": Check(
        ("info",), "The source itself left these scans out, for the reason given.", "Check that the reason is right."
    ),
    "label-missing": Check(
        ("warn",), "The scan has no diagnosis and is left out.", "Complete the table of labels, or let them go."
    ),
    "label-outside": Check(
        ("warn",),
        "The scan's diagnosis is none of the study's classes; it is left out.",
        "Map it in source.labels or add it to classes, if it should count.",
    ),
    "scan-two-labels": Check(
        ("stop",), "One scan is listed with several diagnoses; none can be believed.", "Keep one row per scan."
    ),
    "image-two-labels": Check(
        ("stop",),
        "One image id stands under several diagnoses, so the same image is taught as two classes.",
        "Keep each image once, under the diagnosis of its visit.",
    ),
    "visit-two-labels": Check(
        ("stop",), "One visit of one person has contradictory diagnoses.", "Settle the diagnosis of that visit."
    ),
    "scan-repeated": Check(
        ("warn",), "The scan id stands in several rows; the first is kept.", "Give each file its own scan id."
    ),
    "image-repeated": Check(
        ("warn",), "One image id belongs to several scans: copies count double.", "Keep one version of each image."
    ),
    "same-image": Check(
        ("warn", "stop"),
        "Identical files under different names; across people or diagnoses the same image is trained on and tested on.",
        "Keep one of them.",
    ),
    "same-pixels": Check(
        ("warn", "stop"),
        "Different files hold the very same pixels; across people or diagnoses they are trained on and tested on.",
        "Keep one of them.",
    ),
    "near-duplicate": Check(
        ("info", "stop"),
        "Images so alike, mirrored or shifted copies included, that they show one head; across people they leak.",
        _LOOK,
    ),
    "mirrored-scan": Check(
        ("warn",),
        "Two scans of one person match only when one is mirrored: left and right, or up and down, are swapped in one.",
        "Check the orientation in the header against the source.",
    ),
    "same-person": Check(
        ("warn",),
        "Several participants agree in sex, age and intracranial volume at a visit; beyond what chance explains they "
        f"are one person under several names, whom no split keeps on one side. {_OWN}",
        "Compare their other facts and images, and give them one participant_id.",
    ),
    "participants-unknown": Check(
        ("stop",),
        "Nobody says who is shown, so no split can keep a person on one side. Groups recovered by similarity stand in "
        "for people; two groups may still be one person. Subject-level results are refused until this is accepted.",
        "Give source.participant or source.table; or accept the groups knowingly.",
    ),
    "participants-recovered": Check(
        ("info",), "Groups of images of one head, found by similarity alone.", "Look at some of them."
    ),
    "groups-unclear": Check(
        ("warn",),
        "Images of one head cannot be told apart from images of others here, so each image without a participant is "
        "taken as a person of its own: leakage is likely.",
        "Find out the participants.",
    ),
    "group-two-labels": Check(
        ("warn",),
        "A group recovered by similarity holds several diagnoses: it mixes people, or a person's label changed.",
        _LOOK,
    ),
    "given-split-leaks": Check(
        ("stop",),
        f"People stand in several parts of the split as shipped. {_OWN}",
        "Let adlib split by participant; accept this to use the images with that split ignored.",
    ),
    "pixels-unchecked": Check(
        ("info",), "No image was compared with another: copies under other names are not looked for.", "Give pixels."
    ),
    "sequence-not-t1w": Check(
        ("warn", "stop"),
        "The scan is no T1w head. A few are left out; where most of the cohort is not T1w, this is no T1w study.",
        "Choose the T1w series in the source.",
    ),
    "sequence-unstated": Check(
        ("info",),
        "Neither name, series description nor timing says what sequence it is; preprocessing only sees whether it "
        "registers to a T1w template.",
        "Add series descriptions where the source has them.",
    ),
    "unreadable": Check(
        ("warn",),
        "The header or the pixels cannot be read; preprocessing will say why and leave the scan out.",
        "Copy the file again.",
    ),
    "not-3d": Check(
        ("warn", "stop"), "The file holds several volumes, as a time series does; it cannot be a T1w scan.", _LOOK
    ),
    "few-slices": Check(
        ("warn",), "So few slices are a localiser or a 2-D clinical scan; volumes and thin slices are poor.", _LOOK
    ),
    "anisotropic": Check(
        ("warn",), "Voxels are much longer along one axis, so slices across it are blurred.", "Compare results without."
    ),
    "field-of-view": Check(
        ("warn",), "The field of view fits no adult head: voxel sizes are wrong or part of the head is cut.", _LOOK
    ),
    "affine": Check(
        ("warn", "stop"), "The affine is missing or cannot be inverted; the scan cannot be placed in space.", _LOOK
    ),
    "orientation-unstated": Check(
        ("warn",), "The header states no orientation: left and right may be swapped.", "Convert again from DICOM."
    ),
    "dtype": Check(("warn", "stop"), "Values are complex or colours, not the grey values of a T1w scan.", _LOOK),
    "nan-values": Check(("warn",), "The image holds NaN or infinite values; they are read as 0.", "Convert it again."),
    "constant": Check(("warn",), "One and the same value everywhere: the scan is left out.", "Copy the file again."),
    "participants": Check(
        ("info", "stop"), "Participants with a scan of this class; too few cannot be trained on and tested on.", ""
    ),
    "imbalance": Check(("warn",), "Classes differ much in size.", "Read balanced accuracy, not accuracy."),
    "followups": Check(("info",), "Participants with several sessions; all stay on one side of every split.", ""),
    "label-changes": Check(
        ("info",), "The diagnosis of these people changes between visits; the split is by their first.", ""
    ),
    "age-missing": Check(("warn",), "The age is unknown; baselines fill in the median.", "Complete the table."),
    "phase-tells-label": Check(
        ("info", "warn", "stop"),
        "ROC AUC of the label from the study phase alone: a classifier may learn the phase, not the disease.",
        "Keep one phase (source.phases), or join the classes that it separates.",
    ),
    "slices-tell-label": Check(
        ("info", "warn", "stop"),
        "ROC AUC of the label from slice count and slice index alone: the place of a slice gives its label away.",
        "Cut slices at the same place in template space for every scan.",
    ),
    "sequence-tells-label": Check(
        ("info", "warn", "stop"),
        "ROC AUC of the label from series description and timing alone: a classifier may learn the sequence.",
        "Keep one kind of sequence, or balance it over the classes.",
    ),
    "acquisition-tells-label": Check(
        ("info", "warn", "stop"),
        "ROC AUC of the label from site, scanner, voxel size and date alone, without any image.",
        "Balance the classes over sites and scanners, or report it beside every score.",
    ),
    "demographics-tell-label": Check(
        ("info", "warn"),
        "ROC AUC of the label from age and sex alone: what an image classifier has to beat.",
        "Match the classes, or report it beside every score.",
    ),
}
