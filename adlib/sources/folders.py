"""Class folders become a listing: the label is the folder's name, the participant comes from names or a table."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.sources import adni
from adlib.sources.image_files import PICTURES, SEPARATOR
from adlib.sources.inventory import Inventory
from adlib.sources.participant_table import ParticipantTable, bids_label, check_distinct, session_label
from adlib.sources.scanfile import VOLUME_SUFFIXES
from adlib.study.records import StudyError
from adlib.study.source_params import FoldersSource

_PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_PARTS |= dict.fromkeys(("val", "valid", "validation"), "validation")


def list_scans(source: FoldersSource, files: Inventory) -> list[dict[str, Any]]:
    """List every scan of a tree of class folders.

    A scan without a participant in its name or in the table has an empty participant; the audit stops on that.

    Parameters
    ----------
    source : FoldersSource
    files : Inventory
        Of the root.

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
    scans = [(scan, part, label) for part, label, images in _classes(files, source) for scan in _scans(images, source)]
    rows = [_describe(scan, label, part, files, source) for scan, part, label in scans]
    if not rows:
        remedy = "set source.contents or source.parts, for DICOM source.kind: dicom"
        raise StudyError(f"no {source.contents} under the class folders of {root}; {remedy}")
    check_distinct((row.pop("name") for row in rows if "name" in row), root)
    _name(rows)
    if table:
        table.meet(row | {"path": row["inside"]} for row in rows)
        for row in rows:
            row |= table.about(row | {"path": row["inside"]})
    for row in rows:
        del row["inside"]
    return rows


def _classes(files: Inventory, source: FoldersSource) -> Iterator[tuple[str | None, str, list[Path]]]:
    """The given part (None where there is none), name and image files of each class folder."""
    suffixes = VOLUME_SUFFIXES if source.contents == "volumes" else (*VOLUME_SUFFIXES, *PICTURES)
    folders: dict[tuple[str | None, str], list[Path]] = {}
    for path in files.named(*suffixes):
        *above, _ = files.inside(path).split("/")
        part = above.pop(0) if source.parts and above else None
        if above and (not source.parts or part in source.parts):
            folders.setdefault((part, above[0]), []).append(path)
    absent = [part for part in source.parts if not (files.root / part).is_dir()]
    if absent:
        raise StudyError(f"source.parts names {absent[0]!r}, but {files.root / absent[0]} is not a folder")
    order = {part: number for number, part in enumerate(source.parts)}
    for (part, label), paths in sorted(folders.items(), key=lambda item: (order.get(item[0][0], 0), item[0][1])):
        yield _PARTS.get(part.lower(), part) if part else None, label, paths


def _scans(images: list[Path], source: FoldersSource) -> list[list[Path]]:
    """The file or files of each scan of a class folder."""
    images = sorted(images, key=_natural)
    if source.contents != "slices":
        return [[path] for path in images]
    folders: dict[Path, list[Path]] = {}
    for path in images:
        folders.setdefault(path.parent, []).append(path)
    return [folders[folder] for folder in sorted(folders, key=_natural)]


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """A key that sorts slice 2 before slice 10."""
    pieces = re.split(r"(\d+)", path.as_posix())
    return [(piece.isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in pieces]


def _describe(
    scan: list[Path], label: str, part: str | None, files: Inventory, source: FoldersSource
) -> dict[str, Any]:
    inside = files.inside(scan[0])
    inside = inside.rpartition("/")[0] if source.contents == "slices" else inside
    row = {
        "path": SEPARATOR.join(map(str, scan)),
        "inside": inside,
        "diagnosis": source.labels.get(label, label),
        "label_source": "name of the class folder",
        "given_split": part,
        "participant_id": None,
        "session_id": "ses-01",
    }
    return row | _person(inside, source)


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


def _safe(name: str) -> str:
    suffix = next((end for end in (*VOLUME_SUFFIXES, *PICTURES) if name.lower().endswith(end)), "")
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name[: len(name) - len(suffix)]).rstrip("-_")
