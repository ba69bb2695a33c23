"""Pictures of quality control: the cohort's page, worst first, and the values with their limits."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adlib.figures.theme import COLUMN_WIDTH, NEUTRAL
from adlib.imaging.volume import extract_slice
from adlib.preprocess.derivatives import Preprocessed
from adlib.preprocess.quality import LIMITS, Limit, limit_text
from adlib.study.records import StudyError

VIEWS = (("sagittal", 4.0), ("coronal", -20.0), ("axial", 8.0))
OUTLINE = "#e8590c"
VERDICTS = {"pass": "#2b8a3e", "check": "#c25e00", "fail": "#c92a2a"}
COLUMNS = 3
BLANK = (117, 315)  # shape of a tile without a picture
REASON_WIDTH = 44  # characters of a line below a picture


def plot_quality_page(worst: pd.DataFrame, pictures: dict[str, Preprocessed]) -> Figure:
    """Many scans at a glance: three planes with the brain's outline, verdict, worst value and reason.

    Parameters
    ----------
    worst : DataFrame
        From `quality.ranked`, in the order to draw.
    pictures : dict of scan_id to Preprocessed
        Scans without a picture get their reason alone.

    Raises
    ------
    StudyError
        If there is no scan to draw.
    """
    if worst.empty:
        raise StudyError("no scan to draw: features.tsv is empty")
    rows = -(-len(worst) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(COLUMN_WIDTH, 1.12 * rows + 0.2), squeeze=False)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[], frame_on=False)
        axis.grid(False)
    for axis, row in zip(axes.ravel(), worst.to_dict("records"), strict=False):
        _tile(axis, row, pictures.get(row["scan_id"]))
    return figure


def plot_quality_values(features: pd.DataFrame) -> Figure:
    """Distribution of each QC value; between the dashed lines a scan passes, beyond the solid lines it is left out.

    Parameters
    ----------
    features : DataFrame
        Columns qc_verdict and the QC values of `adlib.preprocess.quality.LIMITS`; one row per scan.
    """
    measured = {name: limit for name, limit in LIMITS.items() if name in features and features[name].notna().any()}
    rows = -(-max(len(measured), 1) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(COLUMN_WIDTH, 1.75 * rows + 0.3), squeeze=False)
    for axis in axes.ravel()[len(measured) :]:
        axis.set_axis_off()
    for axis, (name, limit) in zip(axes.ravel(), measured.items(), strict=False):
        values = features[["qc_verdict", name]].dropna()
        fine, bearable = _bounds(limit)
        points = [*values[name], *fine]
        shared = {"x": name, "hue": "qc_verdict", "palette": VERDICTS, "multiple": "stack", "bins": 30}
        span = (min(points), max(max(points), min(points) + 1e-6))
        sns.histplot(values, **shared, binrange=span, ax=axis, legend=False, linewidth=0)
        for bound in fine:
            axis.axvline(bound, color=NEUTRAL, linestyle="--", linewidth=0.8)
        for bound in bearable:
            if span[0] <= bound <= span[1]:
                axis.axvline(bound, color=NEUTRAL, linewidth=0.8)
        axis.set_title(name.removeprefix("qc_"), fontsize=8)
        axis.set_xlabel(textwrap.fill(limit.meaning, 30), fontsize=5.5)
        axis.set_ylabel("scans" if axis.get_subplotspec().is_first_col() else "")
        axis.tick_params(labelsize=6)
    counts = features["qc_verdict"].value_counts()
    figure.suptitle(", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS), fontsize=9)
    return figure


def strip(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The sagittal, coronal and axial view of a volume, side by side.

    Parameters
    ----------
    volume : (X, Y, Z) float32
    affine : (4, 4) float
        Voxel to world, mm.

    Returns
    -------
    (rows, columns) float32
    """
    parts = [extract_slice(volume, affine, plane, position) for plane, position in VIEWS]
    height = max(part.shape[0] for part in parts)
    return np.hstack(
        [np.pad(part, ((height - part.shape[0], 0), (0, 0)), constant_values=part.min()) for part in parts]
    )


def _tile(axis: Axes, row: dict, scan: Preprocessed | None) -> None:
    name = str(row["scan_id"]).removesuffix("_T1w")
    axis.set_title(f"{name}: {row['qc_verdict']}", fontsize=6.5, pad=2, color=VERDICTS[row["qc_verdict"]])
    if scan is None:
        axis.imshow(np.ones(BLANK), cmap="gray", vmin=0, vmax=1)
        reason = textwrap.fill(str(row["qc_reasons"]), REASON_WIDTH, max_lines=6, placeholder=" …")
        axis.text(0.5, 0.5, reason, fontsize=5.5, ha="center", va="center", transform=axis.transAxes)
        return
    picture = strip(_brain(scan) if scan.native is None else scan.native, scan.affine)
    bright = np.percentile(picture[picture > 0], 99.5) if (picture > 0).any() else 1
    axis.imshow(picture, cmap="gray", vmin=0, vmax=bright)
    axis.contour(strip(scan.mask.astype(np.float32), scan.affine), [0.5], colors=OUTLINE, linewidths=0.6)
    axis.set_xlabel(_reason(row), fontsize=5.5, labelpad=2)


def _brain(scan: Preprocessed) -> np.ndarray:
    """The brain from 0 up, for scans whose head was not kept."""
    return np.where(scan.mask, scan.t1w - scan.t1w[scan.mask].min(initial=0), 0)


def _reason(row: dict) -> str:
    """The worst value, its place in the cohort, what was expected, and how many other reasons there are."""
    worst = row["qc_worst"]
    if worst not in LIMITS:
        return ""
    place = f"{worst.removeprefix('qc_')} {row[worst]:.4g}: {row['qc_percentile']:.0f} % of scans no better"
    if row["qc_verdict"] == "pass":
        return place
    others = len(str(row["qc_reasons"]).split("; ")) - 1
    more = f" and {others} more" if others else ""
    return f"{place}\nexpected {limit_text(worst)}{more}"


def _bounds(limit: Limit) -> tuple[list[float], ...]:
    """The finite bounds, to be looked at and to be left out, that are not the ends of a value's scale."""
    pairs = [pair for pair in zip(limit.typical, limit.usable, strict=True) if pair[0] != pair[1]]
    return tuple([bound for bound in side if np.isfinite(bound)] for side in zip(*pairs, strict=True))
