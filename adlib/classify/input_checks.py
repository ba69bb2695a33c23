"""Checks of a scan before it is classified: field of view, contrast, quality, distance from the training scans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adlib.audit.acquisition import IMAGE_QUALITY
from adlib.preprocess import quality
from adlib.preprocess.derivatives import Preprocessed
from adlib.training.cohort_reference import (
    IMAGE,
    QUALITY,
    VOLUMES,
    FeatureDistribution,
    describe,
    farthest,
    mahalanobis_distances,
)
from adlib.training.model_file import Classifier

UNLIKE = "too different from the training scans"
PASSED, WARNING, FAILED, UNCHECKED = "passed", "warning", "failed", "not checked"
# Title of a check, the QC values that it rests on, and, if it fails, what is wrong and what to do.
LIMIT_CHECKS = {
    "Whole brain in the field of view": (
        ("qc_coverage", "qc_mask_ml", "qc_scale", "qc_dark"),
        "a part of the brain is missing or dark",
        "Use a scan of the whole head without cropped or blanked parts",
    ),
    "Registration and orientation": (
        ("qc_similarity", "qc_mask_dice", "qc_symmetry", "qc_asymmetry"),
        "the head does not fit the template",
        "Check the brain outline in the figure; if it misses the brain, convert the scan from DICOM again to restore "
        "the orientation in its header",
    ),
    "T1w contrast": (
        ("qc_order", "qc_cnr"),
        "the contrast is not that of a T1w scan",
        "White matter must be brighter than grey matter and grey matter brighter than CSF; use the T1w series "
        "(MPRAGE, SPGR, FSPGR or TFE) without contrast agent",
    ),
    "Noise, motion and artefacts": (
        IMAGE_QUALITY,
        "too much noise, motion or artefacts",
        "Use a repeat of the scan, if there is one",
    ),
}
# Title of a check, the compared quantity, and, if it fails, what is wrong and what to do.
DISTANCE_CHECKS = {
    QUALITY: (
        "Image quality within the training distribution",
        "quality",
        f"{UNLIKE} in image quality",
        "The model was not tested on such scans; use another scan of the person, or a model trained on similar scans",
    ),
    VOLUMES: (
        "Volumes within the training distribution",
        "volume",
        f"{UNLIKE} in volumes",
        "Check the outlines in the figure; if they follow the brain, the model was not trained on similar brains",
    ),
    IMAGE: (
        "Network features within the training distribution",
        "feature",
        f"{UNLIKE} in the network's features",
        "Use a model trained on similar scans (scanner, sequence, age)",
    ),
}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes
    ----------
    title : str
    status : str
        ``passed``, ``warning`` (classified all the same), ``failed`` or ``not checked``.
    message : str
        Measured and expected values.
    advice : str
        What to do if the check fails.
    problem : str
        What is wrong if it fails, in plain words.
    """

    title: str
    status: str
    message: str
    advice: str
    problem: str = ""

    @property
    def refusal(self) -> str:
        """Why the scan is not classified and what to do; empty unless the check failed."""
        return f"{self.title}: {self.message}. {self.advice}" if self.status == FAILED else ""


def check_input(
    prepared: Preprocessed, features: np.ndarray, classifier: Classifier, person: dict[str, float] | None = None
) -> tuple[Check, ...]:
    """Run all checks of a scan.

    Parameters
    ----------
    prepared : Preprocessed
    features : (p,) float
        Mean over its slices of the network's features before the last layer.
    classifier : Classifier
        Without a stored cohort reference the distance checks are ``not checked``.
    person : dict of str to float, optional
        With ``age`` in years, for a model of people above some age.

    Returns
    -------
    tuple of Check
    """
    checks = [_check_limits(title, prepared.qc, *rest) for title, rest in LIMIT_CHECKS.items()]
    if least := classifier.card.cohort.get("min_age"):
        checks.append(_check_age((person or {}).get("age"), least))
    reference = classifier.card.reference.get("gate") or {}
    values = describe(prepared.features | prepared.qc)
    for name, (title, quantity, problem, advice) in DISTANCE_CHECKS.items():
        if name not in classifier.distributions or name not in reference.get("centre", {}):
            checks.append(Check(title, UNCHECKED, "the model file stores no cohort reference", ""))
            continue
        space = classifier.distributions[name]
        measured = features if name == IMAGE else np.array([values[name].get(key, np.nan) for key in space.names])
        distance = np.log(max(float(mahalanobis_distances(measured[None], space)[0]), 1e-6))
        z = (distance - reference["centre"][name]) / reference["spread"][name]
        limit = reference["threshold"]
        message = f"{quantity} distance z = {z:.2f} relative to held-out scans (limit {limit:.2f})"
        deviations = {} if name == IMAGE else _largest_deviations(measured, space)
        if deviations:
            message += f"; largest deviations: {'; '.join(map(' '.join, deviations.items()))}"
            problem += f": {next(iter(deviations))}"
        checks.append(Check(title, FAILED if z > limit else PASSED, message, advice, problem))
    return tuple(checks)


def _check_age(age: float | None, least: float) -> Check:
    title, trained = "Age within the range of the training cohort", f"trained on people of {least:g} or more"
    if age is None:
        return Check(title, UNCHECKED, f"age is not given; {trained}", "")
    status = PASSED if age >= least else FAILED
    problem = f"the model is for people of {least:g} years or more"
    return Check(title, status, f"age is {age:g} years; {trained}", "Use a model for that age", problem)


def _check_limits(title: str, values: dict[str, float], names: tuple[str, ...], problem: str, advice: str) -> Check:
    grades = {name: quality.grade(name, values[name]) for name in names if name in values}
    if not grades:
        return Check(title, UNCHECKED, "not measured", advice)
    worst = next((grade for grade in ("fail", "check") if grade in grades.values()), "pass")
    limits = {name: quality.LIMITS[name] for name, grade in grades.items() if grade == worst != "pass"}
    reasons = [f"{v.meaning} is {values[k]:.3g}, expected {quality.limit_text(k)}" for k, v in limits.items()]
    status = {"fail": FAILED, "check": WARNING, "pass": PASSED}[worst]
    return Check(title, status, "; ".join(reasons) or "within limits", advice, problem)


def _largest_deviations(values: np.ndarray, space: FeatureDistribution) -> dict[str, str]:
    """Value and training values by the words for each of the most extreme quantities."""
    parts = {}
    for name, value, mean, sd in farthest(values, space):
        if name in quality.LIMITS:
            parts[quality.LIMITS[name].meaning] = f"{value:.3g} (training {mean:.3g} ± {sd:.2g})"
        else:  # logarithms of volumes
            value, low, high = np.exp([value, mean - sd, mean + sd])
            title = name.removesuffix("_ml").replace("_", " ")
            parts[title] = f"{value:.3g} ml (training {low:.3g} to {high:.3g})"
    return parts
