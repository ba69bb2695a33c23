"""The ResNet50, and the file that carries its weights together with all they depend on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet50_Weights, resnet50

from adlib.params import InputParams, PreprocessParams
from adlib.records import TISSUE_MAPS, StudyError, atomic_path

FORMAT = "adlib-resnet50-2"


@dataclass(frozen=True)
class ModelCard:
    """What a weights file says of itself.

    Attributes
    ----------
    study : str
    classes : tuple of str
        In the order of the network's outputs.
    simulated : bool
        True where the training cohort was the phantom: the answers then say nothing about a patient.
    input : InputParams
    preprocess : PreprocessParams
    temperature : float
        Divides the logits before the softmax, see `adlib.calibration`.
    cohort : dict
        Aggregates of the training participants only: counts by class, mean and sd of volumes by class.
    weights_origin, splits_sha256, code : str
        Initial weights, digest of splits.tsv, digest of the training code.
    seed : int
    bias : tuple of float
        Added to the logits of the classes after the temperature; empty for none.
    landmarks : tuple of float
        The standard scale of `adlib.preprocess.normalise`, fitted on the training scans; empty for none.
    spaces : tuple of str
        In which spaces the training scans came, see `adlib.records.TISSUE_MAPS`; empty for heads only.
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

    @property
    def refusal(self) -> str | None:
        """Why the model cannot take a head, in words that go on from "the model"; None where it can."""
        if self.input.flat:
            return "takes ready-made 2-D slices; it cannot take a whole head"
        if TISSUE_MAPS in self.spaces:
            return "takes grey-matter maps; it cannot take a T1w head"
        return None

    def to_json(self) -> str:
        content = {**asdict(self), "input": self.input.model_dump(), "preprocess": self.preprocess.model_dump()}
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        content = json.loads(text)
        content |= {name: tuple(content[name]) for name in ("classes", "bias", "landmarks", "spaces")}
        content["input"] = InputParams.model_validate_json(json.dumps(content["input"]))
        content["preprocess"] = PreprocessParams.model_validate_json(json.dumps(content["preprocess"]))
        return cls(**content)


@dataclass(frozen=True)
class Classifier:
    """A trained network in evaluation mode and its card."""

    network: nn.Module
    card: ModelCard


def build_network(classes: int, weights: str) -> tuple[nn.Module, str]:
    """torchvision's ResNet50 with a new last layer.

    Parameters
    ----------
    classes : int
    weights : str
        ``random``, ``imagenet`` or ``path:FILE``: a safetensors file, or a state dict that torch.save wrote, in the
        layout that the ResNet50 of torchvision and that of timm share.

    Returns
    -------
    network : nn.Module
    origin : str
        What the weights really are, to be said aloud; ImageNet falls back to random where it cannot be had.

    Raises
    ------
    StudyError
        If `weights` is none of these, or the file does not fit.
    """
    network, origin = resnet50(weights=None, zero_init_residual=True), "random initialisation"
    if weights == "imagenet":
        origin = _load_imagenet(network)
    elif weights.startswith("path:"):
        origin = _load_backbone(network, Path(weights.removeprefix("path:")))
    elif weights != "random":
        raise StudyError(f"train.weights is {weights!r}; expected random, imagenet or path:FILE")
    network.fc = nn.Linear(network.fc.in_features, classes)
    return network, origin


def _load_imagenet(network: nn.Module) -> str:
    try:
        state = ResNet50_Weights.IMAGENET1K_V2.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # no network, no cache, a broken download: all mean that the weights cannot be had
        return f"random initialisation (ImageNet weights could not be had: {type(error).__name__})"
    network.load_state_dict(state)
    return "ImageNet (torchvision IMAGENET1K_V2)"


def _load_backbone(network: nn.Module, path: Path) -> str:
    state = _without_prefix(_read(path)[0] if path.suffix == ".safetensors" else _read_pickled(path))
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    missing = [n for n in network.state_dict() if n not in state and not n.startswith("fc.")]
    if missing:
        raise StudyError(f"{path} is not a ResNet50 in the layout of torchvision and timm: it lacks {missing[:3]}")
    try:
        network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise StudyError(f"{path} does not fit ResNet50: {str(error).splitlines()[-1].strip()}") from None
    return f"weights of {path.name}"


def _read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """A state dict, alone or under ``state_dict`` or ``model`` in a training checkpoint; no code in the file is run."""
    if not path.is_file():
        raise StudyError(f"weights file {path} does not exist; check train.weights")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle raises whatever its parser raises
        raise StudyError(
            f"{path} is not a file of tensors alone ({str(error).splitlines()[0]}); save its state dict as safetensors"
        ) from None
    inner = [content[name] for name in ("state_dict", "model") if isinstance(content, dict) and name in content]
    state = inner[0] if inner else content
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise StudyError(f"{path} holds no state dict; expected names with tensors, as network.state_dict() gives them")
    _check_finite(state, path)
    return state


def _without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as ResNet50 has them: what a wrapper put before ``conv1.weight`` is taken off."""
    found = [name.removesuffix("conv1.weight") for name in state if name.endswith("conv1.weight")]
    prefix = min(found, key=len, default="")
    return {name.removeprefix(prefix): value for name, value in state.items()}


def save(classifier: Classifier, path: Path) -> None:
    """Write weights and card as one safetensors file, whole or not at all; the same bytes for the same classifier.

    The card stands under a single key, since safetensors writes several in an order that changes from call to call.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in classifier.network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, {FORMAT: classifier.card.to_json()})


def load(path: Path | str) -> Classifier:
    """Read a classifier that `save` wrote.

    Raises
    ------
    StudyError
        If the file is missing, is no safetensors file, has no card, or its weights do not fit or are not finite.
    """
    path = Path(path)
    state, metadata = _read(path)
    if FORMAT not in metadata:
        raise StudyError(f"{path} has no {FORMAT!r} in its metadata; use a file that adlib wrote in this format")
    try:
        card = ModelCard.from_json(metadata[FORMAT])
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path} carries no readable model card: {error}") from None
    network, _ = build_network(len(card.classes), "random")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise StudyError(f"{path} does not fit ResNet50: {str(error).splitlines()[-1].strip()}") from None
    return Classifier(network.eval(), card)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise StudyError(f"model file {path} does not exist; run the study that makes it, or give another file")
    try:
        with safe_open(path, framework="pt") as stream:
            state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            metadata = stream.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise StudyError(f"{path} is not a whole safetensors file: {error}") from None
    _check_finite(state, path)
    return state, metadata


def _check_finite(state: dict[str, torch.Tensor], path: Path) -> None:
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise StudyError(f"{path} holds values that are not finite, first in {broken[0]!r}; it is damaged")


@torch.inference_mode()
def slice_logits(network: nn.Module, slices: np.ndarray, batch: int = 64) -> np.ndarray:
    """Logits (n, K) float64 of slices (n, 3, H, W), computed in float32 on the network's device."""
    device = next(network.parameters()).device
    network.eval()
    parts = [
        network(torch.from_numpy(np.asarray(slices[i : i + batch], dtype=np.float32)).to(device)).double().cpu()
        for i in range(0, len(slices), batch)
    ]
    return torch.cat(parts).numpy()


def softmax(logits: np.ndarray, temperature: float = 1.0, bias: Sequence[float] = ()) -> np.ndarray:
    """Probabilities (n, K) float64 of logits (n, K) divided by a temperature, plus a bias (K,) where there is one."""
    scaled = logits / temperature + (np.asarray(bias) if len(bias) else 0.0)
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def slice_probabilities(classifier: Classifier, slices: np.ndarray) -> np.ndarray:
    """Calibrated probabilities (n, K) float64 of slices (n, 3, H, W)."""
    card = classifier.card
    return softmax(slice_logits(classifier.network, slices), card.temperature, card.bias)


def pool(probabilities: np.ndarray) -> np.ndarray:
    """Mean (K,) over the slices of one scan (or the scans of one participant)."""
    return np.asarray(probabilities).mean(axis=0)
