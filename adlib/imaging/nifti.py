"""Headers of images with slips that leave the image itself whole: mended on reading, each with a note."""

import gzip
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

_KINDS = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # by header size, which is what the first four bytes hold
_GZIP_MAGIC = b"\x1f\x8b"
_PACKED = (".gz", ".mgz")
_BEHIND = 4  # bytes of the extension flag between header and voxels
_START = 544
_UNITS = {1: ("metres", 1e3), 3: ("microns", 1e-3)}  # codes of xyzt_units; mm in one of them
_EDGES_MM = (0.01, 30.0)  # of voxels, in which units are believed
_PADDED = 0.005  # share of voxels
_ROUNDING = 1e-3  # of a quaternion's length
_UNSTATED_MGH = "the MGH header states no orientation (goodRASFlag 0): FreeSurfer's default, coronal slices, is taken"


def load(path: Path | str) -> tuple[Any, tuple[str, ...]]:
    """Load an image as nibabel does, after mending its header; whether it is compressed is read from its first bytes.

    Parameters
    ----------
    path : path

    Returns
    -------
    image : nibabel image
    notes : tuple of str
        What was mended.
    """
    with Path(path).open("rb") as stream:
        start = stream.read(_START)
        packed = start.startswith(_GZIP_MAGIC)
        if packed != os.fspath(path).lower().endswith(_PACKED):
            return _misnamed(path, packed)
        if packed:
            stream.seek(0)
            start = gzip.GzipFile(fileobj=stream).read(_START)
    whole, notes = mended(start)
    if whole == start:
        return nib.load(path), notes
    kind = nifti_kind(whole)
    header = kind.header_class(whole[: kind.header_class.template_dtype.itemsize], check=False)
    proxy = nib.arrayproxy.ArrayProxy(os.fspath(path), header)
    return kind(proxy, header.get_best_affine(), header), notes


def is_packed(path: Path | str) -> bool:
    """Whether a file is compressed by gzip, whatever its name.

    Parameters
    ----------
    path : path
    """
    with Path(path).open("rb") as stream:
        return stream.read(2) == _GZIP_MAGIC


def _misnamed(path: Path | str, packed: bool) -> tuple[Any, tuple[str, ...]]:
    with (gzip.open if packed else open)(path, "rb") as stream:
        content = stream.read()
    whole, notes = mended(content)
    kind = nifti_kind(whole) or nib.MGHImage
    return kind.from_bytes(whole), (*notes, f"its content is {'' if packed else 'not '}compressed, unlike its name")


def mended(start: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The first bytes of an image file with the slips of its header mended, and a note on each.

    A slope without intercept, a fourth dimension of 0, voxels that begin inside the header, a quaternion that is a
    rounding error too long, units of metres or microns.

    Parameters
    ----------
    start : bytes
        The header at least; other bytes than those of a NIfTI file stay.

    Returns
    -------
    start : bytes
        Equally many.
    notes : tuple of str
    """
    if start[:4] == b"\0\0\0\1":
        return start, (_UNSTATED_MGH,) if start[28:30] == b"\0\0" else ()
    kind = nifti_kind(start)
    size = kind.header_class.template_dtype.itemsize if kind else 0
    if kind is None or len(start) < size:
        return start, ()
    header = kind.header_class(start[:size], check=False)
    fields = header.structarr
    notes = [*_dimensions(fields), *_scaling(fields, size + _BEHIND), *_rotation(fields), *_units(fields)]
    return header.binaryblock + start[size:], tuple(notes)


def nifti_kind(start: bytes) -> Any:
    """The class of image whose header begins so; None for other bytes than those of a NIfTI file.

    Parameters
    ----------
    start : bytes
    """
    sizes = (int.from_bytes(start[:4], order) for order in ("little", "big"))
    return next((_KINDS[size] for size in sizes if size in _KINDS), None)


def _dimensions(fields: np.ndarray) -> list[str]:
    dim = fields["dim"]
    empty = [axis for axis in range(4, min(int(dim[0]), 7) + 1) if dim[axis] == 0]
    dim[empty] = 1
    return ["the header counts 0 volumes: one is read"] if empty else []


def _scaling(fields: np.ndarray, offset: int) -> list[str]:
    notes = []
    if np.isfinite(fields["scl_slope"]) and fields["scl_slope"] != 0 and not np.isfinite(fields["scl_inter"]):
        fields["scl_inter"] = 0
        notes.append("the header's intercept is no number: 0 is taken")
    if fields["magic"].item().startswith(b"n+") and 0 <= fields["vox_offset"] < offset:
        fields["vox_offset"] = offset
        notes.append(f"the header puts the voxels inside itself: they are read from byte {offset}")
    return notes


def _rotation(fields: np.ndarray) -> list[str]:
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = float(np.sqrt(sum(float(fields[name]) ** 2 for name in names)))
    if not 1 < length < 1 + _ROUNDING:
        return []
    for name in names:
        fields[name] = fields[name] / length * (1 - np.finfo(np.float32).eps)
    return []


def _units(fields: np.ndarray) -> list[str]:
    name, scale = _UNITS.get(int(fields["xyzt_units"]) % 8, ("", 1.0))
    edges = np.abs(fields["pixdim"][1:4]) * scale
    if not name or not np.all((edges > _EDGES_MM[0]) & (edges < _EDGES_MM[1])):
        return []
    fields["pixdim"][1:4] *= scale
    for field in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
        fields[field] = fields[field] * scale
    fields["xyzt_units"] = int(fields["xyzt_units"]) // 8 * 8 + 2
    return [f"the header is in {name}: read as mm"]


def without_padding(volume: np.ndarray) -> np.ndarray:
    """A volume whose padding, one negative value far below all others, is replaced by the lowest of these.

    Scanners fill what lies outside a cylindrical field of view with -2000 or -32768.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        Finite.

    Returns
    -------
    (X, Y, Z) float32
    """
    low = volume.min()
    inside = volume > low
    if low >= 0 or inside.mean() > 1 - _PADDED or not inside.any():
        return volume
    floor, high = volume[inside].min(), np.percentile(volume[inside], 99)
    padded = floor >= 0 or floor - low > (high - floor) / 2
    return np.where(inside, volume, floor) if padded else volume
