"""Names of participants and scans, which no report may hold."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from adlib.study.records import StudyError

COLUMNS = ("path", "scan_id", "participant_id", "image_id")
STAND_IN = "one scan"
SHORTEST = 4  # a name of fewer characters, or of digits alone, cannot be told from a number or a word
_INLINED = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


@dataclass(frozen=True)
class Names:
    """All names by which a cohort calls its participants and scans, the longest first.

    Attributes
    ----------
    known : tuple of str
    """

    known: tuple[str, ...]

    @classmethod
    def of(cls, *tables: pd.DataFrame) -> Names:
        """The names in the columns `COLUMNS` of manifest and listing."""
        found: set[str] = set()
        for table in tables:
            for column in COLUMNS:
                found |= set(table[column].dropna().astype(str)) if column in table else set()
        return cls(tuple(sorted(filter(_telling, found), key=len, reverse=True)))

    def hidden(self, text: str) -> str:
        """`text` with every name of a participant or scan replaced by `STAND_IN`."""
        for name in self._in(text):
            text = _whole(name).sub(STAND_IN, text)
        return text

    def check(self, text: str, where: str) -> None:
        """Refuse a text that holds a name.

        Raises
        ------
        StudyError
            Without the name itself.
        """
        text = _INLINED.sub("", text)
        if any(_whole(name).search(text) for name in self._in(text)):
            raise StudyError(
                f"{where} would name a participant or scan of the study, which a report must not; it was not written. "
                "Look for the name in figures.tsv and audit.tsv, and report this as a fault of adlib"
            )

    def _in(self, text: str) -> Iterable[str]:
        return [name for name in self.known if name in text]


def _telling(name: str) -> bool:
    return len(name) >= SHORTEST and not name.isdigit() and any(character.isdigit() for character in name)


def _whole(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])")
