"""What a report may show of people: no participant or scan id, and of real cohorts only figures of the whole cohort."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import pandas as pd

from adlib.study.records import StudyError

COHORT = "cohort"  # counts, shares, means, histograms, curves: no person can be singled out
POINTS = "points"  # one mark for each scan or participant, without an id
SCANS = "scans"  # images, or values, of single scans
NOT_STATED = "not stated"  # counts as SCANS

SHOWS = {  # from the least to the most revealing
    COHORT: (
        "01_cohort", "01_confounds", "01_flow", "02_qc", "03_curves", "03_splits", "04_attribution",
        "04_attribution_mni", "04_conformal", "04_confusion", "04_deletion", "04_forest", "04_forest_binary", "04_leak",
        "04_calibration", "04_decision", "04_precision_recall", "04_randomisation", "04_roc", "04_subgroups",
    ),
    POINTS: ("01_calibration", "02_volumes", "02_volumes_truth", "04_severity", "05_answers"),
    SCANS: ("02_input_slices", "02_mosaic", "02_steps", "04_failures"),
}  # fmt: skip

ID_COLUMNS = ("path", "scan_id", "participant_id", "image_id")
REDACTED = "one scan"
SHORTEST_ID = 4  # shorter ids, and ids of digits alone, cannot be distinguished from numbers or words
_INLINED = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


def shows(name: str, statement: str = "") -> str:
    """What a figure shows of people: `COHORT`, `POINTS`, `SCANS` or `NOT_STATED`.

    Parameters
    ----------
    name : str
    statement : str, optional
        What the code that saved the figure states. It counts for a figure that `SHOWS` does not list; for a listed one
        it can only make the result more revealing.

    Returns
    -------
    str
    """
    levels = [level for level, names in SHOWS.items() if name in names or level == statement]
    return levels[-1] if levels else NOT_STATED


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
    def of(cls, *tables: pd.DataFrame) -> Self:
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
        for pattern in self._patterns(text):
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
        if any(pattern.search(text) for pattern in self._patterns(text)):
            raise StudyError(
                f"{where} contains a participant or scan id, which a report must not, and was not written; look for "
                "the id in figures.tsv and audit.tsv, and report this as a bug of adlib"
            )

    def _patterns(self, text: str) -> Iterable[re.Pattern[str]]:
        names = [name for name in self.ids if name in text]
        return [re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])") for name in names]


def _is_distinct(name: str) -> bool:
    return len(name) >= SHORTEST_ID and not name.isdigit() and any(character.isdigit() for character in name)
