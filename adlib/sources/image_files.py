"""2-D slices as arrays, and facts of image files and their sidecars: digest, shape, orientation, scanner, sequence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from adlib.study.records import StudyError, digest, file_digest

SEPARATOR = "|"  # joins the paths of the files that make one scan
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")

# What names of series and image types mean.
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


def _file_facts(path: Path) -> dict[str, Any]:
    if path.is_dir():
        slices = [file for file in path.iterdir() if file.suffix.lower() == ".dcm" and not file.name.startswith(".")]
        return {"sha256": digest(sorted(map(file_digest, slices))), "shape": None}
    facts: dict[str, Any] = {"sha256": file_digest(path), "shape": None}
    try:
        if path.suffix.lower() in PICTURES:
            with Image.open(path) as picture:
                return facts | {"shape": f"{picture.width}x{picture.height}"}
        image = nib.load(path)
    except Exception:  # whatever the fault, preprocessing reports it
        return facts
    zooms = np.array(image.header.get_zooms()[:3], dtype=float)
    names = ("voxel_x_mm", "voxel_y_mm", "voxel_z_mm")
    edges = {name: round(float(edge), 4) for name, edge in zip(names, zooms, strict=False)}
    dtype = image.get_data_dtype()
    kind = {"shape": "x".join(str(n) for n in image.shape), "dtype": "rgb" if dtype.names else str(dtype)}
    return facts | edges | kind | _orientation(image)


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
