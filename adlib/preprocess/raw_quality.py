"""Quality of the scan as it came: signal in the air, ghosts, fold-over, black and missing slices."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from adlib.imaging.atlas import coordinates, template
from adlib.imaging.volume import resample, voxel_sizes

MAP_MM = 4.0
DEPTH_MM = 5.0  # below the brain's surface, where folds and an imperfect pose do not matter
MIDLINE_MM = 6.0  # the cleft between the hemispheres looks like a missing slice
HEAD_MM = 15.0  # from the brain to the skin
AIR_MM = 25.0  # from the brain, beyond any scalp
SKULL_BASE_MM = -20.0  # MNI height above which there is neither face nor neck nor ear
LEAST = 150  # points that a mean is taken of
SIGNAL = 0.25  # of the brain's level: more than noise
EMPTY = 0.5  # share of the air with one exact value, from which it was wiped and says nothing
NOTHING, DEEP, HEAD, AIR = range(4)


def scan_values(volume: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray) -> dict[str, float]:
    """What the scan shows before it is resampled.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        The scan in canonical orientation.
    affine : (4, 4) array
        Voxel indices to world, RAS mm.
    scan_to_mni : (4, 4) array

    Returns
    -------
    dict of str to float
        ``qc_air``: share of the air above the skull base that holds signal. ``qc_ghost``: see `_ghost`; both are left
        out where the air was wiped or never was in the field of view, as around an extracted brain. ``qc_wrap``: see
        `_wrap`. ``qc_dark``, ``qc_jump``: see `_slices`.

    References
    ----------
    Mortamet et al. 2009, doi:10.1002/mrm.21992 (artefacts in the air, QI1);
    Esteban et al. 2017, doi:10.1371/journal.pone.0184661 (MRIQC).
    """
    steps = np.maximum(1, np.round(MAP_MM / voxel_sizes(affine))).astype(int)
    points, place = _thinned(volume, affine, scan_to_mni, steps)
    lowest = points.min()
    points = points - lowest
    level = _level(points, place)
    values = {"qc_wrap": _wrap(points, level)}
    air = points[place == AIR]
    if air.size >= LEAST and (air == np.median(air)).mean() < EMPTY:
        values["qc_air"] = float((air > SIGNAL * level).mean())
        values["qc_ghost"] = _ghost(points, place)
    return values | _slices(volume, lowest, affine, scan_to_mni, steps)


def _thinned(
    volume: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One voxel of each block of `steps` voxels, and where in a head it lies."""
    points = volume[tuple(slice(None, None, int(step)) for step in steps)]
    places, grid = _places()
    onto = affine @ np.diag([*steps, 1.0])
    return points, resample(places, grid, points.shape, onto, scan_to_mni, "nearest")


@cache
def _places() -> tuple[np.ndarray, np.ndarray]:
    """A map (uint8) of deep brain, head and air in MNI152 space, and its affine."""
    base, spare = template(MAP_MM), round(100 / MAP_MM)
    mask, affine = np.pad(base.mask, spare), base.affine.copy()
    affine[:3, 3] -= spare * MAP_MM
    x, _, z = coordinates(mask.shape, affine)
    away = ndimage.distance_transform_edt(~mask, sampling=MAP_MM)
    depth = ndimage.distance_transform_edt(mask, sampling=MAP_MM)
    places = np.full(mask.shape, NOTHING, np.uint8)
    places[(away > AIR_MM) & (z > SKULL_BASE_MM)] = AIR
    places[away < HEAD_MM] = HEAD
    places[(depth > DEPTH_MM) & (np.abs(x) > MIDLINE_MM)] = DEEP
    return places, affine


def _level(points: np.ndarray, place: np.ndarray) -> float:
    """Brightness of the brain, in a scan whose darkest voxel is 0."""
    deep = points[place == DEEP]
    return float(np.median(deep)) if deep.size else float(points.max())


def _ghost(points: np.ndarray, place: np.ndarray) -> float:
    """Ghosts of the head: the air beside it along one axis against the air that no axis takes through the head.

    The ratio of the largest to the smallest root mean square, 1 for noise alone. Motion, flow and periodic errors of
    the phase repeat the head along the phase direction, whichever that is. What is exactly as dark as can be (the
    corners that a resampled scan never saw) does not count.

    References
    ----------
    Giannelli et al. 2010, doi:10.1120/jacmp.v11i4.3237 (ghost-to-signal ratio).
    """
    head, air = (place == HEAD) | (place == DEEP), (place == AIR) & (points > 0)
    shadows = [np.broadcast_to(head.any(axis=axis, keepdims=True), head.shape) for axis in range(3)]
    zones = [air & (sum(shadows) == 0), *(air & shadow for shadow in shadows)]
    power = [float(np.mean(points[zone].astype(np.float64) ** 2)) for zone in zones if zone.sum() >= LEAST]
    return float(np.sqrt(max(power) / max(min(power), 1e-12))) if len(power) > 1 else 1.0


def _wrap(points: np.ndarray, level: float) -> float:
    """Fold-over: the largest share of signal in the emptier of two opposite faces of the field of view.

    A head ends before one of two opposite faces; where it goes through both, it was cut or comes in again.
    """
    faces = [[np.take(points, end, axis=axis) for end in (0, -1)] for axis in range(3)]
    return float(max(min((face > SIGNAL * level).mean() for face in pair) for pair in faces))


def _slices(
    volume: np.ndarray, lowest: np.float32, affine: np.ndarray, scan_to_mni: np.ndarray, steps: np.ndarray
) -> dict[str, float]:
    """Missing slices, from the deep brain of every slice along each array axis.

    ``qc_dark``: the mean of the darkest slice against that of the median slice. ``qc_jump``: the largest mean change
    from a slice to the next, against the median change of the slices around.
    """
    darkest, jumps = 1.0, 1.0
    for axis in range(3):
        thin = np.where(np.arange(3) == axis, 1, steps)
        points, place = _thinned(volume, affine, scan_to_mni, thin)
        points, deep = np.moveaxis(points - lowest, axis, 0), np.moveaxis(place == DEEP, axis, 0)
        level, change = _profiles(points, deep)
        if level.size < 5:
            continue
        darkest = min(darkest, float(level.min() / max(np.median(level), 1e-9)))
        around = ndimage.median_filter(change, 15, mode="nearest")
        jumps = max(jumps, float((change / np.maximum(around, 1e-9)).max()))
    return {"qc_dark": darkest, "qc_jump": jumps}


def _profiles(points: np.ndarray, deep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean level of each slice (along the first axis) that holds enough deep brain, and relative change to the next."""
    counts = deep.sum(axis=(1, 2))
    both = deep[1:] & deep[:-1]
    shared = both.sum(axis=(1, 2))
    enough, joint = (n >= max(LEAST / 2, 0.3 * n.max(initial=0)) for n in (counts, shared))
    level = (points * deep).sum(axis=(1, 2), dtype=np.float64)[enough] / counts[enough]
    change = (np.abs(np.diff(points, axis=0)) * both).sum(axis=(1, 2), dtype=np.float64)[joint] / shared[joint]
    return level, change / max(float(np.median(level)) if level.size else 1.0, 1e-9)
