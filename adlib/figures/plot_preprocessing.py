"""Pictures of preprocessing: one scan before and after every step, and the volumes of a cohort."""

from __future__ import annotations

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adlib.figures.plot_quality import OUTLINE, strip
from adlib.figures.theme import ACCENT, COLUMN_WIDTH, NEUTRAL, class_palette
from adlib.imaging import atlas
from adlib.imaging.volume import fit_square, resample, to_canonical, voxel_sizes
from adlib.preprocess.derivatives import Preprocessed

TISSUES = {"GM": "#c92a2a", "WM": "#2b8a3e", "CSF": "#1c4fa3"}
VOLUMES = {
    "nbv": "brain tissue / intracranial volume",
    "icv_ml": "intracranial volume (ml)",
    "gm_ml": "grey matter (ml)",
    "wm_ml": "white matter (ml)",
    "hippocampus_ml": "both hippocampi (ml)",
    "ventricles_ml": "lateral ventricles (ml)",
}


def plot_steps(scan: Preprocessed, image: nib.Nifti1Image) -> Figure:
    """One scan before and after each step: a row per step, three planes in each picture, histograms below.

    Parameters
    ----------
    scan : Preprocessed
    image : nibabel image
        The scan as it was stored.
    """
    stored = np.squeeze(image.get_fdata(dtype=np.float32))
    rows = (*_geometry(scan, stored, image.affine), *_intensities(scan))
    heights = [1.0] * len(rows) + [0.8]
    figure, axes = plt.subplots(len(heights), 2, figsize=(COLUMN_WIDTH, 8.2), height_ratios=heights)
    for line, pair in zip(axes, rows, strict=False):
        for axis, (title, picture, *outlines) in zip(line, pair, strict=True):
            _draw(axis, title, picture, [strip(outline, scan.affine) for outline in outlines])
    _draw_histogram(axes[-1, 0], scan, scan.native, "6 normalisation: brain as it came")
    _draw_histogram(axes[-1, 1], scan, scan.t1w, "normalised")
    axes[-1, 0].legend(fontsize=6, frameon=False)
    figure.suptitle(f"{scan.name}: {scan.verdict}", fontsize=9)
    return figure


def _geometry(scan: Preprocessed, stored: np.ndarray, affine: np.ndarray) -> tuple[tuple, tuple]:
    """Rows of titles, pictures and outlines: orientation and registration."""
    volume, world = to_canonical(stored, affine)
    base = atlas.template(float(scan.affine[0, 0]))
    lowest = float(volume.min())
    unmoved = resample(volume, world, base.mask.shape, base.affine, outside=lowest) - lowest
    codes = "".join(nib.aff2axcodes(affine))
    template = (base.mask.astype(np.float32), base.wm)
    return (
        ((f"1 orientation: as stored, {codes}", _middles(stored, affine)), ("turned to RAS", _middles(volume, world))),
        (
            ("2 registration: by its header, template's edges", strip(unmoved, scan.affine), *template),
            ("registered, template's edges", strip(scan.native, scan.affine), *template),
        ),
    )


def _intensities(scan: Preprocessed) -> tuple[tuple, ...]:
    """Rows of titles, pictures and outlines: bias field, brain extraction, tissues."""
    gain = _gain(scan)
    low, high = np.percentile(gain[gain > 0], (2, 98)) if (gain > 0).any() else (1, 1)
    corrected = np.divide(scan.native, gain, out=np.zeros_like(scan.native), where=gain > 0)
    tissue = np.stack([strip(scan.tissues[..., k], scan.affine) for k in range(3)], axis=-1)
    head, mask = strip(scan.native, scan.affine), scan.mask.astype(np.float32)
    brain = strip(np.where(scan.mask, scan.t1w, scan.t1w[scan.mask].min(initial=0)), scan.affine)
    return (
        (
            ("3 bias: brain before correction", strip(scan.native * (gain > 0), scan.affine)),
            (f"corrected by a gain of {low:.2f} to {high:.2f}", strip(corrected, scan.affine)),
        ),
        (("4 extraction: head and the brain's outline", head, mask), ("brain, normalised", brain)),
        (
            ("5 segmentation: brain and outline of WM", brain, scan.tissues[..., 1]),
            ("tissues: red GM, green WM, blue CSF", tissue),
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
    known = features[features["qc_verdict"] != "fail"].merge(manifest[["scan_id", "diagnosis"]], on="scan_id")
    spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(known))  # the same picture in every run
    figure, axes = plt.subplots(2, 3, figsize=(COLUMN_WIDTH, 4.2))
    measured = {name: label for name, label in VOLUMES.items() if name in known}
    _switch_off(axes.ravel()[len(measured) :])
    for axis, (name, label) in zip(axes.ravel(), measured.items(), strict=False):
        shared = {"data": known, "x": "diagnosis", "y": name, "order": list(classes), "ax": axis}
        place = known["diagnosis"].map(classes.index) + spread
        axis.scatter(place, known[name], s=4, c=known["diagnosis"].map(class_palette(classes)), alpha=0.6, linewidths=0)
        sns.boxplot(**shared, width=0.5, fill=False, color=NEUTRAL, showfliers=False, linewidth=0.8)
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


def _switch_off(axes: np.ndarray) -> None:
    for axis in axes:
        axis.set_axis_off()


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


def _middles(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The middle slice along each array axis, side by side, pixels of 2 mm, (128, 384) float32."""
    zooms = voxel_sizes(affine) / 2
    pictures = []
    for axis in range(3):
        across, up = (k for k in range(3) if k != axis)
        middle = np.take(volume, volume.shape[axis] // 2, axis=axis).T[::-1]
        pictures.append(fit_square(middle - volume.min(), 128, (zooms[up], zooms[across])))
    return np.hstack(pictures)


def _gain(scan: Preprocessed) -> np.ndarray:
    """The bias field inside the brain, 0 outside, got back from the head and its normalised version."""
    inside = scan.mask & (scan.native > 0)
    design = np.column_stack([scan.t1w[inside], np.ones(int(inside.sum()))]).astype(np.float64)
    scale, offset = np.linalg.lstsq(design, scan.native[inside].astype(np.float64), rcond=None)[0]
    corrected = scan.t1w * scale + offset
    ratio = np.divide(scan.native, corrected, out=np.ones_like(scan.native), where=corrected > 0.2 * offset)
    return np.where(inside & (corrected > 0.2 * offset), np.clip(ratio, 0.3, 3), 0)
