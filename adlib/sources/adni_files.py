"""Images of an ADNI download: what their file names and folders say of them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from adlib.sources.scanfile import VOLUME_SUFFIXES
from adlib.study.records import StudyError

_OTHER_FORMATS = (".img", ".mnc", ".img.gz", ".mnc.gz")  # the archive also offers Analyze and MINC
_NAME = re.compile(
    r"ADNI_(?P<subject>\d{3}_S_\d{4,5})_(?P<modality>[A-Z]{2,3})_(?P<description>.+?)(?:_[Bb]r(?:_[Rr]aw)?)?"
    r"_(?P<date>\d{8})\d{0,9}(?:_\d+)?(?:_(?P<series_id>S\d+))?_(?P<image_id>I\d+)(?P<rest>\D.*)?"
)
_FOLDER = re.compile(
    r"/(?P<subject>\d{3}_S_\d{4,5})/(?P<description>[^/]+)/(?P<date>\d{4}-\d\d-\d\d)_[^/]*/(?:(?P<series_id>S\d+)|(?P<image_id>I\d+))"
)


@dataclass(frozen=True)
class Said:
    """What a file name, or the folders of the Image and Data Archive (IDA), say of an image.

    Attributes
    ----------
    subject : str
        Such as ``002_S_0295``.
    description : str
        Of the series, its underscores back to blanks.
    date : date
        In a file name the day of archiving; in a folder that of acquisition.
    image_id, series_id : str or None
        Such as ``I120562`` and ``S52648``; older downloads have folders by series.
    modality : str or None
        ``MR`` or ``PT``; folders do not say.
    rest : str
        What follows the image id in a file name.
    """

    subject: str
    description: str
    date: date
    image_id: str | None = None
    series_id: str | None = None
    modality: str | None = None
    rest: str = ""


@dataclass(frozen=True)
class AdniImage:
    """A volume file, or a folder of DICOM files of one series; `excluded` says why it cannot be used."""

    path: Path
    named: Said | None
    placed: Said | None
    excluded: str | None

    def said(self, what: str) -> Any:
        """A fact from the file name or, failing that, the folders."""
        found = (getattr(one, what) for one in (self.named, self.placed) if one is not None)
        return next((value for value in found if value is not None), None)


def read_name(name: str) -> Said | None:
    """Facts of a flat ADNI file name; None where it is none."""
    return _said(_NAME.fullmatch(name))


def read_folder(folder: Path) -> Said | None:
    """Facts of a folder ``<subject>/<series description>/<date>_<time>/I<image id>``; None where it is none."""
    return _said(_FOLDER.fullmatch("/" + "/".join(folder.parts[-4:])))


def find_images(root: Path) -> tuple[list[AdniImage], list[Path]]:
    """Images under `root` in any depth, and csv tables; hidden files and folders are passed over.

    Raises
    ------
    StudyError
        If a folder cannot be read.
    """
    images, tables = [], []
    for where, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(where) / name for name in sorted(files) if not name.startswith(".")]
        tables += [path for path in paths if path.suffix.lower() == ".csv"]
        images += [_volume(path) for path in paths if path.name.lower().endswith((*VOLUME_SUFFIXES, *_OTHER_FORMATS))]
        if slices := [path for path in paths if path.suffix.lower() == ".dcm"]:
            images.append(_series(Path(where), slices))
    return images, tables


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder that is an image."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".dcm" and path.name[0] != ".")


def _refuse(error: OSError) -> None:
    raise StudyError(f"{error.filename} cannot be read ({error.strerror}); make every folder of source.root readable")


def _said(found: re.Match[str] | None) -> Said | None:
    if found is None:
        return None
    parts = found.groupdict()
    try:
        day = date.fromisoformat(parts["date"])
    except ValueError:
        return None
    description = parts["description"].replace("__", "; ").replace("_", " ")
    return Said(**parts | {"date": day, "description": description, "rest": parts.get("rest") or ""})


def _volume(path: Path) -> AdniImage:
    named, placed = read_name(path.name), read_folder(path.parent)
    other = path.name.lower().endswith(_OTHER_FORMATS)
    unread = "Analyze and MINC files are not read; download the image as NIfTI or DICOM" if other else None
    return AdniImage(path, named, placed, unread or _disagreement(named, placed))


def _series(folder: Path, slices: list[Path]) -> AdniImage:
    """A folder of DICOM files as one image."""
    by_id: dict[str | None, Said | None] = defaultdict(lambda: None)
    for named in map(read_name, (path.name for path in slices)):
        by_id[named and named.image_id] = named
    named, placed = next((one for one in by_id.values() if one), None), read_folder(folder)
    several = sorted(filter(None, by_id))
    if len(several) > 1:
        return AdniImage(folder, named, placed, f"the folder mixes DICOM files of {', '.join(several[:4])}")
    return AdniImage(folder, named, placed, _disagreement(named, placed))


def _disagreement(named: Said | None, placed: Said | None) -> str | None:
    if named is None and placed is None:
        return "neither an ADNI file name nor an ADNI folder (subject/series description/date/I...)"
    if named is not None and placed is not None:
        for what in ("subject", "image_id"):
            name, folder = getattr(named, what), getattr(placed, what)
            if None not in (name, folder) and name != folder:
                return f"its folder says {folder}, its file name {name}"
    return None
