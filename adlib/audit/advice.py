"""Advice of the audit: the severities of every check, its meaning for the results, and what to do.

The texts are in ``advice.yaml``.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adlib.study.records import some

Finding = dict[str, Any]
LINKED = "linked"  # key of a finding: groups of ids that are of one person, if it is right


@dataclass(frozen=True)
class Check:
    """One kind of finding.

    Attributes
    ----------
    severities : str
        Possible severities of the finding: info, warn, stop.
    meaning : str
        Consequence for the results.
    remedy : str
        What to do; empty where nothing is to be done.
    """

    severities: str
    meaning: str
    remedy: str = ""


CHECKS = {
    name: Check(**texts) for name, texts in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes()).items()
}


def findings_of(
    check: str,
    severity: str,
    subjects: Collection[object],
    value: str = "",
    limit: str = "0",
    linked: Iterable[Collection[str]] = (),
) -> list[Finding]:
    """The finding of a check about scans, participants or classes; none where there are no subjects.

    Parameters
    ----------
    check : str
        A key of `CHECKS`, which has the meaning.
    severity : str
        One of the check's severities.
    subjects : collection
        Names; the finding has the first few in order, and the number of the others.
    value, limit : str
        The value, by default the number of scans, and the limit it is compared with.
    linked : iterable of collection of str
        Groups of participants that are one person, if the finding is right.

    Returns
    -------
    list of dict

    Raises
    ------
    ValueError
        If the check has no such severity.
    """
    if severity not in CHECKS[check].severities.split(", "):
        raise ValueError(f"{check} is never {severity!r}, only {CHECKS[check].severities}")
    if not len(subjects):
        return []
    about = {"check": check, "severity": severity, "subject": some(sorted({str(name) for name in subjects}))}
    meaning = f"{CHECKS[check].meaning} {CHECKS[check].remedy}".strip()
    value = value or f"{len(subjects)} scans"
    return [about | {"value": value, "limit": limit, "meaning": meaning, LINKED: linked}]


def share(part: int, whole: int) -> str:
    """A count with its whole and percentage, such as ``3 of 12 (25 %)``.

    Parameters
    ----------
    part, whole : int
    """
    return f"{part} of {whole} ({100 * part / max(whole, 1):.0f} %)"
