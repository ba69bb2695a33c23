"""Made heads with known truth, independent of the study's simulator (shells around the template's brain), and faults.

References
----------
Gudbjartsson & Patz 1995, doi:10.1002/mrm.1910340618 (Rician noise).
Shaw et al. 2019, doi:10.1007/978-3-030-32251-9_51 (motion: segments of k-space along the phase direction, each rigid).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from adlib.imaging.atlas import coordinates, template
from adlib.imaging.volume import resample

CENTRE = np.array([0, -18, -5])  # of the head, MNI mm
AIR = 0.12  # of the bright tissue: what is darker outside the closed head is air


@dataclass(frozen=True)
class MadeHead:
    """`image` shows the template through `mni_to_scan` (4, 4); `mask` is its true brain, in RAS order."""

    image: nib.Nifti1Image
    mask: np.ndarray
    mni_to_scan: np.ndarray
    tissue_ml: dict[str, float]


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Rotation (3, 3) about x, then y, then z."""
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def random_affine(
    seed: int, degrees: float = 15, shift: float = 20, scale: float = 0.1, shear: float = 0.03
) -> np.ndarray:
    """A head's pose and size, (4, 4): MNI mm to scan mm."""
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    stretch = np.diag(rng.uniform(1 - scale, 1 + scale) * rng.uniform(0.96, 1.04, 3))
    skew = np.eye(3) + np.triu(rng.uniform(-shear, shear, (3, 3)), 1)
    matrix[:3, :3] = rotation(tuple(rng.uniform(-degrees, degrees, 3))) @ stretch @ skew
    matrix[:3, 3] = rng.uniform(-shift, shift, 3)
    return matrix


@cache
def _shells(resolution_mm: float = 2.0, neck_mm: float = 36.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tissues (3, X, Y, Z), intensities around the brain, the brain's mask, and the affine of a wide box in MNI152."""
    base = template(resolution_mm)
    wide, below = round(36 / resolution_mm), round(neck_mm / resolution_mm)
    pad = ((wide, wide), (wide, wide), (below, wide))
    powers = np.stack([base.gm, base.wm, base.csf]) ** 3  # one brain is sharper than the average of many
    crisp = powers / np.maximum(powers.sum(0), 1e-9) * base.mask
    tissues = np.stack([np.pad(part, pad) for part in crisp]).astype(np.float32)
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


def _head(
    resolution_mm: float = 2.0, contrast=(0.62, 1.0, 0.22), neck_mm: float = 36.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1w-like head in MNI space (wide box), its brain mask and its affine; tissue levels are GM, WM, CSF."""
    tissues, values, mask, affine = _shells(resolution_mm, neck_mm)
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
    volume, mask, grid = _head(resolution_mm, contrast, neck_mm)
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
    unit = resolution_mm**3 * abs(np.linalg.det(pose[:3, :3])) / 1000
    tissues = _shells(resolution_mm, neck_mm)[0].sum((1, 2, 3), dtype=np.float64) * unit
    volumes = dict(zip(("gm_ml", "wm_ml", "csf_ml"), tissues, strict=True))
    return MadeHead(reoriented(image, codes), inside, pose, volumes)


def reoriented(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    """The same image with its voxels stored along other axes, such as ``PSR``."""
    wanted = nib.orientations.axcodes2ornt(codes)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))


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


def spoil(volume: np.ndarray, affine: np.ndarray, fault: str, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Put one fault into a noise-free head.

    Parameters
    ----------
    volume : (X, Y, Z) array
        Noise-free intensities from 0 up, axes near RAS, the brain about the centre.
    affine : (4, 4) array
        Voxel indices to world, RAS mm.
    fault : str
        One of `FAULTS`.
    strength : float
        0, the mildest that makes a scan unfit for volumetry, to 1.
    rng : numpy Generator

    Returns
    -------
    (X', Y', Z') float32
        The affine stays the same.
    """
    return FAULTS[fault](np.asarray(volume, np.float32), affine, strength, rng)


def add_noise(volume: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Rician noise of a share of the bright tissue, float32."""
    level = np.float32(noise * np.percentile(volume, 98))
    real, imaginary = (level * rng.standard_normal(volume.shape, dtype=np.float32) for _ in range(2))
    return np.hypot(volume + real, imaginary)


def _motion(volume: np.ndarray, affine: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """K-space whose lines come from a head in several poses, as if it moved between them."""
    phase = int(rng.integers(3))
    lines = fft.fftfreq(volume.shape[phase]) * volume.shape[phase]
    moves = np.sort(rng.choice(np.arange(1, len(lines)), size=int(rng.integers(4, 9)), replace=False))
    state = np.searchsorted(moves, np.argsort(np.argsort(lines)), side="right")
    reach = 3 + 6 * strength  # degrees and mm
    kept = np.zeros(volume.shape, np.complex64)
    for number in range(len(moves) + 1):
        pose = np.zeros(6) if number == 0 else rng.uniform(-reach, reach, 6)
        part = fft.fftn(_moved(volume, affine, pose))
        chosen = [slice(None)] * 3
        chosen[phase] = state == number
        kept[tuple(chosen)] = part[tuple(chosen)]
    return np.abs(fft.ifftn(kept)).astype(np.float32)


def _moved(volume: np.ndarray, affine: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """The head turned about the centre of the field of view by degrees pose[:3] and shifted by mm pose[3:]."""
    centre = nib.affines.apply_affine(affine, (np.array(volume.shape) - 1) / 2)
    turn = nib.eulerangles.euler2mat(*np.radians(pose[:3]))
    world = nib.affines.from_matvec(turn, centre - turn @ centre + pose[3:])
    return resample(volume, affine, volume.shape, affine, world, "cubic")


def _wrap(volume: np.ndarray, affine: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """The field of view beside the head or too small for it, so that a side is folded over."""
    axis = int(rng.integers(3))
    length = volume.shape[axis]
    if rng.random() < 0.5:
        share = 0.22 + 0.2 * strength
        return np.roll(volume, int(rng.choice([-1, 1])) * round(share * length), axis)
    kept = round((0.66 - 0.2 * strength) * length)
    first = (length - kept) // 2
    folded = np.zeros([kept if k == axis else n for k, n in enumerate(volume.shape)], np.float32)
    for index in range(length):
        target, source = [slice(None)] * 3, [slice(None)] * 3
        target[axis], source[axis] = (index - first) % kept, index
        folded[tuple(target)] += volume[tuple(source)]
    return folded


def _missing(volume: np.ndarray, affine: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Black slices within the brain, scattered or a slab, or a slab that is missing."""
    axis = int(rng.integers(3))
    edge = float(np.linalg.norm(affine[:3, axis]))
    centre = volume.shape[axis] // 2 + round(rng.uniform(-25, 25) / edge)
    near = np.arange(centre - round(20 / edge), centre + round(20 / edge))
    kind = rng.choice(["scattered", "black slab", "no slab"])
    if kind == "scattered":
        slices = rng.choice(near, size=2 + round(6 * strength), replace=False)
    else:
        half = max(1, round((4 + 10 * strength) / edge))
        slices = np.arange(centre - half, centre + half)
    if kind == "no slab":
        return np.delete(volume, slices, axis)
    spoilt = volume.copy()
    spoilt[tuple(slices if k == axis else slice(None) for k in range(3))] = 0
    return spoilt


def _inverted(volume: np.ndarray, affine: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Another modality: bright becomes dark, in the head alone or in the air too, by a power of the scale."""
    top = float(np.percentile(volume, 99.8))
    scaled = (1 - np.clip(volume / top, 0, 1)) ** np.float32(0.6 + strength)
    if rng.random() < 0.5:
        return (top * scaled).astype(np.float32)
    head = ndimage.binary_closing(volume > AIR * top, iterations=4)
    return np.where(ndimage.binary_fill_holes(head), top * scaled, 0).astype(np.float32)


def _half(volume: np.ndarray, affine: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Only a hemisphere or the upper half of the brain: the rest is black."""
    axis, lower = (2, True) if rng.random() < 0.5 else (0, bool(rng.random() < 0.5))
    edge = float(np.linalg.norm(affine[:3, axis]))
    spared = round((20 - 30 * strength) / edge)  # beyond the middle, mm
    middle = volume.shape[axis] // 2
    gone = slice(0, max(middle - spared, 0)) if lower else slice(middle + spared, None)
    spoilt = volume.copy()
    spoilt[tuple(gone if k == axis else slice(None) for k in range(3))] = 0
    return spoilt


FAULTS: dict[str, Callable[[np.ndarray, np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "motion": _motion,
    "wrap": _wrap,
    "missing slices": _missing,
    "inverted": _inverted,
    "half brain": _half,
}
