"""Cells as people write them: used where they are clear, else unknown, each with a note that names file and line."""

import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

NUMBER = re.compile(r"[+-]?(?:[0-9]+[.,]?[0-9]*|[.,][0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_AGE = re.compile(
    r"p?(?P<above>>=?|≥|over )?\s*(?P<number>\d+(?:[.,]\d*)?|[.,]\d+)\s*"
    r"(?P<over>\+|plus|(?:and|or) (?:over|older|above|more))?\s*"
    r"(?:(?P<unit>[yamwd])(?:ears?|rs?|o(?:nths?)?|eeks?|ays?)?)?(?: old)?\.?"
)
_PER_YEAR = {"m": 12.0, "w": 52.1775, "d": 365.25}
_OLDEST = 120
_FIELD = re.compile(r"(\d+(?:[.,]\d+)?)\s*(t|g|mt)?(?:esla|auss)?\b.*", re.I)
_TESLA = {"g": 1e-4, "mt": 1e-3}
_STRONGEST_T = 12
_SEXES = {
    **dict.fromkeys(("m", "male", "man", "boy", "männlich", "masculin", "masculino", "homme"), "M"),
    **dict.fromkeys(("f", "female", "w", "woman", "girl", "weiblich", "féminin", "femenino", "femme"), "F"),
}
ISO_5218 = {"1": "M", "2": "F", "1.0": "M", "2.0": "F"}
_UNSTATED = ("o", "other", "u", "unknown", "x", "0", "9")  # ISO/IEC 5218: 0 not known, 9 not applicable


class Reading(NamedTuple):
    """The value of a cell, None where it is unknown, and how it was read; the note is empty where that is plain."""

    value: Any
    note: str = ""


def years(cell: str) -> Reading:
    """An age: ``71``, ``71,5``, ``P071Y``, ``852 months``; ``89+`` is 89 with a note, a range is unknown.

    Parameters
    ----------
    cell : str

    Returns
    -------
    Reading
        float, years.
    """
    match = _AGE.fullmatch(cell.strip().lower())
    value = float(match["number"].replace(",", ".")) / _PER_YEAR.get(match["unit"] or "", 1.0) if match else -1.0
    if match is None or value > _OLDEST:
        return Reading(None, "is not an age in years; it counts as unknown")
    return Reading(value, f"is read as {value:g}" if match["above"] or match["over"] else "")


def tesla(cell: str) -> Reading:
    """A field strength: ``3``, ``3T``, ``1.5 Tesla MRI``, ``30000`` (gauss).

    Parameters
    ----------
    cell : str

    Returns
    -------
    Reading
        float, tesla.
    """
    match = _FIELD.fullmatch(str(cell).strip())
    value = float(match[1].replace(",", ".")) * _TESLA.get((match[2] or "").lower(), 1.0) if match else -1.0
    value = value / 1e4 if value > 1000 else value
    if 0 < value <= _STRONGEST_T:
        return Reading(value)
    return Reading(None, "is not a field strength in tesla; it counts as unknown")


def sex(cell: str, others: Collection[str] = ()) -> Reading:
    """``M`` or ``F`` from a letter, a word, or the codes 1 and 2 of ISO/IEC 5218; 0 and 1 are unknown.

    Parameters
    ----------
    cell : str
    others : collection of str
        All cells of the column, which tell its code.
    """
    word = cell.strip().lower()
    if word in _SEXES:
        return Reading(_SEXES[word])
    if word in ISO_5218 and not {"0", "0.0"} & set(others):
        return Reading(ISO_5218[word], f"is read as {ISO_5218[word]}, by ISO/IEC 5218")
    if word in _UNSTATED and not {"1", "1.0"} & set(others):
        return Reading(None)
    return Reading(None, "does not state the sex; write M or F, until then it counts as unknown")


def number(cell: str) -> Reading:
    """A number, also with a decimal comma.

    Parameters
    ----------
    cell : str
    """
    if NUMBER.fullmatch(cell):
        return Reading(float(cell.replace(",", ".")))
    return Reading(None, "is no number such as 0.696 or 0,696; it counts as unknown")


READERS: dict[str, Callable[..., Reading]] = {"age": years, "ageatentry": years, "sex": sex, "field_strength_T": tesla}


def read_cells(table: pd.DataFrame, path: Path, named: dict[str, str], *more: str) -> pd.DataFrame:
    """The table with its ages, sexes and field strengths read, and a column ``notes`` where a note was made.

    Parameters
    ----------
    table : DataFrame
        By `user_tables.read_user_table`.
    path : path
        Its file, for the notes.
    named : dict of str to str
        The name in the file of each column that was renamed.
    *more : str
        Columns of other numbers.

    Returns
    -------
    DataFrame
        Numbers as float64, NaN where unknown.
    """
    table, notes = table.copy(), pd.Series("", index=table.index)
    for name in [name for name in dict.fromkeys((*READERS, *more)) if name in table]:
        cells = table[name].dropna()
        distinct = set(cells)
        rule: Callable[..., Reading] = READERS.get(name, number)
        rule = partial(sex, others=distinct) if name == "sex" else rule
        read = {cell: rule(cell) for cell in distinct}
        table[name] = table[name].map(lambda cell, read=read: read[cell].value if cell in read else None)
        table[name] = table[name] if name == "sex" else pd.to_numeric(table[name]).astype("float64")
        for line, cell in cells.items():
            if read[cell].note:
                place = f"{path.name}, line {line}, column {named.get(name, name)!r}"
                notes[line] += f"{'; ' if notes[line] else ''}{place}: {cell!r:.80} {read[cell].note}"
    return table.assign(notes=notes.where(notes != "", None)) if notes.any() else table
