"""An ADNI download becomes a listing: images by name or folder, labels by the policy that the study names."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.parallel.mapping import map_scans
from adlib.sources.adni_files import AdniImage, dicom_files, find_images, read_name
from adlib.sources.adni_tables import AdniTables, Listed, Visit, group_name, is_group, read_tables
from adlib.sources.facts import image_facts
from adlib.study.exec_params import EVERY_CORE, Pool
from adlib.study.records import StudyError, digest, file_digest
from adlib.study.source_params import AdniSource

OPEN_PHASE = "ADNI1/GO"  # ADNI's visit names leave open which of the two
DAYS_PER_YEAR = 365.25
Label = tuple[str | None, str]


def read_manifest(source: AdniSource, _folder: Path | None = None, *, pool: Pool = EVERY_CORE) -> pd.DataFrame:
    """List every image under an ADNI download, or any folder of files with ADNI names.

    Each image found has a row; one that is not to be used says why in ``excluded``, one without a label has an empty
    diagnosis, and one to which the tables give several labels has a row for each. A folder of DICOM files is one image:
    ``path`` is the folder and ``sha256`` the digest of its files' sorted digests.

    Parameters
    ----------
    source : AdniSource
    pool : Pool
        Processes that read headers.

    Raises
    ------
    StudyError
        If there are no images or no labels, the tables that the label policy needs are missing, or one is broken.
    """
    root = Path(source.root)
    if not root.is_dir():
        raise StudyError(f"source.root {root} is not a folder; give the folder of the ADNI download (set ADNI_ROOT?)")
    images, found = find_images(root)
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
    facts = map_scans(_facts, [image.path for image in images], pool=pool, label="reading headers")
    by_path = {str(image.path): about for image, about in zip(images, facts, strict=True)}
    return pd.DataFrame([by_path[row["path"]] | row for row in rows])


def name_facts(name: str) -> dict[str, Any] | None:
    """What a flat ADNI file name says, by the columns of a listing; None where it is no such name.

    A name with more than a suffix after the image id, as slices of a volume have, gets no ``scan_id``.
    """
    said = read_name(name)
    if said is None:
        return None
    facts = _identity(said.subject, said.date, said.image_id, said.series_id)
    if said.rest and not said.rest.startswith("."):
        del facts["scan_id"]
    return facts | {
        "series_description": said.description,
        "modality": said.modality,
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
    listed = tables.of_image(image.said("image_id"))
    about = listed[0] if listed else None
    visits = tables.of_person(image.said("subject"))
    day = _acquired(image, about)
    row = _describe(image, about, visits, day, source)
    labels = _labels(image, listed, visits, day, tables, source)
    return [row | {"diagnosis": label, "label_source": why} for label, why in labels]


def _acquired(image: AdniImage, about: Listed | None) -> date | None:
    """The day of the scan; that of the file name does not count, it is when ADNI archived the image."""
    return (about.date if about else None) or (image.placed.date if image.placed else None)


def _describe(
    image: AdniImage, about: Listed | None, visits: list[Visit], day: date | None, source: AdniSource
) -> dict[str, Any]:
    subject = image.said("subject")
    near = _nearest(visits, day, source.window_days)
    phase = _phase(about, near)
    return {
        **_identity(subject, day or image.said("date"), image.said("image_id"), image.said("series_id")),
        "path": str(image.path),
        "participant_source": "file name" if image.named else "folder name",
        "series_description": (about.description if about else None) or image.said("description"),
        "modality": image.said("modality") or (about.modality if about else None),
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
    """What is told of the visit nearest a day, by one or several tables; the earlier of two as near."""
    if day is None:
        return []
    near = [visit for visit in visits if visit.date and abs((visit.date - day).days) <= window_days]
    best = min(((abs((visit.date - day).days), visit.date) for visit in near), default=(0, None))[1]
    return [visit for visit in near if visit.date == best]


def _phase(about: Listed | None, near: list[Visit]) -> str | None:
    own = about.phase if about else None
    told = next((visit.phase for visit in near if visit.phase), None)
    return (told or own) if own in (None, OPEN_PHASE) else own


def _outside(phase: str | None, phases: tuple[str, ...]) -> str | None:
    known = {"ADNI1", "ADNIGO", OPEN_PHASE} if phase == OPEN_PHASE else {phase}
    if not phases or known & set(phases):
        return None
    return f"phase {phase or 'unknown'}, not among source.phases {list(phases)}"


def _other_subject(subject: str, about: Listed | None) -> str | None:
    if about is None or about.subject in (None, subject):
        return None
    return f"its name says {subject}, the table {about.table} {about.subject}"


def _age(about: Listed | None, visits: list[Visit], day: date | None) -> float | None:
    """Years at the scan: the collection's or, from the age at the first visit, that and the time since then."""
    if about is not None and about.age is not None:
        return about.age
    known = [visit for visit in visits if visit.age is not None and visit.date]
    if not known or day is None:
        return None
    first = min(known, key=lambda visit: visit.date)
    return round(first.age + (day - first.date).days / DAYS_PER_YEAR, 1)


def _labels(
    image: AdniImage,
    listed: list[Listed],
    visits: list[Visit],
    day: date | None,
    tables: AdniTables,
    source: AdniSource,
) -> list[Label]:
    """Each label that the policy finds, with words for where it is from; several contradict each other."""
    if not tables.images and not tables.visits:
        found, none = _folder_label(image, source), "no folder is named by a group"
    elif source.label == "collection":
        found, none = [(one.group, f"Group of {one.table}") for one in listed], "not in the collection csv"
    elif source.label == "baseline":
        found, none = _baseline(visits), "no diagnosis at the first visit"
    elif day is None:
        found, none = [], "day of the scan unknown: a file name tells the day of archiving; add the collection csv"
    else:
        dated = _nearest([visit for visit in visits if visit.diagnosis], day, source.window_days)
        found = [(visit.diagnosis, f"diagnosis nearest the scan, {visit.table}") for visit in dated]
        none = f"no diagnosis within {source.window_days} days"
    distinct = {source.labels.get(group, group): why for group, why in reversed(found) if group is not None}
    return list(reversed(distinct.items())) or [(None, none)]


def _folder_label(image: AdniImage, source: AdniSource) -> list[Label]:
    inside = reversed(image.path.relative_to(source.root).parts)
    named = [group_name(part) for part in inside if is_group(part) or part in source.labels]
    return [(group, "name of the class folder") for group in named[:1]]


def _baseline(visits: list[Visit]) -> list[Label]:
    """ADNI's own baseline diagnosis or, where no table has it, that of the first visit."""
    if told := [(visit.baseline, f"DX_bl of {visit.table}") for visit in visits if visit.baseline]:
        return told
    days = [(date.min if visit.first else visit.date, visit) for visit in visits if visit.diagnosis]
    first = min((day for day, _ in days if day), default=None)
    return [(one.diagnosis, f"diagnosis at the first visit, {one.table}") for day, one in days if day and day == first]


def _report(images: list[AdniImage], tables: AdniTables) -> None:
    absent = set(tables.images) - {image.said("image_id") for image in images}
    if absent:
        print(f"ADNI: {len(absent)} of the {len(tables.images)} listed image ids are not on disk, {min(absent)} first")
    used = [image for image in images if not image.excluded]
    by_name = sum(_acquired(image, next(iter(tables.of_image(image.said("image_id"))), None)) is None for image in used)
    if by_name:
        print(
            f"ADNI: {by_name} images are dated by their file name, the day of archiving; the collection csv has theirs"
        )


def _facts(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return {"sha256": digest(sorted(file_digest(file) for file in dicom_files(path))), "shape": None}
    return image_facts(path)
