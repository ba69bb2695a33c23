"""A made head with known truth, independent of the study's own simulator: shells around the template brain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np
from scipy import ndimage

from adlib.imaging.atlas import coordinates, template
from adlib.imaging.volume import resample

CENTRE = np.array([0, -18, -5])  # of the head, MNI mm


@dataclass(frozen=True)
class MadeHead:
    """`image` shows the template through `mni_to_scan` (4, 4); `mask` is its true brain, in RAS order."""

    image: nib.Nifti1Image
    mask: np.ndarray
    mni_to_scan: np.ndarray
    tissue_ml: dict[str, float]


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Rotation (3, 3) about x, then y, then z."""
    cx, cy, cz = np.cos(np.radians(degrees))
    sx, sy, sz = np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def random_affine(seed: int, degrees: float = 15, shift: float = 20, scale: float = 0.1, shear: float = 0.03):
    """A head's pose and size, (4, 4): MNI mm to scan mm."""
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    stretch = np.diag(rng.uniform(1 - scale, 1 + scale) * rng.uniform(0.96, 1.04, 3))
    skew = np.eye(3) + np.triu(rng.uniform(-shear, shear, (3, 3)), 1)
    matrix[:3, :3] = rotation(tuple(rng.uniform(-degrees, degrees, 3))) @ stretch @ skew
    matrix[:3, 3] = rng.uniform(-shift, shift, 3)
    return matrix


def crisp_tissues(resolution_mm: float = 2.0) -> np.ndarray:
    """GM, WM and CSF fractions (3, X, Y, Z) of one brain, sharper than the template's average of many."""
    base = template(resolution_mm)
    powers = np.stack([base.gm, base.wm, base.csf]) ** 3
    return powers / np.maximum(powers.sum(0), 1e-9) * base.mask


@cache
def shells(resolution_mm: float = 2.0, neck_mm: float = 36.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tissues (3, X, Y, Z), what lies about the brain, the brain's mask, and the affine of a box about MNI152's."""
    base = template(resolution_mm)
    wide, below = round(36 / resolution_mm), round(neck_mm / resolution_mm)
    pad = ((wide, wide), (wide, wide), (below, wide))
    tissues = np.stack([np.pad(part, pad) for part in crisp_tissues(resolution_mm)]).astype(np.float32)
    mask = np.pad(base.mask, pad)
    affine = base.affine.copy()
    affine[:3, 3] -= np.array([wide, wide, below]) * resolution_mm
    outward = ndimage.distance_transform_edt(~mask, sampling=resolution_mm)
    x, y, z = coordinates(mask.shape, affine)
    neck = ((x / 55) ** 2 + ((y + 35) / 60) ** 2 < 1) & (z < -50)
    face = ((x / 60) ** 2 + ((y - 40) / 55) ** 2 < 1) & (z < -30) & (z > -100)
    head = (outward < 15) | neck | face
    values = np.where(head, 0.45 + 0.1 * np.sin(x / 6) * np.sin(y / 7) * np.sin(z / 8), 0.0)
    values[(outward < 13) & (outward >= 8)] = 0.95
    values[(outward < 8)] = 0.08
    values[outward < 2] = 0.22
    return tissues, values.astype(np.float32), mask, affine


def head_template(
    resolution_mm: float = 2.0, contrast=(0.62, 1.0, 0.22), neck_mm: float = 36.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1w-like head in MNI space (wide box), its brain mask and its affine; tissue levels are GM, WM, CSF."""
    tissues, values, mask, affine = shells(resolution_mm, neck_mm)
    brain = np.tensordot(np.array(contrast, dtype=np.float32), tissues, axes=1)
    return np.where(mask, brain, values), mask, affine


def made_head(
    seed: int = 0,
    voxel_mm=(2.0, 2.0, 2.0),
    pose: np.ndarray | None = None,
    noise: float = 0.03,
    bias: float = 0.2,
    extracted: bool = False,
    codes: str = "RAS",
    view: tuple[np.ndarray, np.ndarray] | None = None,
    tilt: np.ndarray | None = None,
    contrast=(0.62, 1.0, 0.22),
    resolution_mm: float = 2.0,
    neck_mm: float = 36.0,
    exact_bias: bool = False,
) -> MadeHead:
    """A scan of the template's head in a given pose, with bias field and Rician noise.

    `view` is the lowest and highest corner of the field of view, mm from the head's centre, along the scan's own axes,
    which `tilt` (3, 3) turns against the world's; with `exact_bias` the gain spans 1 +- `bias` in the brain.
    """
    pose = random_affine(seed) if pose is None else pose
    rng = np.random.default_rng(seed + 1000)
    volume, mask, grid = head_template(resolution_mm, contrast, neck_mm)
    if extracted:
        volume = volume * mask
    shape, affine = _field_of_view(pose, voxel_mm, view, np.eye(3) if tilt is None else tilt)
    back = np.linalg.inv(pose)
    head = resample(volume, grid, shape, affine, back)
    inside = resample(mask, grid, shape, affine, back, "nearest") > 0
    head *= _gain(rng, shape, affine, bias, inside if exact_bias else None)
    if extracted:
        head = np.where(inside, np.abs(head + noise * rng.standard_normal(shape)), 0)
    else:
        head = np.hypot(head + noise * rng.standard_normal(shape), noise * rng.standard_normal(shape))
    image = nib.Nifti1Image((1000 * head).astype(np.int16), affine)
    stored = nib.orientations.axcodes2ornt(codes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), stored))
    unit = resolution_mm**3 * abs(np.linalg.det(pose[:3, :3])) / 1000
    tissues = shells(resolution_mm, neck_mm)[0].sum((1, 2, 3), dtype=np.float64) * unit
    return MadeHead(turned, inside, pose, dict(zip(("gm_ml", "wm_ml", "csf_ml"), tissues, strict=True)))


def pose_error(scan_to_mni: np.ndarray, mni_to_scan: np.ndarray) -> float:
    """Mean distance, in scan mm, over the template's brain, between a found pose and the true one."""
    base = template(4.0)
    points = nib.affines.apply_affine(base.affine, np.argwhere(base.mask))
    found = nib.affines.apply_affine(np.linalg.inv(scan_to_mni), points)
    true = nib.affines.apply_affine(mni_to_scan, points)
    return float(np.linalg.norm(found - true, axis=1).mean())


def _field_of_view(pose: np.ndarray, voxel_mm, view, tilt: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of the scan's grid, in RAS order."""
    low, high = (np.array([-115, -130, -125]), np.array([115, 130, 125])) if view is None else view
    shape = tuple(int(np.ceil(extent / edge)) for extent, edge in zip(high - low, voxel_mm, strict=True))
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag(voxel_mm)
    middle = pose[:3, :3] @ CENTRE + pose[:3, 3] + tilt @ (low + high) / 2
    affine[:3, 3] = middle - affine[:3, :3] @ shape / 2
    return shape, affine


def _gain(rng: np.random.Generator, shape: tuple[int, ...], affine: np.ndarray, bias: float, inside: np.ndarray | None):
    """A smooth gain, float32: the exponential of a random quadratic, or 1 +- `bias` in the brain `inside` exactly."""
    x, y, z = coordinates(shape, affine) - (affine @ [*(np.array(shape) / 2), 1])[:3].reshape(3, 1, 1, 1)
    slopes = rng.uniform(-1, 1, 6)
    field = slopes[0] * x / 100 + slopes[1] * y / 100 + slopes[2] * z / 100
    field = field + slopes[3] * (x / 100) ** 2 + slopes[4] * (y / 100) ** 2 + slopes[5] * x * z / 10000
    if inside is None:
        return np.exp(bias * field)
    low, high = field[inside].min(), field[inside].max()
    return 1 + bias * np.clip((2 * field - low - high) / (high - low), -1.2, 1.2)
