"""Brain extraction: the template's mask fitted to the head, or the mask of an installed program.

References
----------
Hoopes et al. 2022, doi:10.1016/j.neuroimage.2022.119474 (SynthStrip).
Isensee et al. 2019, doi:10.1002/hbm.24750 (HD-BET).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from adlib.imaging.atlas import Template, region, template
from adlib.imaging.volume import block_mean, bounding_box, dilated, resample, voxel_ml, voxel_sizes
from adlib.study.records import StudyError, TryAgain

CONSTANT_SHARE = 0.25  # least share of the field of view that is background around an extracted brain
BRAIN_ML = (700.0, 2200.0)
RING_MM = (10.0, 30.0)  # distances from the brain between which a head has skull and scalp
RING_GRID_MM = 3.0
RING_SHARE = 0.04  # largest share of the ring with signal around an extracted brain
WORK_MM = 2.0
REACH_MM = 8.0  # the brain ends at most this far outside the template's
CORE_MM = 1.0  # all is brain deeper than this inside the template's brain
OPEN_MM = 3.0  # bridges thinner than twice this (dura, vessels) do not join tissue to the scalp
CLOSE_MM = 6.0  # sulci narrower than twice this belong to the brain
EDGE = 0.35  # level of the smoothed mask: below a half, for the fluid between cortex and skull
FLUID_MM = 4.0  # thickness of fluid between the smoothed mask and the skull, at most
FLUID_BASE_MM = 4.0  # and, at the base of the skull, beyond the template's brain
BASE_BELOW_MM = -20.0  # MNI152 height
INNER_SMOOTHING_MM = 0.7
OUTER_SMOOTHING_MM = 1.5
OUTER_EDGE = 0.4  # level of the smoothed, dilated mask
SCAN, BRAIN, MASK = "scan.nii.gz", "brain.nii.gz", "brain_bet.nii.gz"  # HD-BET appends _bet to the name of the brain
TIMEOUT_S = 1800.0
# Commands are fixed here, not in the params, which travel inside model files and must not name programs.
COMMANDS = {
    "synthstrip": ("mri_synthstrip", "-i", SCAN, "-m", MASK),
    "hd-bet": ("hd-bet", "-i", SCAN, "-o", BRAIN, "-device", "cpu", "--disable_tta", "--save_bet_mask"),
}


def extract_brain(
    volume: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray, base: Template, method: str, name: str
) -> tuple[np.ndarray, str]:
    """Brain mask of a registered scan, before bias correction.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        The scan in canonical orientation, not resampled.
    affine : (4, 4) array
        Voxel indices to world, RAS mm.
    scan_to_mni : (4, 4) array
        World to world, mm.
    base : Template
    method : str
        ``template``, ``synthstrip`` or ``hd-bet``; not used for a scan that is already brain-extracted.
    name : str
        Name of the scan in messages.

    Returns
    -------
    mask : (X, Y, Z) bool
        On the template's grid; ``base.mask`` itself where `refine_brain` has to fit it to the head.
    step : str
        Description, for the steps of the scan.

    Raises
    ------
    StudyError
        If the external program fails or returns no mask that fits the scan.
    TryAgain
        If it is not installed, is killed, or takes over half an hour.
    """
    if is_extracted(volume, affine, scan_to_mni):
        mask = _on_template(_foreground(volume), affine, scan_to_mni, base)
        return mask, "brain extraction skipped: input is already brain-extracted"
    if method == "template":
        return base.mask, "brain extraction: the template's mask, fitted to the head up to the inner skull"
    mask = _on_template(external_mask(volume, affine, method, name), affine, scan_to_mni, base)
    return mask, f"brain extraction: {method}"


def _foreground(volume: np.ndarray) -> np.ndarray | None:
    """Where a volume differs from its exactly constant background; None if it has no such background."""
    ends = [np.moveaxis(volume, axis, 0)[[0, -1]] for axis in range(3)]
    faces = np.concatenate([end.ravel() for end in ends])
    values, counts = np.unique(faces, return_counts=True)
    differs = volume != values[counts.argmax()]
    return differs if 1 - differs.mean() >= CONSTANT_SHARE else None


def is_extracted(volume: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray) -> bool:
    """Whether skull and scalp were removed before.

    Three conditions hold then: the background is one exact value over much of the field of view, the rest has the
    volume of a brain, and the ring of skull and scalp around the registered template's brain is background.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        The scan, not resampled.
    affine, scan_to_mni : (4, 4) array

    Returns
    -------
    bool
    """
    differs = _foreground(volume)
    if differs is None or not BRAIN_ML[0] < differs.sum() * voxel_ml(affine) < BRAIN_ML[1]:
        return False
    base = template(RING_GRID_MM)
    small, grid = block_mean(differs, affine, RING_GRID_MM)
    present = resample(small, grid, base.mask.shape, base.affine, np.linalg.inv(scan_to_mni))
    return bool(present[_ring()].mean() < RING_SHARE)


@cache
def _ring() -> np.ndarray:
    base = template(RING_GRID_MM)
    away = ndimage.distance_transform_edt(~base.mask, sampling=RING_GRID_MM)
    height = base.affine[2, 3] + base.affine[2, 2] * np.arange(base.mask.shape[2])
    return (away > RING_MM[0]) & (away < RING_MM[1]) & (height > -20)


def _on_template(mask: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray, base: Template) -> np.ndarray:
    """A mask on the scan's grid resampled to the template's: its largest part, holes filled."""
    small, grid = block_mean(mask.astype(np.float32), affine, voxel_sizes(base.affine).max())
    moved = resample(small, grid, base.mask.shape, base.affine, np.linalg.inv(scan_to_mni)) > 0.5
    return ndimage.binary_fill_holes(_largest(moved))


def refine_brain(volume: np.ndarray, base: Template) -> np.ndarray:
    """Fit the template's brain mask to a registered head by intensity, within a band around its surface.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        Bias-corrected head on the template's grid.
    base : Template

    Returns
    -------
    (X, Y, Z) bool
        Brain with its sulcal and ventricular fluid, up to the inner skull.
    """
    small, grid = block_mean(volume, base.affine, WORK_MM)
    mask, gm, wm, depth = _working_template(float(voxel_sizes(base.affine)[0]))
    edge = voxel_sizes(grid)
    grey, white = np.median(small[mask & (gm > 0.7)]), np.median(small[mask & (wm > 0.9)])
    tissue = (small > 0.65 * grey) & (small < white + 0.6 * abs(white - grey)) & (depth > -REACH_MM)
    core = depth > CORE_MM
    tissue = dilated(_largest(_shrink(tissue | core, OPEN_MM, edge)), OPEN_MM, grid) & (tissue | core)
    closed = _shrink(dilated(tissue, CLOSE_MM, grid), CLOSE_MM, edge)
    brain = ndimage.binary_fill_holes((closed | core) & (depth > -REACH_MM))
    soft = ndimage.gaussian_filter(_largest(brain).astype(np.float32), 1.5 / edge)
    surface = resample(soft, grid, volume.shape, base.affine) > EDGE
    return _with_fluid(volume, surface, float(grey), base)


def _with_fluid(volume: np.ndarray, mask: np.ndarray, grey: float, base: Template) -> np.ndarray:
    """Dilate a mask through the surrounding fluid up to the dark inner table of the skull."""
    edge = voxel_sizes(base.affine)
    box = bounding_box(mask, (FLUID_MM + 2) / edge)
    smooth = ndimage.gaussian_filter(volume[box], INNER_SMOOTHING_MM / edge, truncate=3)
    height = (base.affine[2, 3] + edge[2] * np.arange(volume.shape[2]))[box[2]]
    inner, steps = mask[box], round(FLUID_MM / edge[0])
    ring = ndimage.binary_dilation(inner, iterations=steps) & ~inner
    fluid = np.percentile(volume[region("ventricles", float(edge[0]))], 20)
    bone = np.percentile(smooth[ring & (height > 10)], 10)
    wet = (smooth > 0.5 * (fluid + bone)) & (smooth < 0.5 * (fluid + grey)) & ring
    wet &= (height > BASE_BELOW_MM) | _near(float(edge[0]))[box]
    filled = ndimage.binary_dilation(inner, iterations=steps, mask=wet | inner)
    soft = ndimage.gaussian_filter(filled.astype(np.float32), OUTER_SMOOTHING_MM / edge, truncate=2)
    result = mask.copy()
    result[box] |= soft > OUTER_EDGE
    return result


@cache
def _near(resolution_mm: float) -> np.ndarray:
    """Where the template's brain is at most `FLUID_BASE_MM` away."""
    base = template(resolution_mm)
    return dilated(base.mask, FLUID_BASE_MM, base.affine)


@cache
def _working_template(resolution_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The template's mask, GM and WM at about `WORK_MM`, and how deep inside its brain each voxel lies, mm."""
    base = template(resolution_mm)
    share, gm, wm = (block_mean(part, base.affine, WORK_MM)[0] for part in (base.mask, base.gm, base.wm))
    mask, edge = share > 0.5, voxel_sizes(block_mean(base.mask, base.affine, WORK_MM)[1])
    depth = ndimage.distance_transform_edt(mask, sampling=edge) - ndimage.distance_transform_edt(~mask, sampling=edge)
    return mask, gm, wm, depth


def _shrink(mask: np.ndarray, by_mm: float, edge: np.ndarray) -> np.ndarray:
    """The voxels of a mask that lie deeper in it than a distance, mm."""
    box, result = bounding_box(mask, np.ones(3)), np.zeros_like(mask)
    result[box] = ndimage.distance_transform_edt(mask[box], sampling=edge) > by_mm
    return result


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def external_mask(volume: np.ndarray, affine: np.ndarray, method: str, name: str) -> np.ndarray:
    """Brain mask of a scan on the scan's grid, by a program of `COMMANDS`.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        The scan in canonical orientation.
    affine : (4, 4) array
        Voxel indices to world, RAS mm.
    method : str
        A key of `COMMANDS`: ``synthstrip`` or ``hd-bet``.
    name : str
        Name of the scan in messages.

    Returns
    -------
    (X, Y, Z) bool

    Raises
    ------
    StudyError
        If the program fails or returns no mask that fits the scan.
    TryAgain
        If it is not installed, is killed, or takes over half an hour.
    """
    command = COMMANDS[method]
    if shutil.which(command[0]) is None:
        raise TryAgain(
            f"preprocess.brain_extraction is {method}, but {command[0]!r} is not on the PATH; install it, or set "
            "brain_extraction to template"
        )
    with tempfile.TemporaryDirectory(prefix="adlib-mask-") as folder:
        nib.save(nib.Nifti1Image(volume, affine), Path(folder) / SCAN)
        _run(command, folder, name)
        return _read_mask(Path(folder) / MASK, volume.shape, command[0], name)


def _run(command: tuple[str, ...], folder: str, name: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, errors="replace", timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TryAgain(f"{name}: {command[0]} cannot be run: {error}") from None
    if done.returncode < 0:
        raise TryAgain(f"{name}: {command[0]} was killed by signal {-done.returncode}; check that memory suffices")
    if done.returncode:
        output = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise StudyError(f"{name}: {command[0]} failed with exit code {done.returncode}: {output}")


def _read_mask(path: Path, shape: tuple[int, ...], program: str, name: str) -> np.ndarray:
    try:
        mask = np.asanyarray(nib.load(path).dataobj) > 0.5
    except Exception as error:  # nibabel's parsers raise many kinds
        raise StudyError(f"{name}: {program} wrote no mask that can be read ({error})") from None
    if mask.shape != shape or not mask.any():
        raise StudyError(f"{name}: {program} wrote an empty mask or one of another shape, {mask.shape} for {shape}")
    return mask
