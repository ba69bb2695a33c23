"""A tree of DICOM becomes a listing: of each session the T1w series is converted, the rest is listed with reasons."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd
from pydicom.misc import is_dicom

from adlib.parallel.mapping import map_scans
from adlib.sources.dicom import Stopped, choose, list_series
from adlib.sources.image_files import SLICES, image_facts, joined, sidecar_facts
from adlib.sources.inventory import Inventory
from adlib.sources.participant_table import ParticipantTable, bids_label, check_distinct, session_label
from adlib.study.conversion import code_of, converted
from adlib.study.exec_params import Pool
from adlib.study.records import StudyError, TryAgain, atomic_path, digest
from adlib.study.source_params import DicomSource
from adlib.study.tree import path_digest


def list_scans(source: DicomSource, files: Inventory, folder: Path, pool: Pool) -> list[dict[str, Any]]:
    """List every series of every session; the chosen one as NIfTI under `folder`, without anything that identifies.

    Parameters
    ----------
    source : DicomSource
    files : Inventory
        Of the root.
    folder : path
        Receives the converted images.
    pool : Pool
        Processes that convert.

    Returns
    -------
    list of dict
        Rows by `records.LISTING`.

    Raises
    ------
    StudyError
        If the root holds no session folder, or the table cannot be read.
    """
    table = ParticipantTable(source.table, **source.naming)
    sessions = _sessions(files, source.participant)
    if not sessions:
        raise StudyError(f"no path of a file under {source.root} matches source.participant {source.participant!r}")
    table.meet(sessions)
    convert = partial(convert_session, folder=folder / "nifti")
    converted_sessions = map_scans(convert, sessions, pool=pool, label="converting DICOM")
    return [joined({"sha256": None} | row, table.about(row)) for rows in converted_sessions for row in rows]


def _sessions(files: Inventory, pattern: str) -> list[dict[str, str]]:
    """Participant, session and place of each zip, and of each group of files whose path starts with the same match."""
    found: dict[str, dict[str, str]] = {}
    names: list[str] = []
    others = {path for path in files.images() if not (path.name.lower().endswith(SLICES) or is_dicom(path))}
    for file in files.files:
        packed = file.suffix.lower() == ".zip"
        above = files.inside(file)[:-4] if packed else files.inside(file).rpartition("/")[0]
        match = re.search(pattern, above)
        if match is None or not above:
            continue
        where = above[: match.end()]
        names.append(match["participant"])
        named = {
            "path": str(file if packed else files.root / where),
            "participant_id": bids_label("sub", match["participant"]),
            "session_id": session_label(match.groupdict().get("session") or "01"),
        }
        found.setdefault(where, named)
        files.take([] if file in others else [file])
    check_distinct(dict.fromkeys(names), files.root)
    return list(found.values())


def convert_rows(listed: pd.DataFrame, folder: Path, pool: Pool) -> pd.DataFrame:
    """Convert the rows of a listing whose path is a folder of DICOM, and add rows for the series left out.

    Parameters
    ----------
    listed : DataFrame
        By `records.LISTING`.
    folder : path
        Receives the converted images.
    pool : Pool
        Processes that convert.

    Returns
    -------
    DataFrame
        Rows of files as they were; facts that the listing has go before those of the headers.
    """
    packed = listed["path"].map(lambda path: Path(path).is_dir()) & listed["excluded"].isna()
    rows = listed[packed].to_dict("records")
    done = map_scans(partial(convert_session, folder=folder), rows, pool=pool, label="converting DICOM")
    converted: list[dict[str, Any]] = []
    for row, series in zip(rows, done, strict=True):
        stated = {name: value for name, value in row.items() if not (name in ("path", "sha256") or pd.isna(value))}
        converted += [found | (stated if found["scan_id"] == row["scan_id"] else {}) for found in series]
    return pd.concat([listed[~packed], pd.DataFrame(converted)], ignore_index=True) if converted else listed


def convert_session(session: dict[str, str], folder: Path) -> list[dict[str, Any]]:
    """Choose and convert the T1w series of one session's folder, unless that was done; see `conversion.converted`.

    Parameters
    ----------
    session : dict
        path (a folder or zip of DICOM), participant_id, session_id; and scan_id where it is to have another name.
    folder : path
        Receives ``<scan_id>.nii.gz`` and ``<scan_id>.json``.

    Returns
    -------
    list of dict
        One row per series, by `records.LISTING`; all but the chosen one carry ``excluded``. A session at which the
        converter crashes or takes too long is left out, which is not stored: the next call tries it again.

    Raises
    ------
    TryAgain
        If the machine stopped the conversion.
    """
    where = Path(session["path"])
    name = session.get("scan_id") or f"{session['participant_id']}_{session['session_id']}_T1w"
    target, record = folder / f"{name}.nii.gz", folder / f"{name}.json"
    base = {name: session[name] for name in ("participant_id", "session_id")}
    key = digest([base, str(where), str(target), _state(where), code_of(__name__, "dcm2niix")])
    try:
        return converted(target, record, key, lambda: [base | row for row in _convert(where, name, target)])
    except Stopped as error:
        return [base | {"scan_id": name, "path": str(where), "excluded": str(error)}]


def _state(where: Path) -> str | None:
    """Digest of names, sizes and times: reading the bytes would take as long as the conversion."""
    return path_digest(where) if where.is_dir() else digest([where.stat().st_size, where.stat().st_mtime_ns])


def _convert(where: Path, name: str, target: Path) -> list[dict[str, Any]]:
    try:
        series = list_series(where)
        taken, left = choose(series, where)
    except TryAgain:
        raise
    except StudyError as error:
        return [{"scan_id": name, "path": str(where), "excluded": str(error)}]
    with atomic_path(target) as temporary:
        nib.save(taken.image, temporary)
    others = [
        {"scan_id": f"{name}_left-{number + 1}", "path": str(where), **sidecar_facts(one.about), "excluded": reason}
        for number, (one, reason) in enumerate(left)
    ]
    return [{"scan_id": name, "path": str(target), **joined(sidecar_facts(taken.about), image_facts(target))}, *others]
