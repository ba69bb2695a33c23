"""The ResNet50, where its first weights come from, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torchvision.models import ResNet50_Weights
from torchvision.models.resnet import Bottleneck, ResNet

from adlib.study.records import StudyError

STAGES = ("layer1", "layer2", "layer3", "layer4")


class Network(ResNet):
    """torchvision's ResNet50 with covariates such as age and sex concatenated to the image features.

    Parameters
    ----------
    outputs : int
    covariates : int
        Number of covariates concatenated to the features of the image.
    dropout : float
        Share of the 2048 features dropped in training.
    """

    def __init__(self, outputs: int, covariates: int = 0, dropout: float = 0.0):
        super().__init__(Bottleneck, [3, 4, 6, 3], zero_init_residual=True)
        self.covariates = covariates
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.fc.in_features + covariates, outputs)
        with torch.no_grad():
            self.fc.weight[:, self.fc.in_features - covariates :] = 0

    def forward(self, x: torch.Tensor, covariates: torch.Tensor | None = None) -> torch.Tensor:
        """Outputs (B, outputs) of slices (B, 3, H, W) and covariates (B, covariates); left out, those count as 0."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in STAGES:
            x = getattr(self, name)(x)
        features = self.dropout(torch.flatten(self.avgpool(x), 1))  # (B, 2048)
        if self.covariates:
            given = features.new_zeros(len(features), self.covariates) if covariates is None else covariates
            features = torch.cat([features, given.to(features.dtype)], dim=1)
        return self.fc(features)


def build_network(outputs: int, weights: str, covariates: int = 0, dropout: float = 0.0) -> tuple[nn.Module, str]:
    """ResNet50 with a new last layer.

    Parameters
    ----------
    outputs : int
    weights : str
        ``random``, ``imagenet`` or ``path:FILE``: a safetensors file, or a state dict that torch.save wrote, in the
        layout that the ResNet50 of torchvision and that of timm share.
    covariates : int
    dropout : float
        See `Network`.

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
    network, origin = Network(outputs, covariates, dropout), "random initialisation"
    if weights == "imagenet":
        origin = _load_imagenet(network)
    elif weights.startswith("path:"):
        origin = _load_backbone(network, Path(weights.removeprefix("path:")))
    elif weights != "random":
        raise StudyError(f"train.weights is {weights!r}; expected random, imagenet, path:FILE or adlib:FILE")
    return network, origin


def freeze(network: nn.Module, stages: int) -> None:
    """Leave the stem and the first `stages` of four stages as they are; `hold` does it for batch statistics."""
    for part in _frozen(network, stages):
        part.requires_grad_(False)


def hold(network: nn.Module, stages: int) -> None:
    """Set a network to training, its frozen part to evaluation, so that batch statistics there do not move."""
    network.train()
    for part in _frozen(network, stages):
        part.eval()


def _frozen(network: nn.Module, stages: int) -> list[nn.Module]:
    return [getattr(network, name) for name in (("conv1", "bn1", *STAGES[:stages]) if stages else ())]


def _load_imagenet(network: nn.Module) -> str:
    try:
        state = ResNet50_Weights.IMAGENET1K_V2.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # no network, no cache, a broken download: all mean that the weights cannot be had
        return f"random initialisation (ImageNet weights could not be had: {type(error).__name__})"
    load_body(network, state, "ImageNet weights")
    return "ImageNet (torchvision IMAGENET1K_V2)"


def _load_backbone(network: nn.Module, path: Path) -> str:
    state = read_state(path)[0] if path.suffix == ".safetensors" else _read_pickled(path)
    load_body(network, _without_prefix(state), str(path))
    return f"weights of {path.name}"


def load_body(network: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Load all of a ResNet50 but its last layer.

    Raises
    ------
    StudyError
        If a layer is missing or has another shape.
    """
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    missing = [n for n in network.state_dict() if n not in state and not n.startswith("fc.")]
    if missing:
        raise StudyError(f"{where} is not a ResNet50 in the layout of torchvision and timm: it lacks {missing[:3]}")
    try:
        network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise StudyError(f"{where} does not fit ResNet50: {str(error).splitlines()[-1].strip()}") from None


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


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises
    ------
    StudyError
        If the file is missing, is no safetensors file, or holds a value that is not finite.
    """
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
def slice_outputs(
    network: nn.Module, slices: np.ndarray, covariates: np.ndarray | None = None, batch: int = 64
) -> np.ndarray:
    """Outputs (n, outputs) float64 of slices (n, 3, H, W), computed in float32 on the network's device.

    Parameters
    ----------
    network : nn.Module
    slices : (n, 3, H, W) array
    covariates : (n, C) array, optional
        Covariates; left out, they count as 0.
    batch : int
    """
    device = next(network.parameters()).device
    network.eval()

    def part(values: np.ndarray, start: int) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values[start : start + batch], dtype=np.float32)).to(device)

    given = covariates is not None and covariates.shape[1] > 0
    parts = [
        network(part(slices, k), *([part(covariates, k)] if given else [])).double().cpu()
        for k in range(0, len(slices), batch)
    ]
    return torch.cat(parts).numpy()


@torch.inference_mode()
def image_features(network: nn.Module, slices: np.ndarray, batch: int = 64) -> np.ndarray:
    """What the last layer sees of slices (n, 3, H, W): features (n, 2048) float32, without covariates."""
    device, kept = next(network.parameters()).device, []
    hook = network.avgpool.register_forward_hook(lambda *call: kept.append(torch.flatten(call[2], 1).float().cpu()))
    network.eval()
    try:
        for start in range(0, len(slices), batch):
            network(torch.from_numpy(np.asarray(slices[start : start + batch], dtype=np.float32)).to(device))
    finally:
        hook.remove()
    return torch.cat(kept).numpy()


def softmax(logits: np.ndarray, temperature: float = 1.0, bias: Sequence[float] = ()) -> np.ndarray:
    """Probabilities (n, K) float64 of logits (n, K) divided by a temperature, plus a bias (K,) where there is one."""
    scaled = logits / temperature + (np.asarray(bias) if len(bias) else 0.0)
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
