"""From the pixels of slices to voxels of MNI152 space and back."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import nibabel as nib
import numpy as np

from adlib.evaluation.explain.maps import ScanMaps
from adlib.imaging import atlas
from adlib.imaging.volume import NORMAL_AXIS
from adlib.study.params import StudyParams
from adlib.study.records import atomic_path
from adlib.training.model_file import ModelCard
from adlib.training.slices import scan_slices

FOLDER = "attribution"
UNIT = 2.0**-22  # of voxel numbers while they are cut like intensities: a power of two keeps them exact


def slice_voxels(card: ModelCard) -> np.ndarray:
    """Which voxel of the MNI152 grid each pixel of a scan's slices was cut from.

    The voxels' own numbers are sent through `adlib.training.slices.scan_slices`, the code that cuts the slices.

    Returns
    -------
    (S, 3, size, size) int64
        Flat index into ``atlas.template(card.preprocess.resolution_mm)``; -1 where the slice goes beyond the grid.
    """
    base = atlas.template(card.preprocess.resolution_mm)
    numbers = np.arange(1, base.mask.size + 1, dtype=np.float32).reshape(base.mask.shape) * np.float32(UNIT)
    cut = scan_slices(numbers, base.affine, card.input)
    return np.round(cut / UNIT).astype(np.int64) - 1


def in_slices(volume: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """A volume's values at the pixels of slices, in the shape of `voxels`; 0 (or False) beyond the grid."""
    return np.where(voxels >= 0, volume.ravel()[voxels], np.zeros((), volume.dtype))


def in_volume(values: np.ndarray, voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Values of pixels at the voxels that they were cut from.

    Parameters
    ----------
    values : (S, 3, size, size) float
    voxels : (S, 3, size, size) int
        From `slice_voxels`.
    shape : tuple of 3 int
        Of the grid.

    Returns
    -------
    shape float32
        The mean where several channels show a voxel; 0 where none does.
    """
    seen = voxels >= 0
    size = int(np.prod(shape))
    counts = np.bincount(voxels[seen], minlength=size)
    sums = np.bincount(voxels[seen], weights=values[seen].astype(np.float64), minlength=size)
    return (sums / np.maximum(counts, 1)).reshape(shape).astype(np.float32)


def class_images(maps: ScanMaps, card: ModelCard) -> dict[str, nib.Nifti1Image]:
    """The mean map of each true class as an image in MNI152 space, float32, 0 where no slice was cut."""
    base, voxels = atlas.template(card.preprocess.resolution_mm), slice_voxels(card)
    images = {}
    for name in card.classes:
        mean = maps.values[(maps.scans["diagnosis"] == name).to_numpy()].mean(0)
        images[name] = as_image(in_volume(mean, voxels, base.mask.shape), base.affine)
    return images


def as_image(volume: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A NIfTI image that says that its world is MNI152, in mm."""
    image = nib.Nifti1Image(np.asarray(volume, dtype=np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, "mni")
    image.set_qform(affine, "mni")
    return image


def template_image(card: ModelCard) -> nib.Nifti1Image:
    """The template's T1w on the grid of `class_images`, to draw them on."""
    base = atlas.template(card.preprocess.resolution_mm)
    return as_image(base.t1, base.affine)


def write_images(params: StudyParams, images: dict[str, nib.Nifti1Image]) -> None:
    """Store images by class under ``attribution/``; those of classes that the study no longer has are removed."""
    paths = {image_path(params, name): image for name, image in images.items()}
    for path in (params.folder / FOLDER).glob("*_attribution.nii.gz"):
        if path not in paths:
            path.unlink()
    for path, image in paths.items():
        with atomic_path(path) as temporary:
            nib.save(image, temporary)


def read_images(params: StudyParams) -> dict[str, nib.Nifti1Image]:
    """The stored images by class."""
    return {name: nib.load(image_path(params, name)) for name in params.classes}


def image_path(params: StudyParams, name: str) -> Path:
    """Where the image of a class is stored."""
    return params.folder / FOLDER / f"space-{atlas.SPACE}_desc-{quote(name, safe='')}_attribution.nii.gz"


def cut_positions(card: ModelCard) -> tuple[str, tuple[float, ...]]:
    """Where to cut an image in order to see the slices again, as nilearn takes it: mode and coordinates.

    Returns
    -------
    mode : str
        ``x``, ``y`` or ``z``; ``ortho`` for three planes.
    coordinates : tuple of float
        Centres of the voxels, MNI152 mm.
    """
    base, voxels = atlas.template(card.preprocess.resolution_mm), slice_voxels(card)

    def along(axis: int, pixels: np.ndarray) -> float:
        first = np.unravel_index(pixels[pixels >= 0][0], base.mask.shape)
        return float(nib.affines.apply_affine(base.affine, first)[axis])

    if card.input.plane == "three_planes":
        axial, coronal, sagittal = voxels[0]
        return "ortho", (along(0, sagittal), along(1, coronal), along(2, axial))
    axis = NORMAL_AXIS[card.input.plane]
    return "xyz"[axis], tuple(along(axis, item[1]) for item in voxels)
