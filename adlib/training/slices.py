"""From preprocessed scans to the network's input: one array of slices and one table that names them."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap

from adlib.imaging.volume import extract_slice, fit_square
from adlib.parallel.mapping import map_scans
from adlib.preprocess.derivatives import load_preprocessed
from adlib.preprocess.intensity import LANDMARKS, standard_slices
from adlib.sources.image_files import SEPARATOR, read_plane
from adlib.study.params import SLAB, InputParams, StudyParams
from adlib.study.records import FEATURES, MANIFEST, SLICES, StudyError, atomic_path, read_table, write_table
from adlib.training.slabs import FIELD, read_slab, slab_grid

CLIP_SD = 5.0
TOGETHER = 2000  # scans whose slices are held in memory at once
PLANES = ("axial", "coronal", "sagittal")  # the channels of three_planes


def scan_slices(t1w: np.ndarray, affine: np.ndarray, params: InputParams, zoom: float = 1.0) -> np.ndarray:
    """Cut the network's slices out of a preprocessed scan.

    Parameters
    ----------
    t1w : (X, Y, Z) float32
        Normalised intensities in MNI152 space, 0 outside the brain.
    affine : (4, 4) float64
        Voxel indices to MNI152 mm.
    params : InputParams
        Plane, positions and channel spacing in mm, size in pixels.
    zoom : float
        Pixels of a slice for each voxel.

    Returns
    -------
    (n, 3, size, size) float32
        One item per position; its channels are the slice behind, at and before the position. For three_planes one item
        of an axial, a coronal and a sagittal slice.
    """

    def cut(plane: str, mm: float) -> np.ndarray:
        return fit_square(extract_slice(t1w, affine, plane, mm), params.size, zoom)

    if params.plane == "three_planes":
        items = [[cut(plane, mm) for plane, mm in zip(PLANES, params.positions_mm, strict=True)]]
    else:
        offsets = (-params.channel_spacing_mm, 0.0, params.channel_spacing_mm)
        items = [[cut(params.plane, mm + offset) for offset in offsets] for mm in params.positions_mm]
    return np.array(items, dtype=np.float32).clip(-CLIP_SD, CLIP_SD)


def slab_slices(slab: np.ndarray, params: InputParams) -> np.ndarray:
    """Cut the network's slices out of a slab, so that `slabs.FIELD` fills the input.

    Parameters
    ----------
    slab : (176, 10, 176) float32
        From `slabs.read_slab` or, for a preprocessed scan, `slabs.cut_slab`.
    params : InputParams

    Returns
    -------
    (n, 3, size, size) float32
        As `scan_slices`.
    """
    coronal = params.model_copy(update={"plane": "coronal"})
    return scan_slices(slab, slab_grid(), coronal, zoom=params.size / FIELD)


def plane_slices(path: str, params: InputParams) -> np.ndarray:
    """Take the 2-D slices of one scan: a slab, three planes as the channels of one item, or every image as an item.

    A slab is cut at the params' positions like a scan, see `slab_slices`. Otherwise the background level is taken as
    the image's most frequent value, and intensities are standardised over the foreground.

    Parameters
    ----------
    path : str
        Image files joined by ``|``.
    params : InputParams

    Returns
    -------
    (n, 3, size, size) float32
        n is the number of positions for coronal_2d, 1 for three_planes_2d, the number of images for images_2d.

    Raises
    ------
    StudyError
        If there are not three images for three planes, one is not 2-D or is constant, or the slab cannot be read.
    """
    if params.plane == SLAB:
        return slab_slices(read_slab(path), params)
    names = path.split(SEPARATOR)
    if params.plane == "images_2d":
        return np.stack([np.stack([_plane(Path(name), params.size)] * 3) for name in names])
    if len(names) != 3:
        raise StudyError(f"three 2-D slices make one item, got {len(names)}: {path}")
    return np.stack([_plane(Path(name), params.size) for name in names])[None]


def _plane(path: Path, size: int) -> np.ndarray:
    image = read_plane(path)
    levels, counts = np.unique(image, return_counts=True)
    background = levels[counts.argmax()]
    foreground = image > background + 0.1 * (image.max() - background)
    if not foreground.any() or image[foreground].std() == 0:
        raise StudyError(f"{path} is constant; an image of a brain was expected")
    scaled = (image - image[foreground].mean()) / image[foreground].std()
    scaled = np.where(image > background + 3, scaled, scaled[~foreground].min())
    scaled -= scaled.min()
    upright = scaled.T[::-1]
    return np.clip(fit_square(np.ascontiguousarray(upright), size, zoom=size / 256), 0, 2 * CLIP_SD)


def build_slices(params: StudyParams) -> pd.DataFrame:
    """Write `slices.npy` (rows, 3, size, size) float16 and `slices.tsv` for all scans that passed preprocessing.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    DataFrame
        Schema `records.SLICES`, in the order of the array's rows.

    Raises
    ------
    StudyError
        If no scan passed preprocessing.
    """
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST)
    features = read_table(params.folder / "features.tsv", FEATURES)
    usable = manifest[manifest["scan_id"].isin(features.loc[features["qc_verdict"] != "fail", "scan_id"])]
    if usable.empty:
        raise StudyError(f"no scan of {params.folder / 'features.tsv'} passed preprocessing; look at its qc_reasons")
    scans = usable.to_dict("records")
    positions = params.input.positions_mm if params.input.plane in (*PLANES, SLAB) else [None]
    _write_slices(scans, len(positions), params)
    table = pd.DataFrame(list(enumerate(positions)) * len(scans), columns=["slice", "position_mm"])
    names = usable[["participant_id", "session_id", "scan_id", "diagnosis"]]
    table = table.join(names.loc[names.index.repeat(len(positions))].reset_index(drop=True))
    table["row"] = np.arange(len(table))
    return write_table(table, params.folder / "slices.tsv", SLICES)


def _write_slices(scans: list[dict[str, Any]], items: int, params: StudyParams) -> None:
    cut = partial(_slices_of, input_params=params.input, derivatives=params.folder / "derivatives")
    shape = (len(scans) * items, 3, params.input.size, params.input.size)
    with atomic_path(params.folder / "slices.npy") as temporary:
        stored = open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        for start in range(0, len(scans), TOGETHER):
            arrays = map_scans(cut, scans[start : start + TOGETHER], pool=params.pool, label="cutting slices")
            stored[start * items : (start + len(arrays)) * items] = np.concatenate(arrays)
        stored.flush()


def _slices_of(scan: dict[str, Any], input_params: InputParams, derivatives: Path) -> np.ndarray:
    if input_params.flat:
        return plane_slices(scan["path"], input_params).astype(np.float16)
    done = load_preprocessed(scan, derivatives, parts=())
    return scan_slices(done.t1w, done.affine, input_params).astype(np.float16)


def check_planes(params: StudyParams) -> pd.DataFrame:
    """Write `features.tsv` of a 2-D study: which sessions can be read, with the volumes its source publishes.

    A 2-D slice has no orientation, mask or tissue volume to compute, so the steps of a 3-D scan do not apply.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    DataFrame
        Schema `records.FEATURES`.
    """
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST)
    fault = partial(_plane_fault, params=params.input)
    reasons = map_scans(fault, manifest["path"], pool=params.pool, label="reading slices", chunksize=64)
    table = manifest[["participant_id", "session_id", "scan_id"]].assign(
        qc_verdict=["fail" if reason else "pass" for reason in reasons], qc_reasons=reasons
    )
    volumes = [name for name in manifest.columns if name in ("nbv", "icv_ml")]
    return write_table(table.join(manifest[volumes]), params.folder / "features.tsv", FEATURES)


def _plane_fault(path: str, params: InputParams) -> str | None:
    try:
        plane_slices(path, params)
    except StudyError as error:
        return str(error)
    return None


def scan_percentiles(params: StudyParams) -> pd.DataFrame:
    """Intensities of each scan's brain at `intensity.LANDMARKS`.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    DataFrame
        One row per scan, by scan_id; scans without percentiles are left out.
    """
    features = read_table(params.folder / "features.tsv", FEATURES).set_index("scan_id")
    return features[[f"intensity_p{n}" for n in LANDMARKS]].dropna()


def to_landmarks(slices: np.ndarray, scans: pd.Series, scan_values: pd.DataFrame, standard: np.ndarray) -> np.ndarray:
    """Take the slices of many scans to one standard scale.

    Parameters
    ----------
    slices : (rows, 3, size, size) float16
    scans : (rows,) Series of str
        Whose slice each row is.
    scan_values : DataFrame
        From `scan_percentiles`.
    standard : (len(LANDMARKS),) array
        From `intensity.fit_landmarks` on training scans.

    Returns
    -------
    (rows, 3, size, size) float16
    """
    result = np.empty(slices.shape, np.float16)
    for scan, rows in scans.reset_index(drop=True).groupby(scans.to_numpy()).groups.items():
        result[rows] = standard_slices(slices[rows], scan_values.loc[scan].to_numpy(), standard)
    return result


def load_slices(params: StudyParams) -> tuple[np.ndarray, pd.DataFrame]:
    """Open the study's slices without reading them into memory.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    slices : (rows, 3, size, size) float16, memory-mapped
    table : DataFrame
        Schema `records.SLICES`.

    Raises
    ------
    StudyError
        If array and table do not belong together.
    """
    table = read_table(params.folder / "slices.tsv", SLICES)
    path = params.folder / "slices.npy"
    if not path.is_file():
        raise StudyError(f"{path} does not exist; run step 02")
    slices = open_memmap(path, mode="r")
    if len(slices) != len(table):
        raise StudyError(f"{path} has {len(slices)} rows but slices.tsv {len(table)}; run step 02 again")
    return slices, table
