"""Whether a scan may be answered at all: a whole brain, T1w, good enough, and like those of the training cohort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from adlib.preprocess import quality as qc
from adlib.preprocess.derivatives import Preprocessed
from adlib.training.cohort_reference import IMAGE, QUALITY, VOLUMES, describe
from adlib.training.mahalanobis import Space, distances, farthest
from adlib.training.model_file import Classifier

PASSED, DOUBTFUL, REFUSED, UNCHECKED = "passed", "doubtful", "refused", "not checked"


@dataclass(frozen=True)
class Check:
    """One question about a scan.

    Attributes
    ----------
    question : str
    verdict : str
        passed, doubtful (answered all the same), refused, or not checked.
    found : str
        What was measured and what was expected, in words.
    advice : str
        What a person can do where it is refused.
    """

    question: str
    verdict: str
    found: str
    advice: str


@dataclass(frozen=True)
class Gate:
    """All checks of a scan."""

    checks: tuple[Check, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the scan may be answered."""
        return not any(check.verdict == REFUSED for check in self.checks)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why it may not and what to do, a sentence for each question that it fails."""
        return tuple(
            f"{check.question} No: {check.found}. {check.advice}" for check in self.checks if check.verdict == REFUSED
        )


QUESTIONS = {
    "Is a whole brain in view?": (
        ("qc_coverage", "qc_mask_ml", "qc_scale", "qc_dark"),
        "Give a scan of the whole head, with no part cut off or blanked",
    ),
    "Is it a brain, the right way round?": (
        ("qc_similarity", "qc_mask_dice", "qc_symmetry", "qc_asymmetry"),
        "Look at the picture: where the yellow line misses the brain, convert the scan from DICOM again, so that its "
        "header says how it lies",
    ),
    "Is it T1-weighted?": (
        ("qc_order", "qc_cnr"),
        "White matter must be brighter than grey matter and grey matter brighter than fluid; give the T1w series "
        "(MPRAGE, SPGR, FSPGR or TFE) without contrast agent",
    ),
    "Is it free of noise, motion and artefacts?": (
        ("qc_snr", "qc_edge", "qc_ghost", "qc_air", "qc_wrap", "qc_jump"),
        "Give a repeat of the scan, if there is one",
    ),
}
LIKENESS = {
    QUALITY: (
        "Is its quality that of the training scans?",
        "The model was not tested on such scans; give a repeat with less noise or motion, or use a model trained on "
        "scans like this one",
    ),
    VOLUMES: (
        "Are its volumes those of the training cohort?",
        "Look whether the outlines follow the brain; if they do, the model was not trained on brains like this one",
    ),
    IMAGE: (
        "Does it look to the network like the training scans?",
        "Use a model trained on scans like this one (scanner, sequence, age)",
    ),
}
WORDS = {QUALITY: "quality", VOLUMES: "volumes", IMAGE: "appearance"}


def judge(prepared: Preprocessed, features: np.ndarray, classifier: Classifier) -> Gate:
    """Ask all questions about a scan.

    Parameters
    ----------
    prepared : Preprocessed
    features : (2048,) float
        Mean over its slices of what the network's last layer sees, from `adlib.training.network.image_features`.
    classifier : Classifier
        A file without a stored reference leaves the questions of likeness unchecked.

    Returns
    -------
    Gate
    """
    asked = [_by_limits(question, prepared.qc, *known) for question, known in QUESTIONS.items()]
    stored = classifier.card.reference.get("gate") or {}
    values = describe(prepared.features | prepared.qc)
    for name, (question, advice) in LIKENESS.items():
        if name not in classifier.spaces or name not in stored.get("centre", {}):
            asked.append(Check(question, UNCHECKED, "this model file stores nothing to compare with", ""))
            continue
        known = classifier.spaces[name]
        own = features if name == IMAGE else np.array([values[name].get(one, np.nan) for one in known.names])
        distance = float(distances(own[None], known)[0])
        off = (np.log(max(distance, 1e-6)) - stored["centre"][name]) / stored["spread"][name]
        found = _distance_words(name, off, stored) + (_farthest_words(own, known) if name != IMAGE else "")
        asked.append(Check(question, REFUSED if off > stored["threshold"] else PASSED, found, advice))
    return Gate(tuple(asked))


def _by_limits(question: str, values: dict[str, float], names: tuple[str, ...], advice: str) -> Check:
    grades = {name: qc.grade(name, values[name]) for name in names if name in values}
    worst = next((grade for grade in ("fail", "check") if grade in grades.values()), "pass")
    verdict = {"fail": REFUSED, "check": DOUBTFUL, "pass": PASSED}[worst] if grades else UNCHECKED
    shown = [name for name, grade in grades.items() if grade == worst and worst != "pass"]
    words = [f"{qc.LIMITS[n].meaning} is {values[n]:.3g}, expected {qc.limit_text(n)}" for n in shown]
    return Check(question, verdict, "; ".join(words) or ("within limits" if grades else "not measured"), advice)


def _distance_words(name: str, off: float, stored: dict[str, Any]) -> str:
    return (
        f"the distance of its {WORDS[name]} is {off:+.1f} robust spreads from that of a typical scan that the model "
        f"had not seen, accepted up to {stored['threshold']:+.1f}"
    )


def _farthest_words(own: np.ndarray, space: Space) -> str:
    parts = []
    for name, value, mean, sd in farthest(own, space):
        if name in qc.LIMITS:
            parts.append(f"{qc.LIMITS[name].meaning} {value:.3g}, training {mean:.3g} ± {sd:.2g}")
        else:
            low, high = np.exp(mean - sd), np.exp(mean + sd)
            parts.append(
                f"{name.removesuffix('_ml').replace('_', ' ')} {np.exp(value):.3g} ml, training {low:.3g} to {high:.3g}"
            )
    return f" ({'; '.join(parts)})" if parts else ""
