"""2-D slices as arrays, and facts of image files without their pixels: digest, shape, voxels, orientation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image, UnidentifiedImageError

from adlib.study.records import StudyError, digest, file_digest

SEPARATOR = "|"  # joins the paths of the files that make one scan
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


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


def _dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder that is one image."""
    files = (path for path in folder.iterdir() if path.suffix.lower() == ".dcm" and not path.name.startswith("."))
    return sorted(files)


def _file_facts(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return {"sha256": digest(sorted(file_digest(file) for file in _dicom_files(path))), "shape": None}
    facts: dict[str, Any] = {"sha256": file_digest(path), "shape": None}
    if path.suffix.lower() in PICTURES:
        try:
            with Image.open(path) as picture:
                return facts | {"shape": f"{picture.width}x{picture.height}"}
        except (UnidentifiedImageError, OSError, ValueError):
            return facts
    try:
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
