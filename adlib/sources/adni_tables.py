"""ADNI's tables, recognised by their columns: facts of images, and of visits of participants."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.study.records import StudyError
from adlib.study.user_tables import bare_name, numbers, read_user_table, table_columns

_COLLECTION = {
    "image_id": ("Image Data ID", "Image ID"),
    "subject": ("Subject", "Subject ID"),
    "group": ("Group", "Research Group"),
    "sex": ("Sex", "Gender"),
    "age": ("Age",),
    "phase": ("Phase",),
    "visit": ("Visit",),
    "modality": ("Modality",),
    "description": ("Description",),
    "date": ("Acq Date", "Acquisition Date", "Study Date"),
}
_DIAGNOSES = {
    "baseline": ("DX_bl", "DX.bl"),
    "DIAGNOSIS": ("DIAGNOSIS",),
    "DXCHANGE": ("DXCHANGE",),
    "DXCURREN": ("DXCURREN",),
    "DX": ("DX",),
}
_VISITS = {
    "rid": ("RID",),
    "ptid": ("PTID",),
    "viscode": ("VISCODE",),
    "date": ("EXAMDATE",),
    "entered": ("USERDATE",),
    "phase": ("COLPROT", "Phase"),
    "age": ("AGE",),
    "sex": ("PTGENDER",),
    "field": ("FLDSTRENG",),
    **_DIAGNOSES,
}
# Data dictionary of the diagnostic summary (DXSUM): DXCURREN in ADNI1, DXCHANGE (conversions count as what a person
# became) in ADNIGO and ADNI2, DIAGNOSIS since ADNI3; adni.loni.usc.edu, Study Data. The first that a row has counts.
CODES = {
    "DIAGNOSIS": {"1": "CN", "2": "MCI", "3": "AD"},
    "DXCHANGE": {**dict.fromkeys("179", "CN"), **dict.fromkeys("248", "MCI"), **dict.fromkeys("356", "AD")},
    "DXCURREN": {"1": "CN", "2": "MCI", "3": "AD"},
}
_NO_CODE = ("-4", "-1")  # ADNI's own codes for missing
_SPELLINGS = {
    **dict.fromkeys(("cn", "nl", "nc", "normal", "control", "cognitively normal"), "CN"),
    **dict.fromkeys(("ad", "dementia", "alzheimer's disease"), "AD"),
    **{group.lower(): group for group in ("SMC", "EMCI", "MCI", "LMCI")},
    "significant memory concern": "SMC",
}
_ISO = re.compile(r"(?P<y>\d{4})[-/](?P<m>\d{1,2})[-/](?P<d>\d{1,2})(?:[T _].*)?")
_AMERICAN = re.compile(r"(?P<m>\d{1,2})/(?P<d>\d{1,2})/(?P<y>\d{4})(?: .*)?")
_PHASE = re.compile(r"ADNI\s?(1/GO|GO|[1-9])?(?![A-Z0-9])", re.I)


@dataclass(frozen=True)
class Listed:
    """An image in a collection table; `table` is its file name."""

    table: str
    subject: str | None
    group: str | None
    sex: str | None
    age: float | None
    phase: str | None
    modality: str | None
    description: str | None
    date: date | None


@dataclass(frozen=True)
class Visit:
    """A visit in an ADNIMERGE or DXSUM table; `age` (years) is that at the first visit.

    `field` is the field strength in tesla, `baseline` ADNI's diagnosis at the first visit, `table` the file name.
    """

    table: str
    first: bool
    date: date | None
    diagnosis: str | None
    baseline: str | None
    phase: str | None
    age: float | None
    sex: str | None
    field: float | None


@dataclass(frozen=True)
class AdniTables:
    """Images by their id, visits by participant (RID, ADNI's roster number)."""

    images: dict[str, list[Listed]] = field(default_factory=lambda: defaultdict(list))
    visits: dict[int, list[Visit]] = field(default_factory=lambda: defaultdict(list))

    def of_image(self, image_id: str | None) -> list[Listed]:
        """Entries of an image; there may be several.

        Parameters
        ----------
        image_id : str or None
            Such as ``I120562``.
        """
        return self.images.get(image_id, []) if image_id else []

    def of_person(self, subject: str | None) -> list[Visit]:
        """Visits of a participant.

        Parameters
        ----------
        subject : str or None
            Such as ``002_S_0295``.
        """
        return self.visits.get(_roster_number(subject), []) if subject else []


def read_tables(paths: Iterable[Path], *, given: bool) -> AdniTables:
    """Read collection, ADNIMERGE-like and DXSUM-like tables; those of one kind are put together.

    Parameters
    ----------
    paths : iterable of path
    given : bool
        Whether the params name them: then each must be one of ADNI's; otherwise others are ignored, with a line.

    Raises
    ------
    StudyError
        If a table is broken, holds a value that ADNI does not use, or is given and of no supported kind.
    """
    tables = AdniTables()
    for path in paths:
        columns = table_columns(path)
        if {"image_id", "subject"} <= set(_columns(columns, _COLLECTION)):
            _read_collection(path, tables)
        elif _is_visits(_columns(columns, _VISITS)):
            _read_visits(path, tables)
        elif given:
            raise StudyError(
                f"{path} is no collection table (Image Data ID, Subject, Group, ...), ADNIMERGE (PTID, VISCODE, DX_bl, "
                f"DX, ...) or DXSUM (RID, VISCODE, DIAGNOSIS, ...); its columns begin {columns[:8]}"
            )
        else:
            print(f"ADNI: {path} is ignored: its columns list neither images nor diagnoses")
    return tables


def _roster_number(subject: str) -> int:
    """295 from ``002_S_0295``."""
    return int(subject.rpartition("_")[2])


def group_name(text: str | None) -> str | None:
    """CN, SMC, EMCI, MCI, LMCI or AD in any spelling; other words stay.

    Parameters
    ----------
    text : str or None
    """
    return None if text is None else _SPELLINGS.get(text.strip().lower(), text.strip())


def is_group(text: str) -> bool:
    """Whether a word is one of ADNI's research groups.

    Parameters
    ----------
    text : str
    """
    return text.strip().lower() in _SPELLINGS


def phase_name(text: str | None) -> str | None:
    """ADNI1, ADNIGO, ADNI2, ... from a phase or the name of a visit; ADNI1/GO where ADNI left it open.

    Visits that are called ``ADNI Screening`` or ``ADNI Baseline``, without a number, are of the first phase.

    Parameters
    ----------
    text : str or None

    Returns
    -------
    str or None
        None where the text names no phase.
    """
    found = _PHASE.match(text or "")
    return f"ADNI{(found[1] or '1').upper()}" if found else None


def _columns(columns: list[str], kinds: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """The table's column for each field that it has."""
    by_bare = {bare_name(name): name for name in columns}
    found = {name: [by_bare[bare_name(s)] for s in spelt if bare_name(s) in by_bare] for name, spelt in kinds.items()}
    return {name: columns[0] for name, columns in found.items() if columns}


def _is_visits(fields: dict[str, str]) -> bool:
    names = set(fields)
    return bool({"rid", "ptid"} & names and {"viscode", "date"} & names and set(_DIAGNOSES) & names)


def _read(path: Path, kinds: dict[str, tuple[str, ...]]) -> tuple[pd.DataFrame, dict[str, str]]:
    """A table with a column for every field, empty where the file has none, and the file's names of them."""
    table = read_user_table(path)
    names = _columns(list(table.columns), kinds)
    return pd.DataFrame(
        {name: table[names[name]] if name in names else None for name in kinds}, table.index, dtype=object
    ), names


def _read_collection(path: Path, tables: AdniTables) -> None:
    table, names = _read(path, _COLLECTION)
    dates, ages = _dates(table["date"], names.get("date"), path), _numbers(table["age"], names.get("age"), path)
    for row, day, age in zip(table.itertuples(), dates, ages, strict=True):
        found = re.fullmatch(r"[ID]?(\d+)", row.image_id or "")
        if not found:
            raise _fault(path, row.Index, names["image_id"], row.image_id, "an image id such as I120562")
        tables.images[f"I{found[1]}"].append(
            Listed(
                table=path.name,
                subject=row.subject,
                group=group_name(row.group),
                sex=_sex(row.sex),
                age=age,
                phase=phase_name(row.phase) or phase_name(row.visit),
                modality={"MRI": "MR"}.get(row.modality, row.modality),
                description=row.description,
                date=day,
            )
        )


def _read_visits(path: Path, tables: AdniTables) -> None:
    table, names = _read(path, _VISITS)
    dates, entered = (_dates(table[name], names.get(name), path) for name in ("date", "entered"))
    ages = _numbers(table["age"], names.get("age"), path)
    for row, day, typed, age in zip(table.itertuples(), dates, entered, ages, strict=True):
        tables.visits[_rid(row, path)].append(
            Visit(
                table=path.name,
                first=(row.viscode or "").lower() in ("sc", "bl"),
                date=day or typed,
                diagnosis=_diagnosis(row, path),
                baseline=group_name(row.baseline),
                phase=phase_name(row.phase),
                age=age,
                sex=_sex(row.sex),
                field=_tesla(row.field),
            )
        )


def _rid(row: Any, path: Path) -> int:
    if row.ptid is not None and not re.fullmatch(r"\d{3}_S_\d{4,5}", row.ptid):
        raise _fault(path, row.Index, "PTID", row.ptid, "a subject such as 002_S_0295")
    by_name = None if row.ptid is None else _roster_number(row.ptid)
    if row.rid is None and by_name is not None:
        return by_name
    if not re.fullmatch(r"\d+(\.0+)?", row.rid or ""):
        raise _fault(path, row.Index, "RID", row.rid, "a roster number such as 295")
    number = int(float(row.rid))
    if by_name not in (None, number):
        raise _fault(path, row.Index, "RID", row.rid, f"{by_name}, as the PTID {row.ptid} says")
    return number


def _diagnosis(row: Any, path: Path) -> str | None:
    """The visit's diagnosis; ``NL to MCI`` counts as MCI."""
    for column, codes in CODES.items():
        code = re.sub(r"\.0+$", "", getattr(row, column) or _NO_CODE[0])
        if code in _NO_CODE:
            continue
        if code not in codes and not is_group(code):
            raise _fault(path, row.Index, column, code, f"one of the codes {sorted(codes)}")
        return codes.get(code) or group_name(code)
    return group_name(row.DX.rpartition(" to ")[2]) if row.DX is not None else None


def _dates(column: pd.Series, name: str | None, path: Path) -> list[date | None]:
    return [_date(cell, name or "", path, line) for line, cell in column.items()]


def _date(cell: str | None, name: str, path: Path, line: int) -> date | None:
    if cell is None or cell in _NO_CODE:
        return None
    found = _ISO.fullmatch(cell) or _AMERICAN.fullmatch(cell)
    try:
        return date(int(found["y"]), int(found["m"]), int(found["d"]))
    except (TypeError, ValueError):
        raise _fault(path, line, name, cell, "a date such as 2008-10-14 or 10/14/2008 (month first)") from None


def _numbers(column: pd.Series, name: str | None, path: Path) -> list[float | None]:
    if name is None:
        return [None] * len(column)
    found = numbers(column.to_frame(name), name, path)
    return [None if pd.isna(value) or value < 0 else value for value in found]


def _sex(text: str | None) -> str | None:
    return {"m": "M", "male": "M", "f": "F", "female": "F"}.get((text or "").lower())


def _tesla(text: str | None) -> float | None:
    """1.5 from ``1.5 Tesla MRI``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:T.*)?", text or "", re.I)
    return float(found[1]) if found else None


def _fault(path: Path, line: int, column: str, cell: str | None, expected: str) -> StudyError:
    return StudyError(f"{path}, line {line}, column {column!r}: {cell!r:.80} where {expected} is expected; correct it")
