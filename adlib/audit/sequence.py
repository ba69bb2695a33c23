"""Is each scan a T1w head, as far as its name, its series description and its timing tell?

The image itself is judged by preprocessing, which registers it to a T1w template and looks at its tissue contrast.
"""

from __future__ import annotations

import re
from pathlib import PurePath

import numpy as np
import pandas as pd

from adlib.audit.findings import finding, named, share
from adlib.sources.image_files import SEPARATOR
from adlib.sources.sidecars import MAPS, NOT_T1W, REFORMATTED, T1W

# T1 weighting needs an echo time well below the T2 of brain, about 70 to 100 ms at 1.5 T and 3 T (Stanisz et al. 2005,
# doi:10.1002/mrm.20605). ADNI's MPRAGE has about 3 to 4 ms, its PD and T2 echoes 10 to 13 and 95 to 105 ms with a
# repetition time of 3 s (Jack et al. 2008, doi:10.1002/jmri.21049).
T1W_ECHO_MS = 25.0
PD_ECHO_MS = 8.0
PD_REPETITION_MS = 2000.0
_NAMES = {
    *("t2w", "t2", "t2star", "t2starw", "pdw", "pd", "pdt2", "flair", "bold", "sbref", "fmri", "rest", "dwi", "dti"),
    *("asl", "m0scan", "cbf", "swi", "angio", "fieldmap", "phasediff", "magnitude1", "magnitude2", "epi", "adc"),
    *("localizer", "localiser", "scout", "t1map", "t2map", "unit1"),
}
_T1W_NAMES = {"t1w", "t1", "mprage", "mpr", "spgr", "fspgr"}


def check_sequence(scans: pd.DataFrame) -> tuple[list[dict[str, str]], pd.DataFrame]:
    """Find scans that are not T1w, and leave them out unless most of the cohort is such.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.

    Returns
    -------
    findings : list of dict
    kept : DataFrame
        The scans that go on: all of them where the finding stops the study.
    """
    why = scans.apply(unlike_t1w, axis=1) if len(scans) else pd.Series(dtype=str)
    odd = scans[why != ""]
    silent = scans[(why == "") & ~scans.apply(_says_t1w, axis=1).astype(bool)] if len(scans) else scans
    found = []
    if len(odd):
        severity = "stop" if 2 * len(odd) > len(scans) else "warn"
        reasons = why[why != ""].value_counts()
        value = f"{share(len(odd), len(scans))}: " + ", ".join(f"{n} x {reason}" for reason, n in reasons[:5].items())
        found.append(finding("sequence-not-t1w", severity, named(odd["scan_id"]), value))
        if severity == "warn":
            scans = scans.drop(index=odd.index)
    if len(silent):
        found.append(finding("sequence-unstated", "info", named(silent["scan_id"]), f"{len(silent)} scans"))
    return found, scans


def unlike_t1w(scan: pd.Series) -> str:
    """Why a scan of the listing is not T1w, empty where nothing says so; the surest sign first."""
    modality = _text(scan["modality"])
    if modality and modality.upper() not in ("MR", "MRI"):
        return f"modality {modality}"
    kinds = {part.strip().upper() for part in re.split(r"[/\\,]", _text(scan["image_type"]))}
    if derived := kinds & ((REFORMATTED - {"MPR"}) | MAPS):
        return f"image type {'/'.join(sorted(derived))}"
    return _by_timing(scan) or _by_description(_text(scan["series_description"])) or _by_name(scan["path"])


def _by_timing(scan: pd.Series) -> str:
    echo, repetition, inversion = (scan[f"{name}_time_ms"] for name in ("echo", "repetition", "inversion"))
    if echo > T1W_ECHO_MS:
        return f"echo time over {T1W_ECHO_MS:g} ms"
    if echo >= PD_ECHO_MS and repetition >= PD_REPETITION_MS and np.isnan(inversion):
        return "proton density by its timing"
    return ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _by_description(description: str) -> str:
    unlike = NOT_T1W.search(description)
    return f"series named '{unlike[0].lower()}'" if unlike else ""


def _tokens(path: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", PurePath(path.split(SEPARATOR)[0]).name.lower()))


def _by_name(path: str) -> str:
    tokens = _tokens(path)
    if tokens & _T1W_NAMES or not tokens & _NAMES:
        return ""
    return f"file named '{sorted(tokens & _NAMES)[0]}'"


def _says_t1w(scan: pd.Series) -> bool:
    described = T1W.search(_text(scan["series_description"]))
    return bool(described or pd.notna(scan["echo_time_ms"]) or _tokens(scan["path"]) & _T1W_NAMES)
