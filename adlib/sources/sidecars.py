"""Scanner and sequence: facts of a BIDS or dcm2niix sidecar, and what series names and image types mean."""

from __future__ import annotations

import re
from typing import Any

T1W = re.compile(r"t1|mp2?[ _-]?rage|f?spgr|bravo|(?<![a-z])t?tfe|(?<![a-z])tfl|vibe", re.I)
NOT_T1W = re.compile(
    r"t2|flair|(?<![a-z])(pd|dwi|dti|asl|swi|tof|adc|rest|epi|mra)(?![a-z])|diff|trace|bold|fmri|perf|field.?map|b0.?map"
    r"|t1.?map|inv[-_ ]?[12]|scout|locali[sz]er|survey|calib|angio|phase",
    re.I,
)
CONTRAST = re.compile(r"\+c\b|gad|\bgd\b|post|contrast", re.I)
# DICOM image types (PS3.3 C.7.6.1.1.2 and vendors' own) of what was computed from an acquired volume.
REFORMATTED = {"MPR", "PROJECTION IMAGE", "MIP", "MINIP", "LOCALIZER", "PHASE", "P", "IMAGINARY", "REAL", "T1 MAP"}
MAPS = {"ADC", "FA", "TRACEW", "DIFFUSION", "PERFUSION", "ASL", "FMRI", "BOLD", "T2 MAP", "T2_STAR MAP", "FIELD_MAP"}

_NAMES = {
    "manufacturer": "Manufacturer",
    "model": "ManufacturersModelName",
    "field_strength_T": "MagneticFieldStrength",
    "series_description": "SeriesDescription",
    "modality": "Modality",
}
_SECONDS = {"echo_time_ms": "EchoTime", "repetition_time_ms": "RepetitionTime", "inversion_time_ms": "InversionTime"}


def sidecar_facts(sidecar: dict[str, Any]) -> dict[str, Any]:
    """Scanner and sequence facts of a sidecar, by the names of `records.LISTING`.

    Parameters
    ----------
    sidecar : dict
        Content of the JSON file; times in seconds by BIDS (doi:10.1038/sdata.2016.44).

    Returns
    -------
    dict
        Times in ms, the parts of ImageType joined by ``/``; only what the sidecar has.
    """
    facts = {name: sidecar[key] for name, key in _NAMES.items() if sidecar.get(key) is not None}
    times = {name: 1000 * sidecar[key] for name, key in _SECONDS.items() if isinstance(sidecar.get(key), int | float)}
    kind = sidecar.get("ImageType")
    return facts | times | ({"image_type": "/".join(map(str, kind))} if isinstance(kind, list) else {})
