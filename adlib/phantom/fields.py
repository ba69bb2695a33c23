"""Smooth vector fields on regular grids, and the displacements that they make: what deforms a simulated head."""

from __future__ import annotations

import numpy as np
import torch
from scipy import fft, ndimage


def gradient_of_poisson(source: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Irrotational field (3, X, Y, Z) float32 whose divergence is `source` (X, Y, Z), with reflecting walls."""
    waves = [np.pi * np.arange(n) / n for n in source.shape]
    eigen = sum(np.meshgrid(*[2 * np.cos(w) - 2 for w in waves], indexing="ij")) / spacing_mm**2
    eigen[0, 0, 0] = 1.0
    spectrum = fft.dctn(source, type=2) / eigen
    spectrum[0, 0, 0] = 0.0
    potential = fft.idctn(spectrum, type=2)
    return np.stack(np.gradient(potential, spacing_mm)).astype(np.float32)


def flow(velocity: np.ndarray, spacing_mm: float) -> torch.Tensor:
    """Displacement (3, X, Y, Z) float32 mm after one unit of time in a velocity field, by scaling and squaring."""
    steps = 4
    displacement = torch.from_numpy(velocity.astype(np.float32) / 2**steps)
    identity = _identity(velocity.shape[1:])
    for _ in range(steps):
        displacement = displacement + sample(displacement, identity + displacement / spacing_mm, "border")
    return displacement


def _identity(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in shape], indexing="ij"))


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, scale_mm: float, sd_mm: float
) -> np.ndarray:
    """Random displacement (3, *shape) float32 of a given scale, drawn on a grid of half that scale and interpolated."""
    coarse = [int(np.ceil(n * spacing_mm / (scale_mm / 2))) + 1 for n in shape]
    noise = rng.standard_normal((3, *coarse), dtype=np.float32)
    noise = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 2, 2, 2)))
    noise = torch.nn.functional.interpolate(noise[None], size=shape, mode="trilinear", align_corners=True)[0]
    return noise.numpy() * (sd_mm / float(noise.std()))


def sample(channels: torch.Tensor, voxels: torch.Tensor, padding: str = "zeros") -> torch.Tensor:
    """Trilinear samples of (C, X, Y, Z) channels at (3, ...) voxel coordinates."""
    sizes = torch.tensor(channels.shape[1:], dtype=torch.float32).view(3, *[1] * (voxels.ndim - 1))
    unit = 2 * voxels / (sizes - 1) - 1
    grid = unit.flip(0).movedim(0, -1)[None]
    return torch.nn.functional.grid_sample(channels[None], grid, padding_mode=padding, align_corners=True)[0]
