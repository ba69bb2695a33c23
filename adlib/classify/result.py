"""The classification of one scan: prediction, prediction set and percentiles, as a record."""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version

import numpy as np
import pandas as pd

from adlib.classify.input_checks import Check
from adlib.classify.nearest import Neighbour
from adlib.classify.scan_tables import COVERAGE, Record
from adlib.preprocess.derivatives import Preprocessed
from adlib.training.cohort_reference import volume_percentiles
from adlib.training.conformal import sets_of
from adlib.training.model_file import ModelCard

SIMULATED = "Research only. The model was trained on simulated images: the result means nothing about a patient."
SHORT = 12  # characters of the hash of a model file
RECORDED = (  # of a prediction, as it is
    "name", "warning", "provenance", "time", "predicted", "statement", "advice", "coverage", "probabilities",
    "agreement", "percentiles", "percentiles_note", "person",
)  # fmt: skip
RESEARCH = "Research only. Not a medical device: the result is no diagnosis and no basis for treatment."


@dataclass(frozen=True, eq=False)
class Prediction:
    """The classification of one scan.

    Attributes
    ----------
    name : str
    predicted : str or None
        Class of the highest probability; None if the scan is refused.
    probabilities : dict of str to float
        By class, with sum 1; empty if the scan is refused.
    slices : (n_slices, K) float64
        Calibrated probabilities of each slice, columns in the order of the model's classes; (0, K) if refused.
    prepared : Preprocessed
        The scan in MNI152 space, its tissues, volumes and quality control.
    card : ModelCard
    notes : tuple of str
        How the file was read, and which volumes lie outside the training cohort.
    checks : tuple of Check
        See `adlib.classify.input_checks`.
    person : dict of str to float
        ``age`` in years and ``sex`` (1 female, 0 male), if given.
    seen : (n_slices, 3, H, W) float32
        Input of the network.
    coverage : float
        Probability with which the prediction set contains the true class.
    nearest : list of Neighbour
        Nearest training scans in the network's features, nearest first.
    sha256 : str
        Of the model file.
    time : str
        Local time with its offset, ISO 8601.
    """

    name: str
    predicted: str | None
    probabilities: dict[str, float]
    slices: np.ndarray
    prepared: Preprocessed
    card: ModelCard
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    person: dict[str, float] = field(default_factory=dict)
    seen: np.ndarray = field(default_factory=lambda: np.zeros((0, 3, 1, 1), np.float32))
    coverage: float = COVERAGE
    nearest: list[Neighbour] = field(default_factory=list)
    sha256: str = ""
    time: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))

    @property
    def warning(self) -> str:
        """The line that is shown with every result."""
        return SIMULATED if self.card.simulated else RESEARCH

    @property
    def provenance(self) -> str:
        """Model, hash of its file, version and time in one line, the same wherever a result is shown."""
        file = f"model file sha256 {self.sha256[:SHORT]}" if self.sha256 else "model without file"
        return f"{self.card.origin}; {file}; adlib {version('adlib')}; {self.time}"

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why the scan is not classified and what to do; empty if it is classified."""
        failed = tuple(check.refusal for check in self.checks if check.refusal)
        return () if self.predicted else failed or self.prepared.reasons

    @property
    def possible(self) -> tuple[str, ...]:
        """Classes of the prediction set; empty if the scan is refused or the model file stores no bounds."""
        bounds = self.card.reference.get("sets", {})
        enough = [level for level in bounds if float(level) >= self.coverage - 1e-9]
        if not self.probabilities or not enough:
            return ()
        p = np.array(list(self.probabilities.values()))
        inside = sets_of(p[None], np.array(bounds[min(enough, key=float)]))[0]
        return tuple(np.array(list(self.probabilities))[inside].tolist())

    @property
    def statement(self) -> str:
        """The result in one line, the same wherever it is shown.

        ``Most probable: MCI (0.48). At 90 %: CN or MCI; AD excluded``, that nothing is excluded, or what is wrong with
        the scan.
        """
        if self.predicted is None:
            problems = [check.problem for check in self.checks if check.refusal]
            reason = problems[0] if problems else "; ".join(self.prepared.reasons)
            return f"Not classified: {reason}" if reason else "Not classified"
        most = f"Most probable: {self.predicted} ({self.probabilities[self.predicted]:.2f})"
        if not self.possible:
            return f"{most}. No prediction set: the model file stores no bounds"
        level = f"{100 * self.coverage:.0f} %"
        excluded = [name for name in self.card.classes if name not in self.possible]
        if not excluded:
            return f"Undecided: at {level} no class is excluded. {most}"
        return f"{most}. At {level}: {_listed(self.possible, 'or')}; {_listed(excluded, 'and')} excluded"

    @property
    def advice(self) -> str:
        """What to do with a scan that is refused; empty if it is classified."""
        return next((check.advice for check in self.checks if check.refusal), "") if not self.predicted else ""

    @property
    def agreement(self) -> str:
        """Number of slices whose most probable class is the predicted one."""
        if self.predicted is None or not len(self.slices):
            return ""
        votes = int((self.slices.argmax(1) == self.card.classes.index(self.predicted)).sum())
        return f"{votes} of {len(self.slices)} slices favour {self.predicted}"

    @property
    def percentiles(self) -> dict[str, float]:
        """Percentiles of the volumes, 0 to 100, among healthy training participants of that age, sex and head size."""
        return volume_percentiles(self.prepared.features, self.person, self.card.reference.get("norms", {}))

    @property
    def percentiles_note(self) -> str:
        """The reference group of the percentiles, or why there are none."""
        norms = self.card.reference.get("norms", {})
        if not norms:
            return "No percentiles: the model file stores no volumes of healthy participants."
        if not {"age", "sex"} <= set(self.person):
            return "Percentiles among healthy training participants require age and sex."
        if not self.percentiles:
            low, high = norms["age"]
            return f"No percentiles: age outside the range of the healthy training participants, {low:g} to {high:g}."
        kind = "simulated " if self.card.simulated else ""
        return f"Percentiles among {norms['participants']} {kind}CN of the training cohort, for age, sex and head size."


def _listed(names: tuple[str, ...] | list[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def as_record(prediction: Prediction) -> Record:
    """A prediction as JSON-compatible values, without voxels and paths.

    Parameters
    ----------
    prediction : Prediction

    Returns
    -------
    dict
    """
    prepared, card = prediction.prepared, prediction.card
    return {name: getattr(prediction, name) for name in RECORDED} | {
        "origin": card.origin,
        "version": version("adlib"),
        "set": list(prediction.possible),
        "slice_probabilities": pd.DataFrame(prediction.slices, columns=list(card.classes)).to_dict("records"),
        "nearest": [{k: v for k, v in vars(scan).items() if k != "picture"} for scan in prediction.nearest],
        "checks": [asdict(check) for check in prediction.checks],
        "refused": list(prediction.refusals),
        "volumes": _finite(prepared.features),
        "qc": _finite(prepared.qc),
        "verdict": prepared.verdict,
        "reasons": list(prepared.reasons),
        "steps": list(prepared.steps),
        "notes": list(prediction.notes),
        "model": {
            "name": card.title,
            "study": card.study,
            "sha256": prediction.sha256,
            "simulated_cohort": card.simulated,
            "classes": list(card.classes),
            "input": card.input.model_dump(mode="json"),
            "preprocess": card.preprocess.model_dump(mode="json"),
        },
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
