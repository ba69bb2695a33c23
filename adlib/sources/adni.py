"""An ADNI download becomes a listing: images by name or folder, labels by the policy that the study names."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from adlib.sources.adni_tables import AdniTables, Listed, Visit, group_name, is_group, read_tables
from adlib.sources.scanfile import VOLUME_SUFFIXES
from adlib.study.exec_params import EVERY_CORE, Pool
from adlib.study.records import StudyError
from adlib.study.source_params import AdniSource

_OPEN_PHASE = "ADNI1/GO"  # ADNI's visit names leave open which of the two
_DAYS_PER_YEAR = 365.25
_OTHER_FORMATS = (".img", ".mnc", ".img.gz", ".mnc.gz")  # the archive also offers Analyze and MINC
_NAME = re.compile(
    r"ADNI_(?P<subject>\d{3}_S_\d{4,5})_(?P<modality>[A-Z]{2,3})_(?P<description>.+?)(?:_[Bb]r(?:_[Rr]aw)?)?"
    r"_(?P<date>\d{8})\d{0,9}(?:_\d+)?(?:_(?P<series_id>S\d+))?_(?P<image_id>I\d+)(?P<rest>\D.*)?"
)
_FOLDER = re.compile(
    r"/(?P<subject>\d{3}_S_\d{4,5})/(?P<description>[^/]+)/(?P<date>\d{4}-\d\d-\d\d)_[^/]*/(?:(?P<series_id>S\d+)|(?P<image_id>I\d+))"
)
_Label = tuple[str | None, str]


def list_scans(source: AdniSource, _folder: Path, *, pool: Pool = EVERY_CORE) -> list[dict[str, Any]]:
    """List every image under an ADNI download, or any folder of files with ADNI names.

    Each image has a row. ``excluded`` has the reason why an image is not used; an image without a label has an empty
    diagnosis, and one with several labels in the tables has a row for each. A folder of DICOM files is one image:
    ``path`` is the folder and ``sha256`` the digest of its files' sorted digests.

    Parameters
    ----------
    source : AdniSource
    _folder, pool : path, Pool
        Not used.

    Returns
    -------
    list of dict
        Rows by `records.LISTING`.

    Raises
    ------
    StudyError
        If there are no images or no labels, the tables that the label policy needs are missing, or one is broken.
    """
    root = Path(source.root)
    images, found = _find_images(root)
    if not images:
        raise StudyError(f"no .nii, .nii.gz or .dcm files under {root}; unpack the ADNI download there")
    tables = read_tables(source.tables or found, given=bool(source.tables))
    _check_policy(source, tables, root)
    rows = [row for image in images for row in _rows(image, tables, source)]
    if all(row.get("diagnosis") is None for row in rows):
        why = rows[0].get("excluded") or rows[0]["label_source"]
        raise StudyError(
            f"none of the {len(images)} images under {root} has a label by source.label: {source.label}; "
            f"the first, {rows[0]['path']}: {why}"
        )
    _report(images, tables)
    return rows


def name_facts(name: str) -> dict[str, Any] | None:
    """Facts in a flat ADNI file name, by the columns of a listing.

    A name with more than a suffix after the image id, as slices of a volume have, has no ``scan_id``.

    Parameters
    ----------
    name : str
        File name, with or without suffix.

    Returns
    -------
    dict or None
        None where the name is not of this form.
    """
    found = read_name(name)
    if found is None:
        return None
    facts = _identity(found.subject, found.date, found.image_id, found.series_id)
    if found.rest and not found.rest.startswith("."):
        del facts["scan_id"]
    return facts | {
        "series_description": found.description,
        "modality": found.modality,
        "participant_source": "file name",
    }


def _check_policy(source: AdniSource, tables: AdniTables, root: Path) -> None:
    """Refuse a label policy whose tables are missing; without any table, folders may be named by class."""
    needed = tables.images if source.label == "collection" else tables.visits
    if needed or (source.label == "collection" and not tables.visits):
        return
    table = "the collection csv" if source.label == "collection" else "ADNIMERGE or DXSUM"
    other = "baseline or visit" if source.label == "collection" else "collection"
    raise StudyError(
        f"source.label: {source.label} needs {table}, which is not among source.tables or the csv files under {root}; "
        f"add it, or set source.label to {other}"
    )


def _rows(image: AdniImage, tables: AdniTables, source: AdniSource) -> list[dict[str, Any]]:
    if image.excluded:
        inside = image.path.relative_to(source.root).as_posix()
        name = re.sub(r"[^A-Za-z0-9]+", "-", inside).strip("-") or "root"
        return [{"scan_id": name, "path": str(image.path), "excluded": image.excluded, "diagnosis": None}]
    listed = tables.of_image(image.fact("image_id"))
    about = listed[0] if listed else None
    visits = tables.of_person(image.fact("subject"))
    day = _acquired(image, about)
    row = _describe(image, about, visits, day, source)
    labels = _labels(image, listed, visits, day, tables, source)
    return [row | {"diagnosis": label, "label_source": why} for label, why in labels]


def _acquired(image: AdniImage, about: Listed | None) -> date | None:
    """The day of the scan; that of the file name does not count, it is when ADNI archived the image."""
    return (about.date if about else None) or (image.from_folder.date if image.from_folder else None)


def _describe(
    image: AdniImage, about: Listed | None, visits: list[Visit], day: date | None, source: AdniSource
) -> dict[str, Any]:
    subject = image.fact("subject")
    near = _nearest(visits, day, source.window_days)
    phase = _phase(about, near)
    return {
        **_identity(subject, day or image.fact("date"), image.fact("image_id"), image.fact("series_id")),
        "path": str(image.path),
        "participant_source": "file name" if image.from_name else "folder name",
        "series_description": (about.description if about else None) or image.fact("description"),
        "modality": image.fact("modality") or (about.modality if about else None),
        "sex": (about.sex if about else None) or next((visit.sex for visit in visits if visit.sex), None),
        "age": _age(about, visits, day),
        "field_strength_T": next((visit.field for visit in near if visit.field), None),
        "phase": phase,
        "excluded": _other_subject(subject, about) or _outside(phase, source.phases),
    }


def _identity(subject: str, day: date, image_id: str | None, series_id: str | None) -> dict[str, Any]:
    """Names as BIDS has them, after Clinica's adni-to-bids."""
    participant, session = f"sub-ADNI{subject.replace('_', '')}", f"ses-{day:%Y%m%d}"
    acquisition = f"_acq-{image_id or series_id}" if image_id or series_id else ""
    return {
        "participant_id": participant,
        "session_id": session,
        "scan_id": f"{participant}_{session}{acquisition}_T1w",
        "image_id": image_id,
        "acquisition_date": day.isoformat(),
        "site": subject[:3],
    }


def _nearest(visits: list[Visit], day: date | None, window_days: int) -> list[Visit]:
    """Entries of the visit nearest a day, from one or several tables; the earlier of two equally near."""
    if day is None:
        return []
    near = [visit for visit in visits if visit.date and abs((visit.date - day).days) <= window_days]
    best = min(((abs((visit.date - day).days), visit.date) for visit in near), default=(0, None))[1]
    return [visit for visit in near if visit.date == best]


def _phase(about: Listed | None, near: list[Visit]) -> str | None:
    listed = about.phase if about else None
    visited = next((visit.phase for visit in near if visit.phase), None)
    return (visited or listed) if listed in (None, _OPEN_PHASE) else listed


def _outside(phase: str | None, phases: tuple[str, ...]) -> str | None:
    possible = {"ADNI1", "ADNIGO", _OPEN_PHASE} if phase == _OPEN_PHASE else {phase}
    if not phases or possible & set(phases):
        return None
    return f"phase {phase or 'unknown'}, not among source.phases {list(phases)}"


def _other_subject(subject: str, about: Listed | None) -> str | None:
    if about is None or about.subject in (None, subject):
        return None
    return f"its name is of {subject}, {about.table} lists it under {about.subject}"


def _age(about: Listed | None, visits: list[Visit], day: date | None) -> float | None:
    """Years at the scan: the collection's or, from the age at the first visit, that and the time since then."""
    if about is not None and about.age is not None:
        return about.age
    aged = [visit for visit in visits if visit.age is not None and visit.date]
    if not aged or day is None:
        return None
    first = min(aged, key=lambda visit: visit.date)
    return round(first.age + (day - first.date).days / _DAYS_PER_YEAR, 1)


def _labels(
    image: AdniImage,
    listed: list[Listed],
    visits: list[Visit],
    day: date | None,
    tables: AdniTables,
    source: AdniSource,
) -> list[_Label]:
    """Each label that the policy finds, and where it is from; several contradict each other."""
    if not tables.images and not tables.visits:
        found, none = _folder_label(image, source), "no folder is named by a group"
    elif source.label == "collection":
        found, none = [(entry.group, f"Group of {entry.table}") for entry in listed], "not in the collection csv"
    elif source.label == "baseline":
        found, none = _baseline(visits), "no diagnosis at the first visit"
    elif day is None:
        found, none = [], "day of the scan unknown: a file name has the day of archiving; add the collection csv"
    else:
        dated = _nearest([visit for visit in visits if visit.diagnosis], day, source.window_days)
        found = [(visit.diagnosis, f"diagnosis nearest the scan, {visit.table}") for visit in dated]
        none = f"no diagnosis within {source.window_days} days"
    distinct = {source.labels.get(group, group): why for group, why in reversed(found) if group is not None}
    return list(reversed(distinct.items())) or [(None, none)]


def _folder_label(image: AdniImage, source: AdniSource) -> list[_Label]:
    inside = reversed(image.path.relative_to(source.root).parts)
    groups = [group_name(part) for part in inside if is_group(part) or part in source.labels]
    return [(group, "name of the class folder") for group in groups[:1]]


def _baseline(visits: list[Visit]) -> list[_Label]:
    """ADNI's baseline diagnosis or, where no table has it, that of the first visit."""
    if stated := [(visit.baseline, f"DX_bl of {visit.table}") for visit in visits if visit.baseline]:
        return stated
    days = [(date.min if visit.first else visit.date, visit) for visit in visits if visit.diagnosis]
    first = min((day for day, _ in days if day), default=None)
    return [(v.diagnosis, f"diagnosis at the first visit, {v.table}") for day, v in days if day and day == first]


def _report(images: list[AdniImage], tables: AdniTables) -> None:
    absent = set(tables.images) - {image.fact("image_id") for image in images}
    if absent:
        print(f"ADNI: {len(absent)} of the {len(tables.images)} listed image ids are not on disk, {min(absent)} first")
    used = [image for image in images if not image.excluded]
    by_name = sum(_acquired(image, next(iter(tables.of_image(image.fact("image_id"))), None)) is None for image in used)
    if by_name:
        print(
            f"ADNI: {by_name} images are dated by their file name, the day of archiving; the collection csv has theirs"
        )


@dataclass(frozen=True)
class ImageFacts:
    """Facts of an image in its file name, or in its folders as the Image and Data Archive (IDA) names them.

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
        ``MR`` or ``PT``; None from folders.
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
    """A volume file, or a folder of DICOM files of one series; `excluded` is the reason why it cannot be used."""

    path: Path
    from_name: ImageFacts | None
    from_folder: ImageFacts | None
    excluded: str | None

    def fact(self, name: str) -> Any:
        """A fact from the file name or, failing that, the folders.

        Parameters
        ----------
        name : str
            Field of `ImageFacts`.

        Returns
        -------
        any
            None where neither has it.
        """
        values = (getattr(facts, name) for facts in (self.from_name, self.from_folder) if facts is not None)
        return next((value for value in values if value is not None), None)


def read_name(name: str) -> ImageFacts | None:
    """Facts of a flat ADNI file name.

    Parameters
    ----------
    name : str

    Returns
    -------
    ImageFacts or None
        None where the name is not of this form.
    """
    return _image_facts(_NAME.fullmatch(name))


def read_folder(folder: Path) -> ImageFacts | None:
    """Facts of a folder ``<subject>/<series description>/<date>_<time>/I<image id>``.

    Parameters
    ----------
    folder : path

    Returns
    -------
    ImageFacts or None
        None where the path is not of this form.
    """
    return _image_facts(_FOLDER.fullmatch("/" + "/".join(folder.parts[-4:])))


def _find_images(root: Path) -> tuple[list[AdniImage], list[Path]]:
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


def _refuse(error: OSError) -> None:
    raise StudyError(f"{error.filename} cannot be read ({error.strerror}); make every folder of source.root readable")


def _image_facts(found: re.Match[str] | None) -> ImageFacts | None:
    if found is None:
        return None
    parts: dict[str, Any] = found.groupdict()
    try:
        day = date.fromisoformat(parts["date"])
    except ValueError:
        return None
    description = parts["description"].replace("__", "; ").replace("_", " ")
    return ImageFacts(**parts | {"date": day, "description": description, "rest": parts.get("rest") or ""})


def _volume(path: Path) -> AdniImage:
    from_name, from_folder = read_name(path.name), read_folder(path.parent)
    other = path.name.lower().endswith(_OTHER_FORMATS)
    unread = "Analyze and MINC files are not read; download the image as NIfTI or DICOM" if other else None
    return AdniImage(path, from_name, from_folder, unread or _disagreement(from_name, from_folder))


def _series(folder: Path, slices: list[Path]) -> AdniImage:
    """A folder of DICOM files as one image."""
    by_id: dict[str | None, ImageFacts | None] = {}
    for facts in map(read_name, (path.name for path in slices)):
        by_id[facts.image_id if facts else None] = facts
    from_name, from_folder = next(filter(None, by_id.values()), None), read_folder(folder)
    ids = sorted(filter(None, by_id))
    mixed = f"the folder mixes DICOM files of {', '.join(ids[:4])}" if len(ids) > 1 else None
    return AdniImage(folder, from_name, from_folder, mixed or _disagreement(from_name, from_folder))


def _disagreement(from_name: ImageFacts | None, from_folder: ImageFacts | None) -> str | None:
    if from_name is None and from_folder is None:
        return "neither an ADNI file name nor an ADNI folder (subject/series description/date/I...)"
    if from_name is not None and from_folder is not None:
        for fact in ("subject", "image_id"):
            name, folder = getattr(from_name, fact), getattr(from_folder, fact)
            if None not in (name, folder) and name != folder:
                return f"its folder is of {folder}, its file name of {name}"
    return None
