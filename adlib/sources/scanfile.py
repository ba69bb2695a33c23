"""One scan from whatever a person has: NIfTI, MGH, a folder or a zip of DICOM."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from adlib.header import orientation_notes
from adlib.records import StudyError
from adlib.sources.dicom import MAX_BYTES, read_dicom

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh.gz", ".mgh")
SUFFIXES = (*VOLUME_SUFFIXES, ".zip")
PART_BYTES = 2**24
_GZIP_MAGIC = b"\x1f\x8b"
_NIFTI = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # by header size, which is what the first four bytes hold


@dataclass(frozen=True)
class ScanFile:
    """A scan and how it was found.

    Attributes
    ----------
    name : str
        File or folder name without suffix.
    image : nibabel.Nifti1Image
        (X, Y, Z) float32 in memory; the header holds the affine and nothing else.
    notes : tuple of str
        What a reader should know about the choice and the header.
    """

    name: str
    image: nib.Nifti1Image
    notes: tuple[str, ...]


def read_scan(path: Path | str) -> nib.Nifti1Image:
    """Read one 3-D scan; see `open_scan`."""
    return open_scan(path).image


def open_scan(path: Path | str) -> ScanFile:
    """Read one 3-D scan from a `.nii`, `.nii.gz`, `.mgz` or `.mgh` file, or a folder or zip of DICOM.

    Whether a volume file is compressed is read from its first bytes, not from its name, and the checksum of a
    compressed file is verified to its end.

    Parameters
    ----------
    path : path

    Returns
    -------
    ScanFile

    Raises
    ------
    StudyError
        If the path is missing, empty, damaged, of an unknown kind, or does not hold one 3-D T1w volume.
    """
    path = Path(path)
    if not path.exists():
        raise StudyError(f"{path} does not exist; expected a file ({', '.join(SUFFIXES)}) or a folder of DICOM")
    if path.is_dir() or path.name.lower().endswith(".zip"):
        image, notes = read_dicom(path)
    elif path.name.lower().endswith(VOLUME_SUFFIXES):
        image, notes = _read_volume(path)
    else:
        raise StudyError(f"{path.name}: unknown kind of file; expected {', '.join(SUFFIXES)} or a folder of DICOM")
    checked, mended = _checked(image, path)
    return ScanFile(scan_name(path), checked, (*notes, *mended))


def scan_name(path: Path | str) -> str:
    """File name without the suffixes that `open_scan` knows."""
    name = Path(path).name or Path(path).resolve().name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name) or "scan"


def _read_volume(path: Path) -> tuple[nib.spatialimages.SpatialImage, tuple[str, ...]]:
    content = _content(path)
    kind = _kind(content, path)
    try:
        image = kind.from_bytes(content)
        _check_size(image, len(content))
        np.asanyarray(image.dataobj)
    except StudyError as error:
        raise StudyError(f"{path.name}: {error}") from None
    except Exception as error:  # nibabel meets arbitrary bytes here and raises whatever its parsers raise
        raise StudyError(f"{path.name} is not a readable {kind.__name__[:-5]} image ({error}); copy it again") from None
    return image, orientation_notes(image, path.name)


def _check_size(image: nib.spatialimages.SpatialImage, size: int) -> None:
    """Refuse a header that announces more than the file holds, before room is made for it."""
    announced = math.prod(image.shape) * image.get_data_dtype().itemsize
    if announced > size:
        raise StudyError(
            f"its header announces an array {image.shape} of {announced} bytes, the file holds {size}; copy it again"
        )


def _kind(content: bytes, path: Path) -> type[nib.spatialimages.SpatialImage]:
    if ".nii" not in path.name.lower():
        return nib.MGHImage
    sizes = {int.from_bytes(content[:4], order) for order in ("little", "big")}
    kind = next((_NIFTI[size] for size in sizes if size in _NIFTI), None)
    if kind is None:
        raise StudyError(f"{path.name} is not a readable Nifti1 or Nifti2 image (no such header); copy it again")
    return kind


def _content(path: Path) -> bytes:
    with path.open("rb") as stream:
        packed = stream.read(2) == _GZIP_MAGIC
    try:
        with (gzip.open if packed else Path.open)(path, "rb") as stream:
            content = _bounded(stream)
    except (EOFError, zlib.error, OSError) as error:
        raise StudyError(f"{path.name} is damaged or cut short ({error}); copy it again") from None
    if not content:
        raise StudyError(f"{path.name} is empty (0 bytes); copy it again")
    if len(content) > MAX_BYTES:
        raise StudyError(f"{path.name} holds more than {MAX_BYTES / 2**30:.0f} GiB; a T1w scan holds far less")
    return content


def _bounded(stream: BinaryIO) -> bytes:
    """All bytes of a stream, or one more than may be; read in parts, since one reading makes room for all at once."""
    content = io.BytesIO()
    while (left := MAX_BYTES + 1 - content.tell()) and (part := stream.read(min(PART_BYTES, left))):
        content.write(part)
    return content.getvalue()


def _checked(image: nib.spatialimages.SpatialImage, path: Path) -> tuple[nib.Nifti1Image, tuple[str, ...]]:
    if image.get_data_dtype().names:
        raise StudyError(f"{path.name} holds colours; expected the grey values of a T1w scan")
    data = np.asarray(image.dataobj, dtype=np.float32)
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3 or min(data.shape) < 2:
        raise StudyError(f"{path.name} holds an array of shape {data.shape}; expected one volume (X, Y, Z)")
    finite = np.isfinite(data)
    if not finite.any() or np.ptp(data[finite]) == 0:
        raise StudyError(f"{path.name} holds one and the same value everywhere; expected a T1w scan")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise StudyError(f"{path.name}: its affine {image.affine.tolist()} cannot be inverted; repair the header")
    wrong = data.size - int(finite.sum())
    if not wrong:
        return nib.Nifti1Image(data, image.affine), ()
    note = f"{wrong} of {data.size} voxels are NaN or infinite and count as 0"
    return nib.Nifti1Image(np.where(finite, data, np.float32(0)), image.affine), (note,)
