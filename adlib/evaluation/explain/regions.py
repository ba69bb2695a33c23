"""Attribution in MNI152 space: images, shares by brain region, and where disease changes simulated heads."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from adlib.evaluation.explain.attribution import SMOOTHING, ScanMaps
from adlib.evaluation.scores import resampled_means
from adlib.imaging import atlas
from adlib.imaging.volume import NORMAL_AXIS, resample
from adlib.phantom.cohort import SCANNERS
from adlib.phantom.head import FIELD_MM, TISSUES, anatomy, velocity
from adlib.study.metrics import format_score
from adlib.study.params import StudyParams
from adlib.study.records import Schema, atomic_path, write_table
from adlib.training.model_file import ModelCard
from adlib.training.slices import scan_slices

FOLDER = "attribution"
UNIT = 2.0**-22  # of voxel numbers while they are cut like intensities: a power of two keeps them exact
REST, BRAIN = "rest_of_brain", "brain"
REGIONAL = Schema(
    "regional attribution",
    dict.fromkeys(("diagnosis", "region", "within"), str) | dict.fromkeys(("pixels", "positive", "absolute"), float),
    dict.fromkeys(("ratio", "ratio_low", "ratio_high"), float),
    ("diagnosis", "region"),
)
MOST_CHANGED = 0.1  # share of the brain's pixels
HEAD_MM = 2.0
TOP = 0.05  # share of the brain's pixels with most attribution
SMOOTHED = f"in the slices, smoothed as the maps are; the {MOST_CHANGED:.0%} of the brain's pixels that change most"
DEFINITIONS = {
    "volume": f"absolute divergence of the disease's velocity field, the rate of change of local volume, {SMOOTHED}",
    "image": f"absolute difference of the average head's T1w with the disease of severity 1 and without, {SMOOTHED}",
}


def slice_voxels(card: ModelCard) -> np.ndarray:
    """Which voxel of the MNI152 grid each pixel of a scan's slices was cut from.

    The voxels' own numbers are sent through `adlib.training.slices.scan_slices`, the code that cuts the slices.

    Parameters
    ----------
    card : ModelCard
        Its ``input`` and ``preprocess`` count.

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
    """Values of a volume at the pixels of slices.

    Parameters
    ----------
    volume : (X, Y, Z) array
    voxels : (S, 3, size, size) int64
        From `slice_voxels`.

    Returns
    -------
    (S, 3, size, size) array
        Of the type of `volume`; 0 (or False) beyond the grid.
    """
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
    """The mean map of each true class as an image in MNI152 space.

    Parameters
    ----------
    maps : ScanMaps
    card : ModelCard

    Returns
    -------
    dict of str to NIfTI image
        Float32, 0 where no slice was cut.
    """
    base, voxels = atlas.template(card.preprocess.resolution_mm), slice_voxels(card)
    images = {}
    for name in card.classes:
        mean = maps.values[(maps.scans["diagnosis"] == name).to_numpy()].mean(0)
        images[name] = atlas.mni_image(in_volume(mean, voxels, base.mask.shape), base.affine)
    return images


def template_image(card: ModelCard) -> nib.Nifti1Image:
    """The template's T1w on the grid of `class_images`, as their background.

    Parameters
    ----------
    card : ModelCard

    Returns
    -------
    NIfTI image
    """
    base = atlas.template(card.preprocess.resolution_mm)
    return atlas.mni_image(base.t1, base.affine)


def write_images(params: StudyParams, images: dict[str, nib.Nifti1Image]) -> None:
    """Store images by class under ``attribution/``; those of classes that the study no longer has are removed.

    Parameters
    ----------
    params : StudyParams
    images : dict of str to NIfTI image
        From `class_images`.
    """
    for path in (params.folder / FOLDER).glob("*_attribution.nii.gz"):
        path.unlink()
    for name, image in images.items():
        with atomic_path(_image_path(params, name)) as temporary:
            nib.save(image, temporary)


def read_images(params: StudyParams) -> dict[str, nib.Nifti1Image]:
    """Read the images that `write_images` stored.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    dict of str to NIfTI image
        By class.
    """
    return {name: nib.load(_image_path(params, name)) for name in params.classes}


def _image_path(params: StudyParams, name: str) -> Path:
    return params.folder / FOLDER / f"space-{atlas.SPACE}_desc-{quote(name, safe='')}_attribution.nii.gz"


def cut_positions(card: ModelCard) -> tuple[str, tuple[float, ...]]:
    """Where to cut an image in order to see the slices again, as nilearn takes it: mode and coordinates.

    Parameters
    ----------
    card : ModelCard

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


def pixel_regions(card: ModelCard) -> dict[str, np.ndarray]:
    """Regions at the pixels of a scan's slices, the same for every scan.

    Parameters
    ----------
    card : ModelCard

    Returns
    -------
    dict of str to (S, 3, size, size) bool
        Those of `atlas.REGIONS` (the temporal lobes hold most of the hippocampi), the rest of the brain, and the
        brain: the template's mask.
    """
    resolution, voxels = card.preprocess.resolution_mm, slice_voxels(card)
    brain = in_slices(atlas.template(resolution).mask, voxels)
    named = {name: in_slices(atlas.region(name, resolution), voxels) & brain for name in atlas.REGIONS}
    return named | {REST: brain & ~np.any(list(named.values()), axis=0), BRAIN: brain}


def regional_table(params: StudyParams, maps: ScanMaps, card: ModelCard) -> pd.DataFrame:
    """Share of the attribution in each region against the region's share of the pixels.

    Stored as ``attribution/regions.tsv``. Shares are means over scans: of regions, within the brain; of the brain,
    within the slices.

    Parameters
    ----------
    params : StudyParams
    maps : ScanMaps
    card : ModelCard

    Returns
    -------
    DataFrame
        Schema `REGIONAL`: ``pixels``, ``positive`` and ``absolute`` are shares of the region's pixels, of all positive
        and of all absolute attribution; ``ratio`` is absolute / pixels, with its 95 % interval over participants,
        undefined where no slice shows the region.
    """
    regions = pixel_regions(card)
    rows = [row for name in (*card.classes, "all") for row in _rows(params, maps, regions, name)]
    return write_table(pd.DataFrame(rows), params.folder / FOLDER / "regions.tsv", REGIONAL)


def _rows(
    params: StudyParams, maps: ScanMaps, regions: dict[str, np.ndarray], diagnosis: str
) -> Iterator[dict[str, Any]]:
    chosen = (maps.scans["diagnosis"] == diagnosis).to_numpy() | (diagnosis == "all")
    values, scans = maps.values[chosen], maps.scans[chosen]
    for region, inside in regions.items():
        whole = np.ones_like(inside) if region == BRAIN else regions[BRAIN]
        pixels = inside.sum() / whole.sum()
        positive = share_inside(np.maximum(values, 0), inside, whole)
        absolute = share_inside(np.abs(values), inside, whole)
        means = resampled_means(absolute, scans, params.evaluate.bootstrap, params.seed)
        ratio = means / pixels if pixels else np.full(len(means), np.nan)
        low, high = np.percentile(ratio[1:], [2.5, 97.5])
        yield {
            "diagnosis": diagnosis,
            "region": region,
            "within": "slices" if region == BRAIN else BRAIN,
            "pixels": pixels,
            "positive": positive.mean(),
            "absolute": means[0],
            "ratio": ratio[0],
            "ratio_low": low,
            "ratio_high": high,
        }


def written_table(table: pd.DataFrame) -> pd.DataFrame:
    """The regional table for reading: shares as percentages, and the ratio with its interval.

    Parameters
    ----------
    table : DataFrame
        From `regional_table`.

    Returns
    -------
    DataFrame
        Text; indexed by true class and region.
    """
    shares = table[["pixels", "positive", "absolute"]].map(lambda share: f"{share:.1%}")
    scores = table.rename(columns={"ratio": "point", "ratio_low": "low", "ratio_high": "high"}).assign(metric="ratio")
    ratio = [format_score(row) for row in scores.itertuples()]
    return table[["diagnosis", "region", "within"]].join(shares).assign(ratio=ratio).set_index(["diagnosis", "region"])


def share_inside(values: np.ndarray, inside: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Share of the sum of values that lies inside a region.

    Parameters
    ----------
    values : (N, S, 3, size, size) float
        Not negative.
    inside, whole : (S, 3, size, size) bool
        The region; the pixels that count.

    Returns
    -------
    (N,) float64
        0 where the sum is 0.
    """
    total = values[:, whole].sum(1, dtype=np.float64)
    return values[:, inside & whole].sum(1, dtype=np.float64) / np.where(total > 0, total, 1.0)


@cache
def change(of: str, resolution_mm: float) -> np.ndarray:
    """How much disease of severity 1 changes each voxel of the average head.

    A person's own shape moves this by a few mm. The T1w is that of the first of the phantom's scanners.

    Parameters
    ----------
    of : str
        ``volume`` or ``image``, see `DEFINITIONS`.
    resolution_mm : float
        Voxel edge, mm.

    Returns
    -------
    (X, Y, Z) float32
        On ``atlas.template(resolution_mm)``.
    """
    base, field, affine = atlas.template(resolution_mm), velocity("disease"), anatomy(FIELD_MM).affine
    if of == "volume":
        divergence = sum(np.gradient(part, FIELD_MM, axis=axis) for axis, part in enumerate(field))
        return np.abs(resample(divergence.astype(np.float32), affine, base.mask.shape, base.affine))
    head = anatomy(HEAD_MM)
    before = np.tensordot(np.array([SCANNERS[0].contrast[name] for name in TISSUES]), head.tissues, axes=1)
    moved = [resample(part, affine, before.shape, head.affine) / HEAD_MM for part in field]
    after = ndimage.map_coordinates(before, np.indices(before.shape) + moved, order=1)
    return resample(np.abs(after - before).astype(np.float32), head.affine, base.mask.shape, base.affine)


def changed_pixels(card: ModelCard, of: str) -> tuple[np.ndarray, np.ndarray]:
    """The region that disease changes most and the brain at the pixels of a scan's slices.

    Parameters
    ----------
    card : ModelCard
    of : str
        ``volume`` or ``image``, see `DEFINITIONS`.

    Returns
    -------
    changed, brain : (S, 3, size, size) bool
    """
    resolution, voxels = card.preprocess.resolution_mm, slice_voxels(card)
    brain = in_slices(atlas.template(resolution).mask, voxels)
    smooth = ndimage.gaussian_filter(in_slices(change(of, resolution), voxels), (0, 0, SMOOTHING, SMOOTHING))
    return brain & (smooth >= np.quantile(smooth[brain], 1 - MOST_CHANGED)), brain


def ratio_to_chance(values: np.ndarray, changed: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """How often the pixels with most absolute attribution lie in the changed region, against chance.

    Parameters
    ----------
    values : (N, S, 3, size, size) float
        Attribution of N scans.
    changed, brain : (S, 3, size, size) bool
        From `changed_pixels`.

    Returns
    -------
    (N,) float64
        1 is chance; the greatest possible value is that of brain pixels to changed ones.
    """
    inside = np.abs(values[:, brain])
    count = int(np.ceil(TOP * inside.shape[1]))
    top = np.argsort(-inside, axis=1, kind="stable")[:, :count]
    return changed[brain][top].mean(1) / changed[brain].mean()
