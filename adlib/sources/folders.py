"""Class folders become a listing: the label is the folder's name, the participant comes from names or a table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.sources import adni
from adlib.sources.image_files import PICTURES, SEPARATOR
from adlib.sources.participant_table import ParticipantTable, bids_label, check_distinct, session_label
from adlib.sources.scanfile import VOLUME_SUFFIXES
from adlib.study.records import StudyError
from adlib.study.source_params import FoldersSource

_PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_PARTS |= dict.fromkeys(("val", "valid", "validation"), "validation")


def list_scans(source: FoldersSource) -> list[dict[str, Any]]:
    """List every scan of a tree of class folders.

    A scan without a participant in its name or in the table has an empty participant; the audit stops on that.

    Parameters
    ----------
    source : FoldersSource

    Returns
    -------
    list of dict
        Rows by `records.LISTING`.

    Raises
    ------
    StudyError
        If the folders are missing or hold no `source.contents`, or a name or the table is ambiguous.
    """
    root = Path(source.root)
    table = ParticipantTable(source.table, columns=source.columns, root=root) if source.table else None
    rows = [_describe(files, where, part, root, source, table) for part, where in _classes(root, source)
            for files in _scans(where, source)]  # fmt: skip
    if not rows:
        raise StudyError(f"no {source.contents} under the class folders of {root}; set source.contents or source.parts")
    check_distinct((row.pop("name") for row in rows if "name" in row), root)
    _name(rows)
    return rows


def _classes(root: Path, source: FoldersSource) -> Iterator[tuple[str | None, Path]]:
    """The given part (None where there is none) and path of each class folder."""
    for part in source.parts or (None,):
        above = root / part if part else root
        if not above.is_dir():
            raise StudyError(f"source.parts names {part!r}, but {above} is not a folder")
        for where in sorted(above.iterdir()):
            if where.is_dir() and not where.name.startswith("."):
                yield _PARTS.get(part.lower(), part) if part else None, where


def _scans(where: Path, source: FoldersSource) -> list[list[Path]]:
    """The file or files of each scan under a class folder."""
    suffixes = VOLUME_SUFFIXES if source.contents == "volumes" else (*VOLUME_SUFFIXES, *PICTURES)
    paths = [path for path in where.rglob("*") if path.name[0] != "." and path.name.lower().endswith(suffixes)]
    files = sorted((path for path in paths if path.is_file()), key=_natural)
    if source.contents != "slices":
        return [[path] for path in files]
    folders = sorted({path.parent for path in files}, key=_natural)
    return [[path for path in files if path.parent == folder] for folder in folders]


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """A key that sorts slice 2 before slice 10."""
    pieces = re.split(r"(\d+)", path.as_posix())
    return [(piece.isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in pieces]


def _describe(
    files: list[Path], where: Path, part: str | None, root: Path, source: FoldersSource, table: ParticipantTable | None
) -> dict[str, Any]:
    one = files[0].parent if source.contents == "slices" else files[0]
    inside = one.relative_to(root).as_posix()
    row = {
        "path": SEPARATOR.join(map(str, files)),
        "inside": inside,
        "diagnosis": source.labels.get(where.name, where.name),
        "label_source": "name of the class folder",
        "given_split": part,
        "participant_id": None,
        "session_id": "ses-01",
    }
    row |= _person(inside, source)
    return row | (table.about(row.get("scan_id"), inside, row["participant_id"], row["session_id"]) if table else {})


def _person(inside: str, source: FoldersSource) -> dict[str, Any]:
    if not source.participant:
        return adni.name_facts(Path(inside).name) or {}
    match = re.search(source.participant, inside)
    if match is None:
        return {}
    parts = {"participant": None, "session": None} | match.groupdict()
    if not parts["participant"]:
        raise StudyError(f"source.participant {source.participant!r} has no group (?P<participant>...) on {inside}")
    return {
        "participant_id": bids_label("sub", parts["participant"]),
        "participant_source": "file name",
        "name": parts["participant"],
        "session_id": session_label(parts["session"] or "01"),
    }


def _name(rows: list[dict[str, Any]]) -> None:
    """Give each scan without a name the stem of its file, or its path where stems repeat."""
    stems = pd.Series([_safe(Path(row["inside"]).name) for row in rows])
    repeated = stems.duplicated(keep=False)
    for row, stem, ambiguous in zip(rows, stems, repeated, strict=True):
        row.setdefault("scan_id", _safe(row["inside"]) if ambiguous else stem)
        del row["inside"]


def _safe(name: str) -> str:
    suffix = next((end for end in (*VOLUME_SUFFIXES, *PICTURES) if name.lower().endswith(end)), "")
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name[: len(name) - len(suffix)]).rstrip("-_")
