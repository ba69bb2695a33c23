"""The file that carries a network's weights together with all they depend on."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from adlib.study.params import InputParams, StudyParams
from adlib.study.records import StudyError, atomic_path, file_digest
from adlib.training.cohort_reference import FeatureDistribution
from adlib.training.model_card import FORMAT, ModelCard, card_in
from adlib.training.network import OWN, ResNet50, load_body, output_layer, read_state, slice_outputs, softmax
from adlib.training.pooling import ATTENTION, within_scan
from adlib.training.recipe import NETWORK_FILE, BuildNetwork, read_network

STORED = "reference."
STORED_PARTS = ("mean", "sd", "axes", "variances", "rest")


@dataclass(frozen=True)
class Classifier:
    """A trained network in evaluation mode, its card, how its training scans are distributed, and its file's hash."""

    network: nn.Module
    card: ModelCard
    distributions: dict[str, FeatureDistribution] = field(default_factory=dict)
    sha256: str = ""


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
    card = card_in(metadata, path)
    extra = {name.removeprefix(STORED): state.pop(name) for name in list(state) if name.startswith(STORED)}
    try:
        distributions = _distributions(card, extra)
    except KeyError as error:
        raise StudyError(f"{path} lacks the tensor {error} that its model card names; copy the file again") from None
    build_network = build_network or _builder(card, path, trusted)
    network = build_network(outputs(card.classes, card.input), len(card.covariates), 0.0)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise StudyError(f"{path} does not fit {card.network}: {str(error).splitlines()[-1].strip()}") from None
    return Classifier(network.eval(), card, distributions, file_digest(path))


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


def check_alike(card: ModelCard, path: Path, params: StudyParams) -> None:
    """Refuse a model whose classes, their order, input or preprocessing are not those of a study.

    Parameters
    ----------
    card : ModelCard
    path : path
        Of the model, for messages.
    params : StudyParams

    Raises
    ------
    StudyError
        With the first difference.
    """
    if card.classes != params.classes:
        raise StudyError(
            f"{path} has the classes {list(card.classes)}, the study {list(params.classes)}; the order counts too"
        )
    for mine, theirs in ((params.input, card.input), (params.preprocess, card.preprocess)):
        changed = {k: (v, getattr(mine, k)) for k, v in theirs.model_dump().items() if getattr(mine, k) != v}
        if changed:
            name, (there, here) = next(iter(changed.items()))
            raise StudyError(
                f"{path} was trained with {name} = {there!r}, the study has {here!r}; set it alike (train.weights "
                "path:FILE takes the body of a network, whatever its input was)"
            )


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
    check_alike(model.card, path, params)
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
