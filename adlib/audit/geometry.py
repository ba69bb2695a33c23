"""Shape, voxels, affine and values of the scans, as headers and pixels tell them."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from adlib.audit.findings import finding, named, share
from adlib.sources.image_files import SEPARATOR

MIN_SLICES = 40  # as for DICOM: below it, a localiser or a 2-D clinical series
MAX_ANISOTROPY = 2.5  # 3-D T1w of ADNI and OASIS-1 have 1.25 to 1.3; 5 mm clinical slices have 5
VIEW_MM = (100.0, 400.0)  # an adult brain alone measures about 130 mm across at least
_EDGES = ["voxel_x_mm", "voxel_y_mm", "voxel_z_mm"]
Facts = pd.DataFrame


def check_geometry(scans: pd.DataFrame, pixels: pd.DataFrame | None) -> tuple[list[dict[str, str]], pd.DataFrame]:
    """Find scans whose header or values cannot be right; constant images are left out.

    Scans of 2-D images and of joined slices have no spatial header and are spared the checks of it. A fault that
    makes a scan useless stops the study where more than half of the scans have it.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.
    pixels : DataFrame or None
        See `fingerprint.pixel_facts`; indexed as `scans`.

    Returns
    -------
    findings : list of dict
    kept : DataFrame
    """
    facts = _facts(scans)
    found = [_report(name, scans[wrong(facts)], scans) for name, wrong in _HEADER.items()]
    if pixels is None:
        return [one for one in found if one], scans
    constant = pixels["constant"].eq(True)
    unread = scans[pixels["fault"].notna() & scans["shape"].notna()]
    found += [
        _report("unreadable", unread, scans),
        _report("nan-values", scans[pixels["nan_share"] > 0], scans),
        _report("constant", scans[constant], scans),
    ]
    return [one for one in found if one], scans[~constant]


def _facts(scans: pd.DataFrame) -> Facts:
    """Lengths of the axes beside the listing; `flat` where a scan is no volume."""
    sizes = scans["shape"].str.extract(r"^(\d+)x(\d+)(?:x(\d+))?(?:x(\d+))?").astype(float).fillna(1)
    sizes.columns = ["nx", "ny", "nz", "nt"]
    fault = scans["affine_fault"] if "affine_fault" in scans else pd.Series(None, index=scans.index, dtype=object)
    flat = scans["path"].str.contains(SEPARATOR, regex=False) | (sizes["nz"] == 1)
    return scans.assign(**sizes, flat=flat, affine_fault=fault)


def _several_volumes(facts: Facts) -> pd.Series:
    return ~facts["flat"] & (facts["nt"] > 1)


def _few_slices(facts: Facts) -> pd.Series:
    return ~facts["flat"] & facts["shape"].notna() & (facts[["nx", "ny", "nz"]].min(axis=1) < MIN_SLICES)


def _anisotropic(facts: Facts) -> pd.Series:
    return ~facts["flat"] & (facts[_EDGES].max(axis=1) > MAX_ANISOTROPY * facts[_EDGES].min(axis=1))


def _odd_view(facts: Facts) -> pd.Series:
    view = facts[["nx", "ny", "nz"]].to_numpy() * facts[_EDGES]
    known = ~facts["flat"] & facts["shape"].notna() & facts[_EDGES].notna().all(axis=1)
    return known & ((view.min(axis=1) < VIEW_MM[0]) | (view.max(axis=1) > VIEW_MM[1]))


_HEADER: dict[str, Callable[[Facts], pd.Series]] = {
    "unreadable": lambda facts: facts["shape"].isna(),
    "not-3d": _several_volumes,
    "few-slices": _few_slices,
    "anisotropic": _anisotropic,
    "field-of-view": _odd_view,
    "affine": lambda facts: ~facts["flat"] & facts["affine_fault"].isin(["singular", "missing"]),
    "orientation-unstated": lambda facts: ~facts["flat"] & facts["affine_fault"].eq("unstated"),
    "dtype": lambda facts: facts["dtype"].fillna("").str.contains("complex|rgb", case=False),
}
_USELESS = ("not-3d", "affine", "dtype")


def _report(check: str, wrong: pd.DataFrame, scans: pd.DataFrame) -> dict[str, str] | None:
    if wrong.empty:
        return None
    severity = "stop" if check in _USELESS and 2 * len(wrong) > len(scans) else "warn"
    return finding(check, severity, named(wrong["scan_id"]), share(len(wrong), len(scans)) + " scans")
