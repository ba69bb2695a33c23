"""The classification of one scan: prediction, prediction set and percentiles, as a record and as tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from itertools import chain, count
from typing import Any

import numpy as np
import pandas as pd

from adlib.classify.input_checks import Check
from adlib.classify.nearest import Neighbour
from adlib.preprocess.derivatives import Preprocessed
from adlib.training.cohort_reference import volume_percentiles
from adlib.training.model_file import ModelCard

SIMULATED = "Research only. The model was trained on simulated images: the result means nothing about a patient."
RESEARCH = "Research only. Not a medical device: the result is no diagnosis and no basis for treatment."
COVERAGE = 0.9

Record = dict[str, Any]


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

    @property
    def warning(self) -> str:
        """The line that is shown with every result."""
        return SIMULATED if self.card.simulated else RESEARCH

    @property
    def origin(self) -> str:
        """The model and its training cohort."""
        people = self.card.cohort.get("participants", {})
        counts = ", ".join(f"{people[name]} {name}" for name in self.card.classes if name in people)
        kind = "simulated heads" if self.card.simulated else "participants"
        trained = f", trained on {sum(people.values())} {kind} ({counts})" if people else ""
        return f"{self.card.network} of the study {self.card.study!r}{trained}"

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
        lowest = bounds[min(enough, key=float)]
        return tuple(name for name, p in self.probabilities.items() if p >= lowest or name == self.predicted)

    @property
    def statement(self) -> str:
        """The prediction set in a sentence: ``CN or MCI; AD excluded at 90 %``."""
        if self.predicted is None:
            return "Not classified"
        if not self.possible:
            return f"Most probable: {self.predicted} (no prediction set: the model file stores no bounds)"
        excluded = [name for name in self.card.classes if name not in self.possible]
        result = f"{_listed(excluded, 'and')} excluded" if excluded else "no class excluded"
        return f"{_listed(self.possible, 'or')}; {result} at {100 * self.coverage:.0f} %"

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
        "slice_probabilities": pd.DataFrame(prediction.slices, columns=list(card.classes)).to_dict("records"),
        "nearest": [{k: v for k, v in vars(scan).items() if k != "picture"} for scan in prediction.nearest],
        "checks": [asdict(check) for check in prediction.checks],
        "refused": list(prediction.refusals),
        "volumes": _finite(prepared.features),
        "percentiles": prediction.percentiles,
        "percentiles_note": prediction.percentiles_note,
        "person": prediction.person,
        "qc": _finite(prepared.qc),
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


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}


def unique_name(name: str, taken: Collection[str]) -> str:
    """The name, with the first free number from 2 on if it is taken.

    Parameters
    ----------
    name : str
    taken : collection of str

    Returns
    -------
    str
    """
    return next(free for free in chain([name], (f"{name}_{n}" for n in count(2))) if free not in taken)


def scan_table(records: Iterable[Record], truth: dict[str, str] | None = None) -> pd.DataFrame:
    """One row per scan: predicted class, prediction set, probabilities, volumes and percentiles.

    Parameters
    ----------
    records : iterable of dict
        From `as_record`.
    truth : dict of str to str, optional
        Diagnosis by scan name; adds the column ``diagnosis``.

    Returns
    -------
    DataFrame
        Indexed by ``scan``.
    """
    records, rows = list(records), []
    for record in records:
        diagnosis = {} if truth is None else {"diagnosis": truth.get(record["name"], "unknown")}
        percentiles = {f"{name} percentile": value for name, value in record["percentiles"].items()}
        volumes = {name: value for name, value in record["volumes"].items() if name.endswith(("_ml", "nbv"))}
        rows.append(
            {**diagnosis, "predicted": record["predicted"] or "none"}
            | {"set": " or ".join(record["set"]), **_probabilities(record), "slices": record["agreement"]}
            | {"quality control": record["verdict"], **volumes, **percentiles}
        )
    return pd.DataFrame(rows, pd.Index([record["name"] for record in records], name="scan")).round(3)


def summary_table(records: Iterable[Record]) -> pd.DataFrame:
    """Number of scans, mean, standard deviation and range of probabilities and volumes; empty without scans.

    Parameters
    ----------
    records : iterable of dict
        From `as_record`.

    Returns
    -------
    DataFrame
        Columns count, mean, std, min and max.
    """
    rows = [_probabilities(record) | record["volumes"] for record in records]
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).astype(float).agg(["count", "mean", "std", "min", "max"]).T.round(2)
    return table.astype({"count": int})


def _probabilities(record: Record) -> dict[str, float]:
    return {f"p({name})": value for name, value in record["probabilities"].items()}
