"""Headers of DICOM files: whose images they are, and which files are cut short."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import NamedTuple

import pydicom
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from adlib.sources.image_files import SLICES
from adlib.study.records import StudyError

_TAGS = ["SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "PatientID", "PatientName"]
_TAGS += ["PatientAge", "PatientSex", "Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames"]
_UNCOMPRESSED = (None, ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_SHOWN = 4  # files in a message
_PIXEL_TAG = {True: 8, False: 12}  # bytes before the pixels, by whether value representations are implicit


class Header(NamedTuple):
    """Facts of one image file.

    Attributes
    ----------
    path : Path
    name : str
        In messages.
    series : str
        Its unique id; empty where the file ends before it.
    title : str
        Series number and description, for messages.
    person : tuple of str
        PatientID and the letters and digits of PatientName.
    about : dict of str to str
        PatientAge and PatientSex, where the file has them.
    cut : bool
        Whether the file ends before its last pixel.
    """

    path: Path
    name: str
    series: str
    title: str
    person: tuple[str, str]
    about: dict[str, str]
    cut: bool


def read_headers(names: Mapping[Path, str]) -> list[Header]:
    """The headers of those files that are DICOM images.

    Parameters
    ----------
    names : mapping of Path to str
        Names of the files in messages.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are not as the standard has them
        found = [_header(path, name) for path, name in names.items()]
    return [header for header in found if header]


def _header(path: Path, name: str) -> Header | None:
    try:
        with path.open("rb") as stream:
            read = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS, force=True)
            left = path.stat().st_size - stream.tell() - _PIXEL_TAG[bool(read.original_encoding[0])]
        kind = read.get("SOPClassUID") or read.file_meta.get("MediaStorageSOPClassUID")
        if "Rows" not in read and "Image Storage" not in getattr(kind, "name", ""):
            return None if kind else _unread(path, name)
        texts = {tag: str(read.get(tag) or "").strip() for tag in _TAGS}
        title = f"series {texts['SeriesNumber'] or '?'} '{texts['SeriesDescription'] or 'without description'}'"
        person = texts["PatientID"], re.sub(r"\W|_", "", texts["PatientName"]).casefold()
        about = {tag: texts[tag] for tag in ("PatientAge", "PatientSex") if texts[tag]}
        return Header(path, name, texts["SeriesInstanceUID"], title, person, about, left < _pixel_bytes(read))
    except Exception:  # pydicom meets arbitrary bytes here and raises whatever its parsers raise
        return _unread(path, name)


def _unread(path: Path, name: str) -> Header | None:
    """A file that ends within its header, by its name."""
    kept = name.lower().endswith(SLICES) and not PurePath(name).name.startswith(".")
    return Header(path, name, "", name, ("", ""), {}, True) if kept else None


def _pixel_bytes(read: pydicom.Dataset) -> int:
    """Least number of bytes of the pixels; 0 where they are compressed, and for files that hold no image."""
    image = "Image" in getattr(read.get("SOPClassUID"), "name", "Image")
    if not image or read.file_meta.get("TransferSyntaxUID") not in _UNCOMPRESSED:
        return 0
    pixels = int(read.get("Rows", 1)) * int(read.get("Columns", 1)) * int(read.get("NumberOfFrames") or 1)
    return pixels * int(read.get("SamplesPerPixel", 1)) * int(read.get("BitsAllocated", 8)) // 8


def refuse_two_people(headers: Iterable[Header], source: Path) -> None:
    """Refuse images of several people.

    Parameters
    ----------
    headers : iterable of Header
    source : path
        For the error.

    Raises
    ------
    StudyError
        With a file of each person.
    """
    for part in (0, 1):
        first = {header.person[part]: header.name for header in reversed([*headers]) if header.person[part]}
        if len(first) > 1:
            raise StudyError(
                f"{source.name} holds images of {len(first)} people, by PatientID or PatientName, such as "
                f"{', '.join(sorted(first.values())[:_SHOWN])}; give a folder for each person"
            )


def cut_short(headers: Iterable[Header]) -> dict[str, tuple[str, str]]:
    """Title and fault of each series with files that are cut short, by its id.

    A file that ends before the id of its series counts for each series in its folder.

    Parameters
    ----------
    headers : iterable of Header
    """
    titles = {header.series: header.title for header in reversed([*headers])}
    in_folder: dict[PurePath, set[str]] = defaultdict(set)
    cut: dict[str, list[str]] = defaultdict(list)
    for header in headers:
        in_folder[PurePath(header.name).parent].add(header.series)
    for header in headers:
        others = in_folder[PurePath(header.name).parent] - {""} or {""}
        for series in ({header.series} if header.series else others) if header.cut else ():
            cut[series].append(header.name)
    fault = "{} of its files are cut short or damaged ({}); copy them again"
    return {one: (titles[one], fault.format(len(names), ", ".join(names[:_SHOWN]))) for one, names in cut.items()}
