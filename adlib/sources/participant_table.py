"""A user's table of participants and sessions, and BIDS labels from their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.study.records import StudyError
from adlib.study.user_tables import read_user_table, safe_path

_KEYS = ("path", "scan_id", "participant_id")
_FACTS = ("participant_id", "session_id", "age", "sex", "site", "phase", "acquisition_date", "slice_index")


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
        Names in the table to those of the listing, such as ``{"M/F": "sex"}``.
    root : path, optional
        Folder that the paths in a column ``path`` are relative to and may not leave.

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
    ) -> None:
        self.path = Path(path)
        required = [name for name in (*(columns or {}), label_column) if name]
        table = read_user_table(self.path, required=required).rename(columns=columns or {})
        self.key = next((name for name in _KEYS if name in table), None)
        if self.key is None:
            raise StudyError(f"{self.path} has none of the columns {list(_KEYS)}; it has {list(table.columns)}")
        facts = [name for name in _FACTS if name in table]
        self.label_source = {}
        if label_column:
            self.label_source = {"label_source": f"column {label_column} of {self.path.name}"}
            table["diagnosis"] = table[label_column].replace(labels or {})
            facts.append("diagnosis")
        if "participant_id" in table:
            check_distinct(table["participant_id"].dropna().unique(), self.path)
            table["participant_id"] = table["participant_id"].map(partial(bids_label, "sub"), na_action="ignore")
        if "session_id" in table:
            table["session_id"] = table["session_id"].map(session_label, na_action="ignore")
        if self.key == "path" and root is not None:
            table["path"] = [self._inside(cell, line, root) for line, cell in table["path"].items()]
        by_session = self.key == "participant_id" and "session_id" in table
        self.index = [self.key, "session_id"] if by_session else [self.key]
        table = table.drop_duplicates([*self.index, *facts])
        twice = table.index[table.duplicated(self.index, keep=False)]
        if len(twice):
            raise StudyError(
                f"{self.path} has contradictory rows for one {' and '.join(self.index)}: "
                f"lines {', '.join(map(str, twice[:4]))}; keep one"
            )
        self.rows = table.set_index(self.index)[[name for name in facts if name not in self.index]]

    def _inside(self, cell: str | None, line: int, root: Path) -> str:
        if cell is None:
            raise StudyError(f"{self.path}, line {line}, column 'path' is empty; expected a path under {root}")
        return safe_path(root, cell, self.path, line).relative_to(root.resolve()).as_posix()

    def about(self, scan_id: str | None, path: str, participant: str | None, session: str | None) -> dict[str, Any]:
        """Facts of one scan, and the source of its label; a session's row goes before its participant's.

        Parameters
        ----------
        scan_id, path, participant, session : str
            Names of the scan; the table's key is one of them.

        Returns
        -------
        dict
            By the names of `records.LISTING`; without facts where the table has no row for the scan.
        """
        value = {"path": path, "scan_id": scan_id, "participant_id": participant}[self.key]
        for name in ((value, session), (value, None)) if len(self.index) == 2 else (value,):
            if name in self.rows.index:
                facts = self.rows.loc[[name]].iloc[0].dropna().to_dict()
                return (
                    facts
                    | self.label_source
                    | ({"participant_source": self.path.name} if "participant_id" in facts else {})
                )
        return self.label_source


def indexed(table: pd.DataFrame, key: str, path: Path) -> pd.DataFrame:
    """A user's table with one of its columns as index.

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
        If a value of the column comes twice.
    """
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
