"""Quality control: what is measured of a processed scan, its limits, and the verdict in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adlib.atlas import Template
from adlib.volume import voxel_ml


@dataclass(frozen=True)
class Limit:
    """Bounds of a QC value: outside `fine` the scan is to be looked at, outside `bearable` it is left out."""

    fine: tuple[float, float]
    bearable: tuple[float, float]
    meaning: str


INFINITE = float("inf")
LIMITS = {
    "qc_similarity": Limit((0.5, 1.0), (0.35, 1.0), "correlation with the template inside its brain"),
    "qc_mask_dice": Limit((0.88, 1.0), (0.8, 1.0), "overlap of the brain mask with the template's"),
    "qc_mask_ml": Limit((950.0, 2000.0), (700.0, 2400.0), "intracranial volume, ml"),
    "qc_cnr": Limit((1.5, INFINITE), (0.8, INFINITE), "contrast of white and grey matter over their spread"),
    "qc_coverage": Limit((0.98, 1.0), (0.85, 1.0), "share of the template's brain inside the field of view"),
    "qc_scale": Limit((0.75, 1.3), (0.6, 1.6), "edge of the head against the template's"),
}


def measure(
    corrected: np.ndarray,
    mask: np.ndarray,
    tissues: np.ndarray,
    covered: np.ndarray,
    scan_to_mni: np.ndarray,
    base: Template,
) -> dict[str, float]:
    """The values named in `LIMITS`.

    Parameters
    ----------
    corrected : (X, Y, Z) float32
        Bias-corrected head on the template's grid.
    mask, covered : (X, Y, Z) bool
        Brain; field of view of the scan.
    tissues : (X, Y, Z, 3) float32
        GM, WM, CSF fractions.
    scan_to_mni : (4, 4) array
    base : Template

    Returns
    -------
    dict of str to float
    """
    determinant = abs(np.linalg.det(scan_to_mni[:3, :3]))
    grey, white = (corrected[tissues[..., k] > 0.9] for k in range(2))
    both = base.mask & covered
    return {
        "qc_similarity": float(np.corrcoef(corrected[both], base.t1[both])[0, 1]) if both.any() else 0.0,
        "qc_mask_dice": float(2 * (mask & base.mask).sum() / (mask.sum() + base.mask.sum())),
        "qc_mask_ml": float(mask.sum() * voxel_ml(base.affine) / determinant),
        "qc_cnr": _contrast(grey, white),
        "qc_coverage": float((base.mask & covered).sum() / base.mask.sum()),
        "qc_scale": float(1 / np.cbrt(determinant)),
    }


def verdict(values: dict[str, float]) -> tuple[str, tuple[str, ...]]:
    """Judge QC values by `LIMITS`.

    Returns
    -------
    verdict : str
        ``pass``, ``check`` (used, to be looked at) or ``fail`` (left out).
    reasons : tuple of str
        One sentence for each value out of its limits.
    """
    worst, reasons = "pass", []
    for name, limit in LIMITS.items():
        value = values[name]
        if not limit.bearable[0] <= value <= limit.bearable[1]:
            worst = "fail"
        elif not limit.fine[0] <= value <= limit.fine[1]:
            worst = "check" if worst == "pass" else worst
        else:
            continue
        reasons.append(f"{name} is {value:.3g}, expected {_range(limit.fine)} ({limit.meaning})")
    return worst, tuple(reasons)


def _contrast(grey: np.ndarray, white: np.ndarray) -> float:
    if min(grey.size, white.size) < 100:
        return 0.0
    spread = np.sqrt((grey.var(dtype=np.float64) + white.var(dtype=np.float64)) / 2)
    return float((white.mean(dtype=np.float64) - grey.mean(dtype=np.float64)) / max(spread, 1e-9))


def _range(bounds: tuple[float, float]) -> str:
    low, high = bounds
    return f"at least {low:g}" if high == INFINITE else f"{low:g} to {high:g}"
