"""A CAPS folder after Clinica's t1-linear pipeline becomes a listing of scans that are registered already."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from adlib.sources.participant_table import ParticipantTable
from adlib.study.records import REGISTERED, StudyError
from adlib.study.source_params import CapsSource

_NAME = re.compile(
    r"(?P<participant>sub-[A-Za-z0-9]+)_(?P<session>ses-[A-Za-z0-9]+)_space-MNI152NLin2009cSym(?P<crop>_desc-Crop)?"
    r"_res-1x1x1_T1w\.nii(\.gz)?$"
)


def list_scans(source: CapsSource) -> list[dict[str, Any]]:
    """List the t1-linear output of every session; of a cropped and an uncropped one the uncropped is used.

    Parameters
    ----------
    source : CapsSource

    Returns
    -------
    list of dict
        Rows by `records.LISTING`.

    Raises
    ------
    StudyError
        If the folder holds no t1-linear output or the table cannot be read.

    References
    ----------
    Routier et al. 2021, doi:10.3389/fninf.2021.689675 (Clinica and its CAPS layout).
    """
    root = Path(source.root)
    images = sorted(root.glob("subjects/sub-*/ses-*/t1_linear/*_T1w.nii*"))
    named = [(path, found) for path in images if (found := _NAME.search(path.name))]
    if not named:
        raise StudyError(
            f"no subjects/sub-*/ses-*/t1_linear/*_space-MNI152NLin2009cSym*_res-1x1x1_T1w.nii.gz under {root}; "
            "run clinica's t1-linear pipeline first and give its CAPS folder"
        )
    table = ParticipantTable(source.table, label_column=source.label_column, labels=source.labels)
    rows = [_describe(path, found, table) for path, found in sorted(named, key=lambda item: item[0].as_posix())]
    whole = {row["scan_id"] for row, (_, found) in zip(rows, named, strict=True) if not found["crop"]}
    for row, (_, found) in zip(rows, named, strict=True):
        if found["crop"] and row["scan_id"] in whole:
            row |= {"scan_id": f"{row['scan_id']}_desc-Crop", "excluded": "the uncropped image of the session is used"}
    return rows


def _describe(path: Path, found: re.Match[str], table: ParticipantTable) -> dict[str, Any]:
    scan_id = f"{found['participant']}_{found['session']}_T1w"
    return {
        **table.about(scan_id, str(path), found["participant"], found["session"]),
        "participant_id": found["participant"],
        "session_id": found["session"],
        "scan_id": scan_id,
        "path": str(path),
        "space": REGISTERED,
    }
