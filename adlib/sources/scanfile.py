"""Read one scan from NIfTI, MGH, a pair of Analyze files, or a folder or zip of DICOM."""

import gzip
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from pydicom.misc import is_dicom

from adlib.imaging.nifti import is_packed, mended, nifti_kind
from adlib.imaging.volume import orientation_notes
from adlib.sources.dicom import read_dicom
from adlib.sources.image_files import SLICES, described_facts, sidecar_facts, unlike_timing
from adlib.study.records import StudyError
from adlib.study.tree import NO_CONTENT, SHADOW, is_pointer
from adlib.study.user_tables import read_user_json

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh.gz", ".mgh")
PAIR_SUFFIXES = (".hdr", ".img")
SUFFIXES = (*VOLUME_SUFFIXES, *PAIR_SUFFIXES, ".zip", *SLICES)
RENAMED = re.compile(  # by a browser or a file manager, as the second of that name, or not finished
    r"\.(?:nii|mg[hz])(?:\.gz)?[ ._-]*(?:\(?\d+\)?|~|copy|kopie|copie|copia|bak|old|orig|te?mp"
    r"|(?:cr|op)?download|(?:file)?part(?:ial)?|!ut)(?:\.gz)?$",
    re.I,
)
RENAME = "a browser's or file manager's name of a second copy; rename it to end in .nii.gz or .nii, or fetch it again"
MAX_BYTES = 2**30  # of voxels: twice those of 512 x 512 x 512 in single precision
_MAX_BEFORE = 16 * 2**20  # bytes of header and extensions before the voxels
_MAX_BEHIND = 2**20  # bytes behind the last voxel
_ANALYZE = (
    "an Analyze header states no orientation: the first axis is taken as right to left, so sides may be exchanged"
)


@dataclass(frozen=True)
class ScanFile:
    """A scan and notes on its reading.

    Attributes
    ----------
    name : str
        File or folder name without suffix.
    image : nibabel.Nifti1Image
        (X, Y, Z) float32 in memory; the header holds the affine and nothing else.
    notes : tuple of str
        Notes on the choice of a series and on the header.
    facts : dict
        Age, sex and times in the headers or in a JSON file of the same name, by the columns of a listing.
    """

    name: str
    image: nib.Nifti1Image
    notes: tuple[str, ...]
    facts: dict[str, Any]


def open_scan(path: Path | str) -> ScanFile:
    """Read one 3-D scan from a `.nii`, `.nii.gz`, `.mgz` or `.mgh` file, a pair of `.hdr` and `.img`, or DICOM.

    Whether a volume file is compressed is read from its first bytes, not from its name, and the checksum of a
    compressed file is verified to its end. The size is read from the header before the data.

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
    path, facts = Path(path), dict[str, Any]()
    if path.name.startswith("._"):
        raise StudyError(f"{path.name}: {SHADOW}; give {path.name[2:]}")
    if (path.is_symlink() and not path.exists()) or (path.is_file() and is_pointer(path)):
        raise StudyError(f"{path.name}: {NO_CONTENT}")
    if not path.exists():
        raise StudyError(f"{path} does not exist; expected a file ({', '.join(SUFFIXES)}) or a folder of DICOM")
    if RENAMED.search(path.name):
        raise StudyError(f"{path.name}: {RENAME}")
    if path.is_dir() or path.name.lower().endswith((".zip", *SLICES)):
        image, notes, facts = read_dicom(path)
    elif path.name.lower().endswith(VOLUME_SUFFIXES):
        image, notes = _read_volume(path)
    elif path.name.lower().endswith(PAIR_SUFFIXES):
        image, notes = _read_pair(path)
    elif is_dicom(path):
        image, notes, facts = read_dicom(path)
    else:
        raise StudyError(f"{path.name}: unknown kind of file; expected {', '.join(SUFFIXES)} or a folder of DICOM")
    checked, mended = _checked(image, path)
    beside = path.with_name(f"{scan_name(path)}.json")
    sidecar, fault = read_user_json(beside) if beside.exists() else ({}, "")
    facts = described_facts(image) | sidecar_facts(sidecar) | facts
    if unlike := unlike_timing(facts):
        raise StudyError(f"{path.name}: {unlike} by its header, not T1w; give the T1w series")
    return ScanFile(scan_name(path), checked, (*notes, *mended, *filter(None, [fault])), facts)


def scan_name(path: Path | str) -> str:
    """File name without the suffixes that `open_scan` knows.

    Parameters
    ----------
    path : path
    """
    name = Path(path).name or Path(path).resolve().name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name) or "scan"


def _read_volume(path: Path) -> tuple[nib.spatialimages.SpatialImage, tuple[str, ...]]:
    try:
        with (gzip.open if is_packed(path) else Path.open)(path, "rb") as stream:
            kind, content, notes = _content(cast(IO[bytes], stream), path)
    except (EOFError, zlib.error, OSError) as error:
        raise StudyError(f"{path.name} is damaged or cut short ({error}); copy it again") from None
    image, more = _loaded(kind, lambda: kind.from_bytes(content), path)
    return image, (*notes, *more)


def _read_pair(path: Path) -> tuple[nib.spatialimages.SpatialImage, tuple[str, ...]]:
    header, voxels = (_half(path, suffix) for suffix in PAIR_SUFFIXES)
    with header.open("rb") as stream:
        start = stream.read(_MAX_BEFORE)
    kind = nib.Nifti1Pair if start[344:347] == b"ni1" else nib.Spm99AnalyzeImage
    _check_size(kind, start, header)
    if voxels.stat().st_size > MAX_BYTES + _MAX_BEHIND:
        raise StudyError(_too_much(voxels, voxels.stat().st_size))
    files = dict(kind.filespec_to_file_map(str(header))) | {"image": nib.FileHolder(str(voxels))}
    files["header"] = nib.FileHolder(str(header))
    image, notes = _loaded(kind, lambda: kind.from_file_map(files), path)
    return image, notes if kind is nib.Nifti1Pair else (*notes, _ANALYZE)


def _half(path: Path, suffix: str) -> Path:
    """The half of a pair with that suffix, in whatever case it is written."""
    found = [file for file in path.parent.iterdir() if file.name.lower() == path.name.lower()[:-4] + suffix]
    if not found:
        raise StudyError(f"{path.name} is half of a pair: its {suffix} is missing; give both files together")
    return found[0]


def _loaded(
    kind: type[nib.spatialimages.SpatialImage], read: Callable[[], nib.spatialimages.SpatialImage], path: Path
) -> tuple[nib.spatialimages.SpatialImage, tuple[str, ...]]:
    try:
        image = read()
        np.asanyarray(image.dataobj)
    except MemoryError:
        raise
    except Exception as error:  # nibabel meets arbitrary bytes here and raises whatever its parsers raise
        raise StudyError(_unreadable(kind, error, path)) from None
    return image, orientation_notes(image, path.name)


def _content(stream: IO[bytes], path: Path) -> tuple[type[nib.spatialimages.SpatialImage], bytes, tuple[str, ...]]:
    """Kind and bytes of a volume, at most as many as its header announces, and notes on what was mended in it."""
    start, notes = mended(stream.read(540))
    if not start:
        raise StudyError(f"{path.name} is empty (0 bytes); copy it again")
    kind = nifti_kind(start) if ".nii" in path.name.lower() else nib.MGHImage
    if kind is None:
        raise StudyError(f"{path.name} is not a readable Nifti1 or Nifti2 image (no such header); copy it again")
    size = _check_size(kind, start, path)
    content = start + stream.read(max(size - len(start), 0))
    behind = 0
    while more := stream.read(2**20):  # to the end, where a compressed file has its checksum
        behind += len(more)
        if behind > _MAX_BEHIND * (16 if kind is nib.MGHImage else 1):
            raise StudyError(f"{path.name} goes on after the {size} bytes that its header announces; convert it again")
    return kind, content, notes


def _check_size(kind: type[nib.spatialimages.SpatialImage], start: bytes, path: Path) -> int:
    """Bytes of the whole volume, from the header at its start."""
    head = kind.header_class
    try:
        header = head(start[: head.template_dtype.itemsize], check=False)
        before = header.get_data_offset()
        voxels = math.prod(int(n) for n in header.get_data_shape()) * header.get_data_dtype().itemsize
    except Exception as error:  # a header of arbitrary bytes
        raise StudyError(_unreadable(kind, error, path)) from None
    if not 0 <= before <= _MAX_BEFORE:
        raise StudyError(
            f"{path.name} puts {before / 2**20:.0f} MiB of header and extensions before its voxels, at most "
            f"{_MAX_BEFORE / 2**20:.0f} are read; convert it again"
        )
    if voxels <= 0:
        raise StudyError(f"{path.name} announces {voxels} bytes of voxels; its header is broken, copy it again")
    if voxels > MAX_BYTES:
        raise StudyError(_too_much(path, voxels))
    return before + voxels


def _unreadable(kind: type[nib.spatialimages.SpatialImage], error: Exception | str, path: Path) -> str:
    return f"{path.name} is not a readable {kind.__name__[:-5]} image ({error}); copy it again"


def _too_much(path: Path, size: int) -> str:
    return (
        f"{path.name} holds {size / 2**30:.1f} GiB of voxels, at most {MAX_BYTES / 2**30:.0f} are read; give one T1w "
        "volume, resampled to 0.5 mm or more"
    )


def _checked(image: nib.spatialimages.SpatialImage, path: Path) -> tuple[nib.Nifti1Image, tuple[str, ...]]:
    if image.get_data_dtype().names:
        raise StudyError(f"{path.name} holds colours; expected the grey values of a T1w scan")
    if image.get_data_dtype().kind not in "biuf":
        raise StudyError(
            f"{path.name} holds values of type {image.get_data_dtype()}; expected the magnitude image of a T1w scan, "
            "with one real number for each voxel"
        )
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
