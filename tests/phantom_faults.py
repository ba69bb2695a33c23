"""Faults of a scan, made on purpose: what quality control must notice in a simulated head."""

from __future__ import annotations

from collections.abc import Callable

import nibabel as nib
import numpy as np
from scipy import fft, ndimage

from adlib.imaging.volume import resample

AIR = 0.12  # of the bright tissue: what lies below it and outside the closed head is air


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
        The first voxel stays where it is in the world.
    """
    return FAULTS[fault](np.asarray(volume, np.float32), affine, strength, rng)


def add_noise(volume: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Rician noise (Gudbjartsson & Patz 1995, doi:10.1002/mrm.1910340618) of a share of the bright tissue, float32."""
    level = np.float32(noise * np.percentile(volume, 98))
    real, imaginary = (level * rng.standard_normal(volume.shape, dtype=np.float32) for _ in range(2))
    return np.hypot(volume + real, imaginary)


def _motion(volume: np.ndarray, affine: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """K-space whose lines come from a head in several poses, as if it moved between them.

    Shaw et al. 2019, doi:10.1007/978-3-030-32251-9_51: segments along the phase direction, each of one rigid pose.
    """
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
    """The field of view off the head, so that a side of it comes in again from the other side, or too small for it."""
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
    """Slices within the brain that are black, one here and there or a slab, or a slab that is not there at all."""
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
    """Another modality: what is bright becomes dark, in the head alone or in the air too, by a power of the scale."""
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
