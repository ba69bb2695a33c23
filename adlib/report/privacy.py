"""What a report may show of people: no participant or scan id, and of real cohorts only figures of the whole cohort."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from adlib.study.records import StudyError

COHORT = "cohort"  # counts, shares, means, histograms, curves: no person can be singled out
POINTS = "points"  # one mark for each scan or participant, without an id
SCANS = "scans"  # images, or values, of single scans
LEVELS = (COHORT, POINTS, SCANS)  # from the least to the most revealing

SHOWS = {
    "01_calibration": POINTS,
    "01_cohort": COHORT,
    "01_confounds": COHORT,
    "01_flow": COHORT,
    "02_input_slices": SCANS,
    "02_mosaic": SCANS,
    "02_qc": COHORT,
    "02_steps": SCANS,
    "02_volumes": POINTS,
    "02_volumes_truth": POINTS,
    "03_curves": COHORT,
    "03_splits": COHORT,
    "04_attribution": COHORT,
    "04_attribution_mni": COHORT,
    "04_conformal": COHORT,
    "04_confusion": COHORT,
    "04_deletion": COHORT,
    "04_failures": SCANS,
    "04_forest": COHORT,
    "04_forest_binary": COHORT,
    "04_leak": COHORT,
    "04_precision_recall": COHORT,
    "04_randomisation": COHORT,
    "04_reliability": COHORT,
    "04_roc": COHORT,
    "04_severity": POINTS,
    "04_subgroups": COHORT,
    "05_answers": POINTS,
}

ID_COLUMNS = ("path", "scan_id", "participant_id", "image_id")
REDACTED = "one scan"
SHORTEST_ID = 4  # shorter ids, and ids of digits alone, cannot be distinguished from numbers or words
_INLINED = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


def shows(name: str, statement: str = "") -> str:
    """What a figure shows of people: `COHORT`, `POINTS` or `SCANS`.

    Parameters
    ----------
    name : str
    statement : str, optional
        What the code that saved the figure states. It counts for a figure that `SHOWS` does not list; for a listed one
        it can only make the result more revealing. Without either, a figure counts as `SCANS`.

    Returns
    -------
    str
    """
    stated = statement if statement in LEVELS else ""
    levels = [level for level in (SHOWS.get(name), stated) if level]
    return max(levels, key=LEVELS.index, default=SCANS)


def is_stated(name: str, statement: str = "") -> bool:
    """Whether `SHOWS` or the code that saved the figure states what it shows.

    Parameters
    ----------
    name : str
        Name of the figure.
    statement : str
        See `shows`.
    """
    return name in SHOWS or statement in LEVELS


def may_show(name: str, simulated: bool, statement: str = "") -> bool:
    """Whether a report may include the figure: all of simulated heads, only `COHORT` figures of people.

    Parameters
    ----------
    name : str
        Name of the figure.
    simulated : bool
        Whether the study is of simulated heads.
    statement : str
        See `shows`.
    """
    return simulated or shows(name, statement) == COHORT


@dataclass(frozen=True)
class Ids:
    """All ids of a cohort's participants and scans, the longest first.

    Attributes
    ----------
    ids : tuple of str
    """

    ids: tuple[str, ...]

    @classmethod
    def of(cls, *tables: pd.DataFrame) -> Ids:
        """Ids in the columns `ID_COLUMNS` of tables.

        Parameters
        ----------
        *tables : DataFrame
            Manifest and listing.

        Returns
        -------
        Ids
        """
        columns = [table[column] for table in tables for column in ID_COLUMNS if column in table]
        ids = {str(value) for column in columns for value in column.dropna()}
        return cls(tuple(sorted(filter(_is_distinct, ids), key=len, reverse=True)))

    def redact(self, text: str) -> str:
        """Replace every participant or scan id by `REDACTED`.

        Parameters
        ----------
        text : str

        Returns
        -------
        str
        """
        for pattern in self._found(text):
            text = pattern.sub(REDACTED, text)
        return text

    def check(self, text: str, where: str) -> None:
        """Refuse a text that contains an id.

        Parameters
        ----------
        text : str
            Content of a page; embedded images are ignored.
        where : str
            Name of the page in the message.

        Raises
        ------
        StudyError
            Without the id itself.
        """
        text = _INLINED.sub("", text)
        if any(pattern.search(text) for pattern in self._found(text)):
            raise StudyError(
                f"{where} contains a participant or scan id, which a report must not, and was not written; look for "
                "the id in figures.tsv and audit.tsv, and report this as a bug of adlib"
            )

    def _found(self, text: str) -> Iterable[re.Pattern[str]]:
        found = [name for name in self.ids if name in text]
        return [re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])") for name in found]


def _is_distinct(name: str) -> bool:
    return len(name) >= SHORTEST_ID and not name.isdigit() and any(character.isdigit() for character in name)
