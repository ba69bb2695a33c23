"""Quality control: measures of a scan before and after processing, their limits, and the verdict."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy import ndimage

from adlib.imaging.atlas import Template, coordinates, template
from adlib.imaging.volume import block_mean, resample, voxel_ml, voxel_sizes

WORK_MM = 2.0  # finer grids are averaged to it, so that values at 1 and 2 mm compare
PURE = 0.9  # fraction from which a voxel counts as one tissue
LEAST_VOXELS = 100  # for a statistic
MAP_MM = 4.0  # voxel edge at which the whole scan is sampled
DEPTH_MM = 5.0  # deep brain lies this far below the surface, clear of folds and of an imperfect pose
MIDLINE_MM = 6.0  # and this far from the cleft between the hemispheres, which resembles a missing slice
HEAD_MM = 15.0  # distance of the skin from the brain
AIR_MM = 25.0  # distance of air from the brain, beyond any scalp
SKULL_BASE_MM = -20.0  # MNI152 height above which there is neither face nor neck nor ear
LEAST_POINTS = 150  # for a mean
SIGNAL = 0.25  # of the brain's level: more than noise
WIPED = 0.5  # share of the air with one exact value from which the air was wiped
NOTHING, DEEP, HEAD, AIR = range(4)
INFINITE = float("inf")
ANY = (-INFINITE, INFINITE)
# Written by `python benchmarks/preprocessing.py quality --learn` from simulated heads that the benchmark does not use.
# Between 50 clean heads and 50 with faults.
LEARNT = {
    "qc_snr": (11.3, INFINITE),
    "qc_edge": (0.273, INFINITE),
    "qc_ghost": (-INFINITE, 1.25),
    "qc_air": (-INFINITE, 0.0228),
    "qc_wrap": (-INFINITE, 0.158),
    "qc_jump": (-INFINITE, 1.98),
}


@dataclass(frozen=True)
class Limit:
    """Limits of a QC value: ``check`` outside `typical`, ``fail`` outside `usable`."""

    typical: tuple[float, float]
    usable: tuple[float, float]
    meaning: str


# Limits of the likeness to the template, which simulated heads are made of, and of physics and anatomy are set by hand.
LIMITS = {
    # Real heads with wide ventricles reach 0.33.
    "qc_similarity": Limit((0.4, 1.0), (0.25, 1.0), "correlation with the template inside its brain"),
    "qc_mask_dice": Limit((0.88, 1.0), (0.8, 1.0), "overlap of the brain mask with the template's"),
    "qc_mask_ml": Limit((950.0, 2200.0), (700.0, 2600.0), "volume of the brain mask, to the inner skull, ml"),
    "qc_coverage": Limit((0.98, 1.0), (0.85, 1.0), "share of the template's brain inside the field of view"),
    "qc_scale": Limit((0.75, 1.3), (0.6, 1.6), "edge of the head against the template's"),
    "qc_cnr": Limit((1.5, INFINITE), (0.8, INFINITE), "contrast of white and grey matter over their spread"),
    "qc_order": Limit((0.05, 1.0), (0.0, 1.0), "least step from fluid to grey to white matter, over white matter"),
    "qc_symmetry": Limit((0.6, 1.0), (0.4, 1.0), "correlation of the brain with its mirror image"),
    "qc_asymmetry": Limit((0.0, 0.06), (0.0, 0.25), "difference of left and right tissue over their sum"),
    "qc_snr": Limit(LEARNT["qc_snr"], ANY, "mean of white matter over its spread"),
    "qc_edge": Limit(LEARNT["qc_edge"], ANY, "steepness between white and grey matter: low where motion blurs"),
    "qc_ghost": Limit(LEARNT["qc_ghost"], ANY, "noise next to the head over noise in the corners: ghosts of motion"),
    "qc_air": Limit(LEARNT["qc_air"], ANY, "share of the air above the skull base that holds signal"),
    "qc_wrap": Limit(LEARNT["qc_wrap"], ANY, "signal on opposite faces of the field of view: cut or folded over"),
    "qc_dark": Limit((0.45, INFINITE), (0.2, INFINITE), "darkest slice of the brain over the median slice"),
    "qc_jump": Limit(LEARNT["qc_jump"], ANY, "largest change between two slices over those around: missing slices"),
}
SKIPPED = {  # reasons for which a value is missing, as steps of the scan
    "qc_ghost": "air quality not measured: there is no noise around the head, as in an extracted brain",
    "qc_scale": "head size not measured: the scan has the template's size",
}
OF_SIZE = ("qc_mask_ml", "qc_scale")  # not measured where the source moved the scan to MNI152 space


def measure_quality(
    raw: dict[str, float],
    scan_to_mni: np.ndarray,
    corrected: np.ndarray,
    mask: np.ndarray,
    covered: np.ndarray,
    tissues: np.ndarray,
    base: Template,
    *,
    registered: bool = False,
) -> dict[str, float]:
    """Quality values of a processed scan, by the names in `LIMITS`.

    Parameters
    ----------
    raw : dict of str to float
        `raw_quality` of the scan, and its ``qc_order``.
    scan_to_mni : (4, 4) array
        World to world, mm.
    corrected : (X, Y, Z) float32
        Bias-corrected head on the template's grid.
    mask, covered : (X, Y, Z) bool
        Brain; field of view of the scan.
    tissues : (X, Y, Z, 3) float32
        GM, WM, CSF fractions.
    base : Template
    registered : bool
        The source moved the scan to MNI152 space.

    Returns
    -------
    dict of str to float
        Without `OF_SIZE` for a registered scan, and without ``qc_air`` and ``qc_ghost`` where there is no air.
    """
    determinant = abs(np.linalg.det(scan_to_mni[:3, :3]))
    values = {
        "qc_mask_dice": float(2 * (mask & base.mask).sum() / (mask.sum() + base.mask.sum())),
        "qc_mask_ml": float(mask.sum() * voxel_ml(base.affine) / determinant),
        "qc_coverage": float((base.mask & covered).sum() / base.mask.sum()),
        "qc_scale": float(1 / np.cbrt(determinant)),
    }
    values |= _brain_values(corrected, covered, tissues, base) | raw
    return {name: value for name, value in values.items() if not (registered and name in OF_SIZE)}


def verdict(values: dict[str, float]) -> tuple[str, tuple[str, ...]]:
    """Verdict on a scan: the worst grade of its values; a value that is missing or has no limits is not graded.

    Parameters
    ----------
    values : dict of str to float
        From `measure_quality`.

    Returns
    -------
    verdict : str
        ``pass``, ``check`` (used, to be inspected) or ``fail`` (excluded).
    reasons : tuple of str
        One for each value outside its limits, failures first.
    """
    reasons: dict[str, list[str]] = {"fail": [], "check": [], "pass": []}
    for name in (name for name in values if name in LIMITS):
        reason = f"{name} = {values[name]:.4g} (expected {limit_text(name)}): {LIMITS[name].meaning}"
        reasons[grade(name, values[name])].append(reason)
    worst = next((level for level in ("fail", "check") if reasons[level]), "pass")
    return worst, (*reasons["fail"], *reasons["check"])


def limit_text(name: str) -> str:
    """Typical range of a QC value, such as ``0.5 to 1`` or ``at least 1.5``.

    Parameters
    ----------
    name : str
        A key of `LIMITS`.

    Returns
    -------
    str
    """
    low, high = LIMITS[name].typical
    if high == INFINITE:
        return f"at least {low:g}"
    return f"at most {high:g}" if low == -INFINITE else f"{low:g} to {high:g}"


def grade(name: str, value: float) -> str:
    """Grade of one QC value.

    Parameters
    ----------
    name : str
        A value without an entry in `LIMITS` passes.
    value : float

    Returns
    -------
    str
        ``pass``, ``check`` or ``fail``.
    """
    if name not in LIMITS:
        return "pass"
    limit = LIMITS[name]
    if not limit.usable[0] <= value <= limit.usable[1]:
        return "fail"
    return "pass" if limit.typical[0] <= value <= limit.typical[1] else "check"


def ranked(features: pd.DataFrame) -> pd.DataFrame:
    """Order the scans of a cohort by quality, worst first.

    The margin of a value is its distance from the nearest limit over that of the cohort's median: 1 for a typical scan,
    0 on the limit, negative beyond it. The margin of a scan is that of its worst value.

    Parameters
    ----------
    features : DataFrame
        By `records.FEATURES`, with qc_verdict and the QC values.

    Returns
    -------
    DataFrame
        The same rows: verdict fail, then check, then pass, each by margin. New columns: ``qc_worst``, the value with
        the least margin, empty for scans without values; ``qc_margin``; ``qc_percentile``, the share of the cohort, in
        percent, whose margin in this value is no larger.
    """
    names = [name for name in LIMITS if name in features and features[name].notna().any()]
    margins = pd.DataFrame({name: _margins(features[name], LIMITS[name]) for name in names}, features.index)
    table = features.assign(qc_worst=None, qc_margin=np.nan, qc_percentile=np.nan)
    for row, values in margins.dropna(how="all").iterrows():
        worst = values.idxmin()
        place = 100 * (margins[worst] <= values[worst]).sum() / margins[worst].notna().sum()
        table.loc[row, ["qc_worst", "qc_margin", "qc_percentile"]] = [worst, values[worst], place]
    order = table["qc_verdict"].map({"fail": 0, "check": 1, "pass": 2})
    return table.assign(_order=order).sort_values(["_order", "qc_margin"], na_position="first").drop(columns="_order")


def _margins(values: pd.Series, limit: Limit) -> pd.Series:
    """Signed distance to the nearer limit over that of the median; the end of a scale is no limit."""
    sides = []
    for bound, end, sign in zip(limit.typical, limit.usable, (1, -1), strict=True):
        room = sign * (values.median() - bound)
        if np.isfinite(bound) and bound != end and room > 0:
            sides.append(sign * (values - bound) / room)
    return pd.concat(sides, axis=1).min(axis=1) if sides else pd.Series(np.nan, values.index)


def _brain_values(corrected: np.ndarray, covered: np.ndarray, tissues: np.ndarray, base: Template) -> dict[str, float]:
    """Values measured on the template's grid, at `WORK_MM` where the grid is finer.

    ``qc_snr``, ``qc_cnr`` as in Magnotta & Friedman 2006 (doi:10.1007/s10278-006-0264-x), with the spread inside the
    tissues instead of in the air, so that they also hold for extracted brains; ``qc_edge``: median slope, per voxel,
    where white matter meets its surroundings, over the contrast of white and grey matter.
    """
    volume, *shares = (block_mean(part, base.affine, WORK_MM)[0] for part in (corrected, *np.moveaxis(tissues, -1, 0)))
    covered = block_mean(covered, base.affine, WORK_MM)[0] > PURE
    t1, mask, grid = _working_template(float(voxel_sizes(base.affine)[0]))
    grey, white = (volume[part > PURE].astype(np.float64) for part in shares[:2])
    both = mask & covered
    return {
        "qc_similarity": _correlation(volume[both], t1[both]),
        "qc_cnr": _contrast(grey, white),
        "qc_snr": float(white.mean() / max(white.std(), 1e-9)) if white.size >= LEAST_VOXELS else 0.0,
        "qc_edge": _edge(volume, shares[1], grey, white),
        "qc_symmetry": _symmetry(volume, both, grid),
        "qc_asymmetry": _asymmetry(shares[0] + shares[1], grid),
    }


@cache
def _working_template(resolution_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The template's T1w, its mask, and the affine of this grid."""
    base = template(resolution_mm)
    (t1, _), (mask, grid) = (block_mean(part, base.affine, WORK_MM) for part in (base.t1, base.mask))
    return t1, mask > 0.5, grid


def _contrast(grey: np.ndarray, white: np.ndarray) -> float:
    if min(grey.size, white.size) < LEAST_VOXELS:
        return 0.0
    return float((white.mean() - grey.mean()) / max(np.sqrt((grey.var() + white.var()) / 2), 1e-9))


def _edge(volume: np.ndarray, wm: np.ndarray, grey: np.ndarray, white: np.ndarray) -> float:
    border = (wm > 0.3) & (wm < 0.7)
    if min(grey.size, white.size, border.sum()) < LEAST_VOXELS:
        return 0.0
    slope = np.sqrt(sum(ndimage.sobel(volume, axis=axis)[border] ** 2 for axis in range(3))) / 32
    return float(np.median(slope) / max(white.mean() - grey.mean(), 1e-9))


def _symmetry(volume: np.ndarray, mask: np.ndarray, grid: np.ndarray) -> float:
    """Correlation of both sides of x = 0, where both lie inside the field of view."""
    both = mask & _mirrored(mask, grid)
    return _correlation(volume[both], _mirrored(volume, grid)[both])


def _asymmetry(tissue: np.ndarray, grid: np.ndarray) -> float:
    x = grid[0, 0] * np.arange(tissue.shape[0]) + grid[0, 3]
    columns = tissue.sum(axis=(1, 2), dtype=np.float64)
    return float(abs(columns[x > 0].sum() - columns[x < 0].sum()) / max(columns.sum(), 1e-9))


def _mirrored(volume: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Left and right exchanged at the nearest plane of voxels, or between them, to x = 0; empty beyond the grid."""
    partner = round(-2 * grid[0, 3] / grid[0, 0]) - np.arange(volume.shape[0])
    there = (partner >= 0) & (partner < volume.shape[0])
    return np.take(volume, np.clip(partner, 0, len(partner) - 1), axis=0) * there[:, None, None]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.size < LEAST_VOXELS or not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def raw_quality(volume: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray) -> dict[str, float]:
    """Quality values of a scan before it is resampled.

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
        ``qc_air``: share of the air above the skull base that holds signal. ``qc_ghost``: see `_ghost`. Both are
        missing where the air was wiped or lies outside the field of view, as around an extracted brain. ``qc_wrap``:
        see `_wrap`. ``qc_dark``, ``qc_jump``: see `_slices`.

    References
    ----------
    Mortamet et al. 2009, doi:10.1002/mrm.21992 (artefacts in the air, QI1);
    Esteban et al. 2017, doi:10.1371/journal.pone.0184661 (MRIQC).
    """
    steps = np.maximum(1, np.round(MAP_MM / voxel_sizes(affine))).astype(int)
    points, place = _thinned(volume, affine, scan_to_mni, steps)
    lowest = points.min()
    points = points - lowest
    deep = points[place == DEEP]
    level = float(np.median(deep)) if deep.size else float(points.max())  # of the brain, above the darkest voxel
    values = {"qc_wrap": _wrap(points, level)}
    air = points[place == AIR]
    if air.size >= LEAST_POINTS and (air == np.median(air)).mean() < WIPED:
        values["qc_air"] = float((air > SIGNAL * level).mean())
        values["qc_ghost"] = _ghost(points, place)
    return values | _slices(volume, lowest, affine, scan_to_mni, steps)


def _thinned(
    volume: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One voxel of each block of `steps` voxels, and its place in a head (`_places`)."""
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


def _ghost(points: np.ndarray, place: np.ndarray) -> float:
    """Ghosts of the head: air in line with the head along an axis against air in line with it along none.

    The ratio of the largest to the smallest root mean square, 1 for noise alone. Motion, flow and periodic errors of
    the phase repeat the head along the phase direction, whichever that is. The exact minimum (corners outside a
    resampled scan's field of view) does not count.

    References
    ----------
    Giannelli et al. 2010, doi:10.1120/jacmp.v11i4.3237 (ghost-to-signal ratio).
    """
    head, air = (place == HEAD) | (place == DEEP), (place == AIR) & (points > 0)
    shadows = [np.broadcast_to(head.any(axis=axis, keepdims=True), head.shape) for axis in range(3)]
    zones = [air & (sum(shadows) == 0), *(air & shadow for shadow in shadows)]
    power = [float(np.mean(points[zone].astype(np.float64) ** 2)) for zone in zones if zone.sum() >= LEAST_POINTS]
    return float(np.sqrt(max(power) / max(min(power), 1e-12))) if len(power) > 1 else 1.0


def _wrap(points: np.ndarray, level: float) -> float:
    """Fold-over: the largest share of signal in the emptier of two opposite faces of the field of view.

    A head ends before one of two opposite faces; where it crosses both, it is cut or folded over.
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
    enough, joint = (n >= max(LEAST_POINTS / 2, 0.3 * n.max(initial=0)) for n in (counts, shared))
    level = (points * deep).sum(axis=(1, 2), dtype=np.float64)[enough] / counts[enough]
    change = (np.abs(np.diff(points, axis=0)) * both).sum(axis=(1, 2), dtype=np.float64)[joint] / shared[joint]
    return level, change / max(float(np.median(level)) if level.size else 1.0, 1e-9)
