"""A user's table of participants and sessions, and BIDS labels from their names."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.study.cells import read_cells
from adlib.study.records import LISTING, StudyError
from adlib.study.user_tables import bare_name, read_user_table, safe_path

_FIRST = {"bl": "m0", "baseline": "m0"}
_CLASS = re.compile(r"\.0+$")
_KEYS = ("path", "scan_id", "participant_id")
_FACTS = ("participant_id", "session_id", "age", "sex", "site", "phase", "acquisition_date", "slice_index", "notes")
_CLEAR = ("sex", "acquisition_date", "participant_id")  # taken under their other names
_LIKELY = {  # other names of columns, bare
    "participant_id": ("participant", "subject", "subjectid", "subid", "ptid", "patientid", "srcsubjectid"),
    "acquisition_date": ("acqtime",),
    "sex": ("gender", "m/f", "sexatbirth", "patientsex", "ptgender", "geschlecht", "sexe"),
    "age": ("ageatscan", "ageyears", "age(years)", "age[years]", "ageinyears", "patientage", "ageatvisit", "ageatentry",
            "agebl", "ptage", "alter", "years"),
    "session_id": ("session", "visit", "visitid", "ses", "timepoint", "viscode"),
}  # fmt: skip


class ParticipantTable:
    """Facts of scans from a table, by a scan's path, its name, or its participant and session.

    Parameters
    ----------
    path : path
        Table with at least one of the columns path, scan_id and participant_id.
    label_column : str
        Column that becomes the diagnosis; empty takes none.
    labels : dict of str to str
        Labels in that column to classes; others stay as they are.
    columns : dict of str to str
        Names in the table to those of the listing, such as ``{"M/F": "sex"}``; any other name, such as
        ``{"FamilyID": "family"}``, is a column that the manifest gets.
    root : path, optional
        Folder that the paths in a column ``path`` are relative to and may not leave.
    strict : bool
        Whether the label column and those of `columns` must be there.
    rows : DataFrame, optional
        Its rows where they are read already, by line.

    Raises
    ------
    StudyError
        If the table cannot be read, lacks its key or label column, or names a scan or visit twice with other facts.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        label_column: str = "",
        labels: dict[str, str] | None = None,
        columns: dict[str, str] | None = None,
        root: Path | None = None,
        strict: bool = True,
        rows: pd.DataFrame | None = None,
    ) -> None:
        self.path = Path(path)
        needed = [name for name in (*(columns or {}), label_column) if name and strict]
        table = read_user_table(self.path, required=needed) if rows is None else rows
        table, named = self._renamed(table, columns or {}, label_column)
        self.columns = tuple(table.columns)
        self.key = next((name for name in _KEYS if name in table), None)
        if self.key is None:
            raise StudyError(f"{self.path} lacks column {' or '.join(map(repr, _KEYS))}; it has {list(table.columns)}")
        table = read_cells(table, self.path, named)
        added = [name for name in (columns or {}).values() if name not in LISTING.columns]
        facts = [name for name in dict.fromkeys((*_FACTS, *added)) if name in table]
        self.label_source = {}
        if label_column in table:
            self.label_source = {"label_source": f"column {label_column} of {self.path.name}"}
            table["diagnosis"] = _relabelled(table[label_column], labels or {})
            facts.append("diagnosis")
        by_session = self.key == "participant_id" and "session_id" in table
        self.index = [self.key, "session_id"] if by_session else [self.key]
        table = self._with_names(table, root).drop_duplicates([*self.index, *(set(facts) - {"notes"})])
        twice = table.index[table.duplicated(self.index, keep=False)]
        if len(twice):
            raise StudyError(
                f"{self.path} has contradictory rows for one {' and '.join(self.index)}: lines "
                f"{', '.join(map(str, twice[:4]))}; keep one, or name the visit's column session_id by source.columns"
            )
        self.rows: dict[str, dict[str | None, dict[str, Any]]] = {}
        kept = [name for name in facts if name not in self.index]
        visits = table["session_id"].where(table["session_id"].notna(), None) if by_session else [None] * len(table)
        for name, visit, row in zip(table[self.key], visits, table[kept].to_dict("records"), strict=True):
            about = {fact: value for fact, value in row.items() if not pd.isna(value)}
            self.rows.setdefault(name, {})[visit] = about
        self.alike = _alike(self.rows)

    def _renamed(self, table: pd.DataFrame, columns: dict[str, str], label: str) -> tuple[pd.DataFrame, dict[str, str]]:
        """The table by the listing's names, and the name in the file of each that has another there."""
        for name in dict.fromkeys((*_KEYS, *_FACTS, label)):
            free = [column for column in table if column not in columns]
            spelt = [column for column in free if bare_name(column) == bare_name(name)]
            likely = spelt or [column for column in free if bare_name(column) in _LIKELY.get(name, ())]
            if name in (*table, *columns.values()) or not likely:
                continue
            if name in _CLEAR or len(spelt) == 1:
                columns = columns | {likely[0]: name}
            elif "session_id" not in table:
                print(f"{self.path.name}: is {likely[0]!r} the {name}? Then add {likely[0]}: {name} to source.columns")
        named = {target: column for column, target in columns.items() if column in table}
        return table.rename(columns={column: target for target, column in named.items()}), named

    def _with_names(self, table: pd.DataFrame, root: Path | None) -> pd.DataFrame:
        """Participants and sessions as BIDS labels; rows whose name is none are left out, with a line."""
        kept, before = table[self.key].notna(), table.copy().get("participant_id")
        for name, label in (("participant_id", partial(bids_label, "sub")), ("session_id", session_label)):
            for line, cell in table[name].dropna().to_dict().items() if name in table else ():
                try:
                    table.at[line, name] = label(cell)
                except StudyError as error:
                    print(f"{self.path.name}, line {line}, column {name!r} is left out: {error}")
                    kept[line] = False
        if self.key == "path" and root is not None:
            table["path"] = [self._inside(cell, line, root) for line, cell in table["path"].items()]
        if not kept.any():
            raise StudyError(f"{self.path} has no letter or digit in any cell of column {self.key!r}")
        if before is not None:
            check_distinct(before[kept].dropna().unique(), self.path)
        return table[kept]

    def _inside(self, cell: str | None, line: int, root: Path) -> str:
        if cell is None:
            raise StudyError(f"{self.path}, line {line}, column 'path' is empty; expected a path under {root}")
        return safe_path(root, cell, self.path, line).relative_to(root.resolve()).as_posix()

    def meet(self, scans: Iterable[dict[str, Any]]) -> None:
        """Refuse a table of which no row is of any scan, and take no name for two people's.

        Parameters
        ----------
        scans : iterable of dict
            Rows by `records.LISTING`.

        Raises
        ------
        StudyError
            With three names of each side.
        """
        names = list(dict.fromkeys(str(scan[self.key]) for scan in scans if scan.get(self.key)))
        shared = Counter(map(loose, names))
        self.alike = {name: key for name, key in self.alike.items() if shared[name] < 2}
        if names and not any(self._who(name) for name in names):
            theirs, ours = (", ".join(map(repr, list(side)[:3])) for side in (self.rows, names))
            raise StudyError(
                f"{self.path}: no {self.key} is that of a scan; the table has {theirs}, the scans have {ours}: write "
                "them alike, or name another column in source.columns"
            )

    def _who(self, name: str | None) -> str | None:
        if name is None or name in self.rows:
            return name
        return None if self.key == "path" else self.alike.get(loose(name))

    def about(self, scan: Mapping[str, Any]) -> dict[str, Any]:
        """Facts of one scan, and the source of its label; a session's row goes before its participant's.

        Prefixes, leading zeros and case of participants and sessions do not count where one name alone is alike.

        Parameters
        ----------
        scan : mapping
            Its names by the columns of a listing: the table's key, and session_id.

        Returns
        -------
        dict
            By the names of `records.LISTING`; without facts where the table has no row for the scan.
        """
        visits, session = self.rows.get(self._who(scan[self.key]), {}), scan.get("session_id")
        named = (session, _alike(visits).get(loose(session)), None)
        facts = next((visits[name] for name in named if name in visits), None)
        if facts is None:
            return self.label_source
        return facts | self.label_source | ({"participant_source": self.path.name} if "participant_id" in facts else {})


def _relabelled(column: pd.Series, labels: dict[str, str]) -> pd.Series:
    """Labels as classes; case and the decimals of a number, as spreadsheets add them, do not count."""
    loosely = {key.casefold(): label for key, label in labels.items()}
    exact = {cell: labels.get(cell, loosely.get(_CLASS.sub("", cell).casefold(), cell)) for cell in column.dropna()}
    return column.replace(exact)


def loose(name: str | None) -> str:
    """A name without prefix, leading zeros, separators and case: ``sub-007``, ``SUB007`` and ``7`` are alike.

    So are ``bl``, ``baseline`` and ``M000``, the names of a first visit that ADNI and Clinica use.

    Parameters
    ----------
    name : str or None
    """
    bare = re.sub(r"^(?:sub|ses)*(?=.)", "", re.sub(r"[^a-z0-9]", "", str(name).lower()))
    return _FIRST.get(bare, re.sub(r"(?<!\d)0+(?=\d)", "", bare))


def _alike(names: Iterable[str | None]) -> dict[str, str]:
    """The one name of each loose form; forms of several names are left out."""
    forms: dict[str, list[str]] = {}
    for name in names:
        if name is not None:
            forms.setdefault(loose(name), []).append(name)
    return {form: alike[0] for form, alike in forms.items() if len(alike) == 1}


def indexed(table: pd.DataFrame, key: str, path: Path) -> pd.DataFrame:
    """A user's table with one of its columns, in upper case, as index; of equal rows one is kept.

    Parameters
    ----------
    table : DataFrame
        By `user_tables.read_user_table`.
    key : str
        The column.
    path : path
        The table's file, for the error.

    Raises
    ------
    StudyError
        If a value of the column comes twice with other facts.
    """
    table = table.assign(**{key: table[key].str.upper()}).drop_duplicates(table.columns.drop("notes", errors="ignore"))
    repeated = table.index[table[key].duplicated()]
    if len(repeated):
        raise StudyError(f"{path}, line {repeated[0]}: {table[key][repeated[0]]!r} comes twice; keep one row for each")
    return table.set_index(key)


def bids_label(entity: str, text: str) -> str:
    """A BIDS name such as ``sub-OAS20001`` from ``OAS2_0001`` or ``sub-OAS20001`` (letters and digits only).

    Parameters
    ----------
    entity : str
        ``sub`` or ``ses``.
    text : str

    Raises
    ------
    StudyError
        If the text has no letter or digit.
    """
    bare = re.sub(r"[^A-Za-z0-9]", "", str(text).removeprefix(f"{entity}-"))
    if not bare:
        raise StudyError(f"{text!r} has no letter or digit, which a {entity}- label needs")
    return f"{entity}-{bare}"


def check_distinct(names: Iterable[str], where: Path | str) -> None:
    """Refuse two participants whose names become one BIDS label.

    Parameters
    ----------
    names : iterable of str
    where : path
        The table or folder, for the error.

    Raises
    ------
    StudyError
        With both names.
    """
    seen: dict[str, str] = {}
    for name in names:
        bare = str(name).removeprefix("sub-")
        first = seen.setdefault(bids_label("sub", bare), bare)
        if first != bare:
            raise StudyError(
                f"{where}: the participants {first!r} and {bare!r} would both become {bids_label('sub', bare)}; "
                "rename one, or both alike if they are one person"
            )


def session_label(text: str) -> str:
    """A BIDS session name; a bare number has at least two digits.

    Parameters
    ----------
    text : str

    Raises
    ------
    StudyError
        If the text has no letter or digit.
    """
    text = str(text).removeprefix("ses-")
    return bids_label("ses", f"{int(text):02d}" if text.isdigit() and len(text) < 3 else text)
