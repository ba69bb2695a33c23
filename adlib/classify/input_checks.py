"""Checks of a scan before it is classified: field of view, contrast, quality, distance from the training scans."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from adlib.audit.acquisition import IMAGE_QUALITY
from adlib.preprocess import quality
from adlib.preprocess.derivatives import Preprocessed
from adlib.training import cohort_reference
from adlib.training.cohort_reference import IMAGE, QUALITY, VOLUMES, FeatureDistribution
from adlib.training.model_file import Classifier

PASSED, WARNING, FAILED, UNCHECKED = "passed", "warning", "failed", "not checked"
QC_VALUES = {
    "view": ("qc_coverage", "qc_mask_ml", "qc_scale", "qc_dark"),
    "registration": ("qc_similarity", "qc_mask_dice", "qc_symmetry", "qc_asymmetry"),
    "contrast": ("qc_order", "qc_cnr"),
    "noise": IMAGE_QUALITY,
}
COMPARED = {QUALITY: "quality", VOLUMES: "volume", IMAGE: "feature"}
TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes())


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
    checks = [_check_limits(prepared.qc, names, **TEXTS[check]) for check, names in QC_VALUES.items()]
    if least := classifier.card.cohort.get("min_age"):
        checks.append(_check_age((person or {}).get("age"), least))
    reference = classifier.card.reference.get("gate") or {}
    values = cohort_reference.describe(prepared.features | prepared.qc)
    for name, quantity in COMPARED.items():
        title, problem, advice = (TEXTS[name][part] for part in ("title", "problem", "advice"))
        if name not in classifier.distributions or name not in reference.get("centre", {}):
            checks.append(Check(title, UNCHECKED, "the model file stores no cohort reference", ""))
            continue
        space = classifier.distributions[name]
        measured = features if name == IMAGE else np.array([values[name].get(key, np.nan) for key in space.names])
        distance = np.log(max(float(cohort_reference.mahalanobis_distances(measured[None], space)[0]), 1e-6))
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


def _check_limits(values: dict[str, float], names: tuple[str, ...], title: str, problem: str, advice: str) -> Check:
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
    for name, value, mean, sd in cohort_reference.farthest(values, space):
        if name in quality.LIMITS:
            parts[quality.LIMITS[name].meaning] = f"{value:.3g} (training {mean:.3g} ± {sd:.2g})"
        else:  # logarithms of volumes
            value, low, high = np.exp([value, mean - sd, mean + sd])
            title = name.removesuffix("_ml").replace("_", " ")
            parts[title] = f"{value:.3g} ml (training {low:.3g} to {high:.3g})"
    return parts
