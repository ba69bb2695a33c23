"""What is said of one scan: the answer and how sure it is, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adlib.classify.input_checks import Gate
from adlib.classify.nearest import Neighbour
from adlib.preprocess.derivatives import Preprocessed
from adlib.training import model_file
from adlib.training.cohort_reference import volume_percentiles

SIMULATED = "Research only. The model was trained on simulated images: the answer means nothing about a patient."
RESEARCH = "Research only. Not a medical device: the answer is no diagnosis and no basis for treatment."
COVERAGE = 0.9


@dataclass(frozen=True, eq=False)
class Prediction:
    """One scan and what is said of it.

    Attributes
    ----------
    name : str
    predicted : str or None
        Class of the highest probability; None where the scan was refused.
    probabilities : dict of str to float
        By class, with sum 1; empty where the scan was refused.
    slices : (n_slices, K) float64
        Calibrated probabilities of each slice, columns in the order of the model's classes; (0, K) where refused.
    prepared : Preprocessed
        The scan in MNI152 space, its tissues, volumes and quality control.
    card : adlib.training.model_file.ModelCard
        What the model is.
    notes : tuple of str
        How the file was read, and what lies outside the training cohort.
    gate : Gate
        Whether the scan may be answered, and why not.
    person : dict of str to float
        ``age`` in years and ``sex`` (1 female, 0 male), as far as given.
    seen : (n_slices, 3, H, W) float32
        What the network saw.
    coverage : float
        How often the set of classes is to hold the truth.
    nearest : list of Neighbour
        Training scans that lie nearest to this one among the network's features, nearest first.
    """

    name: str
    predicted: str | None
    probabilities: dict[str, float]
    slices: np.ndarray
    prepared: Preprocessed
    card: model_file.ModelCard
    notes: tuple[str, ...] = ()
    gate: Gate = field(default_factory=Gate)
    person: dict[str, float] = field(default_factory=dict)
    seen: np.ndarray = field(default_factory=lambda: np.zeros((0, 3, 1, 1), np.float32))
    coverage: float = COVERAGE
    nearest: list[Neighbour] = field(default_factory=list)

    @property
    def warning(self) -> str:
        """The line that must stand beside every answer."""
        return SIMULATED if self.card.simulated else RESEARCH

    @property
    def origin(self) -> str:
        """Which model answers, and whom it was trained on."""
        people = self.card.cohort.get("participants", {})
        counts = ", ".join(f"{people[name]} {name}" for name in self.card.classes if name in people)
        kind = "simulated heads" if self.card.simulated else "participants"
        trained = f", trained on {sum(people.values())} {kind} ({counts})" if people else ""
        return f"{self.card.network} of the study {self.card.study!r}{trained}"

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why there is no answer and what to do; empty where there is one."""
        return () if self.predicted else self.gate.refusals or self.prepared.reasons

    @property
    def possible(self) -> tuple[str, ...]:
        """Classes of the prediction set; empty where the scan is refused or the model file has no bound."""
        bounds = self.card.reference.get("sets", {})
        enough = [level for level in bounds if float(level) >= self.coverage - 1e-9]
        if not self.probabilities or not enough:
            return ()
        lowest = bounds[min(enough, key=float)]
        return tuple(name for name, p in self.probabilities.items() if p >= lowest or name == self.predicted)

    @property
    def statement(self) -> str:
        """The answer in a sentence: ``CN or MCI; AD excluded at 90 %``."""
        if self.predicted is None:
            return "No answer"
        if not self.possible:
            return f"Most probable: {self.predicted} (this model file stores no bound for a set of classes)"
        excluded = [name for name in self.card.classes if name not in self.possible]
        at = f"at {self.coverage:.0%}".replace("%", " %")
        if not excluded:
            return f"{_listed(self.possible, 'or')}: no class excluded {at}"
        return f"{_listed(self.possible, 'or')}; {_listed(excluded, 'and')} excluded {at}"

    @property
    def agreement(self) -> str:
        """How far the slices agree on the most probable class."""
        if self.predicted is None or not len(self.slices):
            return ""
        votes = int((self.slices.argmax(1) == self.card.classes.index(self.predicted)).sum())
        return f"{votes} of {len(self.slices)} slices favour {self.predicted}"

    @property
    def percentiles(self) -> dict[str, float]:
        """Volumes among healthy training participants of that age, sex and head size, 0 to 100."""
        return volume_percentiles(self.prepared.features, self.person, self.card.reference.get("norms", {}))

    @property
    def percentiles_note(self) -> str:
        """Against whom the percentiles stand, or why there are none."""
        norms = self.card.reference.get("norms", {})
        if not norms:
            return "No percentiles: this model file stores no healthy volumes by age and sex."
        low, high = norms["age"]
        if not {"age", "sex"} <= set(self.person):
            return "Give age and sex to see the volumes as percentiles of healthy training participants."
        if not self.percentiles:
            return (
                f"No percentiles: the age lies outside that of the healthy training participants, {low:g} to {high:g}."
            )
        who = "simulated " if self.card.simulated else ""
        return f"Percentiles among {norms['participants']} {who}CN of the training cohort, for age, sex and head size."


def _listed(names: tuple[str, ...] | list[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def as_record(prediction: Prediction) -> dict[str, Any]:
    """Everything about a prediction that JSON can hold; no pixel and no path."""
    prepared, card = prediction.prepared, prediction.card
    return {
        "name": prediction.name,
        "warning": prediction.warning,
        "origin": prediction.origin,
        "predicted": prediction.predicted,
        "statement": prediction.statement,
        "set": list(prediction.possible),
        "coverage": prediction.coverage,
        "probabilities": prediction.probabilities,
        "agreement": prediction.agreement,
        "slice_probabilities": [dict(zip(card.classes, row, strict=True)) for row in prediction.slices.tolist()],
        "nearest": [{k: v for k, v in vars(one).items() if k != "picture"} for one in prediction.nearest],
        "gate": [{**vars(check)} for check in prediction.gate.checks],
        "refused": list(prediction.refusals),
        "volumes": _plain(prepared.features),
        "percentiles": prediction.percentiles,
        "percentiles_note": prediction.percentiles_note,
        "person": prediction.person,
        "qc": _plain(prepared.qc),
        "verdict": prepared.verdict,
        "reasons": list(prepared.reasons),
        "steps": list(prepared.steps),
        "notes": list(prediction.notes),
        "model": {
            "study": card.study,
            "simulated_cohort": card.simulated,
            "classes": list(card.classes),
            "input": card.input.model_dump(mode="json"),
            "preprocess": card.preprocess.model_dump(mode="json"),
        },
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers for JSON: NumPy scalars as Python's, not-a-number as null."""
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in plain.items()}
