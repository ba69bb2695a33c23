"""The file that carries a network's weights together with all they depend on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from adlib.study.params import InputParams, PreprocessParams, StudyParams
from adlib.study.records import TISSUE_MAPS, StudyError, atomic_path
from adlib.training.cohort_reference import FeatureDistribution
from adlib.training.network import OWN, ResNet50, load_body, output_layer, read_state, slice_outputs, softmax
from adlib.training.pooling import ATTENTION, within_scan
from adlib.training.recipe import NETWORK_FILE, BuildNetwork, read_network

FORMAT = "adlib-resnet50-3"
STORED = "reference."
STORED_PARTS = ("mean", "sd", "axes", "variances", "rest")


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
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """Title of the network, such as ResNet50."""
        return self.training.get("network", {}).get("title", ResNet50.__name__)

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
        content |= {name: tuple(content[name]) for name in ("classes", "bias", "landmarks", "spaces")}
        content["covariates"] = {name: (mean, sd) for name, mean, sd in content["covariates"]}
        content["input"] = InputParams.model_validate_json(json.dumps(content["input"]))
        content["preprocess"] = PreprocessParams.model_validate_json(json.dumps(content["preprocess"]))
        return cls(**content)


@dataclass(frozen=True)
class Classifier:
    """A trained network in evaluation mode, its card, and how its training scans are distributed."""

    network: nn.Module
    card: ModelCard
    distributions: dict[str, FeatureDistribution] = field(default_factory=dict)


def save(classifier: Classifier, path: Path, *, half: bool = False) -> None:
    """Write weights and card as one safetensors file, whole or not at all; the same bytes for the same classifier.

    The card has a single key, since safetensors writes several in an order that changes from call to call.
    Tensors of `Classifier.distributions` are stored with names that begin with `STORED`.

    Parameters
    ----------
    classifier : Classifier
    path : path
    half : bool
        Round the weights of convolutions and of the last layer to 16 bit; parameters of single channels stay.

    Raises
    ------
    StudyError
        If a weight is too large for 16 bit.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in classifier.network.state_dict().items()}
    if half:
        state = {name: value.half() if value.ndim > 1 else value for name, value in state.items()}
        if lost := [name for name, value in state.items() if not value.isfinite().all()]:
            raise StudyError(f"weights of {lost[0]!r} are too large for 16 bit; save them in 32")
    for name, distribution in classifier.distributions.items():
        parts = {part: np.atleast_1d(np.float32(getattr(distribution, part))) for part in STORED_PARTS}
        state |= {f"{STORED}{name}.{part}": torch.from_numpy(value) for part, value in parts.items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, {FORMAT: classifier.card.to_json()})


def weights_path(path: Path | str) -> Path:
    """The weights file itself, or ``model.safetensors`` in a folder.

    Parameters
    ----------
    path : path
        A file or a folder.

    Returns
    -------
    path
    """
    return Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)


def load(path: Path | str, build_network: BuildNetwork | None = None, trusted: bool = False) -> Classifier:
    """Read a classifier that `save` wrote: a file, or a folder with ``model.safetensors``.

    Parameters
    ----------
    path : path
    build_network : callable, optional
        Makes the network, see `adlib.training.recipe.Recipe`. By default it is ResNet50.
    trusted : bool
        Whether the code in ``network.py`` next to the file may be run, which the training of another network writes:
        only for the folder of a study of one's own. No code of the model file itself is ever run.

    Raises
    ------
    StudyError
        If the file is missing, is no safetensors file, has no card, its weights do not fit or are not finite, or its
        network is not ResNet50 and is not given.
    """
    path = weights_path(path)
    state, metadata = read_state(path)
    if FORMAT not in metadata:
        raise StudyError(f"{path} has no {FORMAT!r} in its metadata; use a file that adlib wrote in this format")
    extra = {name.removeprefix(STORED): state.pop(name) for name in list(state) if name.startswith(STORED)}
    try:
        card = ModelCard.from_json(metadata[FORMAT])
        distributions = _distributions(card, extra)
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path} carries no readable model card: {error}") from None
    build_network = build_network or _builder(card, path, trusted)
    network = build_network(outputs(card.classes, card.input), len(card.covariates), 0.0)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise StudyError(f"{path} does not fit {card.network}: {str(error).splitlines()[-1].strip()}") from None
    return Classifier(network.eval(), card, distributions)


def _builder(card: ModelCard, path: Path, trusted: bool) -> BuildNetwork:
    stated = card.training.get("network", {})
    if "source" not in stated:
        return next((made for made in OWN if made.__name__ == card.network), ResNet50)
    if trusted:
        return read_network(path.with_name(NETWORK_FILE), stated)
    raise StudyError(
        f"{path} was trained with the network {stated['name']!r}, which is not run from a file; "
        "give it as load(path, build_network=...)"
    )


def _distributions(card: ModelCard, tensors: dict[str, torch.Tensor]) -> dict[str, FeatureDistribution]:
    distributions = {}
    for name, values in card.reference.get("names", {}).items():
        parts = {part: tensors[f"{name}.{part}"].numpy() for part in STORED_PARTS}
        distributions[name] = FeatureDistribution(tuple(values), **{**parts, "rest": float(parts["rest"][0])})
    return distributions


def outputs(classes: tuple[str, ...], params: InputParams) -> int:
    """Number of outputs of a network that is ready to use.

    Parameters
    ----------
    classes : tuple of str
    params : InputParams

    Returns
    -------
    int
        A logit per class and, where attention pools slices, a score.
    """
    return len(classes) + (params.pooling == ATTENTION)


def continue_from(network: nn.Module, path: Path, params: StudyParams, build_network: BuildNetwork) -> str:
    """Load body and class outputs of a model that this project trained on the same kind of input.

    Parameters
    ----------
    network : nn.Module
        With at least one output per class.
    path : path
        A file that `save` wrote.
    params : StudyParams
        Of the study that continues with it.
    build_network : callable
        That of `network`.

    Returns
    -------
    str
        The origin of the weights, as the training reports it.

    Raises
    ------
    StudyError
        If the model's classes, their order, its input or its preprocessing differ.
    """
    model = load(path, build_network)
    if model.card.classes != params.classes:
        raise StudyError(
            f"{path} has the classes {list(model.card.classes)}, the study {list(params.classes)}; the order counts too"
        )
    for mine, theirs in ((params.input, model.card.input), (params.preprocess, model.card.preprocess)):
        changed = {k: (v, getattr(mine, k)) for k, v in theirs.model_dump().items() if getattr(mine, k) != v}
        if changed:
            name, (there, here) = next(iter(changed.items()))
            raise StudyError(
                f"{path} was trained with {name} = {there!r}, the study has {here!r}; path: takes its body alone"
            )
    load_body(network, model.network.state_dict(), str(path))
    (_, last), (_, first), count = output_layer(model.network), output_layer(network), len(params.classes)
    with torch.no_grad():
        first.weight[:count, : last.in_features] = last.weight[:count]
        first.bias[:count] = last.bias[:count]
    return f"the model of {model.card.study!r} in {path.name}"


def classify_slices(
    classifier: Classifier, slices: np.ndarray, person: dict[str, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities of the slices of one scan, and the weight of each.

    Parameters
    ----------
    classifier : Classifier
    slices : (n, 3, H, W) array
    person : dict of str to float, optional
        Covariates by name; a missing one counts as the training mean.

    Returns
    -------
    probabilities : (n, K) float64
    weights : (n,) float64
        Sum 1; equal unless attention pools the slices.
    """
    card, person = classifier.card, person or {}
    covariates = [(person.get(name, mean) - mean) / sd for name, (mean, sd) in card.covariates.items()]
    values = slice_outputs(classifier.network, slices, np.tile(covariates, (len(slices), 1)))
    count = len(card.classes)
    scores = values[:, count] if card.input.pooling == ATTENTION else np.zeros(len(values))
    p = softmax(values[:, :count], card.temperature, card.bias)
    return p, within_scan(scores, np.zeros(len(values), int))
