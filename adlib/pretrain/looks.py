"""Shares of tissue become images: every time another contrast, other edges, lesions, remnants, bias field and noise."""

from __future__ import annotations

import torch
from torch import nn

GREY, FLUID = (0.58, 0.82), (0.08, 0.35)  # of white matter's intensity
CLIP = 1.6
_USED = [0, 1, 2, 3, 5]  # all shares but the hippocampus, which no image shows by itself
BRIGHT = 0.4  # of an image's 98th percentile: what lies above takes part in its normalisation


def images(shares: torch.Tensor, size: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Image slices as some scanner, reader and brain extraction might have left them.

    The look is drawn anew at each call, which teaches a network what it must not rely on (domain randomisation,
    Billot et al. 2023, doi:10.1016/j.media.2023.102789).

    Parameters
    ----------
    shares : (B, 3, 6, H, W) uint8
        From `planes.head_planes`.
    size : int
        Edge of the images, pixels.
    generator : torch.Generator, optional
        Left out, the slices are only reduced, in one standard contrast.

    Returns
    -------
    (B, 3, size, size) float32
        Normalised as `normalised` does; 0 outside the brain.
    """
    b = len(shares)
    parts = shares[:, :, _USED].flatten(0, 1).float() / 255  # (B * 3, 5, H, W)
    parts = _moved(parts, size, generator)
    tissue, residual = parts[:, :4], parts[:, 4:] - 127 / 255
    if generator is None:
        plain = (tissue * tissue.new_tensor([0.7, 1.0, 0.2, 0.2]).view(4, 1, 1)).sum(1, keepdim=True)
        return normalised(plain.view(b, 3, size, size))
    inside = tissue.sum(1, keepdim=True)
    image = _tissue_image(_ragged(tissue, inside, generator), inside, residual, generator)
    image = image + _remnants(inside, generator)
    image = _scanned(image, generator)
    return normalised(image.view(b, 3, size, size))


def normalised(x: torch.Tensor) -> torch.Tensor:
    """Scale each slice (B, C, H, W) so that the 80th percentile of its brighter pixels is 1, and clip at `CLIP`."""
    flat = x.flatten(2)
    ordered = flat.sort(dim=2).values
    count = flat.shape[2]
    top = ordered[..., int(0.98 * (count - 1))]
    bright = (flat > BRIGHT * top[..., None]).sum(2)
    at = (count - 1 - 0.2 * bright).long().clamp(0, count - 1)
    level = ordered.gather(2, at[..., None]).clamp_min(1e-6)
    return (flat / level).clamp(0, CLIP).view_as(x)


def reduced(x: torch.Tensor, size: int) -> torch.Tensor:
    """Slices (B, C, H, W) on a coarser grid of `size` by `size` pixels, as `images` has them, (B, C, size, size)."""
    grid = nn.functional.affine_grid(torch.eye(2, 3).repeat(len(x), 1, 1), [*x.shape[:2], size, size], False)
    return nn.functional.grid_sample(x, grid, align_corners=False)


def _uniform(n: int, low: float, high: float, generator: torch.Generator, *shape: int) -> torch.Tensor:
    return (torch.rand(n, *(shape or (1, 1, 1)), generator=generator) * (high - low)) + low


def _field(n: int, channels: int, cells: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Noise (n, channels, size, size) of unit size, drawn on `cells` by `cells` points; smooth where they are few."""
    noise = torch.randn(n, channels, cells, cells, generator=generator)
    return _enlarged(noise, size, "nearest" if 2 * cells >= size else "bilinear")


def _enlarged(x: torch.Tensor, size: int, mode: str = "bilinear") -> torch.Tensor:
    return nn.functional.interpolate(x, size=(size, size), mode=mode)


def _nearness(inside: torch.Tensor, width: int) -> torch.Tensor:
    """Share of the surroundings that is brain: a blur over `width` times 4 pixels, computed on a coarser grid."""
    coarse = nn.functional.avg_pool2d(inside, 4, ceil_mode=True)
    return _enlarged(nn.functional.avg_pool2d(coarse, width, stride=1, padding=width // 2), inside.shape[-1])


def _soft(x: torch.Tensor) -> torch.Tensor:
    """Slices blurred by the kernel (1, 2, 1) / 4 along both axes; edges lose a quarter."""
    for axis in (2, 3):
        x = x / 2
        half = x / 2
        size = x.shape[axis] - 1
        x.narrow(axis, 1, size).add_(half.narrow(axis, 0, size))
        x.narrow(axis, 0, size).add_(half.narrow(axis, 1, size))
    return x


def _moved(x: torch.Tensor, size: int, generator: torch.Generator | None) -> torch.Tensor:
    """Turn, scale and shift each slice a little, onto a grid of `size` pixels."""
    n = len(x)
    theta = torch.eye(2, 3).repeat(n, 1, 1)
    if generator is not None:
        angle = _uniform(n, -0.08, 0.08, generator, 1)[:, 0]
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
        scale = _uniform(n, 0.94, 1.06, generator) * _uniform(n, 0.98, 1.02, generator, 1, 2, 1)
        theta = torch.cat([turn * scale[:, 0], _uniform(n, -0.06, 0.06, generator, 2, 1)], dim=2)
    grid = nn.functional.affine_grid(theta, [n, x.shape[1], size, size], align_corners=False)
    moved = nn.functional.grid_sample(x, grid, align_corners=False)
    moved[:, 4] += 127 / 255 * (moved[:, 4] == 0)
    return moved


def _ragged(tissue: torch.Tensor, inside: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sharpen shares and let noise move their borders; take outer fluid away as a brain extraction does."""
    n, size = len(tissue), tissue.shape[-1]
    noise = _uniform(n, 0.0, 0.9, generator) * _field(n, 3, size // 2, size, generator)
    noise = torch.cat([noise, torch.zeros_like(noise[:, :1])], dim=1)
    powers = tissue.clamp_min(1e-4) ** _uniform(n, 0.9, 1.6, generator) * noise.exp() * (tissue > 0)
    shares = powers * (inside / powers.sum(1, keepdim=True).clamp_min(1e-4))
    depth = _nearness(inside, 1) + 0.12 * _field(n, 1, 12, size, generator)
    kept = torch.sigmoid((depth - _uniform(n, 0.2, 0.8, generator)) * 20)
    shares[:, 2:3] *= kept
    return shares


def _tissue_image(
    shares: torch.Tensor, inside: torch.Tensor, residual: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Intensities (n, 1, H, W): grey matter and fluid against white matter, alike in a head's slices, and texture."""
    n, size = len(shares), shares.shape[-1]
    b = n // 3

    def of_head(low: float, high: float, between: float) -> torch.Tensor:
        drawn = _uniform(b, low, high, generator).repeat_interleave(3, 0)
        return drawn + between * torch.randn(n, 1, 1, 1, generator=generator)

    grey, fluid = of_head(*GREY, 0.02), of_head(*FLUID, 0.02)
    white = 1 - _uniform(n, 0.0, 0.4, generator) * torch.sigmoid(
        (_field(n, 1, size // 5, size, generator) - _uniform(n, 1.2, 4.0, generator)) * 6
    )
    image = grey * shares[:, :1] + white * shares[:, 1:2] + fluid * shares[:, 2:4].sum(1, keepdim=True)
    image = image + _uniform(n, 0.0, 1.2, generator) * residual * inside
    texture = _uniform(n, 0.0, 0.07, generator) * _field(n, 1, size // 2, size, generator)
    texture = texture + _uniform(n, 0.0, 0.07, generator) * _field(n, 1, size // 6, size, generator)
    return image * (1 + texture)


def _remnants(inside: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pieces of skull, dura and neck that a brain extraction left about the brain."""
    n, size = len(inside), inside.shape[-1]
    near = (_nearness(inside, 5) > 0.01) * (1 - inside)
    where = torch.sigmoid((_field(n, 1, 7, size, generator) - _uniform(n, 0.2, 2.2, generator)) * 10)
    texture = (1 + 0.4 * _field(n, 1, size // 3, size, generator)).clamp(0, 2)
    return near * where * texture * _uniform(n, 0.1, 0.9, generator)


def _scanned(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur, bias field, noise and gamma."""
    n, size = len(image), image.shape[-1]
    image = torch.lerp(image, _soft(image), _uniform(n, -0.4, 0.8, generator)).clamp_min(0)
    line = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    waves = torch.stack([x, y, x * y, x * x - 1 / 3, y * y - 1 / 3])  # (5, H, W)
    bias = torch.einsum("nk,khw->nhw", 0.1 * torch.randn(n, 5, generator=generator), waves)[:, None]
    image = image * bias.exp()
    noise = _uniform(n, 0.005, 0.045, generator) * torch.randn(image.shape, generator=generator)
    image = (image + noise * (image > 0.02)).clamp_min(0)
    return image.clamp_min(1e-6) ** _uniform(n, 0.8, 1.25, generator) * (image > 1e-6)
