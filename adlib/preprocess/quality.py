"""Quality control: what is measured of a processed scan, its limits, and the verdict in words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy import ndimage

from adlib.imaging.atlas import Template, template
from adlib.imaging.volume import block_mean, voxel_ml, voxel_sizes
from adlib.preprocess.quality_limits import LEARNT, REFERENCE

WORK_MM = 2.0  # finer grids are averaged to it, so that values of studies at 1 and 2 mm compare
PURE = 0.9  # fraction from which a voxel is taken as one tissue
FEWEST = 100  # voxels that a statistic is made of


@dataclass(frozen=True)
class Limit:
    """Bounds of a QC value: outside `fine` the scan is to be looked at, outside `bearable` it is left out."""

    fine: tuple[float, float]
    bearable: tuple[float, float]
    meaning: str


INFINITE = float("inf")
ANY = (-INFINITE, INFINITE)
# What depends on how near a head comes to the template cannot be learnt from heads that are made of the template: such
# limits are set by hand, as are those of physics and anatomy. The others come from `qc_limits.LEARNT`.
LIMITS = {
    "qc_similarity": Limit((0.5, 1.0), (0.35, 1.0), "correlation with the template inside its brain"),
    "qc_mask_dice": Limit((0.88, 1.0), (0.8, 1.0), "overlap of the brain mask with the template's"),
    "qc_mask_ml": Limit((950.0, 2200.0), (700.0, 2600.0), "volume of the brain mask, to the inner skull, ml"),
    "qc_coverage": Limit((0.98, 1.0), (0.85, 1.0), "share of the template's brain inside the field of view"),
    "qc_scale": Limit((0.75, 1.3), (0.6, 1.6), "edge of the head against the template's"),
    "qc_cnr": Limit((1.5, INFINITE), (0.8, INFINITE), "contrast of white and grey matter over their spread"),
    "qc_order": Limit((0.05, 1.0), (0.0, 1.0), "least step from fluid to grey to white matter, over white matter"),
    "qc_symmetry": Limit((0.6, 1.0), (0.4, 1.0), "correlation of the brain with its mirror image"),
    "qc_asymmetry": Limit((0.0, 0.06), (0.0, 0.25), "difference of left and right tissue over their sum"),
    "qc_snr": Limit(LEARNT["qc_snr"], ANY, "mean of white matter over its spread"),
    "qc_edge": Limit(LEARNT["qc_edge"], ANY, "steepness between white and grey matter: low where motion blurred it"),
    "qc_ghost": Limit(LEARNT["qc_ghost"], ANY, "noise beside the head over noise in the corners: ghosts of motion"),
    "qc_air": Limit(LEARNT["qc_air"], ANY, "share of the air above the skull base that holds signal"),
    "qc_wrap": Limit(LEARNT["qc_wrap"], ANY, "signal on opposite faces of the field of view: cut or folded over"),
    "qc_dark": Limit((0.45, INFINITE), (0.2, INFINITE), "darkest slice of the brain over the median slice"),
    "qc_jump": Limit(LEARNT["qc_jump"], ANY, "largest change between two slices over those around: missing slices"),
}
OF_SIZE = ("qc_mask_ml", "qc_scale")  # say nothing where the source moved the scan to MNI152 space


@dataclass(frozen=True)
class Scan:
    """A scan in canonical orientation, and its parts on the template's grid.

    Attributes
    ----------
    own : dict of str to float
        What `qc_scan.scan_values` measured of it before resampling.
    scan_to_mni : (4, 4) float64
    corrected : (X, Y, Z) float32
        Bias-corrected head on the template's grid.
    mask, covered : (X, Y, Z) bool
        Brain; field of view of the scan.
    tissues : (X, Y, Z, 3) float32
        GM, WM, CSF fractions.
    registered : bool
        The source moved the scan to MNI152 space.
    """

    own: dict[str, float]
    scan_to_mni: np.ndarray
    corrected: np.ndarray
    mask: np.ndarray
    covered: np.ndarray
    tissues: np.ndarray
    registered: bool = False


def measure(scan: Scan, base: Template) -> dict[str, float]:
    """The values named in `LIMITS`, but for those that make no sense for the scan, and percentiles.

    ``qc_similarity_percentile`` is the place of the similarity among the simulated heads of `qc_limits.REFERENCE`.

    Parameters
    ----------
    scan : Scan
    base : Template
        On the grid of ``scan.corrected``.

    Returns
    -------
    dict of str to float
        Without `OF_SIZE` for a registered scan, without ``qc_air`` and ``qc_ghost`` where there is no air.
    """
    determinant = abs(np.linalg.det(scan.scan_to_mni[:3, :3]))
    values = {
        "qc_mask_dice": float(2 * (scan.mask & base.mask).sum() / (scan.mask.sum() + base.mask.sum())),
        "qc_mask_ml": float(scan.mask.sum() * voxel_ml(base.affine) / determinant),
        "qc_coverage": float((base.mask & scan.covered).sum() / base.mask.sum()),
        "qc_scale": float(1 / np.cbrt(determinant)),
    }
    values |= _brain_values(scan, base) | scan.own
    values["qc_similarity_percentile"] = percentile("qc_similarity", values["qc_similarity"])
    left_out = OF_SIZE if scan.registered else ()
    return {name: value for name, value in values.items() if name not in left_out}


def left_out(values: dict[str, float]) -> list[str]:
    """What `measure` did not measure, in the words of the steps."""
    reasons = {
        "qc_ghost": "quality of the air not measured: there is no noise around the head, as in an extracted brain",
        "qc_scale": "size of the head not judged: the scan has the template's size",
    }
    return [reason for name, reason in reasons.items() if name not in values]


def percentile(name: str, value: float) -> float:
    """Place of a value among those of the simulated clean heads, 0 to 100."""
    known = REFERENCE[name]
    return float(np.interp(value, known, np.linspace(0, 100, len(known))))


def verdict(values: dict[str, float]) -> tuple[str, tuple[str, ...]]:
    """Judge QC values by `LIMITS`; a value without limits, or that is not there, is not judged.

    Returns
    -------
    verdict : str
        ``pass``, ``check`` (used, to be looked at) or ``fail`` (left out).
    reasons : tuple of str
        One sentence for each value out of its limits, those to be left out for first.
    """
    reasons = {"fail": [], "check": []}
    for name, value in values.items():
        if (grade := graded(name, value)) != "pass":
            limit = LIMITS[name]
            reasons[grade].append(f"{name} is {value:.4g}, expected {limit_text(limit)} ({limit.meaning})")
    worst = next((grade for grade, found in reasons.items() if found), "pass")
    return worst, (*reasons["fail"], *reasons["check"])


def limit_text(limit: Limit) -> str:
    """What is expected of a value, in words."""
    low, high = limit.fine
    if high == INFINITE:
        return f"at least {low:g}"
    return f"at most {high:g}" if low == -INFINITE else f"{low:g} to {high:g}"


def graded(name: str, value: float) -> str:
    """The verdict on one value: pass, check or fail."""
    if name not in LIMITS:
        return "pass"
    limit = LIMITS[name]
    if not limit.bearable[0] <= value <= limit.bearable[1]:
        return "fail"
    return "pass" if limit.fine[0] <= value <= limit.fine[1] else "check"


def ranked(features: pd.DataFrame) -> pd.DataFrame:
    """Scans of a cohort, worst first.

    The margin of a value is its distance from the nearest limit of `LIMITS` over that of the cohort's median: 1 for a
    typical scan, 0 on the limit, negative beyond it. A scan is as good as its worst value.

    Parameters
    ----------
    features : DataFrame
        With qc_verdict and the QC values; by `records.FEATURES`.

    Returns
    -------
    DataFrame
        The same rows: first those left out, then those to be checked, then those that pass, each by their margin. New
        columns: ``qc_worst``, the value with the least margin, empty for scans that have no values; ``qc_margin``;
        ``qc_percentile``, the share of the cohort, in percent, that is no better in this value.
    """
    known = [name for name in LIMITS if name in features and features[name].notna().any()]
    margins = pd.DataFrame({name: _margins(features[name], LIMITS[name]) for name in known}, features.index)
    table = features.assign(qc_worst=None, qc_margin=np.nan, qc_percentile=np.nan)
    for row, values in margins.dropna(how="all").iterrows():
        worst = values.idxmin()
        place = 100 * (margins[worst] <= values[worst]).sum() / margins[worst].notna().sum()
        table.loc[row, ["qc_worst", "qc_margin", "qc_percentile"]] = [worst, values[worst], place]
    order = table["qc_verdict"].map({"fail": 0, "check": 1, "pass": 2})
    return table.assign(_order=order).sort_values(["_order", "qc_margin"], na_position="first").drop(columns="_order")


def _margins(values: pd.Series, limit: Limit) -> pd.Series:
    """Signed distance to each bound over that of the median, the lesser of the two; ends of a scale are no bounds."""
    sides = []
    for bound, bearable, sign in zip(limit.fine, limit.bearable, (1, -1), strict=True):
        room = sign * (values.median() - bound)
        if np.isfinite(bound) and bound != bearable and room > 0:
            sides.append(sign * (values - bound) / room)
    return pd.concat(sides, axis=1).min(axis=1) if sides else pd.Series(np.nan, values.index)


def _brain_values(scan: Scan, base: Template) -> dict[str, float]:
    """What is measured on the template's grid, at `WORK_MM` where the grid is finer.

    ``qc_snr``, ``qc_cnr`` as in Magnotta & Friedman 2006 (doi:10.1007/s10278-006-0264-x), with the spread inside the
    tissues instead of in the air, so that they also hold for extracted brains; ``qc_edge``: median slope, per voxel,
    where white matter meets its surroundings, over the contrast of white and grey matter; ``qc_order``: negative where
    the tissues of the template come out in another order than in a T1-weighted scan.
    """
    volume, *tissues = (
        block_mean(part, base.affine, WORK_MM)[0] for part in (scan.corrected, *np.moveaxis(scan.tissues, -1, 0))
    )
    covered = block_mean(scan.covered, base.affine, WORK_MM)[0] > PURE
    t1, mask, sure, grid = _working_template(float(voxel_sizes(base.affine)[0]))
    grey, white = (volume[part > PURE].astype(np.float64) for part in tissues[:2])
    both = mask & covered
    return {
        "qc_similarity": _correlation(volume[both], t1[both]),
        "qc_cnr": _contrast(grey, white),
        "qc_snr": float(white.mean() / max(white.std(), 1e-9)) if white.size >= FEWEST else 0.0,
        "qc_edge": _edge(volume, tissues[1], grey, white),
        "qc_order": _order(volume, sure, covered),
        "qc_symmetry": _symmetry(volume, both, grid),
        "qc_asymmetry": _asymmetry(tissues[0] + tissues[1], grid),
    }


@cache
def _working_template(resolution_mm: float) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    """The template's T1w, its mask, where it is surest of CSF, GM and WM, and the affine of this grid."""
    base = template(resolution_mm)
    names = ("t1", "mask", "csf", "gm", "wm")
    t1, mask, *tissues = (block_mean(getattr(base, name), base.affine, WORK_MM)[0] for name in names)
    return t1, mask > 0.5, [part > 0.8 for part in tissues], block_mean(base.mask, base.affine, WORK_MM)[1]


def _contrast(grey: np.ndarray, white: np.ndarray) -> float:
    if min(grey.size, white.size) < FEWEST:
        return 0.0
    return float((white.mean() - grey.mean()) / max(np.sqrt((grey.var() + white.var()) / 2), 1e-9))


def _edge(volume: np.ndarray, wm: np.ndarray, grey: np.ndarray, white: np.ndarray) -> float:
    border = (wm > 0.3) & (wm < 0.7)
    if min(grey.size, white.size, border.sum()) < FEWEST:
        return 0.0
    slope = np.sqrt(sum(ndimage.sobel(volume, axis=axis)[border] ** 2 for axis in range(3))) / 32
    return float(np.median(slope) / max(white.mean() - grey.mean(), 1e-9))


def _order(volume: np.ndarray, sure: list[np.ndarray], covered: np.ndarray) -> float:
    fluid, grey, white = (np.median(volume[part & covered]) if (part & covered).any() else 0.0 for part in sure)
    return float(min(grey - fluid, white - grey) / max(white, 1e-9))


def _symmetry(volume: np.ndarray, mask: np.ndarray, grid: np.ndarray) -> float:
    """Correlation of both sides about x = 0, where both lie inside the field of view."""
    both = mask & _mirrored(mask, grid)
    return _correlation(volume[both], _mirrored(volume, grid)[both])


def _asymmetry(tissue: np.ndarray, grid: np.ndarray) -> float:
    x = grid[0, 0] * np.arange(tissue.shape[0]) + grid[0, 3]
    columns = tissue.sum(axis=(1, 2), dtype=np.float64)
    return float(abs(columns[x > 0].sum() - columns[x < 0].sum()) / max(columns.sum(), 1e-9))


def _mirrored(volume: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Left and right exchanged about the nearest plane of voxels, or between them, to x = 0; empty beyond the grid."""
    partner = round(-2 * grid[0, 3] / grid[0, 0]) - np.arange(volume.shape[0])
    there = (partner >= 0) & (partner < volume.shape[0])
    return np.take(volume, np.clip(partner, 0, len(partner) - 1), axis=0) * there[:, None, None]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.size < FEWEST or not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
