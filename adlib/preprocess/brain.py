"""Brain extraction: the intracranial space found by the anatomy network, or the mask of an installed program.

References
----------
Hoopes et al. 2022, doi:10.1016/j.neuroimage.2022.119474 (SynthStrip).
Isensee et al. 2019, doi:10.1002/hbm.24750 (HD-BET).
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from adlib.imaging.atlas import Template
from adlib.imaging.volume import block_mean, bounding_box, resample, ring, voxel_sizes
from adlib.preprocess.anatomy import INTRACRANIAL
from adlib.study.records import StudyError, TryAgain

CONSTANT_SHARE = 0.25  # least share of the field of view that is background around an extracted brain
RING_MM = (6.0, 16.0)  # distances from the brain between which a head has skull and scalp
RING_GRID_MM = 2.0  # voxels of finer grids are left out
RING_BASE_MM = -20.0  # MNI152 height above which that holds
RING_SHARE = 0.04  # largest share of the ring with signal around an extracted brain
SCAN, BRAIN, MASK = "scan.nii.gz", "brain.nii.gz", "brain_bet.nii.gz"  # HD-BET appends _bet to the name of the brain
TIMEOUT_S = 1800.0
# Commands are fixed here, not in the params, which travel inside model files and must not name programs.
COMMANDS = {
    "synthstrip": ("mri_synthstrip", "-i", SCAN, "-m", MASK),
    "hd-bet": ("hd-bet", "-i", SCAN, "-o", BRAIN, "-device", "cpu", "--disable_tta", "--save_bet_mask"),
}


def extract_brain(
    volume: np.ndarray,
    affine: np.ndarray,
    scan_to_mni: np.ndarray,
    head: np.ndarray,
    inside: np.ndarray,
    base: Template,
    method: str,
    name: str,
) -> tuple[np.ndarray, str]:
    """Brain mask of a registered scan.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        The scan in canonical orientation, not resampled.
    affine : (4, 4) array
        Voxel indices to world, RAS mm.
    scan_to_mni : (4, 4) array
        World to world, mm.
    head : (X, Y, Z) float32
        The scan on the template's grid, from 0 up.
    inside : (X, Y, Z) float32
        Share of each voxel of that grid that is intracranial, by `find_anatomy`.
    base : Template
    method : str
        ``network``, ``synthstrip`` or ``hd-bet``; not used for a scan that is already brain-extracted.
    name : str
        Name of the scan in messages.

    Returns
    -------
    mask : (X, Y, Z) bool
        On the template's grid: brain with its ventricles and, as far as the scan holds it, the fluid up to the skull.
    step : str
        Description, for the steps of the scan.

    Raises
    ------
    StudyError
        If the network finds no brain, or the external program fails or returns no mask that fits the scan.
    TryAgain
        If it is not installed, is killed, or takes over half an hour.
    """
    found = _whole(inside > INTRACRANIAL)
    if not found.any():
        raise StudyError(f"{name}: no brain was found; expected a T1-weighted scan of a whole head or brain")
    if is_extracted(head, found, base):
        return found & _whole(head > 0), "brain extraction skipped: input is already brain-extracted"
    if method == "network":
        return found, "brain extraction: intracranial space by a 3-D U-Net"
    mask = _on_template(external_mask(volume, affine, method, name), affine, scan_to_mni, base)
    return mask, f"brain extraction: {method}"


def background_to_lowest(volume: np.ndarray) -> np.ndarray:
    """A volume whose exactly constant background, as around an extracted brain, is its lowest value.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        Standardised intensities leave the background above the darkest tissue.

    Returns
    -------
    (X, Y, Z) float32
        The same array where the background is small, varies, or is lowest already.
    """
    faces = np.concatenate([np.moveaxis(volume, axis, 0)[[0, -1]].ravel() for axis in range(3)])
    values, counts = np.unique(faces, return_counts=True)
    level = values[counts.argmax()]
    constant = volume == level
    if level == volume.min() or constant.mean() < CONSTANT_SHARE:
        return volume
    return np.where(constant, volume.min(), volume)


def is_extracted(head: np.ndarray, mask: np.ndarray, base: Template) -> bool:
    """Whether skull and scalp were removed before: the ring around the brain where they would be is empty.

    Parameters
    ----------
    head : (X, Y, Z) float32
        On the template's grid, from 0 up.
    mask : (X, Y, Z) bool
        Brain.
    base : Template

    Returns
    -------
    bool
    """
    step = max(1, round(RING_GRID_MM / voxel_sizes(base.affine).max()))
    head, mask = (part[::step, ::step, ::step] for part in (head, mask))
    grid = base.affine @ np.diag([step, step, step, 1.0])
    around = ring(mask, RING_MM, grid)
    around &= grid[2, 3] + grid[2, 2] * np.arange(mask.shape[2]) > RING_BASE_MM
    return bool((head[around] > 0).mean() < RING_SHARE)


def _on_template(mask: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray, base: Template) -> np.ndarray:
    """A mask on the scan's grid resampled to the template's: its largest part, holes filled."""
    small, grid = block_mean(mask.astype(np.float32), affine, voxel_sizes(base.affine).max())
    moved = resample(small, grid, base.mask.shape, base.affine, np.linalg.inv(scan_to_mni)) > 0.5
    return _whole(moved)


def _whole(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask, its holes filled."""
    box, result = bounding_box(mask, np.ones(3)), np.zeros_like(mask)
    part = mask[box]
    labels, count = ndimage.label(part)
    if count > 1:
        part = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    around, _ = ndimage.label(~np.pad(part, 1))
    result[box] = (around != around[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return result


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
            "brain_extraction to network"
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
