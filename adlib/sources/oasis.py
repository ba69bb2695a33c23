"""OASIS-1 and OASIS-2 as distributed: one T1w volume for each MRI session, labels from the release's table.

In OASIS-1 the averaged, motion-corrected image of a session (``PROCESSED/MPRAGE/SUBJ_111``) is taken, else its first
acquisition; in OASIS-2 the first acquisition (``RAW/mpr-1``). The others are listed with the reason.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from adlib.parallel.mapping import map_scans
from adlib.sources.facts import image_facts
from adlib.sources.oasis_tables import read_oasis_table, visit_facts
from adlib.study.conversion import code_of, converted, raise_if_passing
from adlib.study.exec_params import EVERY_CORE, Pool
from adlib.study.records import StudyError, atomic_path, digest, file_digest
from adlib.study.source_params import Oasis1Source, Oasis2Source

_SESSION = re.compile(r"OAS(?P<release>[12])_(?P<number>\d{4})_MR(?P<visit>\d+)$")
_RANKS = ("SUBJ_111", "_mpr-1", "mpr-1", "_mpr-2", "mpr-2", "_mpr-3", "mpr-3", "_mpr-4", "mpr-4")


def read_oasis1(source: Oasis1Source, folder: Path, *, pool: Pool = EVERY_CORE) -> pd.DataFrame:
    """List the sessions of OASIS-1; see `_read_release`."""
    table = read_oasis_table(_checked(source.root), "*cross-sectional*.csv", "id")
    return _read_release(Path(source.root), "1", table, source.cdr_labels, folder, pool)


def read_oasis2(source: Oasis2Source, folder: Path, *, pool: Pool = EVERY_CORE) -> pd.DataFrame:
    """List the sessions of OASIS-2; see `_read_release`."""
    table = read_oasis_table(_checked(source.root), "*longitudinal*.csv", "mriid")
    return _read_release(Path(source.root), "2", table, source.cdr_labels, folder, pool)


def _checked(root: Path) -> Path:
    if not Path(root).is_dir():
        raise StudyError(f"source.root {root} is not a folder; give the folder of the OASIS images and their table")
    return Path(root)


def _read_release(
    root: Path, release: str, table: pd.DataFrame, labels: dict[str, str], folder: Path, pool: Pool
) -> pd.DataFrame:
    """One row per image; the chosen image of a session as NIfTI with its true orientation under `folder`.

    Raises
    ------
    StudyError
        If no session of the release has an image.
    """
    sessions = sorted(path for path in root.rglob(f"OAS{release}_*") if path.is_dir() and _SESSION.match(path.name))
    rows = [row for session in sessions for row in _rows(session, root, table, labels)]
    if not rows:
        raise StudyError(f"no OAS{release}_*_MR*/ folder with an image (.hdr and .img, or .nii) under {root}")
    print(f"OASIS-{release}: {len(sessions)} of the table's {len(table)} sessions are on disk")
    chosen = [row for row in rows if "excluded" not in row]
    facts = map_scans(partial(_converted, folder=folder / "nifti"), chosen, pool=pool, label="reading images")
    for row, found in zip(chosen, facts, strict=True):
        row |= found
    return pd.DataFrame(rows)


def _rows(session: Path, root: Path, table: pd.DataFrame, labels: dict[str, str]) -> list[dict[str, Any]]:
    named = _SESSION.match(session.name)
    participant = f"sub-OAS{named['release']}{named['number']}"
    about = {"participant_id": participant, "session_id": f"ses-MR{named['visit']}", "site": "OASIS"}
    if session.name in table.index:
        about |= visit_facts(table.loc[session.name], labels)
    images = sorted(_images(session), key=_rank)
    rows = []
    for number, image in enumerate(images):
        reason = {} if number == 0 else {"excluded": f"{_kind(images[0])} of the session is used"}
        name = f"{participant}_{about['session_id']}" + (f"_run-{number + 1}" if number else "") + "_T1w"
        series = {"series_description": f"MPRAGE, {_kind(image)}", "scan_id": name, "path": str(image)}
        rows.append(about | series | reason)
    return rows


def _images(session: Path) -> list[Path]:
    """Native images: those already forced into Talairach space (T88_111) and segmentations are no scans."""
    found = [path for path in session.rglob("*") if path.name.endswith((".hdr", ".nii", ".nii.gz"))]
    return [path for path in found if not {"T88_111", "FSL_SEG"} & set(path.parts)]


def _rank(image: Path) -> tuple[int, str]:
    return next((k for k, part in enumerate(_RANKS) if part in str(image)), len(_RANKS)), str(image)


def _kind(image: Path) -> str:
    return "the averaged image" if "SUBJ_111" in image.parts else f"acquisition {image.name.partition('.')[0]}"


def _converted(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write a session's image as NIfTI unless that was done, and say what its header says.

    Raises
    ------
    TryAgain
        If the disk or the memory does not suffice.
    """
    source, target, record = Path(row["path"]), *(folder / f"{row['scan_id']}{end}" for end in (".nii.gz", ".json"))
    voxels = source.with_suffix(".img") if source.suffix == ".hdr" else source
    state = [file_digest(path) for path in sorted({source, voxels}) if path.is_file()]
    key = digest([source.name, state, code_of(__name__)])
    fault = converted(target, record, key, partial(_write_nifti, voxels, source.name, target))
    if fault:
        return {"sha256": file_digest(source), "excluded": fault}
    return {"path": str(target)} | image_facts(target)


def _write_nifti(source: Path, name: str, target: Path) -> str:
    """Write one volume with its true affine, or say why it is none."""
    if not source.is_file():
        return f"{name} is half of a pair: {source.name} is missing"
    try:
        image = nib.load(source)
        data = np.squeeze(np.asanyarray(image.dataobj))
        if data.ndim != 3:
            return f"{name} has shape {data.shape}, not one volume"
        with atomic_path(target) as temporary:
            nib.save(nib.Nifti1Image(data, _affine(image, data.shape)), temporary)
    except Exception as error:  # nibabel meets arbitrary bytes here and raises whatever its parsers raise
        raise_if_passing(error, source)
        return f"{name} cannot be read: {error}"
    return ""


def _affine(image: nib.spatialimages.SpatialImage, shape: tuple[int, int, int]) -> np.ndarray:
    """The true affine (4, 4), RAS mm: the header's where it states one, else that of all OASIS Analyze images.

    Their axes run to the front, up and to the left; the header does not say so (Clinica's OASIS converter gives the
    same affine for SUBJ_111, doi:10.3389/fninf.2021.689675).
    """
    if isinstance(image, nib.Nifti1Pair) and int(image.header["sform_code"]) + int(image.header["qform_code"]) > 0:
        return image.affine
    x, y, z = (float(edge) for edge in image.header.get_zooms()[:3])
    i, j, k = shape
    return np.array([[0, 0, -z, z * k / 2], [x, 0, 0, -x * i / 2], [0, y, 0, -y * j / 2], [0, 0, 0, 1]])
