"""What the pixels of a scan say of it: a digest, what is wrong with them, and a thumbnail to compare by."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from adlib.imaging.volume import to_canonical
from adlib.parallel.mapping import map_scans
from adlib.sources.image_files import PICTURES, SEPARATOR, read_plane
from adlib.sources.scanfile import VOLUME_SUFFIXES
from adlib.study.exec_params import EVERY_CORE, Pool
from adlib.study.records import TryAgain, is_passing

EDGE_2D, EDGE_3D = 32, 20
MAX_PLANES = 3
REACH = 1.9  # half edge of the window, in root-mean-square radii of the foreground; a disc ends at 1.41
FOREGROUND = 0.15  # of the way from the 1st to the 99th percentile of the values
COLUMNS = ("pixels_sha256", "nan_share", "constant", "thumbnail", "fault")


def pixel_facts(listed: pd.DataFrame, *, pool: Pool = EVERY_CORE) -> pd.DataFrame:
    """Read every scan once and keep what the audit compares.

    Parameters
    ----------
    listed : DataFrame
        Schema `records.LISTING`; rows that the source left out are not read.
    pool : Pool
        See `compute.map_scans`.

    Returns
    -------
    DataFrame
        Indexed as `listed`. ``pixels_sha256``: digest of the values, whatever the compression and the header;
        ``nan_share``: share of values that are not finite; ``constant``: whether all are equal; ``thumbnail``: see
        `thumbnail`; ``fault``: why the scan could not be read. All empty where it was not read.

    Raises
    ------
    TryAgain
        If the disk does not give a file.
    """
    wanted = listed["path"].notna() & (listed["excluded"].isna() if "excluded" in listed else True)
    facts = map_scans(_facts, list(listed.loc[wanted, "path"]), pool=pool, label="comparing pixels", lost=_lost)
    table = pd.DataFrame(None, index=listed.index, columns=list(COLUMNS), dtype=object)
    for name in COLUMNS:
        values = np.empty(len(facts), dtype=object)
        values[:] = [found.get(name) for found in facts]
        column = np.full(len(listed), None, dtype=object)
        column[wanted.to_numpy()] = values
        table[name] = pd.Series(column, index=listed.index, dtype=object)
    return table.assign(nan_share=table["nan_share"].astype(float))


def _lost(_path: str, reason: str) -> dict[str, Any]:
    return {"fault": f"reading it never ended: {reason}"}


def _facts(path: str) -> dict[str, Any]:
    try:
        arrays = _read(path.split(SEPARATOR))
        values = np.concatenate([array.ravel() for array in arrays])
        finite = np.isfinite(values)
        if not finite.all():
            arrays = [np.where(np.isfinite(array), array, np.float32(0)) for array in arrays]
        constant = not finite.any() or bool(np.ptp(values[finite]) == 0)
        return {
            "pixels_sha256": _digest(arrays),
            "nan_share": float(1 - finite.mean()),
            "constant": constant,
            "thumbnail": None if constant else np.stack([thumbnail(array) for array in arrays]).astype(np.float16),
        }
    except Exception as error:  # decoders meet arbitrary bytes here and raise whatever they raise
        if isinstance(error, OSError) and is_passing(error):
            raise TryAgain(
                f"{path} cannot be read ({error}); see to the disk and run again, or leave the scan out: what is not "
                "compared with the others could be a copy of one"
            ) from None
        return {"fault": f"{type(error).__name__}: {error}"[:200]}


def _read(files: list[str]) -> list[np.ndarray]:
    """The planes of a scan, or one volume in a list; a stack of more planes than channels is a volume."""
    if len(files) == 1 and not files[0].lower().endswith(PICTURES):
        return [_volume(Path(files[0]))]
    planes = [read_plane(name) for name in files]
    return planes if len(planes) <= MAX_PLANES else [np.stack(planes, axis=-1)]


def _volume(path: Path) -> np.ndarray:
    """(X, Y, Z) float32 in the nearest right-anterior-superior order, or (X, Y) where the file holds one slice."""
    if not path.name.lower().endswith(VOLUME_SUFFIXES):
        raise ValueError("no image file")
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    data = (np.abs(data) if np.iscomplexobj(data) else data).astype(np.float32, copy=False)
    data = data[..., 0] if data.ndim == 4 else data
    flat = np.squeeze(data)
    if flat.ndim == 2:
        return flat
    try:
        return to_canonical(data, image.affine)[0]
    except (ValueError, np.linalg.LinAlgError):
        return data


def _digest(arrays: list[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(str(array.shape).encode())
        found.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    return found.hexdigest()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Sample an image coarsely in a window that follows its foreground.

    The window is centred on the foreground's centre of mass and as wide as its spread asks for, so that shifting,
    padding and resizing an image change little.

    Parameters
    ----------
    image : (X, Y) or (X, Y, Z) float32
        Finite and not constant.

    Returns
    -------
    (32, 32) or (20, 20, 20) float32
    """
    low, high = np.percentile(image, (1, 99))
    low, high = (low, high) if high > low else (image.min(), image.max())
    mask = image > low + FOREGROUND * (high - low)
    places = [mask.sum(axis=tuple(set(range(image.ndim)) - {axis})) for axis in range(image.ndim)]
    centre = np.array([np.average(np.arange(len(counts)), weights=counts) for counts in places])
    squares = [(np.arange(len(counts)) - middle) ** 2 for counts, middle in zip(places, centre, strict=True)]
    spread = np.mean([np.average(square, weights=counts) for square, counts in zip(squares, places, strict=True)])
    edge = EDGE_2D if image.ndim == 2 else EDGE_3D
    step = max(2 * REACH * np.sqrt(2 * spread) / edge, 1e-3)
    smooth = ndimage.uniform_filter(image, 2 * round((step - 1) / 2) + 1 if step > 1 else 1)
    sample = partial(ndimage.affine_transform, order=1, cval=low, output_shape=(edge,) * image.ndim)
    return sample(smooth, np.full(image.ndim, step), centre - step * (edge - 1) / 2).astype(np.float32)
