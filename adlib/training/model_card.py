"""The description that travels with the weights of a network; reading it needs no network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from adlib.study.params import InputParams, PreprocessParams
from adlib.study.records import TISSUE_MAPS, StudyError

FORMAT = "adlib-resnet50-3"
NETWORK = "ResNet50"


@dataclass(frozen=True)
class ModelCard:
    """The description that travels with the weights.

    Attributes
    ----------
    study : str
    classes : tuple of str
        In the order of the network's outputs.
    simulated : bool
        True where the training cohort was the phantom: results then do not apply to patients.
    input : InputParams
    preprocess : PreprocessParams
    temperature : float
        Divides the logits before the softmax, see `adlib.training.pooling`.
    cohort : dict
        Aggregates of the training participants only: counts by class, mean and sd of volumes by class.
    weights_origin, splits_sha256, code : str
        Initial weights, digest of splits.tsv, digest of the training code.
    seed : int
    bias : tuple of float
        Added to the logits of the classes after the temperature; empty for none.
    landmarks : tuple of float
        The standard scale of `adlib.preprocess.intensity`, fitted on the training scans; empty for none.
    spaces : tuple of str
        In which spaces the training scans came, see `adlib.study.records.TISSUE_MAPS`; empty for heads only.
    covariates : dict of str to (float, float)
        Covariates of the output layer, in order, with their mean and standard deviation in training.
    reference : dict
        Reference values for a single scan, see `adlib.training.cohort_reference.make_reference`; empty in older files.
    people : tuple of str
        Keyed hashes of the participants of training and validation and, to recognise the secret, of the empty name, see
        `adlib.training.split_table.by_hash`; empty without `splits.salt`.
    training : dict
        Record of the training, see `adlib.training.recipe.describe`; empty in older files, whose network is ResNet50.
    """

    study: str
    classes: tuple[str, ...]
    simulated: bool
    input: InputParams
    preprocess: PreprocessParams
    temperature: float
    cohort: dict[str, Any]
    weights_origin: str
    splits_sha256: str
    code: str
    seed: int
    bias: tuple[float, ...] = ()
    landmarks: tuple[float, ...] = ()
    spaces: tuple[str, ...] = ()
    covariates: dict[str, tuple[float, float]] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    people: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """Title of the network, such as ResNet50."""
        return self.training.get("network", {}).get("title", NETWORK)

    @property
    def title(self) -> str:
        """Network and study."""
        return f"{self.network} of the study {self.study!r}"

    @property
    def origin(self) -> str:
        """The model and its training cohort, in one line."""
        people = self.cohort.get("participants", {})
        counts = ", ".join(f"{people[name]} {name}" for name in self.classes if name in people)
        kind = "simulated heads" if self.simulated else "participants"
        return self.title + (f", trained on {sum(people.values())} {kind} ({counts})" if people else "")

    @property
    def refusal(self) -> str | None:
        """Why the model cannot classify a head, to follow "the model"; None where it can."""
        if not self.input.takes_heads:
            return "takes ready-made 2-D slices; it cannot take a whole head"
        if TISSUE_MAPS in self.spaces:
            return "takes grey-matter maps; it cannot take a T1w head"
        return None

    def to_json(self) -> str:
        """The card as JSON, keys sorted.

        Returns
        -------
        str
        """
        content = {**asdict(self), "input": self.input.model_dump(), "preprocess": self.preprocess.model_dump()}
        content["covariates"] = [[name, *values] for name, values in self.covariates.items()]
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Read a card that `to_json` wrote.

        Parameters
        ----------
        text : str

        Returns
        -------
        ModelCard

        Raises
        ------
        KeyError, TypeError, ValueError
            If a field is missing, unknown or not valid.
        """
        content = json.loads(text)
        tuples = {"classes", "bias", "landmarks", "spaces", "people"} & set(content)
        content |= {name: tuple(content[name]) for name in tuples}
        content["covariates"] = {name: (mean, sd) for name, mean, sd in content["covariates"]}
        content["input"] = InputParams.model_validate_json(json.dumps(content["input"]))
        content["preprocess"] = PreprocessParams.model_validate_json(json.dumps(content["preprocess"]))
        return cls(**content)


def read_card(path: Path) -> ModelCard:
    """Read the card of a weights file.

    Parameters
    ----------
    path : path

    Returns
    -------
    ModelCard

    Raises
    ------
    StudyError
        If the file cannot be read as safetensors, or has no card that this version reads.
    """
    try:
        with safe_open(path, "np") as stored:
            metadata = stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise StudyError(f"{path} cannot be read as safetensors: {error}") from None
    return card_in(metadata, path)


def card_in(metadata: dict[str, str], path: Path) -> ModelCard:
    """The card in the metadata of a weights file.

    Parameters
    ----------
    metadata : dict of str to str
    path : path
        Of the file, for messages.

    Returns
    -------
    ModelCard

    Raises
    ------
    StudyError
        If there is none, or it is not readable.
    """
    if FORMAT not in metadata:
        raise StudyError(f"{path} has no {FORMAT!r} in its metadata; use a file that adlib wrote in this format")
    try:
        return ModelCard.from_json(metadata[FORMAT])
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path} carries no readable model card: {error}") from None
