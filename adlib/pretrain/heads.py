"""Simulated brains for pretraining: each region changes by itself, and true volumes come without a whole image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import ndimage

from adlib import atlas
from adlib.sources.phantom_fields import flow, sample, smooth_noise
from adlib.sources.phantom_head import (
    FIELD_MM,
    MEASURED,
    RATES,
    REFERENCE_AGE,
    anatomy,
    field_anatomy,
    growth_velocity,
    rate_regions,
)

GRID_MM = 4.0
GRID_LOW = (-84.0, -120.0, -84.0)  # MNI152 mm, the first point of a grid about the brain
GRID_SHAPE = (43, 53, 47)
SEVERITY = (-0.3, 1.7)
AGE = (45.0, 98.0)
# Standard deviations of each region's logarithmic volume change beyond disease and ageing, on both sides alike and
# between the sides, and shifts of its mean: simulated anatomy must vary more than the cohort to which it is to lead.
SPREAD = {"gm": 0.06, "wm": 0.04, "temporal": 0.10, "hippocampus": 0.25, "ventricles": 0.60}
ASYMMETRY = {"gm": 0.02, "wm": 0.01, "temporal": 0.05, "hippocampus": 0.10, "ventricles": 0.25}
SHIFT = {"ventricles": 0.40}
SHAPE_NOISE = ((24.0, 2.2), (10.0, 0.5))  # scale and standard deviation, mm


@dataclass(frozen=True)
class Head:
    """One simulated brain.

    Attributes
    ----------
    severity : float
        Disease severity; 0 none, 1 a mean patient with Alzheimer's disease.
    age : float
        Years.
    change : (5, 2) float64
        Logarithmic volume change of each region of `SPREAD` on the left and on the right.
    seed : tuple of int
        Of the shape noise.
    """

    severity: float
    age: float
    change: np.ndarray
    seed: tuple[int, ...]


def draw_head(seed: int, number: int) -> Head:
    """Draw head `number` of a series; the same for the same seed and number."""
    rng = np.random.default_rng([seed, number])
    severity, age = rng.uniform(*SEVERITY), rng.uniform(*AGE)
    change = []
    for region, spread in SPREAD.items():
        mean = expected_change(region, severity, age) + SHIFT.get(region, 0.0)
        change.append(rng.normal(mean, spread) + rng.normal(0, ASYMMETRY[region]) * np.array([-1.0, 1.0]))
    return Head(severity, age, np.array(change), (seed, number, 1))


def expected_change(region: str, severity: float, age: float) -> float:
    """Logarithmic volume change of a region by disease and ageing, at the phantom's rates."""
    return severity * RATES["disease"][region] + (age - REFERENCE_AGE) / 10 * RATES["ageing"][region]


@cache
def region_velocities() -> np.ndarray:
    """Velocity of a unit of logarithmic volume change of each region and side.

    Returns
    -------
    (5, 2, 3, *GRID_SHAPE) float32
        Millimetres, of the pull-back map, on the grid of this module.
    """
    affine = field_anatomy().affine
    points = torch.from_numpy((grid_points() - affine[:3, 3].astype(np.float32).reshape(3, 1, 1, 1)) / FIELD_MM)
    left = (atlas.coordinates(field_anatomy().tissues.shape[1:], affine)[0] < 0).astype(np.float32)
    found = []
    for region in SPREAD:
        for side in (left, 1 - left):
            field = growth_velocity(rate_regions()[region] * side)
            found.append(sample(torch.from_numpy(field), points.float(), "border").numpy())
    return np.stack(found).reshape(len(SPREAD), 2, 3, *GRID_SHAPE)


def grid_points() -> np.ndarray:
    """Points (3, *GRID_SHAPE) float32 of the grid, MNI152 mm."""
    affine = np.diag([GRID_MM, GRID_MM, GRID_MM, 1.0])
    affine[:3, 3] = GRID_LOW
    return atlas.coordinates(GRID_SHAPE, affine)


def to_grid(points: torch.Tensor) -> torch.Tensor:
    """Grid coordinates of points (3, ...) in MNI152 mm."""
    return (points - torch.tensor(GRID_LOW).view(3, *[1] * (points.ndim - 1))) / GRID_MM


def displacement(head: Head) -> torch.Tensor:
    """Displacement (3, *GRID_SHAPE) float32 mm from the head's space to the template's."""
    rng = np.random.default_rng(head.seed)
    field = np.tensordot(head.change.astype(np.float32), region_velocities(), axes=2)
    for scale_mm, sd_mm in SHAPE_NOISE:
        field += smooth_noise(rng, GRID_SHAPE, GRID_MM, scale_mm, sd_mm)
    return flow(field, GRID_MM)


@cache
def _measured() -> torch.Tensor:
    """Fractions (6, *GRID_SHAPE) float32 behind the true volumes, averaged about each point of the grid."""
    head = anatomy(2.0)
    smooth = torch.from_numpy(np.stack([ndimage.gaussian_filter(m, GRID_MM / 4) for m in head.measured]))
    points = grid_points() - head.affine[:3, 3].astype(np.float32).reshape(3, 1, 1, 1)
    return sample(smooth, torch.from_numpy(points) / 2.0)


def volumes(moved: torch.Tensor) -> dict[str, float]:
    """True volumes of a displaced brain.

    They are summed over a coarse grid, of fractions smoothed to it. Against a dense sampling that understates how
    far they change, most for fluid, but orders heads in the same way (correlations above 0.99 for every volume).

    Parameters
    ----------
    moved : (3, *GRID_SHAPE) float32
        From `displacement`.

    Returns
    -------
    dict
        Volume in ml of each of the phantom's measured tissues and regions, and of the intracranial space (icv).
    """
    sampled = sample(_measured(), to_grid(torch.from_numpy(grid_points()) + moved))
    ml = sampled.double().sum(dim=(1, 2, 3)).numpy() * GRID_MM**3 / 1000
    found = dict(zip(MEASURED, ml.tolist(), strict=True))
    return found | {"icv": found["gm"] + found["wm"] + found["csf"]}
