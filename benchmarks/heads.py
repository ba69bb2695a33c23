"""Made heads for the benchmarks, each drawn from its seed alone: pose, field of view, sampling, contrast, spoils."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from made_head import CENTRE, MadeHead, made_head, pose_error, rotation

from adlib.imaging.atlas import template

__all__ = ["RIGHT_HANDED", "MadeHead", "Setting", "drawn", "easy", "make", "pose", "pose_error"]
RIGHT_HANDED = tuple(
    codes
    for order in permutations(("RL", "AP", "SI"))
    for codes in ("".join(letters) for letters in product(*order))
    if np.linalg.det(nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (2, 2, 2))[:3, :3]) > 0
)


@dataclass(frozen=True)
class Setting:
    """How a head is made.

    Attributes
    ----------
    seed : int
    codes : str
        Orientation of the stored axes, one of the 24 right-handed ones.
    voxel_mm : tuple of 3 float
        Along right-left, back-front, bottom-top.
    degrees, shift_mm, tilt : tuple of 3 float
        Turn about x, y, z; translation; turn of the field of view, degrees.
    scale : float
    stretch, skew : tuple of 3 float
        Further scale along each axis; shear.
    cut_mm : float
        How much of the brain's top lies outside the field of view (negative: room above it).
    neck_mm : float
        How far the field of view reaches below the brain.
    bias, noise : float
        Shares of the intensity of white matter.
    grey, fluid : float
        Intensities relative to white matter.
    """

    seed: int
    codes: str
    voxel_mm: tuple[float, float, float]
    degrees: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    tilt: tuple[float, float, float]
    scale: float
    stretch: tuple[float, float, float]
    skew: tuple[float, float, float]
    cut_mm: float
    neck_mm: float
    bias: float
    noise: float
    grey: float
    fluid: float

    def __str__(self) -> str:
        listed = {name: tuple(round(v, 2) for v in np.atleast_1d(value)) for name, value in vars(self).items()
                  if name not in ("seed", "codes")}  # fmt: skip
        parts = (f"{name} {' '.join(f'{v:g}' for v in values)}" for name, values in listed.items())
        return f"seed {self.seed}: {self.codes}, {', '.join(parts)}"


def drawn(seed: int) -> Setting:
    """A setting from the whole range that a registration has to bear; seeds in a row go through all orientations."""
    rng = np.random.default_rng([seed, 4])

    def three(low: float, high: float) -> tuple[float, float, float]:
        return tuple(float(value) for value in rng.uniform(low, high, 3))

    edge = float(rng.uniform(0.7, 3.0))
    edges = [edge] * 3
    if rng.random() < 0.4:
        edges[rng.integers(3)] = float(rng.uniform(edge, 5.0))
    return Setting(
        seed=seed,
        codes=RIGHT_HANDED[seed % len(RIGHT_HANDED)],
        voxel_mm=tuple(edges),
        degrees=three(-30, 30),
        shift_mm=three(-60, 60),
        tilt=three(-15, 15) if rng.random() < 0.3 else (0.0, 0.0, 0.0),
        scale=float(rng.uniform(0.85, 1.15)),
        stretch=three(0.96, 1.04),
        skew=three(-0.03, 0.03),
        cut_mm=float(rng.uniform(0, 20)) if rng.random() < 0.25 else float(-rng.uniform(15, 40)),
        neck_mm=float(rng.uniform(60, 150)) if rng.random() < 0.4 else float(rng.uniform(5, 60)),
        bias=float(rng.uniform(0, 0.4)),
        noise=float(rng.uniform(0.01, 0.09)),
        grey=float(rng.uniform(0.55, 0.72)),
        fluid=float(rng.uniform(0.15, 0.3)),
    )


def easy(seed: int, voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Setting:
    """A scan as a clinic delivers it: 1 mm, the whole head in view, turned and shifted a little."""
    setting = drawn(seed)

    def half(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(value / 2 for value in values)

    return replace(
        setting,
        voxel_mm=voxel_mm,
        degrees=half(setting.degrees),
        shift_mm=half(setting.shift_mm),
        tilt=(0.0, 0.0, 0.0),
        cut_mm=-abs(setting.cut_mm),
        bias=setting.bias / 2,
        noise=setting.noise / 2,
    )


def pose(setting: Setting) -> np.ndarray:
    """MNI152 mm to scan mm, (4, 4), turned and scaled about the head's centre."""
    skew = np.eye(3)
    skew[np.triu_indices(3, 1)] = setting.skew
    turn = rotation(setting.degrees) @ (setting.scale * np.diag(setting.stretch)) @ skew
    return nib.affines.from_matvec(turn, CENTRE + setting.shift_mm - turn @ CENTRE)


def make(setting: Setting, resolution_mm: float = 2.0) -> MadeHead:
    """The scan of a setting, from shells about the template's brain on a grid of the given voxel edge."""
    matrix, tilt = pose(setting), rotation(setting.tilt)
    base = template(4.0)
    brain = nib.affines.apply_affine(base.affine, np.argwhere(base.mask))
    centre = nib.affines.apply_affine(matrix, CENTRE)
    along = (nib.affines.apply_affine(matrix, brain) - centre) @ tilt
    low, high = along.min(axis=0), along.max(axis=0)
    view = (low - np.array([25, 35, setting.neck_mm]), high + np.array([25, 30, -setting.cut_mm]))
    return made_head(
        seed=setting.seed,
        voxel_mm=setting.voxel_mm,
        pose=matrix,
        noise=setting.noise,
        bias=setting.bias,
        codes=setting.codes,
        view=view,
        tilt=tilt,
        contrast=(setting.grey, 1.0, setting.fluid),
        resolution_mm=resolution_mm,
        neck_mm=140.0,
        exact_bias=True,
    )
