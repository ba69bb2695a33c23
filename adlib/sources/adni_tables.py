"""ADNI's tables, recognised by their columns: facts of images, and of visits of participants."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from adlib.study.records import StudyError
from adlib.study.user_tables import NUMBER, bare_name, read_user_table, table_columns

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
_PHASE = re.compile(r"ADNI\s?(1/GO|GO|[1-9])?(?![A-Z0-9])", re.I)


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
    tables = AdniTables(defaultdict(list), defaultdict(list))
    for path in paths:
        columns = table_columns(path)
        visits = _columns(columns, _VISITS).keys()
        if {"image_id", "subject"} <= _columns(columns, _COLLECTION).keys():
            for row in _read(path, _COLLECTION):
                tables.images[row.image_id].append(row)
        elif visits & {"rid", "ptid"} and visits & {"first", "date"} and visits & {"baseline", "DX", *CODES}:
            for row in _read(path, _VISITS):
                row.date, row.diagnosis = row.date or row.entered, _diagnosis(row)
                tables.visits[_roster_number(row)].append(row)
        elif given:
            raise StudyError(
                f"{path} is no collection table (Image Data ID, Subject, Group, ...), ADNIMERGE (PTID, VISCODE, DX_bl, "
                f"DX, ...) or DXSUM (RID, VISCODE, DIAGNOSIS, ...); its columns begin {columns[:8]}"
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

    Visits that are called ``ADNI Screening`` or ``ADNI Baseline``, without a number, are of the first phase.

    Parameters
    ----------
    text : str or None

    Returns
    -------
    str or None
        None where the text names no phase.
    """
    match = _PHASE.match(text or "")
    return f"ADNI{(match[1] or '1').upper()}" if match else None


def _columns(columns: list[str], fields: dict[str, _Field]) -> dict[str, str]:
    """The table's column for each field that it has."""
    by_bare = {bare_name(name): name for name in columns}
    candidates = {field: [by_bare.get(bare_name(name)) for name in names] for field, (_, *names) in fields.items()}
    return {field: next(filter(None, names)) for field, names in candidates.items() if any(names)}


def _read(path: Path, fields: dict[str, _Field]) -> Iterator[SimpleNamespace]:
    """The rows of a table with a value for every field, None where the file has none."""
    table = read_user_table(path)
    columns = _columns(list(table.columns), fields)
    for line, cells in zip(table.index, table[list(columns.values())].to_dict("records"), strict=True):
        row = SimpleNamespace(path=path, line=line, table=path.name, **dict.fromkeys(fields))
        for field, column in columns.items():
            try:
                setattr(row, field, fields[field][0](cells[column]))
            except ValueError as error:
                raise _fault(row, column, cells[column], str(error)) from None
        yield row


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
            raise _fault(row, column, code, f"one of the codes {sorted(codes)}")
        return codes.get(code) or group_name(code)
    return group_name(row.DX.rpartition(" to ")[2]) if row.DX is not None else None


def _text(cell: str | None) -> str | None:
    return cell


def _image_id(cell: str | None) -> str:
    match = re.fullmatch(r"[ID]?(\d+)", cell or "")
    if not match:
        raise ValueError("an image id such as I120562")
    return f"I{match[1]}"


def _subject(cell: str | None) -> str | None:
    if cell is not None and not re.fullmatch(r"\d{3}_S_\d{4,5}", cell):
        raise ValueError("a subject such as 002_S_0295")
    return cell


def _is_first(cell: str | None) -> bool:
    return (cell or "").lower() in ("sc", "bl")  # screening or baseline


def _code(cell: str | None) -> str | None:
    return cell and re.sub(r"\.0+$", "", cell)


def _date(cell: str | None) -> date | None:
    if cell in _NO_CODE:
        return None
    for style in ("%Y-%m-%d", "%Y/%m/%d", "%m/%d/%Y"):
        with suppress(ValueError):
            return datetime.strptime(re.split("[T _]", cell or "")[0], style).date()
    raise ValueError("a date such as 2008-10-14 or 10/14/2008 (month first)")


def _years(cell: str | None) -> float | None:
    if not NUMBER.fullmatch(cell or "-1"):
        raise ValueError("a number such as 74.5")
    years = float((cell or "-1").replace(",", "."))
    return years if years >= 0 else None


def _sex(cell: str | None) -> str | None:
    return {"m": "M", "male": "M", "f": "F", "female": "F"}.get((cell or "").lower())


def _modality(cell: str | None) -> str | None:
    return "MR" if cell == "MRI" else cell


def _tesla(cell: str | None) -> float | None:
    """1.5 from ``1.5 Tesla MRI``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:T.*)?", cell or "", re.I)
    return float(match[1]) if match else None


# Of each field the conversion of its cells, whose ValueError says what is expected, and the names of its column.
_Field = tuple[Callable[[str | None], Any], *tuple[str, ...]]
_COLLECTION: dict[str, _Field] = {
    "image_id": (_image_id, "Image Data ID", "Image ID"),
    "subject": (_text, "Subject", "Subject ID"),
    "group": (group_name, "Group", "Research Group"),
    "sex": (_sex, "Sex", "Gender"),
    "age": (_years, "Age"),
    "phase": (phase_name, "Phase"),
    "visit": (phase_name, "Visit"),
    "modality": (_modality, "Modality"),
    "description": (_text, "Description"),
    "date": (_date, "Acq Date", "Acquisition Date", "Study Date"),
}
_VISITS: dict[str, _Field] = {
    "rid": (_text, "RID"),
    "ptid": (_subject, "PTID"),
    "first": (_is_first, "VISCODE"),
    "date": (_date, "EXAMDATE"),
    "entered": (_date, "USERDATE"),
    "phase": (phase_name, "COLPROT", "Phase"),
    "age": (_years, "AGE"),
    "sex": (_sex, "PTGENDER"),
    "field": (_tesla, "FLDSTRENG"),
    "baseline": (group_name, "DX_bl", "DX.bl"),
    "DX": (_text, "DX"),
    **{column: (_code, column) for column in CODES},
}
UNLISTED = SimpleNamespace(**dict.fromkeys(_COLLECTION))  # an image in no collection table
