"""An ADNI download becomes a listing: images by name or folder, labels by the policy that the study names."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from adlib.sources.adni_tables import UNLISTED, AdniTables, group_name, is_group, read_tables
from adlib.sources.image_files import SLICES
from adlib.sources.inventory import Inventory
from adlib.sources.scanfile import VOLUME_SUFFIXES
from adlib.study.records import StudyError
from adlib.study.source_params import AdniSource

_OPEN_PHASE = "ADNI1/GO"  # ADNI's visit names leave open which of the two
_DAYS_PER_YEAR = 365.25
_OTHER_FORMATS = (".img", ".mnc", ".img.gz", ".mnc.gz")  # the archive also offers Analyze and MINC
_NAME = re.compile(
    r"ADNI_(?P<subject>\d{3}_S_\d{4,5})_(?P<modality>[A-Z]{2,3})_(?P<description>.+?)(?:_[Bb]r(?:_[Rr]aw)?)?"
    r"_(?P<archived>\d{8})\d{0,9}(?:_\d+)?(?:_(?P<series_id>S\d+))?_(?P<image_id>I\d+)(?P<rest>\D.*)?"
)
_FOLDER = re.compile(
    r"/(?P<subject>\d{3}_S_\d{4,5})/(?P<description>[^/]+)/(?P<date>\d{4}-\d\d-\d\d)_[^/]*/(?:(?P<series_id>S\d+)|(?P<image_id>I\d+))"
)
_Label = tuple[str | None, str]


def list_scans(source: AdniSource, files: Inventory) -> list[dict[str, Any]]:
    """List every image under an ADNI download, or any folder of files with ADNI names.

    Each image has a row. ``excluded`` has the reason why an image is not used; an image without a label has an empty
    diagnosis, and one with several labels in the tables has a row for each. A folder of DICOM files is one image:
    ``path`` is the folder and ``sha256`` the digest of its files' sorted digests.

    Parameters
    ----------
    source : AdniSource
    files : Inventory
        Of the root.

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
    images = _find_images(files)
    if not images:
        raise StudyError(f"no .nii, .nii.gz or .dcm files under {root}; unpack the ADNI download there")
    tables = read_tables(source.tables or files.named(".csv", ".xlsx"), source.columns, given=bool(source.tables))
    _check_policy(source, tables, root)
    rows = [row for image in images for row in _rows(image, tables, source, files)]
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
    facts = _facts(_NAME.fullmatch(name))
    if not facts:
        return None
    identity = _identity(facts, facts["archived"])
    if not facts.get("rest", ".").startswith("."):
        del identity["scan_id"]
    return identity | {
        "series_description": facts["description"],
        "modality": facts["modality"],
        "participant_source": "file name",
    }


class _Image(NamedTuple):
    """A volume file, or a folder of DICOM files of one series; `excluded` is the reason why it cannot be used.

    `facts` are those of its folders, as the Image and Data Archive (IDA) names them, and of its file name, which
    prevails: subject (such as 002_S_0295), description, image_id (I120562) or series_id (S52648), modality (MR or PT),
    the date of acquisition from a folder, and the day when it was archived from a file name.
    """

    path: Path
    facts: dict[str, Any]
    excluded: str | None

    def entries(self, tables: AdniTables) -> list[SimpleNamespace]:
        """The image's rows of the collection tables."""
        return tables.images.get(self.facts.get("image_id"), [])

    def acquired(self, tables: AdniTables) -> date | None:
        """The day of the scan; that of the file name does not count, it is when ADNI archived the image."""
        return (self.entries(tables) or [UNLISTED])[0].date or self.facts.get("date")


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


def _rows(image: _Image, tables: AdniTables, source: AdniSource, files: Inventory) -> list[dict[str, Any]]:
    if image.excluded:
        name = files.name(image.path)
        return [{"scan_id": name, "path": str(image.path), "excluded": image.excluded, "diagnosis": None}]
    facts, day = image.facts, image.acquired(tables)
    listed = (image.entries(tables) or [UNLISTED])[0]
    visits = tables.visits.get(int(facts["subject"].rpartition("_")[2]), [])
    near = _nearest(visits, day, source.window_days)
    phase = listed.phase or listed.visit
    if phase in (None, _OPEN_PHASE):
        phase = _first(visit.phase for visit in near) or phase
    row = _identity(facts, day or facts["archived"]) | {
        "path": str(image.path),
        "participant_source": "file name" if "archived" in facts else "folder name",
        "series_description": listed.description or facts["description"],
        "modality": facts.get("modality") or listed.modality,
        "sex": listed.sex or _first(visit.sex for visit in visits),
        "age": _age(visits, day) if listed.age is None else listed.age,
        "field_strength_T": _first(visit.field for visit in near),
        "phase": phase,
        "excluded": _other_subject(facts["subject"], listed) or _outside(phase, source.phases),
    }
    row |= {"notes": listed.notes} if listed.notes else {}
    labels = _labels(image, visits, day, tables, source)
    return [row | {"diagnosis": label, "label_source": why} for label, why in labels]


def _identity(facts: dict[str, Any], day: date) -> dict[str, Any]:
    """Names as BIDS has them, after Clinica's adni-to-bids."""
    subject, image_id = facts["subject"], facts.get("image_id")
    participant, session = f"sub-ADNI{subject.replace('_', '')}", f"ses-{day:%Y%m%d}"
    acquisition = image_id or facts.get("series_id")
    return {
        "participant_id": participant,
        "session_id": session,
        "scan_id": f"{participant}_{session}{f'_acq-{acquisition}' if acquisition else ''}_T1w",
        "image_id": image_id,
        "acquisition_date": day.isoformat(),
        "site": subject[:3],
    }


def _first(values: Iterable[Any]) -> Any:
    return next(filter(None, values), None)


def _nearest(visits: list[SimpleNamespace], day: date | None, window_days: int) -> list[SimpleNamespace]:
    """Entries of the visit nearest a day, from one or several tables; the earlier of two equally near."""
    if day is None:
        return []
    near = [visit for visit in visits if visit.date and abs((visit.date - day).days) <= window_days]
    best = min(((abs((visit.date - day).days), visit.date) for visit in near), default=(0, None))[1]
    return [visit for visit in near if visit.date == best]


def _outside(phase: str | None, phases: tuple[str, ...]) -> str | None:
    possible = {"ADNI1", "ADNIGO", _OPEN_PHASE} if phase == _OPEN_PHASE else {phase}
    if not phases or possible & set(phases):
        return None
    return f"phase {phase or 'unknown'}, not among source.phases {list(phases)}"


def _other_subject(subject: str, listed: SimpleNamespace) -> str | None:
    if listed.subject in (None, subject):
        return None
    return f"its name is of {subject}, {listed.table} lists it under {listed.subject}"


def _age(visits: list[SimpleNamespace], day: date | None) -> float | None:
    """Years at the scan from the age at the first visit and the time since then."""
    aged = [visit for visit in visits if visit.age is not None and visit.date]
    if not aged or day is None:
        return None
    first = min(aged, key=lambda visit: visit.date)
    return round(first.age + (day - first.date).days / _DAYS_PER_YEAR, 1)


def _labels(
    image: _Image, visits: list[SimpleNamespace], day: date | None, tables: AdniTables, source: AdniSource
) -> list[_Label]:
    """Each label that the policy finds, and where it is from; several contradict each other."""
    if not tables.images and not tables.visits:
        labels, none = _folder_label(image, source), "no folder is named by a group"
    elif source.label == "collection":
        none = "not in the collection csv"
        labels = [(entry.group, f"Group of {entry.table}") for entry in image.entries(tables)]
    elif source.label == "baseline":
        labels, none = _baseline(visits), "no diagnosis at the first visit"
    elif day is None:
        labels, none = [], "day of the scan unknown: a file name has the day of archiving; add the collection csv"
    else:
        dated = _nearest([visit for visit in visits if visit.diagnosis], day, source.window_days)
        labels = [(visit.diagnosis, f"diagnosis nearest the scan, {visit.table}") for visit in dated]
        none = f"no diagnosis within {source.window_days} days"
    distinct = {source.labels.get(group, group): why for group, why in reversed(labels) if group is not None}
    return list(reversed(distinct.items())) or [(None, none)]


def _folder_label(image: _Image, source: AdniSource) -> list[_Label]:
    inside = reversed(image.path.relative_to(source.root).parts)
    groups = [group_name(part) for part in inside if is_group(part) or part in source.labels]
    return [(group, "name of the class folder") for group in groups[:1]]


def _baseline(visits: list[SimpleNamespace]) -> list[_Label]:
    """ADNI's baseline diagnosis or, where no table has it, that of the first visit."""
    if stated := [(visit.baseline, f"DX_bl of {visit.table}") for visit in visits if visit.baseline]:
        return stated
    days = [(date.min if visit.first else visit.date, visit) for visit in visits if visit.diagnosis]
    first = min((day for day, _ in days if day), default=None)
    return [(v.diagnosis, f"diagnosis at the first visit, {v.table}") for day, v in days if day and day == first]


def _report(images: list[_Image], tables: AdniTables) -> None:
    absent = set(tables.images) - {image.facts.get("image_id") for image in images}
    if absent:
        print(f"ADNI: {len(absent)} of the {len(tables.images)} listed image ids are not on disk, {min(absent)} first")
    by_name = sum(image.acquired(tables) is None for image in images if not image.excluded)
    if by_name:
        print(
            f"ADNI: {by_name} images are dated by their file name, the day of archiving; the collection csv has theirs"
        )


def _find_images(files: Inventory) -> list[_Image]:
    """The volumes, and the folders of DICOM files, under the root."""
    slices: dict[Path, list[Path]] = defaultdict(list)
    for path in files.named(*SLICES):
        slices[path.parent].append(path)
    files.take(path for paths in slices.values() for path in paths)
    images = [_volume(path) for path in files.named(*VOLUME_SUFFIXES, *_OTHER_FORMATS)]
    series = [_series(*one) for one in slices.items()]
    folders = Counter(image.facts.get("image_id") for image in series)
    for image in series:
        if (number := image.facts.get("image_id")) and folders[number] > 1:
            fault = f"DICOM files of {number} lie in {folders[number]} folders; join them in one"
            image = image._replace(excluded=fault)
        images.append(image)
    return sorted(images, key=lambda image: image.path)


def _facts(match: re.Match[str] | None) -> dict[str, Any]:
    """Facts of a file name or of folders; empty where they are not of ADNI's form."""
    if match is None:
        return {}
    facts: dict[str, Any] = {name: value for name, value in match.groupdict().items() if value is not None}
    facts["description"] = facts["description"].replace("__", "; ").replace("_", " ")
    try:
        return facts | {name: date.fromisoformat(facts[name]) for name in ("date", "archived") if name in facts}
    except ValueError:
        return {}


def _volume(path: Path) -> _Image:
    other = path.name.lower().endswith(_OTHER_FORMATS)
    fault = "Analyze and MINC files are not read; download the image as NIfTI or DICOM" if other else None
    return _image(path, path.parent, _facts(_NAME.fullmatch(path.name)), fault)


def _series(folder: Path, slices: list[Path]) -> _Image:
    """A folder of DICOM files as one image."""
    by_id = {facts.get("image_id"): facts for facts in (_facts(_NAME.fullmatch(path.name)) for path in slices)}
    ids = sorted(filter(None, by_id))
    fault = f"the folder mixes DICOM files of {', '.join(ids[:4])}" if len(ids) > 1 else None
    return _image(folder, folder, _first(by_id.values()) or {}, fault)


def _image(path: Path, folder: Path, by_name: dict[str, Any], fault: str | None) -> _Image:
    by_folder = _facts(_FOLDER.fullmatch("/" + "/".join(folder.parts[-4:])))
    if not by_name and not by_folder:
        fault = fault or "neither an ADNI file name nor an ADNI folder (subject/series description/date/I...)"
    for name in ("subject", "image_id"):
        if name in by_name and by_name[name] != by_folder.get(name, by_name[name]):
            fault = fault or f"its folder is of {by_folder[name]}, its file name of {by_name[name]}"
    return _Image(path, by_folder | by_name, fault)
