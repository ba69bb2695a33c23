"""The released network for huggingface_hub, an optional package: ``HubNetwork.from_pretrained("models/phantom")``."""

from __future__ import annotations

from huggingface_hub import PyTorchModelHubMixin

from adlib.training.network import ResNet50


class HubNetwork(ResNet50, PyTorchModelHubMixin, library_name="adlib", license="bsd-3-clause"):
    """The network alone, from the two files of a release that the hub reads; see `model_file.load` for the rest.

    Its outputs (B, K) are logits before calibration; class order, input and preprocessing are in ``config.json``
    under ``adlib``.

    Parameters
    ----------
    outputs, covariates : int
        See `adlib.training.network.ResNet50`.
    """

    def __init__(self, outputs: int, covariates: int = 0):
        super().__init__(outputs, covariates)
