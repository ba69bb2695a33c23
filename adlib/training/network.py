"""The ResNet50, the requirements on any other network, initial weights, and outputs for slices."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from scipy import special
from torch import nn
from torchvision.models import ResNet50_Weights
from torchvision.models.resnet import Bottleneck, ResNet

from adlib.study.records import StudyError

BATCH = 64  # slices at a time
IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's weights


class ImageNetwork(nn.Module):
    """Any body with a linear output layer over its features and the covariates.

    The package requires this of a network, whatever its class, and refers to none of its layers:

    - ``forward(x, covariates)`` returns (B, outputs) for slices (B, 3, H, W); without covariates, they count as 0;
    - ``features(x)`` returns the image features (B, F) by which scans are compared;
    - ``explained_layer`` names the layer whose maps (B, C, h, w) Grad-CAM explains, as `torch.nn.Module.get_submodule`;
    - its last `torch.nn.Linear` is the output layer;
    - ``stages``, if it has one, names the layers of each stage from the first to the last, see `stages`.

    Parameters
    ----------
    body : nn.Module
        From slices to features (B, features) or maps that flatten to it.
    features : int
    explained_layer : str
        Name of a layer inside `body`.
    outputs : int
    covariates : int
        Number of covariates concatenated to the features of the image.
    dropout : float
        Share of the features dropped in training.
    """

    def __init__(
        self,
        body: nn.Module,
        features: int,
        explained_layer: str,
        outputs: int,
        covariates: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.explained_layer = f"body.{explained_layer}"
        self.body, self.dropout = body, nn.Dropout(dropout)
        self.covariates = covariates
        self.output = nn.Linear(features + covariates, outputs)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Image features of slices.

        Parameters
        ----------
        x : (B, 3, H, W) float32

        Returns
        -------
        (B, F) float32
        """
        return torch.flatten(self.body(x), 1)

    def forward(self, x: torch.Tensor, covariates: torch.Tensor | None = None) -> torch.Tensor:
        """Outputs for slices and covariates.

        Parameters
        ----------
        x : (B, 3, H, W) float32
        covariates : (B, C) float32, optional
            Left out, they count as 0.

        Returns
        -------
        (B, outputs) float32
        """
        return self.output(_joined(self.dropout(self.features(x)), covariates, self.covariates))

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Each layer of the body with weights, then the output layer."""
        layers = [f"body.{name}" for name, part in self.body.named_children() if list(part.parameters())]
        return {name: (name,) for name in (*layers, "output")}


class ResNet50(ResNet):
    """torchvision's ResNet50 with covariates such as age and sex concatenated to the image features.

    Parameters
    ----------
    outputs : int
    covariates : int
        Number of covariates concatenated to the features of the image.
    dropout : float
        Share of the 2048 features dropped in training.

    References
    ----------
    He et al. 2016, doi:10.1109/CVPR.2016.90.
    """

    explained_layer = "layer4"
    stages: ClassVar = {"stem": ("conv1", "bn1"), **{f"layer{k}": (f"layer{k}",) for k in (1, 2, 3, 4)}, "fc": ("fc",)}

    def __init__(self, outputs: int, covariates: int = 0, dropout: float = 0.0) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], zero_init_residual=True)
        self.covariates = covariates
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512 * Bottleneck.expansion + covariates, outputs)
        with torch.no_grad():
            self.fc.weight[:, self.fc.in_features - covariates :] = 0

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Image features of slices.

        Parameters
        ----------
        x : (B, 3, H, W) float32

        Returns
        -------
        (B, 2048) float32
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1)

    def forward(self, x: torch.Tensor, covariates: torch.Tensor | None = None) -> torch.Tensor:
        """Outputs for slices and covariates.

        Parameters
        ----------
        x : (B, 3, H, W) float32
        covariates : (B, C) float32, optional
            Left out, they count as 0.

        Returns
        -------
        (B, outputs) float32
        """
        return self.fc(_joined(self.dropout(self.features(x)), covariates, self.covariates))


class ResNet50Stage3(ResNet50):
    """ResNet50 up to its third stage, whose 1024 pooled maps are the features.

    Slices from 0, the background, to about 1, white matter, are standardised as the pictures of ImageNet are.

    Parameters
    ----------
    outputs, covariates, dropout
        See `ResNet50`.
    """

    explained_layer = "layer3"
    stages: ClassVar = {name: layers for name, layers in ResNet50.stages.items() if name != "layer4"}

    def __init__(self, outputs: int, covariates: int = 0, dropout: float = 0.0) -> None:
        super().__init__(outputs, covariates, dropout)
        self.layer4 = nn.Identity()
        self.fc = nn.Linear(256 * Bottleneck.expansion + covariates, outputs)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("sd", torch.tensor(IMAGENET_SD)[:, None, None], persistent=False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Image features of slices.

        Parameters
        ----------
        x : (B, 3, H, W) float32

        Returns
        -------
        (B, 1024) float32
        """
        return super().features((x - self.mean) / self.sd)


OWN: tuple[type[ResNet50], ...] = (ResNet50, ResNet50Stage3)  # networks whose code is part of the package


def _joined(features: torch.Tensor, covariates: torch.Tensor | None, count: int) -> torch.Tensor:
    """Features and covariates (B, F + count); covariates that are not given are 0."""
    if not count:
        return features
    given = features.new_zeros(len(features), count) if covariates is None else covariates
    return torch.cat([features, given.to(features.dtype)], dim=1)


def output_layer(network: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the output layer: the last linear one.

    Parameters
    ----------
    network : nn.Module

    Returns
    -------
    name : str
    layer : nn.Linear

    Raises
    ------
    StudyError
        If the network has no linear layer.
    """
    layers = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not layers:
        raise StudyError(f"{type(network).__name__} has no torch.nn.Linear; its last one must be the output layer")
    return layers[-1]


def keep_outputs(network: nn.Module, count: int) -> nn.Module:
    """Remove all outputs of a network but the first ones.

    Parameters
    ----------
    network : nn.Module
        Changed in place.
    count : int
        Number of outputs that stay.

    Returns
    -------
    nn.Module
        The same network.
    """
    name, layer = output_layer(network)
    last = nn.Linear(layer.in_features, count, bias=layer.bias is not None)
    last.load_state_dict({part: value[:count] for part, value in layer.state_dict().items()})
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, last.to(next(network.parameters()).device))
    return network


def check_network(network: nn.Module, outputs: int) -> None:
    """Check that a network has what `ImageNetwork` lists.

    Parameters
    ----------
    network : nn.Module
    outputs : int
        Expected number of outputs.

    Raises
    ------
    StudyError
        With the missing part.
    """
    name, layer = type(network).__name__, output_layer(network)[1]
    if layer.out_features != outputs:
        raise StudyError(f"the last linear layer of {name} has {layer.out_features} outputs, expected {outputs}")
    if not callable(getattr(network, "features", None)):
        raise StudyError(f"{name} has no method features(x) that returns image features (B, F); see ImageNetwork")
    try:
        network.get_submodule(network.explained_layer)
    except (AttributeError, TypeError):
        raise StudyError(f"{name} has no attribute explained_layer that names one of its layers") from None


def stages(network: nn.Module) -> dict[str, list[nn.Module]]:
    """Layers of each stage of a network, by title, from the first to the last.

    They are those of the network's ``stages`` or, without it, each child module that has weights.

    Parameters
    ----------
    network : nn.Module

    Returns
    -------
    dict of str to list of nn.Module
    """
    named = getattr(network, "stages", None)
    if named is None:
        named = {name: (name,) for name, part in network.named_children() if list(part.parameters())}
    return {title: [network.get_submodule(name) for name in names] for title, names in named.items()}


def frozen(network: nn.Module, count: int) -> list[nn.Module]:
    """Layers of the first stage and those after it, which are not trained and keep their batch statistics.

    Parameters
    ----------
    network : nn.Module
    count : int
        Number of frozen stages after the first; 0 freezes none.

    Returns
    -------
    list of nn.Module

    Raises
    ------
    StudyError
        If no stage would be left to train.
    """
    parts = list(stages(network).values())
    if count >= max(len(parts) - 1, 1):
        raise StudyError(f"train.frozen_stages is {count}, but {type(network).__name__} has {len(parts)} stages in all")
    return [part for stage in parts[: count + 1] for part in stage] if count else []


def load_initial_weights(network: nn.Module, weights: str) -> str:
    """Load first weights into a network, its output layer excepted.

    Parameters
    ----------
    network : nn.Module
    weights : str
        ``random``, ``imagenet`` (ResNet50 only) or ``path:FILE``: a safetensors file, or a state dict that torch.save
        wrote, in the layout that the ResNet50 of torchvision and that of timm share.

    Returns
    -------
    str
        The origin of the weights, as the training reports it.

    Raises
    ------
    StudyError
        If `weights` is none of these, cannot be downloaded, or does not fit.
    """
    kind, _, path = weights.partition(":")
    if weights == "random":
        return "random initialisation"
    if weights == "imagenet":
        load_body(network, _imagenet(network), "ImageNet weights")
        return "ImageNet (torchvision IMAGENET1K_V2)"
    if kind == "path" and path:
        state = read_state(Path(path))[0] if path.endswith(".safetensors") else _read_pickled(Path(path))
        load_body(network, _without_prefix(state, next(iter(network.state_dict()))), path)
        return f"weights of {Path(path).name}"
    raise StudyError(f"train.weights is {weights!r}; expected random, imagenet, path:FILE or adlib:FILE")


def _imagenet(network: nn.Module) -> dict[str, torch.Tensor]:
    if not isinstance(network, ResNet50):
        raise StudyError(
            f"train.weights is imagenet, which are weights of ResNet50, and the network is {type(network).__name__}; "
            "set train.weights to random or path:FILE"
        )
    try:
        return ResNet50_Weights.IMAGENET1K_V2.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # no network, no cache, a broken download: all mean that there are no weights
        raise StudyError(
            f"train.weights is imagenet, but the weights cannot be downloaded ({type(error).__name__}); set it to "
            f"random, or copy {ResNet50_Weights.IMAGENET1K_V2.url} to this computer and set it to path:FILE"
        ) from None


def load_body(network: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Load all of a network but its output layer.

    Parameters
    ----------
    network : nn.Module
        Changed in place.
    state : dict of str to torch.Tensor
        By the network's own names; outputs and surplus tensors are ignored.
    where : str
        Origin of the weights in messages.

    Raises
    ------
    StudyError
        If a layer is missing or has another shape.
    """
    output, name = f"{output_layer(network)[0]}.", type(network).__name__
    state = {name: value for name, value in state.items() if not name.startswith(output)}
    missing = [name for name in network.state_dict() if name not in state and not name.startswith(output)]
    if missing:
        layout = " in the layout of torchvision and timm" if isinstance(network, ResNet50) else ""
        raise StudyError(f"{where} is not a {name}{layout}: it lacks {missing[:3]}")
    try:
        network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise StudyError(f"{where} does not fit {name}: {str(error).splitlines()[-1].strip()}") from None


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
    state = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise StudyError(f"{path} holds no state dict; expected names with tensors, as network.state_dict() gives them")
    _check_finite(state, path)
    return state


def _without_prefix(state: dict[str, torch.Tensor], first: str) -> dict[str, torch.Tensor]:
    """Names without the prefix of a wrapper; `first` is the network's own first name."""
    prefixes = [name.removesuffix(first) for name in state if name.endswith(first)]
    prefix = min(prefixes, key=len, default="")
    return {name.removeprefix(prefix): value for name, value in state.items()}


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Parameters
    ----------
    path : path

    Returns
    -------
    state : dict of str to torch.Tensor
    metadata : dict of str to str

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


def slice_outputs(network: nn.Module, slices: np.ndarray, covariates: np.ndarray | None = None) -> np.ndarray:
    """Outputs of a network for slices, computed in float32 on the network's device.

    Parameters
    ----------
    network : nn.Module
    slices : (n, 3, H, W) array
    covariates : (n, C) array, optional
        Covariates; left out, they count as 0.

    Returns
    -------
    (n, outputs) float64
    """
    inputs = [slices] if covariates is None or covariates.shape[1] == 0 else [slices, covariates]
    return _in_batches(network, network, inputs).astype(np.float64)


def image_features(network: nn.Module, slices: np.ndarray) -> np.ndarray:
    """Image features of slices, without covariates; see `ImageNetwork`.

    Parameters
    ----------
    network : nn.Module
    slices : (n, 3, H, W) array

    Returns
    -------
    (n, F) float32
    """
    return _in_batches(network, network.features, [slices])


@torch.inference_mode()
def _in_batches(network: nn.Module, function: Callable[..., torch.Tensor], inputs: list[np.ndarray]) -> np.ndarray:
    device = next(network.parameters()).device
    network.eval()
    parts = []
    for start in range(0, len(inputs[0]), BATCH):
        values = (np.asarray(array[start : start + BATCH], dtype=np.float32) for array in inputs)
        parts.append(function(*(torch.from_numpy(value).to(device) for value in values)).float().cpu())
    return torch.cat(parts).numpy()


def softmax(logits: np.ndarray, temperature: float = 1.0, bias: Sequence[float] | np.ndarray = ()) -> np.ndarray:
    """Probabilities of logits divided by a temperature, plus a bias.

    Parameters
    ----------
    logits : (n, K) float
    temperature : float
    bias : (K,) float
        Empty for none.

    Returns
    -------
    (n, K) float64
        Rows sum to 1.
    """
    scaled = logits / temperature + (np.asarray(bias) if len(bias) else 0.0)
    return special.softmax(scaled, axis=1)
