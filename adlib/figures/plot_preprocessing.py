"""Figures of preprocessing: one scan before and after every step, quality control, and the volumes of a cohort."""

import textwrap
from functools import partial

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from adlib.figures.sides import VIEWS, note, strip, turned
from adlib.figures.theme import ACCENT, COLUMN_WIDTH, NEUTRAL, class_palette
from adlib.imaging import atlas
from adlib.imaging.volume import fit_square, resample, to_canonical, voxel_sizes
from adlib.preprocess.derivatives import Preprocessed
from adlib.preprocess.quality import LIMITS, Limit, limit_text
from adlib.study.params import Display
from adlib.study.records import StudyError

OUTLINE = "#d55e00"
VERDICTS = {"pass": "#0072b2", "check": "#e69f00", "fail": "#d55e00"}
COLUMNS = 3
BLANK = (117, 315)  # shape of a tile without a picture
REASON_WIDTH = 44  # characters of a line below a picture
TISSUES = {"GM": "#e69f00", "WM": "#56b4e9", "CSF": "#0072b2"}  # Okabe & Ito, for the colour-blind
VOLUMES = {
    "nbv": "brain tissue / intracranial volume",
    "icv_ml": "intracranial volume (ml)",
    "gm_ml": "grey matter (ml)",
    "wm_ml": "white matter (ml)",
    "hippocampus_ml": "both hippocampi (ml)",
    "ventricles_ml": "lateral ventricles (ml)",
}


def plot_steps(scan: Preprocessed, image: nib.Nifti1Image, display: Display = "neurological") -> Figure:
    """One scan before and after each step: a row per step, three planes in each picture, histograms below.

    Parameters
    ----------
    scan : Preprocessed
    image : nibabel image
        The scan as it was stored.
    display : {"neurological", "radiological"}
        Side of all pictures but the first, which shows the array as it is stored.
    """
    stored = np.squeeze(image.get_fdata(dtype=np.float32))
    rows = (*_geometry(scan, stored, image.affine, display), *_intensities(scan, display))
    heights = [1.0] * len(rows) + [0.8]
    figure, axes = plt.subplots(len(heights), 2, figsize=(COLUMN_WIDTH, 8.2), height_ratios=heights)
    for line, pair in zip(axes, rows, strict=False):
        for axis, (title, picture, *outlines) in zip(line, pair, strict=True):
            _draw(axis, title, picture, [strip(outline, scan.affine, display) for outline in outlines])
    _draw_histogram(axes[-1, 0], scan, scan.native, "6 normalisation: brain as it came")
    _draw_histogram(axes[-1, 1], scan, scan.t1w, "normalised")
    axes[-1, 0].legend(fontsize=6, frameon=False)
    figure.suptitle(f"{scan.name}: {scan.verdict}\n{note(display)}", fontsize=9)
    return figure


def _geometry(scan: Preprocessed, stored: np.ndarray, affine: np.ndarray, display: Display) -> tuple[tuple, tuple]:
    """Rows of titles, pictures and outlines: orientation and registration."""
    volume, world = to_canonical(stored, affine)
    base = atlas.template(float(scan.affine[0, 0]))
    lowest = float(volume.min())
    unmoved = resample(volume, world, base.mask.shape, base.affine, outside=lowest) - lowest
    codes = "".join(nib.aff2axcodes(affine))
    template = (base.mask.astype(np.float32), base.wm)
    return (
        (
            (f"1 orientation: as stored, {codes}", _middles(stored, affine)),
            ("turned to RAS", _middles(volume, world, display)),
        ),
        (
            ("2 registration: by its header, template's edges", strip(unmoved, scan.affine, display), *template),
            ("registered, template's edges", strip(scan.native, scan.affine, display), *template),
        ),
    )


def _intensities(scan: Preprocessed, display: Display) -> tuple[tuple, ...]:
    """Rows of titles, pictures and outlines: bias field, brain extraction, tissues."""
    gain = _gain(scan)
    low, high = np.percentile(gain[gain > 0], (2, 98)) if (gain > 0).any() else (1, 1)
    corrected = np.divide(scan.native, gain, out=np.zeros_like(scan.native), where=gain > 0)
    cut = partial(strip, affine=scan.affine, display=display)
    fractions = np.stack([cut(scan.tissues[..., k]) for k in range(3)], axis=-1)
    tissue = fractions @ np.array([to_rgb(colour) for colour in TISSUES.values()])
    head, mask = cut(scan.native), scan.mask.astype(np.float32)
    brain = cut(np.where(scan.mask, scan.t1w, scan.t1w[scan.mask].min(initial=0)))
    return (
        (
            ("3 bias: brain before correction", cut(scan.native * (gain > 0))),
            (f"corrected by a gain of {low:.2f} to {high:.2f}", cut(corrected)),
        ),
        (("4 extraction: head and the brain's outline", head, mask), ("brain, normalised", brain)),
        (
            ("5 segmentation: brain and outline of WM", brain, scan.tissues[..., 1]),
            ("tissues: orange GM, light blue WM, blue CSF", tissue),
        ),
    )


def plot_volumes(features: pd.DataFrame, manifest: pd.DataFrame, classes: tuple[str, ...]) -> Figure:
    """Measured volumes by class, one point per scan.

    Parameters
    ----------
    features : DataFrame
        Columns scan_id, qc_verdict and volumes (ml); scans that fail quality control are left out.
    manifest : DataFrame
        Columns scan_id and diagnosis.
    classes : tuple of str
    """
    scans = features[features["qc_verdict"] != "fail"].merge(manifest[["scan_id", "diagnosis"]], on="scan_id")
    spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(scans))  # the same picture in every run
    figure, axes = plt.subplots(2, 3, figsize=(COLUMN_WIDTH, 4.2))
    measured = {name: label for name, label in VOLUMES.items() if name in scans}
    for axis in axes.ravel()[len(measured) :]:
        axis.set_axis_off()
    for axis, (name, label) in zip(axes.ravel(), measured.items(), strict=False):
        place = scans["diagnosis"].map(classes.index) + spread
        axis.scatter(place, scans[name], s=4, c=scans["diagnosis"].map(class_palette(classes)), alpha=0.6, linewidths=0)
        look = {"width": 0.5, "fill": False, "color": NEUTRAL, "showfliers": False, "linewidth": 0.8}
        sns.boxplot(scans, x="diagnosis", y=name, order=classes, ax=axis, **look)
        axis.set(xlabel="", ylabel="")
        axis.set_title(label, fontsize=7)
    return figure


def plot_volumes_truth(features: pd.DataFrame, truth: pd.DataFrame) -> Figure:
    """Measured against true volumes of simulated heads, with the correlation; the dashed line is equality.

    Parameters
    ----------
    features : DataFrame
        Columns scan_id, qc_verdict and the measured volumes (ml).
    truth : DataFrame
        Columns scan_id and the true volumes of the same names.
    """
    both = features[features["qc_verdict"] != "fail"].merge(truth, on="scan_id", suffixes=("", "_true"))
    figure, axes = plt.subplots(2, 3, figsize=(COLUMN_WIDTH, 4.2))
    for axis, (name, label) in zip(axes.ravel(), VOLUMES.items(), strict=True):
        true, measured = both[f"{name}_true"], both[name]
        axis.scatter(true, measured, s=5, color=ACCENT, alpha=0.5, linewidths=0)
        axis.axline((true.mean(), true.mean()), slope=1, color=NEUTRAL, linestyle="--", linewidth=0.8)
        axis.set_title(label, fontsize=7)
        axis.set(xlabel="true", ylabel="measured")
        axis.annotate(f"r = {true.corr(measured):.2f}", (0.05, 0.9), xycoords="axes fraction", fontsize=7)
    return figure


def plot_quality_page(
    worst: pd.DataFrame, pictures: dict[str, Preprocessed], display: Display = "neurological"
) -> Figure:
    """Many scans at a glance: three planes with the brain's outline, verdict, worst value and reason.

    Parameters
    ----------
    worst : DataFrame
        From `quality.ranked`, in the order to draw.
    pictures : dict of scan_id to Preprocessed
        Scans without a picture get their reason alone.
    display : {"neurological", "radiological"}

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
        _tile(axis, row, pictures.get(row["scan_id"]), display)
    figure.supxlabel(note(display), fontsize=6.5)
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


def _tile(axis: Axes, row: dict, scan: Preprocessed | None, display: Display) -> None:
    name = str(row["scan_id"]).removesuffix("_T1w")
    axis.set_title(f"{name}: {row['qc_verdict']}", fontsize=6.5, pad=2)
    if scan is None:
        axis.imshow(np.ones(BLANK), cmap="gray", vmin=0, vmax=1)
        reason = textwrap.fill(str(row["qc_reasons"]), REASON_WIDTH, max_lines=6, placeholder=" …")
        axis.text(0.5, 0.5, reason, fontsize=5.5, ha="center", va="center", transform=axis.transAxes)
        return
    picture = strip(_brain(scan) if scan.native is None else scan.native, scan.affine, display)
    bright = np.percentile(picture[picture > 0], 99.5) if (picture > 0).any() else 1
    axis.imshow(picture, cmap="gray", vmin=0, vmax=bright)
    axis.contour(strip(scan.mask.astype(np.float32), scan.affine, display), [0.5], colors=OUTLINE, linewidths=0.6)
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


def _draw(axis: Axes, title: str, picture: np.ndarray, outlines: list[np.ndarray]) -> None:
    if picture.ndim == 3:
        axis.imshow(np.clip(picture, 0, 1))
    else:
        low, high = float(picture.min()), np.percentile(picture, 99.5)
        axis.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    for outline in outlines:
        axis.contour(outline, [0.5], colors=OUTLINE, linewidths=0.5)
    axis.set_title(title, fontsize=7)
    axis.set_axis_off()


def _draw_histogram(axis: Axes, scan: Preprocessed, volume: np.ndarray, title: str) -> None:
    """Intensities of the three tissues where each is pure."""
    low, high = np.percentile(volume[scan.mask], (0.5, 99.5))
    edges = np.linspace(low, max(high, low + 1e-6), 61)
    for number, (name, colour) in enumerate(TISSUES.items()):
        counts, _ = np.histogram(volume[scan.tissues[..., number] > 0.8], edges)
        axis.stairs(counts / 1000, edges, color=colour, label=name)
    axis.set_title(title, fontsize=7)
    axis.set_xlabel("intensity", fontsize=7)
    axis.set_ylabel("1,000 voxels", fontsize=7)
    axis.tick_params(labelsize=6)


def _middles(volume: np.ndarray, affine: np.ndarray, display: Display = "neurological") -> np.ndarray:
    """The middle slice along each array axis, side by side, pixels of 2 mm, (128, 384) float32."""
    zooms = voxel_sizes(affine) / 2
    pictures = []
    for axis in range(3):
        across, up = (k for k in range(3) if k != axis)
        middle = np.take(volume, volume.shape[axis] // 2, axis=axis).T[::-1]
        picture = fit_square(middle - volume.min(), 128, (zooms[up], zooms[across]))
        pictures.append(turned(picture, VIEWS[axis][0], display))
    return np.hstack(pictures)


def _gain(scan: Preprocessed) -> np.ndarray:
    """The bias field inside the brain, 0 outside, got back from the head and its normalised version."""
    inside = scan.mask & (scan.native > 0)
    design = np.column_stack([scan.t1w[inside], np.ones(int(inside.sum()))]).astype(np.float64)
    scale, offset = np.linalg.lstsq(design, scan.native[inside].astype(np.float64), rcond=None)[0]
    corrected = scan.t1w * scale + offset
    ratio = np.divide(scan.native, corrected, out=np.ones_like(scan.native), where=corrected > 0.2 * offset)
    return np.where(inside & (corrected > 0.2 * offset), np.clip(ratio, 0.3, 3), 0)
