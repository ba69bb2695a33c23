"""Brain extraction by a program that the user has installed: SynthStrip or HD-BET."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from adlib.study.records import StudyError, TryAgain

SCAN, BRAIN, MASK = "scan.nii.gz", "brain.nii.gz", "brain_bet.nii.gz"  # HD-BET adds _bet to the name of the brain
SECONDS = 1800.0
# What is run stands here and not in the params, which travel inside model files and must not name programs.
COMMANDS = {
    "synthstrip": ("mri_synthstrip", "-i", SCAN, "-m", MASK),
    "hd-bet": ("hd-bet", "-i", SCAN, "-o", BRAIN, "-device", "cpu", "--disable_tta", "--save_bet_mask"),
}


def external_mask(volume: np.ndarray, affine: np.ndarray, tool: str, name: str) -> np.ndarray:
    """Let another program find the brain.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        The scan in canonical orientation.
    affine : (4, 4) array
        Voxel indices to world, RAS mm.
    tool : str
        A key of `COMMANDS`.
    name : str
        What to call the scan in messages.

    Returns
    -------
    (X, Y, Z) bool
        True inside the brain, on the scan's grid.

    Raises
    ------
    StudyError
        If the program fails or leaves no mask that fits the scan.
    TryAgain
        If it is not installed, is killed, or takes over half an hour.

    References
    ----------
    Hoopes et al. 2022, doi:10.1016/j.neuroimage.2022.119474 (SynthStrip); Isensee et al. 2019,
    doi:10.1002/hbm.24750 (HD-BET).
    """
    words = COMMANDS[tool]
    if shutil.which(words[0]) is None:
        raise TryAgain(
            f"preprocess.brain_extraction is {tool}, but {words[0]!r} is not on the PATH; install it, or set "
            "brain_extraction to template"
        )
    with tempfile.TemporaryDirectory(prefix="adlib-mask-") as folder:
        nib.save(nib.Nifti1Image(volume, affine), Path(folder) / SCAN)
        _run(words, folder, name)
        return _read(Path(folder) / MASK, volume.shape, words[0], name)


def _run(words: tuple[str, ...], folder: str, name: str) -> None:
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise TryAgain(f"{name}: {words[0]} was stopped after {SECONDS / 60:.0f} minutes without a mask") from None
    except OSError as error:
        raise TryAgain(f"{name}: {words[0]} cannot be run: {error}") from None
    if done.returncode < 0:
        raise TryAgain(f"{name}: {words[0]} was ended by signal {-done.returncode}; does it have memory enough?")
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise StudyError(f"{name}: {words[0]} failed with exit code {done.returncode}: {said}")


def _read(path: Path, shape: tuple[int, ...], program: str, name: str) -> np.ndarray:
    if not path.is_file():
        raise StudyError(f"{name}: {program} ended well but wrote no mask; is it a version that adlib does not know?")
    try:
        mask = np.asanyarray(nib.load(path).dataobj) > 0.5
    except Exception as error:  # whatever nibabel's parsers raise on another program's file
        raise StudyError(f"{name}: the mask of {program} cannot be read ({error})") from None
    if mask.shape != shape:
        raise StudyError(f"{name}: the mask of {program} has shape {mask.shape}, the scan {shape}")
    if not mask.any():
        raise StudyError(f"{name}: {program} found no brain; look at the scan")
    return mask
