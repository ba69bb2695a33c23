"""Scanner facts from a BIDS sidecar, as datasets have it and dcm2niix writes it."""

from __future__ import annotations

from typing import Any

_NAMES = {
    "manufacturer": "Manufacturer",
    "model": "ManufacturersModelName",
    "field_strength_T": "MagneticFieldStrength",
    "series_description": "SeriesDescription",
    "modality": "Modality",
}
_SECONDS = {"echo_time_ms": "EchoTime", "repetition_time_ms": "RepetitionTime", "inversion_time_ms": "InversionTime"}


def sidecar_facts(about: dict[str, Any]) -> dict[str, Any]:
    """What a sidecar says of scanner and sequence, by the names of `records.LISTING`.

    Parameters
    ----------
    about : dict
        Content of the JSON file; BIDS gives times in seconds (doi:10.1038/sdata.2016.44).

    Returns
    -------
    dict
        Times in ms, the parts of ImageType joined by ``/``; only what is there.
    """
    facts = {name: about[key] for name, key in _NAMES.items() if about.get(key) is not None}
    times = {name: 1000 * about[key] for name, key in _SECONDS.items() if isinstance(about.get(key), int | float)}
    kind = about.get("ImageType")
    return facts | times | ({"image_type": "/".join(map(str, kind))} if isinstance(kind, list) else {})
