"""Attribution of one output to the pixels of slices, by the name of the method."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from captum.attr import GradientShap, IntegratedGradients, LayerAttribution, LayerGradCam, Occlusion
from scipy import ndimage
from torch import nn

from adlib.study.records import StudyError

STEPS = 16
SMOOTHING = 2.0  # standard deviation, pixels
BATCH = 64
TITLES = {
    "integrated_gradients": "integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365)",
    "gradient_shap": "expected gradients (GradientShap; Lundberg & Lee 2017, arXiv:1705.07874)",
    "grad_cam": "Grad-CAM on the last stage (Selvaraju et al. 2017, doi:10.1109/ICCV.2017.74)",
    "occlusion": "occlusion (Zeiler & Fergus 2014, doi:10.1007/978-3-319-10590-1_53)",
}


def attribute(
    network: nn.Module, slices: np.ndarray, target: int, method: str = "integrated_gradients", apart: bool = False
) -> np.ndarray:
    """Share out one output of a network over the pixels of slices.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode, on the processor; it is not changed.
    slices : (n, 3, H, W) array
        For ``gradient_shap`` they are also the background that each is compared with.
    target : int
        Index of the output, a logit.
    method : str
        One of `TITLES`. Integrated gradients and occlusion compare with a blank slice (0).
    apart : bool
        Whether the channels are planes of their own (``three_planes``), so that occlusion covers one at a time.

    Returns
    -------
    (n, 3, H, W) float32
        Signed evidence for the output, smoothed in the plane with `SMOOTHING`. ``grad_cam``, and ``occlusion`` of
        channels that are not apart, know no channels: each channel then holds a third.

    Raises
    ------
    StudyError
        If the method is unknown.

    References
    ----------
    The methods are those of Captum (Kokhlikyan et al. 2020, arXiv:2009.07896).
    """
    if method not in TITLES:
        raise StudyError(f"unknown attribution {method!r}; there are {', '.join(TITLES)}")
    frozen = copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    x = torch.from_numpy(np.array(slices, dtype=np.float32)).contiguous(memory_format=torch.channels_last)
    how = {"gradient_shap": _gradient_shap, "grad_cam": _grad_cam, "occlusion": _occlusion}.get(method, _integrated)
    values = how(frozen, x, target, apart).detach().numpy().astype(np.float32)
    return ndimage.gaussian_filter(values, (0, 0, SMOOTHING, SMOOTHING))


def _integrated(network: nn.Module, x: torch.Tensor, target: int, apart: bool) -> torch.Tensor:
    method = IntegratedGradients(network)
    return method.attribute(x, target=target, n_steps=STEPS, internal_batch_size=BATCH)


def _gradient_shap(network: nn.Module, x: torch.Tensor, target: int, apart: bool) -> torch.Tensor:
    method, each = GradientShap(network), BATCH // STEPS
    with _seeded():
        parts = [
            method.attribute(part, baselines=x, n_samples=STEPS, stdevs=0.0, target=target) for part in x.split(each)
        ]
    return torch.cat(parts)


def _grad_cam(network: nn.Module, x: torch.Tensor, target: int, apart: bool) -> torch.Tensor:
    method = LayerGradCam(network, network.get_submodule(network.explained_layer))
    parts = [method.attribute(part.requires_grad_(), target=target) for part in x.split(BATCH)]
    fine = LayerAttribution.interpolate(torch.cat(parts), tuple(x.shape[2:]), interpolate_mode="bilinear")
    return fine.expand(-1, x.shape[1], -1, -1) / x.shape[1]


def _occlusion(network: nn.Module, x: torch.Tensor, target: int, apart: bool) -> torch.Tensor:
    edge, stride = x.shape[-1] // 8, x.shape[-1] // 12
    channels = 1 if apart else x.shape[1]
    with torch.inference_mode():
        parts = [
            Occlusion(network).attribute(part, (channels, edge, edge), (channels, stride, stride), 0, target)
            for part in x.split(BATCH)
        ]
    return torch.cat(parts) / channels


@contextmanager
def _seeded(seed: int = 0) -> Iterator[None]:
    """Hold the global generators that Captum draws from, and leave them afterwards as they were."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
