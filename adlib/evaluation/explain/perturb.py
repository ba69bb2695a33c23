"""Deletion and insertion: what the output does when the pixels that count most go first, or come first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid
from torch import nn

from adlib.training.network import slice_outputs

PATCH = 8  # pixels
FRACTIONS = np.linspace(0, 1, 11)


@dataclass(frozen=True, eq=False)
class Curves:
    """The output for the last class while patches are blanked or shown, (n, len(FRACTIONS)) float64 each.

    Attributes
    ----------
    deletion, insertion : array
        The share `FRACTIONS` of the patches is blanked, or shown on a blank slice, those with most evidence first.
    random_deletion, random_insertion : array
        The same with the same patches in random order.
    """

    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray

    def gain(self, name: str) -> np.ndarray:
        """Area (n,) between a curve and that of random order, positive where the map's order is the better one."""
        ordered, random = getattr(self, name), getattr(self, f"random_{name}")
        sign = 1 if name == "insertion" else -1
        return sign * trapezoid(ordered - random, FRACTIONS, axis=1)


def perturbation_curves(network: nn.Module, slices: np.ndarray, maps: np.ndarray, target: int, seed: int) -> Curves:
    """Deletion and insertion curves of maps (Petsiuk et al. 2018, arXiv:1806.07421), in logits, by patches.

    Parameters
    ----------
    network : nn.Module
    slices : (n, 3, H, W) float32
    maps : (n, H, W) float32
        Signed evidence for the output.
    target : int
        Index of the output.
    seed : int
        Of the random orders.

    Returns
    -------
    Curves
        Only patches that show anything of the slice take part. Insertion in random order is deletion in the reverse
        of that order, read backwards.
    """
    ranks = [
        _ranks(x, evidence, np.random.default_rng([seed, k]))
        for k, (x, evidence) in enumerate(zip(slices, maps, strict=True))
    ]
    ordered, random = (np.stack(part) for part in zip(*ranks, strict=True))
    deletion = _outputs(network, slices, ordered, target)
    insertion = _outputs(network, slices, 1 - ordered, target)[:, ::-1]
    by_chance = _outputs(network, slices, random, target)
    return Curves(deletion, insertion, by_chance, by_chance[:, ::-1])


def _ranks(x: np.ndarray, evidence: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """When each pixel (H, W) goes, in (0, 1], by falling evidence of its patch and in random order."""
    rows, columns = np.indices(evidence.shape) // PATCH
    patches = rows * (columns.max() + 1) + columns
    shown = np.unique(patches[(x != 0).any(0)])
    if not len(shown):
        return np.ones(evidence.shape), np.ones(evidence.shape)
    sums = np.bincount(patches.ravel(), weights=evidence.ravel())[shown]
    found = []
    for order in (np.argsort(-sums, kind="stable"), rng.permutation(len(shown))):
        place = np.ones(patches.max() + 1)
        place[shown[order]] = (np.arange(len(shown)) + 0.5) / len(shown)
        found.append(place[patches])
    return found[0], found[1]


def _outputs(network: nn.Module, slices: np.ndarray, ranks: np.ndarray, target: int) -> np.ndarray:
    """Output (n, len(FRACTIONS)) with the pixels blanked whose rank is below each fraction."""
    values = [
        slice_outputs(network, slices * (ranks >= fraction)[:, None], batch=64)[:, target] for fraction in FRACTIONS
    ]
    return np.stack(values, axis=1)
