"""Real mid-slices as a pretrained network takes them, and what it tells of them."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from adlib.device import takes_bf16
from adlib.model import Network
from adlib.pretrain.looks import normalised, reduced
from adlib.pretrain.planes import PLANES, SIZE
from adlib.records import StudyError
from adlib.sources.planes import SEPARATOR, read_plane
from adlib.volume import fit_square

CANVAS = 256
MIRRORED = ("axial", "coronal")  # planes whose columns run from left to right
_BATCH = 32
_SPARE = 3  # grey levels above the background that still belong to it


def read_slices(path: str) -> np.ndarray:
    """Read an axial, a coronal and a sagittal slice of one session.

    Parameters
    ----------
    path : str
        Three 8-bit image files joined by ``|``, pixels of about 0.75 mm; the most frequent level is the background.

    Returns
    -------
    (3, SIZE, SIZE) float32
        Background 0, row 0 the top.

    Raises
    ------
    StudyError
        If there are not three files, or one is not 2-D or constant.
    """
    names = path.split(SEPARATOR)
    if len(names) != len(PLANES):
        raise StudyError(f"an axial, a coronal and a sagittal slice are expected, got {len(names)} files: {path}")
    large = torch.from_numpy(np.stack([_canvas(name) for name in names]))
    return nn.functional.interpolate(large[None], size=SIZE, mode="area")[0].numpy()


def _canvas(name: str) -> np.ndarray:
    image = read_plane(name)
    levels, counts = np.unique(image, return_counts=True)
    above = np.clip(image - levels[counts.argmax()] - _SPARE, 0, None)
    if not above.any():
        raise StudyError(f"{name} is constant; a slice of a head was expected")
    return fit_square(np.ascontiguousarray(above.T[::-1]), CANVAS)


def network_input(slices: np.ndarray, size: int) -> torch.Tensor:
    """Slices (n, 3, SIZE, SIZE) reduced and normalised as in pretraining, (n, 3, size, size) float32."""
    return normalised(reduced(torch.from_numpy(slices), size))


def adapted(network: Network, x: torch.Tensor) -> Network:
    """A copy of a network whose batch statistics are those of other images.

    They need no label (adaptive batch normalisation, Li et al. 2018, doi:10.1016/j.patcog.2018.03.005); take images of
    training participants only.

    Parameters
    ----------
    network : Network
    x : (n, 3, S, S) float32
        From `network_input`.
    """
    network = deepcopy(network)
    with _precision():
        update_bn(iter(x.split(_BATCH)), network)
    return network.eval()


@torch.inference_mode()
def tell(network: Network, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What a network says of images, as the mean over each one and its mirror image.

    Parameters
    ----------
    network : Network
    x : (n, 3, S, S) float32

    Returns
    -------
    outputs : (n, T) float32
        Standardised, in the order of `fit.Pretrained.names`.
    features : (n, 2048) float32
        What the last layer is told.
    """
    network.eval()
    caught: list[torch.Tensor] = []
    hook = network.fc.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].float()))
    flipped = x.clone()
    for plane in MIRRORED:
        channel = PLANES.index(plane)
        flipped[:, channel] = flipped[:, channel].flip(-1)
    with _precision():
        outputs = [network(part).float() for view in (x, flipped) for part in view.split(_BATCH)]
    hook.remove()
    n = len(x)
    told, seen = torch.cat(outputs).numpy(), torch.cat(caught).numpy()
    return (told[:n] + told[n:]) / 2, (seen[:n] + seen[n:]) / 2


def _precision() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=takes_bf16("auto", torch.device("cpu")))
