"""2-D slices as arrays, and facts of image files and their sidecars: digest, shape, orientation, scanner, sequence."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image

from adlib.imaging.nifti import load
from adlib.study import cells
from adlib.study.records import StudyError, digest, file_digest

SEPARATOR = "|"  # joins the paths of the files that make one scan
SLICES = (".dcm", ".ima")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")

# DICOM image types (PS3.3 C.7.6.1.1.2 and vendors' own) of what was computed from an acquired volume.
REFORMATTED = {"MPR", "PROJECTION IMAGE", "MIP", "MINIP", "LOCALIZER", "PHASE", "P", "IMAGINARY", "REAL", "T1 MAP"}
MAPS = {"ADC", "FA", "TRACEW", "DIFFUSION", "PERFUSION", "ASL", "FMRI", "BOLD", "T2 MAP", "T2_STAR MAP", "FIELD_MAP"}

# T1 weighting needs an echo time well below the T2 of brain, about 70 to 100 ms at 1.5 T and 3 T (Stanisz et al. 2005,
# doi:10.1002/mrm.20605). ADNI's MPRAGE has about 3 to 4 ms, its PD and T2 echoes 10 to 13 and 95 to 105 ms with a
# repetition time of 3 s (Jack et al. 2008, doi:10.1002/jmri.21049).
_T1W_ECHO_MS = 25.0
_PD_ECHO_MS = 8.0
_PD_REPETITION_MS = 2000.0
_NAMES = {
    "manufacturer": "Manufacturer",
    "model": "ManufacturersModelName",
    "series_description": "SeriesDescription",
    "modality": "Modality",
}
_CELLS = {
    "field_strength_T": ("MagneticFieldStrength", cells.tesla),
    "age": ("PatientAge", cells.years),
    "sex": ("PatientSex", cells.sex),
}
_ECHO = re.compile(r"\bTE=(\d+\.?\d*)\b")
# Name of each time in a sidecar, and its largest plausible value in seconds; larger values are in milliseconds.
_SECONDS = {
    "echo_time_ms": ("EchoTime", 1.0),
    "repetition_time_ms": ("RepetitionTime", 100.0),
    "inversion_time_ms": ("InversionTime", 20.0),
}


def unlike_timing(facts: Mapping[str, Any] | pd.Series) -> str:
    """Why a scan is not T1w by its times, empty where they do not tell.

    Parameters
    ----------
    facts : mapping
        Echo, repetition and inversion time, ms, by the columns of a listing; absent or NaN where unknown.

    Returns
    -------
    str
    """
    times = (facts.get(f"{name}_time_ms", math.nan) for name in ("echo", "repetition", "inversion"))
    echo_ms, repetition_ms, inversion_ms = times
    if echo_ms > _T1W_ECHO_MS:
        return f"echo time over {_T1W_ECHO_MS:g} ms"
    if echo_ms >= _PD_ECHO_MS and repetition_ms >= _PD_REPETITION_MS and math.isnan(inversion_ms):
        return "proton density by its timing"
    return ""


def read_plane(path: Path | str) -> np.ndarray:
    """Read one 2-D slice from a picture or a NIfTI file.

    Parameters
    ----------
    path : path

    Returns
    -------
    (X, Y) float32
        First axis to the viewer's right, second axis up, as a NIfTI slice is stored; colours become luminance.

    Raises
    ------
    StudyError
        If the file cannot be read or does not hold one 2-D image.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in PICTURES:
            with Image.open(path) as picture:
                image = np.asarray(picture.convert("F"), dtype=np.float32)[::-1].T
        else:
            image = np.squeeze(np.asarray(nib.load(path).dataobj, dtype=np.float32))
    except Exception as error:  # decoders meet arbitrary bytes here and raise whatever they raise
        raise StudyError(f"{path} cannot be read as an image: {error}") from None
    if image.ndim != 2:
        raise StudyError(f"{path} has shape {image.shape}, expected one 2-D slice")
    return image


def image_facts(path: Path | str) -> dict[str, Any]:
    """Digest and header facts of the file or files of one scan.

    Parameters
    ----------
    path : path
        An image file, several joined by ``|``, or a folder of DICOM files.

    Returns
    -------
    dict
        ``sha256`` (several files: of their digests; a folder: of its DICOM files' sorted digests) and ``shape``; for
        one NIfTI or MGH file also voxel edges (mm), ``dtype`` (rgb for colours), ``orientation`` such as RAS, and
        ``affine_fault``: missing, singular, or unstated where a NIfTI header states no orientation. All but the digest
        are empty where the header cannot be read.
    """
    each = [_file_facts(Path(name)) for name in str(path).split(SEPARATOR)]
    if len(each) == 1:
        return each[0]
    shapes = [facts["shape"] or "unreadable" for facts in each]
    shape = f"{shapes[0]}x{len(shapes)}" if len(set(shapes)) == 1 else SEPARATOR.join(shapes)
    return {"sha256": digest([facts["sha256"] for facts in each]), "shape": shape}


def sidecar_facts(sidecar: dict[str, Any]) -> dict[str, Any]:
    """Facts of the scanner, the sequence and the participant in a sidecar, by the names of `records.LISTING`.

    Parameters
    ----------
    sidecar : dict
        Content of the JSON file; times in seconds by BIDS (doi:10.1038/sdata.2016.44), or in ms where they could be
        no seconds. A list of one value is that value.

    Returns
    -------
    dict
        Times in ms, the parts of ImageType joined by ``/``; only what the sidecar has.
    """
    kind = sidecar.get("ImageType")
    sidecar = {
        key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in sidecar.items()
    }
    facts = {name: sidecar[key] for name, key in _NAMES.items() if isinstance(sidecar.get(key), str | int | float)}
    stated = {name: (key, str(sidecar[key])) for name, (key, _) in _CELLS.items() if sidecar.get(key)}
    read = {name: _CELLS[name][1](text) for name, (_, text) in stated.items()}
    facts |= {name: value for name, (value, _) in read.items() if value}
    notes = [f"{' '.join(stated[name])!r} {note}" for name, (_, note) in read.items() if note]
    times = {}
    for name, (key, longest) in _SECONDS.items():
        value, fault = cells.number(str(sidecar.get(key)))
        if value is not None:
            times[name] = value if value > longest else 1000 * value
            notes += [f"'{key} {value:g}' is read as ms, not s"] if value > longest else []
        elif isinstance(sidecar.get(key), str):
            notes.append(f"'{key} {sidecar[key]:.80}' {fault}")
    facts |= {"notes": "; ".join(notes)} if notes else {}
    return facts | times | ({"image_type": "/".join(map(str, kind))} if isinstance(kind, list) else {})


def described_facts(image: Any) -> dict[str, Any]:
    """The echo time, ms, that dcm2niix writes into the description of a NIfTI header.

    Parameters
    ----------
    image : nibabel image
    """
    text = image.header["descrip"].item().decode("latin-1") if isinstance(image.header, nib.Nifti1Header) else ""
    stated = _ECHO.search(text)
    return {"echo_time_ms": float(stated[1])} if stated else {}


def joined(facts: dict[str, Any], prior: dict[str, Any]) -> dict[str, Any]:
    """Facts of a scan from two places, of which the second goes before, with the notes of both.

    Parameters
    ----------
    facts, prior : dict
        By the columns of a listing.
    """
    notes = [part["notes"] for part in (prior, facts) if part.get("notes")]
    return facts | prior | ({"notes": "; ".join(notes)} if notes else {})


def _file_facts(path: Path) -> dict[str, Any]:
    if path.is_dir():
        slices = [file for file in path.iterdir() if file.suffix.lower() in SLICES and not file.name.startswith(".")]
        return {"sha256": digest(sorted(map(file_digest, slices))), "shape": None}
    facts: dict[str, Any] = {"sha256": file_digest(path), "shape": None}
    try:
        if path.suffix.lower() in PICTURES:
            with Image.open(path) as picture:
                return facts | {"shape": f"{picture.width}x{picture.height}"}
        image, notes = load(path)
    except Exception:  # whatever the fault, preprocessing reports it
        return facts
    facts |= {"notes": "; ".join(notes)} if notes else {}
    if not isinstance(image, nib.spatialimages.SpatialImage):
        return facts | {"excluded": f"a {type(image).__name__.removesuffix('Image')} file of surfaces, no volume"}
    zooms = np.array(image.header.get_zooms()[:3], dtype=float)
    names = ("voxel_x_mm", "voxel_y_mm", "voxel_z_mm")
    edges = {name: round(float(edge), 4) for name, edge in zip(names, zooms, strict=False)}
    dtype = image.get_data_dtype()
    kind = {"shape": "x".join(str(n) for n in image.shape), "dtype": "rgb" if dtype.names else str(dtype)}
    return facts | edges | kind | described_facts(image) | _orientation(image)


def _orientation(image: nib.spatialimages.SpatialImage) -> dict[str, Any]:
    affine = image.affine
    if affine is None or not np.isfinite(affine).all():
        return {"affine_fault": "missing"}
    if abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        return {"affine_fault": "singular"}
    axes = {"orientation": "".join(nib.aff2axcodes(affine))}
    header = image.header
    stated = not isinstance(header, nib.Nifti1Header) or header["sform_code"] > 0 or header["qform_code"] > 0
    return axes | ({} if stated else {"affine_fault": "unstated"})
