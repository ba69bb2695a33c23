"""Vary training slices the way heads and scanners vary."""

from __future__ import annotations

import torch
from torch import nn


def augment(x: torch.Tensor, generator: torch.Generator, *, flip: bool) -> torch.Tensor:
    """Vary slices as heads and scanners do: small rotation, scale and shift, left-right flip, gamma, noise.

    Parameters
    ----------
    x : (B, 3, H, W) float32
        Background 0.
    generator : torch.Generator
    flip : bool
        Mirror half of the items along the last axis; only right where that axis is left-right.

    Returns
    -------
    (B, 3, H, W) float32
    """
    n = len(x)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.05, 0.05), uniform(0.98, 1.02)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    rows = torch.stack(
        [
            torch.stack([scale * angle.cos() * mirror, -scale * angle.sin(), uniform(-0.03, 0.03)], 1),
            torch.stack([scale * angle.sin() * mirror, scale * angle.cos(), uniform(-0.03, 0.03)], 1),
        ],
        1,
    )  # (B, 2, 3)
    grid = nn.functional.affine_grid(rows, list(x.shape), align_corners=False)
    moved = nn.functional.grid_sample(x, grid, align_corners=False)
    gain = uniform(0.85, 1.15).view(n, 1, 1, 1)
    noise = torch.randn(x.shape, generator=generator) * uniform(0, 0.1).view(n, 1, 1, 1)
    return moved * gain + noise * (moved != 0)
