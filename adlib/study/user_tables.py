"""Tables that a user brings: csv or tsv in any dialect becomes text cells with line numbers."""

import codecs
import csv
import difflib
import functools
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from defusedxml import ElementTree

from adlib.study.records import StudyError

MAX_BYTES = 128 * 2**20
SEPARATORS = (",", ";", "\t", "|")
MISSING = frozenset(("", ".", "n/a", "na", "nan", "null", "#n/a", "<na>"))

_PROBED_RECORDS = 20
_XML = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_STRINGS, _SHEET = "xl/sharedStrings.xml", "xl/worksheets/sheet1.xml"
_INVISIBLE = re.compile("[\u200b\u200e\u200f\u2060\ufeff]|\\Asep=.(?=\r?\n)")  # and what Excel writes ahead of a table
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


def read_user_table(path: Path | str, *, required: Iterable[str] = ()) -> pd.DataFrame:
    """Read a csv, tsv or xlsx file of any separator, line end, quoting and usual encoding.

    Lines of nothing but separators are skipped, single lines of too few or too many cells are left out with a message,
    cells lose surrounding blanks, and a column without a name is called
    ``column N``.

    Parameters
    ----------
    path : path
        Text in UTF-8, UTF-16 with a byte order mark, or Windows-1252 (which holds Latin-1's letters).
    required : iterable of str
        Columns that must be there; a column that differs in case, blanks or underscores only is renamed to these.

    Returns
    -------
    DataFrame
        Cells are str, or None where empty, ``.``, ``n/a``, ``NA``, ``NaN`` or ``null``, whatever their case. The index,
        named ``line``, holds the line of the file on which a row begins, from 1.

    Raises
    ------
    StudyError
        If the file is missing, no text, too large or empty, most lines have too few or too many cells, or one has
        repeated or overlong cells or a broken quote; file, line and, where there is one, column are named.
    """
    path = Path(path)
    names, records = _parse(path)
    lines, rows, faults = [], [], []
    for line, cells in records:
        if any(cell.strip() for cell in cells):
            try:
                rows.append([_value(cell) for cell in _fitted(cells, names, line, path)])
                lines.append(line)
            except StudyError as error:
                faults.append(error)
    if faults and len(faults) >= len(rows):
        raise faults[0]
    for fault in faults:
        print(f"{fault} The row is left out.")
    if not rows:
        raise StudyError(f"{path} has the columns {_shown(names)} but no rows; expected at least one")
    table = pd.DataFrame(rows, columns=names, index=pd.Index(lines, name="line"), dtype=object)
    return table.rename(columns={find_column(names, name, path): name for name in required})


def read_user_json(path: Path | str) -> tuple[dict[str, Any], str]:
    """Read a JSON object in any usual encoding; a comma before a closing bracket is let go.

    Parameters
    ----------
    path : path

    Returns
    -------
    content : dict
        Empty where it cannot be read.
    note : str
        Why it cannot be read, with file, line and column, and what to do; empty where it can.
    """
    try:
        text = _decoded(Path(path).read_bytes(), path)
        try:
            content = json.loads(text, strict=False)
        except json.JSONDecodeError:
            content = json.loads(re.sub(r",(?=\s*[}\]])", "", text), strict=False)
    except json.JSONDecodeError as error:
        return {}, f"{path}, line {error.lineno}, column {error.colno}: {error.msg}; unused until it is repaired"
    except (OSError, StudyError, RecursionError) as error:
        return {}, f"{path} cannot be read ({error}); unused until it is fetched or repaired"
    if not isinstance(content, dict):
        return {}, f"{path} holds {type(content).__name__}, expected an object in braces; unused"
    return content, ""


def table_columns(path: Path | str) -> list[str]:
    """Names of the columns of a table, without reading its rows.

    Parameters
    ----------
    path : path

    Raises
    ------
    StudyError
        As `read_user_table`.
    """
    return _parse(Path(path))[0]


def find_column(columns: Iterable[str], name: str, path: Path | str) -> str:
    """The column that has a given name, but for case, blanks and underscores.

    Parameters
    ----------
    columns : iterable of str
    name : str
    path : path
        The table, for the error.

    Returns
    -------
    str
        The name as it is in `columns`.

    Raises
    ------
    StudyError
        If no column has the name, with the nearest ones, or several have.
    """
    columns = list(columns)
    if name in columns:
        return name
    alike = [column for column in columns if bare_name(column) == bare_name(name)]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise StudyError(f"{path}: column {name!r} could be any of {_shown(alike)}; rename all but one")
    by_bare = {bare_name(column): column for column in columns}
    close = [by_bare[key] for key in difflib.get_close_matches(bare_name(name), by_bare)]
    hint = f"did you mean {_shown(close)}?" if close else f"it has {_shown(columns)}"
    raise StudyError(f"{path} lacks column {name!r}; {hint}")


def bare_name(name: str) -> str:
    """A column name without case, blanks and underscores.

    Parameters
    ----------
    name : str
    """
    return re.sub(r"[\s_]+", "", name).casefold()


def safe_path(root: Path | str, text: str, path: Path | str, line: int) -> Path:
    r"""The path under `root` that a cell names; ``\`` counts as ``/``.

    Parameters
    ----------
    root : path
        Folder that the path may not leave, not even through a link.
    text : str
        The cell: relative to `root`, or absolute and inside it.
    path, line : path, int
        The table and the line of the cell, for the error.

    Raises
    ------
    StudyError
        If the path leaves `root`, has ``..``, a NUL or a drive letter, or cannot be followed.
    """
    name = text.replace("\\", "/")
    place = f"{path}, line {line}: the path {text!r:.200}"
    if "\0" in name or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        raise StudyError(f"{place} holds '..', a drive letter or a NUL; give a path under {root}")
    try:
        whole = Path(root).resolve()
        resolved = (whole / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise StudyError(f"{place} cannot be followed ({error}); give a path under {root}") from None
    if not resolved.is_relative_to(whole):
        raise StudyError(f"{place} lies outside {root}; give a path under it")
    return resolved


def _parse(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Column names and the records below them."""
    if path.suffix.lower() == ".xlsx":
        records = _sheet(path)
    else:
        text = _text(path)
        records = _records(text, _separator(text, path), path)
    line, cells = next(((line, cells) for line, cells in records if any(map(str.strip, cells))), (1, []))
    if not cells:
        raise StudyError(f"{path} is empty; expected a line of column names and rows below it")
    return _names(cells, line, path), records


def _sheet(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records of the first sheet of a workbook (ECMA-376, part 1, 18.3 and 18.4)."""
    try:
        with zipfile.ZipFile(path) as book:
            names = book.namelist()
            if sum(member.file_size for member in book.infolist()) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES // 2**20} MiB")
            parts = {name: ElementTree.fromstring(book.read(name)) for name in (_STRINGS, _SHEET) if name in names}
            texts = ["".join(item.itertext()) for item in parts[_STRINGS]] if _STRINGS in parts else []
            for number, row in enumerate(parts[_SHEET].iter(f"{_XML}row"), 1):
                cells: dict[int, str] = {}
                for cell in row:
                    letters = cell.get("r", "").rstrip("0123456789")
                    column = functools.reduce(lambda n, letter: 26 * n + ord(letter) - 64, letters, 0)
                    text = "".join(part.text or "" for part in cell.iter() if part.tag in (f"{_XML}v", f"{_XML}t"))
                    cells[column or len(cells) + 1] = texts[int(text)] if cell.get("t") == "s" else text
                yield number, [cells.get(column + 1, "") for column in range(max(cells, default=0))]
    except Exception as error:  # the parsers meet arbitrary bytes here and raise whatever they raise
        raise StudyError(f"{path} is not a readable .xlsx ({error!r:.80}); save it as csv") from None


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise StudyError(f"{path} is not a file; give a csv or tsv table")
        if path.stat().st_size > MAX_BYTES:
            raise StudyError(f"{path} has more than {MAX_BYTES // 2**20} MiB; cut the table")
        text = _INVISIBLE.sub("", _decoded(path.read_bytes(), path))
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror}); give a readable csv or tsv table") from None
    if odd := _CONTROL.search(text):
        line = len(f"{text[: odd.start()]}.".splitlines())
        raise StudyError(
            f"{path}, line {line}: the character {odd[0]!r} does not belong in a table, so this is a binary file or "
            "UTF-16 without a byte order mark; save it as csv in UTF-8"
        )
    return text


def _decoded(content: bytes, path: Path | str) -> str:
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "cp1252"):
        with suppress(UnicodeDecodeError):
            return content.decode(encoding)
    raise StudyError(f"{path} is not text in {'UTF-16' if marked else 'UTF-8 or Latin-1'}; save it as csv in UTF-8")


def _separator(text: str, path: Path) -> str:
    """The separator that cuts the first records into the most columns, equally many in each."""

    def merit(separator: str) -> tuple[bool, int]:
        counts: list[int] = []
        with suppress(StudyError):
            for _, cells in islice(_records(text, separator, path), _PROBED_RECORDS):
                counts.append(len(cells))
        columns = counts[0] if counts else 0
        return columns > 1 and len(set(counts)) == 1, columns

    usual = ("\t", *SEPARATORS) if path.suffix.lower() == ".tsv" else SEPARATORS
    return max(usual, key=merit)


def _records(text: str, separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line on which it begins, and cells, of each record that is no blank line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        open_quote = "end of data" in str(error) or "field limit" in str(error)
        fault = "a quote is opened and never closed" if open_quote else str(error)
        raise StudyError(f'{path}, line {line}: {fault}; quote cells as in "a ""quoted"" cell"') from None


def _names(cells: list[str], line: int, path: Path) -> list[str]:
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, 1)]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise StudyError(
                f"{path}, line {line}: columns {names.index(name) + 1} and {number + 1} are both called {name!r:.80}; "
                "rename or remove one"
            )
    return names


def _fitted(cells: list[str], names: list[str], line: int, path: Path) -> list[str]:
    """The cells, as many as there are columns; empty ones too many are let go."""
    if path.suffix.lower() == ".xlsx":
        cells = cells + [""] * (len(names) - len(cells))
    if len(cells) < len(names) or any(map(str.strip, cells[len(names) :])):
        raise StudyError(
            f"{path}, line {line}: {len(cells)} cells where the header has {len(names)} columns; "
            "is the separator the same as in the header, and is every cell that holds it in quotes?"
        )
    return cells[: len(names)]


def _value(cell: str) -> str | None:
    cell = cell.strip()
    return None if cell.lower() in MISSING else cell


def _shown(names: list[str]) -> str:
    """The first names of a list, for a message."""
    more = f", ... ({len(names)} in all)" if len(names) > 20 else ""
    return "[" + ", ".join(f"{name!r:.80}" for name in names[:20]) + more + "]"
