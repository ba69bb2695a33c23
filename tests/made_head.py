"""A made head with known truth, independent of the study's own simulator: shells around the template brain."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from adlib.atlas import coordinates, template
from adlib.volume import resample


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


def head_template(resolution_mm: float = 2.0, contrast=(0.62, 1.0, 0.22)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1w-like head in MNI space (wide box), its brain mask and its affine; tissue levels are GM, WM, CSF."""
    base, tissues = template(resolution_mm), crisp_tissues(resolution_mm)
    pad = round(36 / resolution_mm)
    maps = [np.pad(m, pad) for m in (*tissues, base.mask)]
    affine = base.affine.copy()
    affine[:3, 3] -= pad * resolution_mm
    gm, wm, csf, mask = maps
    outward = ndimage.distance_transform_edt(~mask, sampling=resolution_mm)
    x, y, z = coordinates(mask.shape, affine)
    neck = ((x / 55) ** 2 + ((y + 35) / 60) ** 2 < 1) & (z < -50)
    face = ((x / 60) ** 2 + ((y - 40) / 55) ** 2 < 1) & (z < -30) & (z > -100)
    head = (outward < 15) | neck | face
    values = np.where(head, 0.45 + 0.1 * np.sin(x / 6) * np.sin(y / 7) * np.sin(z / 8), 0.0)
    values[(outward < 13) & (outward >= 8)] = 0.95
    values[(outward < 8)] = 0.08
    values[outward < 2] = 0.22
    brain = contrast[0] * gm + contrast[1] * wm + contrast[2] * csf
    return np.where(mask, brain, values).astype(np.float32), mask, affine


def made_head(
    seed: int = 0,
    voxel_mm=(2.0, 2.0, 2.0),
    pose: np.ndarray | None = None,
    noise: float = 0.03,
    bias: float = 0.2,
    extracted: bool = False,
    codes: str = "RAS",
) -> MadeHead:
    """A scan of the template's head in a given pose, with bias field and Rician noise."""
    pose = random_affine(seed) if pose is None else pose
    rng = np.random.default_rng(seed + 1000)
    volume, mask, grid = head_template()
    if extracted:
        volume = volume * mask
    shape = tuple(int(np.ceil(extent / edge)) for extent, edge in zip((230, 260, 250), voxel_mm, strict=True))
    affine = np.diag([*voxel_mm, 1.0])
    affine[:3, 3] = pose[:3, :3] @ [0, -18, -5] + pose[:3, 3] - np.array(shape) * voxel_mm / 2
    back = np.linalg.inv(pose)
    head = resample(volume, grid, shape, affine, back)
    inside = resample(mask, grid, shape, affine, back, "nearest") > 0
    x, y, z = coordinates(shape, affine) - (affine @ [*(np.array(shape) / 2), 1])[:3].reshape(3, 1, 1, 1)
    slopes = rng.uniform(-1, 1, 6)
    field = slopes[0] * x / 100 + slopes[1] * y / 100 + slopes[2] * z / 100
    field = field + slopes[3] * (x / 100) ** 2 + slopes[4] * (y / 100) ** 2 + slopes[5] * x * z / 10000
    head = head * np.exp(bias * field)
    if extracted:
        head = np.where(inside, np.abs(head + noise * rng.standard_normal(shape)), 0)
    else:
        head = np.hypot(head + noise * rng.standard_normal(shape), noise * rng.standard_normal(shape))
    image = nib.Nifti1Image((1000 * head).astype(np.int16), affine)
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    )
    unit = 8 * abs(np.linalg.det(pose[:3, :3])) / 1000
    ml = dict(zip(("gm_ml", "wm_ml", "csf_ml"), crisp_tissues().sum((1, 2, 3)) * unit, strict=True))
    return MadeHead(turned, inside, pose, ml)
