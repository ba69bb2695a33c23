"""Findings as a table, and the stop that some of them are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from adlib.audit.checks import CHECKS
from adlib.study.params import AuditParams
from adlib.study.records import AUDIT, StudyError, check_table

SHOWN = 5
_ORDER = {"stop": 0, "warn": 1, "info": 2}


class AuditStop(StudyError):
    """The audit found what makes every later number meaningless."""


def finding(check: str, severity: str, subject: str, value: str, limit: str = "0") -> dict[str, str]:
    """One row of the audit; what it means and what to do are those of `checks.CHECKS`.

    Parameters
    ----------
    check : str
        A key of `checks.CHECKS`.
    severity : str
        One of the check's severities.
    subject : str
        The scans or people concerned, see `named`.
    value, limit : str
        What was found, and what would have been right.
    """
    known = CHECKS[check]
    if severity not in known.severities:
        raise ValueError(f"check {check} can be {known.severities}, not {severity}")
    meaning = f"{known.meaning} {known.remedy}".strip()
    names = ("check", "severity", "subject", "value", "limit", "meaning")
    return dict(zip(names, (check, severity, subject, value, limit, meaning), strict=True))


def named(names: Iterable[object]) -> str:
    """The first few names in order, and how many more there are."""
    names = sorted({str(name) for name in names})
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def share(part: int, whole: int) -> str:
    """A count with its whole and percentage, such as ``3 of 12 (25 %)``."""
    return f"{part} of {whole} ({100 * part / max(whole, 1):.0f} %)"


def decided(findings: list[dict[str, str]], params: AuditParams) -> pd.DataFrame:
    """The table of findings, the worst first, with what the params decide about each (schema `records.AUDIT`)."""
    columns = [name for name in AUDIT.columns if name != "decision"]
    table = pd.DataFrame(findings, columns=columns)
    accepted = table["check"].isin(params.accept)
    table["decision"] = np.where(table["severity"] != "stop", "go on", np.where(accepted, "accepted by params", "stop"))
    return check_table(table.iloc[np.argsort(table["severity"].map(_ORDER), kind="stable")], AUDIT, "audit")


def check_accepted(params: AuditParams) -> None:
    """Refuse ids in `audit.accept` that no check has.

    Raises
    ------
    StudyError
        With the nearest id.
    """
    stops = [name for name, check in CHECKS.items() if "stop" in check.severities]
    for name in params.accept:
        if name not in stops:
            near = difflib.get_close_matches(name, stops, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"checks that stop: {', '.join(stops)}"
            raise StudyError(f"audit.accept names {name!r}, which is no check that stops a study; {hint}")


def enforce(findings: pd.DataFrame) -> None:
    """Stop the study on any stop finding that the params do not accept.

    Raises
    ------
    AuditStop
        With one line per finding.
    """
    stops = findings[findings["decision"] == "stop"]
    if not stops.empty:
        lines = [f"[{f.check}] {f.subject}: {f.value} (limit {f.limit}). {f.meaning}" for f in stops.itertuples()]
        raise AuditStop(
            "the audit stops this study:\n  "
            + "\n  ".join(lines)
            + "\nMend the data, or accept a finding knowingly with audit.accept: [its id]; every report will say so."
        )
