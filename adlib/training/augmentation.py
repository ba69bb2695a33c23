"""Vary training slices the way heads and scanners vary."""

import torch
import torchio
from torch import nn

from adlib.study.params import StudyParams

SIDES = {"sagittal": (), "three_planes": (0, 1), "three_planes_2d": (0, 1)}  # channels whose last axis is left-right


def augment_slices(x: torch.Tensor, generator: torch.Generator, params: StudyParams) -> torch.Tensor:
    """Vary training slices as ``train.augment`` names it, half of them mirrored left to right.

    Parameters
    ----------
    x : (B, 3, H, W) float32
        Background 0.
    generator : torch.Generator
        All chance comes from it.
    params : StudyParams

    Returns
    -------
    (B, 3, H, W) float32
    """
    if params.train.augment == "none":
        return x
    x = mirror(x, generator, SIDES.get(params.input.plane, (0, 1, 2)))
    return augment_light(x, generator) if params.train.augment == "light" else augment_mri(x, generator)


def mirror(x: torch.Tensor, generator: torch.Generator, channels: tuple[int, ...]) -> torch.Tensor:
    """Mirror half of the items along the last axis, in the channels where that axis is left-right.

    A head mirrored left to right keeps its middle sagittal slice, so that channel stays as it is.

    Parameters
    ----------
    x : (B, 3, H, W) float32
    generator : torch.Generator
    channels : tuple of int
        Channels whose last axis is left-right.

    Returns
    -------
    (B, 3, H, W) float32
        A copy.
    """
    chosen = torch.rand(len(x), generator=generator) < 0.5
    x = x.clone()
    for channel in channels:
        x[chosen, channel] = x[chosen, channel].flip(-1)
    return x


def augment_light(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vary slices slightly, all at once: small rotation, scale and shift, gain, noise.

    Parameters
    ----------
    x : (B, 3, H, W) float32
        Background 0.
    generator : torch.Generator

    Returns
    -------
    (B, 3, H, W) float32
    """
    n = len(x)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.05, 0.05), uniform(0.98, 1.02)
    rows = torch.stack(
        [
            torch.stack([scale * angle.cos(), -scale * angle.sin(), uniform(-0.03, 0.03)], 1),
            torch.stack([scale * angle.sin(), scale * angle.cos(), uniform(-0.03, 0.03)], 1),
        ],
        1,
    )  # (B, 2, 3)
    grid = nn.functional.affine_grid(rows, list(x.shape), align_corners=False)
    moved = nn.functional.grid_sample(x, grid, align_corners=False)
    gain = uniform(0.85, 1.15).view(n, 1, 1, 1)
    noise = torch.randn(x.shape, generator=generator) * uniform(0, 0.1).view(n, 1, 1, 1)
    return moved * gain + noise * (moved != 0)


def augment_mri(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vary slices one by one as scanners do: TorchIO's affine, bias field, gamma, motion, ghosts and noise.

    Parameters
    ----------
    x : (B, 3, H, W) float32
        Background 0.
    generator : torch.Generator

    Returns
    -------
    (B, 3, H, W) float32

    References
    ----------
    Pérez-García et al. 2021, doi:10.1016/j.cmpb.2021.106236.
    """
    chain = _transforms()
    seeds = torch.randint(2**31, (len(x),), generator=generator)
    items = []
    for item, seed in zip(x, seeds.tolist(), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            items.append(chain(item[..., None])[..., 0])
    return torch.stack(items)


def _transforms() -> torchio.Compose:
    within = torchio.RandomAffine(
        scales=(0.95, 1.05, 0.95, 1.05, 1, 1),
        degrees=(0, 0, 0, 0, -5, 5),
        translation=(-3, 3, -3, 3, 0, 0),
        default_pad_value=0,
        p=0.8,
    )
    return torchio.Compose(
        [
            within,
            torchio.RandomBiasField(coefficients=0.3, order=2, p=0.5),
            torchio.RandomGamma(log_gamma=0.2, p=0.3),
            torchio.RandomMotion(degrees=3, translation=3, num_transforms=1, p=0.1),
            torchio.RandomGhosting(num_ghosts=(2, 5), axes=(0, 1), intensity=(0.1, 0.4), p=0.1),
            torchio.RandomNoise(std=(0, 0.1), p=0.5),
        ]
    )
