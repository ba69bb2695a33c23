"""ADNI's tables, recognised by their columns: facts of images, and of visits of participants."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from adlib.study import cells
from adlib.study.records import StudyError
from adlib.study.user_tables import bare_name, read_user_table, table_columns

# Data dictionary of the diagnostic summary (DXSUM): DXCURREN in ADNI1, DXCHANGE (conversions count as what a person
# became) in ADNIGO and ADNI2, DIAGNOSIS since ADNI3; adni.loni.usc.edu, Study Data. The first that a row has counts.
CODES = {
    "DIAGNOSIS": {"1": "CN", "2": "MCI", "3": "AD"},
    "DXCHANGE": {**dict.fromkeys("179", "CN"), **dict.fromkeys("248", "MCI"), **dict.fromkeys("356", "AD")},
    "DXCURREN": {"1": "CN", "2": "MCI", "3": "AD"},
}
_NO_CODE = (None, "-4", "-1")  # the last two are ADNI's own codes for missing
_SPELLINGS = {
    **dict.fromkeys(("cn", "nl", "nc", "normal", "control", "cognitively normal"), "CN"),
    **dict.fromkeys(("ad", "dementia", "alzheimer's disease"), "AD"),
    **{group.lower(): group for group in ("SMC", "EMCI", "MCI", "LMCI")},
    "significant memory concern": "SMC",
}
_PHASE = re.compile(r"ADNI\s?(1/?GO|GO|[1-9])?(?:(?![A-Z0-9])|(?-i:(?=[A-Z][a-z])))", re.I)
# Of each field the conversion of its cells, whose ValueError says what is expected, and the names of its column.
_Field = tuple[Callable[[str], Any], *tuple[str, ...]]


class _ColumnFault(StudyError):
    """A cell that puts the order of day and month in its whole column in doubt."""


class AdniTables(NamedTuple):
    """Rows of the tables; each has a value or None for each field of `_COLLECTION` or of `_VISITS`.

    Attributes
    ----------
    images : dict
        By image id; there may be several of one image.
    visits : dict
        By roster number, such as 295 of ``002_S_0295``; each also has ``diagnosis``, that of the visit.
    """

    images: dict[str | None, list[SimpleNamespace]]
    visits: dict[int, list[SimpleNamespace]]


def read_tables(paths: Iterable[Path], columns: dict[str, str], *, given: bool) -> AdniTables:
    """Read collection, ADNIMERGE-like and DXSUM-like tables; those of one kind are put together.

    Parameters
    ----------
    paths : iterable of path
    columns : dict of str to str
        Names in the tables to ADNI's.
    given : bool
        Whether the params name them: then each must be one of ADNI's; otherwise others are ignored, with a line.

    Raises
    ------
    StudyError
        If a table is broken, holds a value that ADNI does not use, or is given and of no supported kind.
    """
    tables = AdniTables(defaultdict(list), defaultdict(list))
    for path in paths:
        try:
            names = [columns.get(name, name) for name in table_columns(path)]
        except StudyError as error:
            if given:
                raise
            print(f"ADNI: {error}; the table is ignored")
            continue
        visits = _columns(names, _VISITS).keys()
        if {"image_id", "subject"} <= _columns(names, _COLLECTION).keys():
            for row in _read(path, _COLLECTION, columns):
                tables.images[row.image_id].append(row)
        elif visits & {"rid", "ptid"} and visits & {"first", "date"} and visits & {"baseline", "DX", *CODES}:
            for row in _read(path, _VISITS, columns):
                row.date, row.diagnosis = row.date or row.entered, _diagnosis(row)
                tables.visits[row.number].append(row)
        elif given:
            raise StudyError(
                f"{path} is no collection table (Image Data ID, Subject, Group, ...), ADNIMERGE (PTID, VISCODE, DX_bl, "
                f"DX, ...) or DXSUM (RID, VISCODE, DIAGNOSIS, ...); its columns begin {names[:8]}; "
                "source.columns can name others"
            )
        else:
            print(f"ADNI: {path} is ignored: its columns list neither images nor diagnoses")
    return tables


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

    Visits that are called ``ADNI Screening`` or ``ADNI Baseline``, without a number, are of the first phase. The name
    of a session, which has no spaces and signs, is read as that of its visit.

    Parameters
    ----------
    text : str or None

    Returns
    -------
    str or None
        None where the text names no phase.
    """
    match = _PHASE.match(text or "")
    return f"ADNI{(match[1] or '1').upper().replace('1GO', '1/GO')}" if match else None


def _columns(columns: list[str], fields: dict[str, _Field]) -> dict[str, str]:
    """The table's column for each field that it has."""
    by_bare = {bare_name(name): name for name in columns}
    candidates = {field: [by_bare.get(bare_name(name)) for name in names] for field, (_, *names) in fields.items()}
    return {field: next(filter(None, names)) for field, names in candidates.items() if any(names)}


def _read(path: Path, fields: dict[str, _Field], renamed: dict[str, str]) -> Iterator[SimpleNamespace]:
    """The rows of a table with a value for every field, None where the file has none; unclear cells are noted.

    A row whose image or participant is unclear is left out, with a line; if all are, the first such fault is raised.
    """
    table = read_user_table(path).rename(columns=renamed)
    columns, faults = _columns(list(table.columns), fields), []
    for line, record in zip(table.index, table[list(columns.values())].to_dict("records"), strict=True):
        row = SimpleNamespace(path=path, line=line, table=path.name, notes=None, **dict.fromkeys(fields))
        try:
            for field, column in columns.items():
                _set(row, field, column, record[column], fields[field][0])
            if fields is _VISITS:
                row.number = _roster_number(row)
        except _ColumnFault:
            raise
        except StudyError as error:
            faults.append(error)
            print(f"{error}; the row is left out")
        else:
            yield row
    if len(faults) == len(table):
        raise faults[0]


def _set(row: SimpleNamespace, field: str, column: str, cell: str | None, convert: Callable[[str], Any]) -> None:
    if cell in _NO_CODE and field != "image_id":
        return
    try:
        value = convert(cell or "")
    except ValueError as error:
        fault = _fault(row, column, cell, str(error))
        raise (_ColumnFault(str(fault)) if convert is _date else fault) from None
    if isinstance(value, cells.Reading):
        if value.note:
            row.notes = f"{row.table}, line {row.line}, column {column!r}: {cell!r:.80} {value.note}"
        value = value.value
    setattr(row, field, value)


def _fault(row: SimpleNamespace, column: str, cell: str | None, expected: str) -> StudyError:
    return StudyError(
        f"{row.path}, line {row.line}, column {column!r}: {cell!r:.80} where {expected} is expected; correct it"
    )


def _roster_number(row: SimpleNamespace) -> int:
    """The number of a visit's participant by RID, PTID or both."""
    by_name = None if row.ptid is None else int(row.ptid.rpartition("_")[2])
    if row.rid is None and by_name is not None:
        return by_name
    if not re.fullmatch(r"\d+(\.0+)?", row.rid or ""):
        raise _fault(row, "RID", row.rid, "a roster number such as 295")
    number = int(float(row.rid))
    if by_name not in (None, number):
        raise _fault(row, "RID", row.rid, f"{by_name}, as the PTID {row.ptid} says")
    return number


def _diagnosis(row: SimpleNamespace) -> str | None:
    """The visit's diagnosis; ``NL to MCI`` counts as MCI."""
    for column, codes in CODES.items():
        code = getattr(row, column)
        if code in _NO_CODE:
            continue
        if code not in codes and not is_group(code):
            print(f"{_fault(row, column, code, f'one of the codes {sorted(codes)}')}; it is no class")
            return f"{column} {code}"
        return codes.get(code) or group_name(code)
    return group_name(row.DX.rpartition(" to ")[2]) if row.DX is not None else None


def _image_id(cell: str) -> str:
    match = re.fullmatch(r"[ID]?\s?(\d+)(\.0+)?", cell.upper())
    if not match:
        raise ValueError("an image id such as I120562")
    return f"I{match[1]}"


def _subject(cell: str) -> str:
    if not re.fullmatch(r"\d{3}_S_\d{4,5}", cell.upper()):
        raise ValueError("a subject such as 002_S_0295")
    return cell.upper()


def _is_first(cell: str) -> bool:
    return cell.lower() in ("sc", "bl")  # screening or baseline


def _code(cell: str) -> str:
    return re.sub(r"\.0+$", "", cell)


def _date(cell: str) -> date:
    for style in ("%Y-%m-%d", "%Y/%m/%d", "%m/%d/%Y"):
        with suppress(ValueError):
            return datetime.strptime(re.split("[T _]", cell)[0], style).date()
    raise ValueError("a date such as 2008-10-14 or 10/14/2008 (month first)")


def _modality(cell: str) -> str:
    return "MR" if cell == "MRI" else cell


_COLLECTION: dict[str, _Field] = {
    "image_id": (_image_id, "Image Data ID", "Image ID"),
    "subject": (str.upper, "Subject", "Subject ID"),
    "group": (group_name, "Group", "Research Group"),
    "sex": (cells.sex, "Sex", "Gender"),
    "age": (cells.years, "Age"),
    "phase": (phase_name, "Phase"),
    "visit": (phase_name, "Visit"),
    "modality": (_modality, "Modality"),
    "description": (str, "Description"),
    "date": (_date, "Acq Date", "Acquisition Date", "Study Date"),
}
_VISITS: dict[str, _Field] = {
    "rid": (str, "RID"),
    "ptid": (_subject, "PTID"),
    "first": (_is_first, "VISCODE"),
    "date": (_date, "EXAMDATE"),
    "entered": (_date, "USERDATE"),
    "phase": (phase_name, "COLPROT", "Phase"),
    "age": (cells.years, "AGE"),
    "sex": (cells.sex, "PTGENDER"),
    "field": (cells.tesla, "FLDSTRENG"),
    "baseline": (group_name, "DX_bl", "DX.bl"),
    "DX": (str, "DX"),
    **{column: (_code, column) for column in CODES},
}
UNLISTED = SimpleNamespace(notes=None, **dict.fromkeys(_COLLECTION))  # an image in no collection table
