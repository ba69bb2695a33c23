"""2-D slices as arrays, whatever kind of file holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image, UnidentifiedImageError

from adlib.sources.facts import image_facts
from adlib.study.records import StudyError, digest, file_digest

SEPARATOR = "|"
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


def read_plane(path: Path | str) -> np.ndarray:
    """Read one 2-D slice from a picture or a NIfTI file.

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


def joined_facts(path: str) -> dict[str, Any]:
    """Digest and shape of the file or files that make one scan, their names joined by ``|``."""
    each = [_facts(Path(name)) for name in path.split(SEPARATOR)]
    if len(each) == 1:
        return each[0]
    shapes = [facts["shape"] or "unreadable" for facts in each]
    shape = f"{shapes[0]}x{len(shapes)}" if len(set(shapes)) == 1 else SEPARATOR.join(shapes)
    return {"sha256": digest([facts["sha256"] for facts in each]), "shape": shape}


def _facts(path: Path) -> dict[str, Any]:
    if path.suffix.lower() not in PICTURES:
        return image_facts(path)
    try:
        with Image.open(path) as picture:
            shape = f"{picture.width}x{picture.height}"
    except (UnidentifiedImageError, OSError, ValueError):
        shape = None
    return {"sha256": file_digest(path), "shape": shape}
