"""Networks that have forgotten their training, one stage after the other from the last."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from adlib.evaluation.explain.attribution import BATCH
from adlib.training.network import stages


def cascade(network: nn.Module, slices: np.ndarray, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Randomise a network from its last layer down (Adebayo et al. 2018, arXiv:1810.03292).

    Layers get the initial values that PyTorch gives them. The batch statistics of all randomised stages are taken anew
    over the slices at each step: those of the training fit no other weights, and activations would vanish or burst.

    Parameters
    ----------
    network : nn.Module
        Its stages are those of `adlib.training.network.stages`; it is not changed.
    slices : (n, 3, H, W) float32
    seed : int

    Yields
    ------
    stage : str
        Title of the stage; that stage and all after it in the network are random.
    network : nn.Module
        In evaluation mode; the next step goes on changing the same one.
    """
    random = copy.deepcopy(network).eval()
    done: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for stage, parts in reversed(stages(random).items()):
            done += parts
            for module in (m for part in parts for m in part.modules()):
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            _renew_statistics(random, done, slices)
            yield stage, random


@torch.no_grad()
def _renew_statistics(network: nn.Module, parts: list[nn.Module], slices: np.ndarray) -> None:
    norms = [module for part in parts for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    if norms:
        for batch in torch.from_numpy(slices).split(BATCH):
            network(batch)
    network.eval()
