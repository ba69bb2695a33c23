"""Where the network finds its evidence, and whether the maps can be believed."""

from typing import Any

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from nilearn.plotting import plot_stat_map

from adlib.evaluation.explain.attribution import AttributionMaps
from adlib.evaluation.explain.sanity import FRACTIONS
from adlib.figures.sides import mark_sides
from adlib.figures.theme import ACCENT, COLUMN_WIDTH, NEUTRAL
from adlib.study.metrics import CHECK, format_score, tidy
from adlib.study.params import Display

METRICS = {"rank_correlation": "with sign", "rank_correlation_absolute": "without sign"}
OVERLAPS = {"trained": "the network's maps", "randomised": "maps of a random network", "edges": "edges of the image"}
CHANGES = ("volume", "image")


def plot_attribution(
    maps: AttributionMaps,
    classes: tuple[str, ...],
    planes: tuple[str, str, str] = ("", "", ""),
    display: Display = "neurological",
) -> Figure:
    """Evidence for the last class on the mean slice of each true class: red for, blue against.

    Parameters
    ----------
    maps : AttributionMaps
        Mean maps and mean slices of each true class.
    classes : tuple of str
        In the order of `maps`.
    planes : tuple of str
        Of the channels, from `adlib.figures.sides.channel_planes`.
    display : {"neurological", "radiological"}
    """
    rows, columns = maps.attribution.shape[:2]
    size = COLUMN_WIDTH / max(columns, 3)
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns + 0.6, size * rows + 0.3), squeeze=False)
    limit = np.percentile(np.abs(maps.attribution), 99.5)
    for k, name in enumerate(classes):
        panels = zip(axes[k], maps.slices[k], maps.attribution[k], strict=True)
        for column, (axis, image, evidence) in enumerate(panels):
            axis.imshow(image, cmap="gray")
            strength = np.clip(np.abs(evidence) / limit, 0, 0.8)
            shown = axis.imshow(evidence, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=strength)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            mark_sides(axis, planes[column % 3], display)
        axes[k, 0].set_ylabel(f"{name}\n(mean of {maps.scans[k]})")
    figure.colorbar(shown, ax=axes, label=f"evidence for {classes[-1]} (logit per pixel)", shrink=0.6)
    return figure


def plot_attribution_mni(
    images: dict[str, nib.Nifti1Image],
    background: nib.Nifti1Image,
    mode: str,
    coordinates: tuple[float, ...],
    display: Display = "neurological",
) -> Figure:
    """The mean map of each true class in MNI152 space at the positions of the slices; weak evidence is transparent.

    Parameters
    ----------
    images : dict of str to NIfTI image
        Mean maps by class, the last class last.
    background : NIfTI image
        The template that the maps are drawn on.
    mode, coordinates
        From `adlib.evaluation.explain.regions.cut_positions`.
    display : {"neurological", "radiological"}
    """
    count = 3 if mode == "ortho" else len(coordinates)
    columns = min(max(1, 3 // count), len(images))
    rows = -(-len(images) // columns)
    size = min(COLUMN_WIDTH / (count * columns), 1.9)
    width, height = size * count * columns, size * rows + 0.9
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="none")
    figure.subplots_adjust(0.01, 0.65 / height, 0.99, 1 - 0.25 / height, hspace=0.16, wspace=0.05)
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    values = np.concatenate([image.get_fdata().ravel() for image in images.values()])
    limit = float(np.percentile(np.abs(values[values != 0]), 99.5)) if values.any() else 1.0
    where = coordinates if mode == "ortho" else list(coordinates)
    for axis, (name, image) in zip(axes.flat, images.items(), strict=False):
        shown = {"transparency": image, "transparency_range": [0, limit]}
        look = shown if image.get_fdata().any() else {"transparency": 0}
        plot_stat_map(
            image, bg_img=background, display_mode=mode, cut_coords=where, axes=axis, colorbar=False, cmap="RdBu_r",
            vmin=-limit, vmax=limit, black_bg=False, draw_cross=False, annotate=False,
            radiological=display == "radiological", **look,
        ).annotate(size=7)  # fmt: skip
        axis.set_title(name, fontsize="small", loc="left", pad=2)
    _mni_scale(figure, limit, list(images)[-1])
    return figure


def _mni_scale(figure: Figure, limit: float, name: str) -> None:
    power = int(np.floor(np.log10(limit)))
    height = figure.get_figheight()
    bar = figure.add_axes((0.3, 0.42 / height, 0.4, 0.08 / height))
    scale = ScalarMappable(Normalize(-limit / 10**power, limit / 10**power), "RdBu_r")
    label = f"evidence for {name} ($10^{{{power}}}$ logit per pixel and channel)"
    figure.colorbar(scale, cax=bar, orientation="horizontal").set_label(label, size="x-small")
    bar.tick_params(labelsize="x-small")


def plot_randomisation(sanity: dict[str, Any]) -> Figure:
    """Change of the maps under randomisation of the network, and overlap with the true change of simulated heads.

    Left: rank correlation of the maps with those of a network that is random from its last layer down to a stage.
    Right, for simulated heads only: how often the strongest pixels lie where disease changes volume or image most.

    Parameters
    ----------
    sanity : dict
        Content of ``attribution/sanity.json``.

    References
    ----------
    Adebayo et al. 2018, arXiv:1810.03292.
    """
    checks = tidy(sanity["entries"], CHECK)
    overlaps = checks[checks["check"].str.startswith("overlap")]
    columns = 1 if overlaps.empty else 2
    figure, axes = plt.subplots(1, columns, figsize=(COLUMN_WIDTH * (0.2 + 0.4 * columns), 3.0), squeeze=False)
    _correlations(axes[0, 0], checks.query("check == 'randomisation'"))
    if not overlaps.empty:
        greatest = 1 / min(region["share_of_brain"] for region in sanity["changed"].values())
        _overlaps(axes[0, 1], overlaps.query("metric == 'ratio_to_chance'"), greatest)
    return figure


def _correlations(axis: plt.Axes, checks: pd.DataFrame) -> None:
    for place, (metric, title) in enumerate(METRICS.items()):
        rows = checks[checks["metric"] == metric]
        points, low, high = (np.r_[1.0, rows[name]] for name in ("point", "low", "high"))
        look = {"color": (ACCENT, NEUTRAL)[place], "fmt": ("o-", "s--")[place], "markersize": 4, "capsize": 2}
        spread = np.maximum(np.abs([low - points, high - points]), 0)
        axis.errorbar(np.arange(len(points)) + 0.12 * place, points, spread, label=title, **look)
    axis.axhline(0, color=NEUTRAL, linestyle=":", linewidth=1)
    ticks = ["none", *("+ " + rows["of"])]
    axis.set_xticks(range(len(ticks)), ticks, rotation=40, ha="right", size="small")
    axis.set(title="Maps of ever more random networks", ylabel="rank correlation", xlabel="what is random",
             ylim=(min(-0.3, axis.get_ylim()[0]), 1.05))  # fmt: skip
    axis.legend(fontsize="x-small", title="maps compared", title_fontsize="x-small")


def _overlaps(axis: plt.Axes, checks: pd.DataFrame, greatest: float) -> None:
    scores = checks.set_index(["check", "of"], drop=False)
    for row, name in enumerate(OVERLAPS):
        for shift, of in zip((-0.2, 0.2), CHANGES, strict=True):
            score = scores.loc[f"overlap_{of}", name]
            look = {"fmt": "o" if of == "volume" else "s", "color": ACCENT if name == "trained" else NEUTRAL}
            spread = np.maximum([[score.point - score.low], [score.high - score.point]], 0)
            axis.errorbar(score.point, row + shift, xerr=spread, capsize=2, markersize=4, **look)
            text = f"{of}  {format_score(score, 1)} "
            axis.text(greatest, row + shift, text, ha="right", va="center", size="x-small")
    axis.axvline(1, color=NEUTRAL, linestyle=":")
    axis.set_yticks(range(len(OVERLAPS)), [title.replace(" of ", "\nof ") for title in OVERLAPS.values()], size="small")
    axis.set(title="Strongest pixels where disease acts", xlim=(0, greatest), ylim=(len(OVERLAPS) - 0.4, -0.6),
             xlabel=f"ratio to chance (dotted); at most {greatest:.0f}")  # fmt: skip
    axis.grid(False)


def plot_deletion(sanity: dict[str, Any]) -> Figure:
    """Output for the last class while patches are blanked or shown, by attribution and in random order.

    Parameters
    ----------
    sanity : dict
        Content of ``attribution/sanity.json``.

    References
    ----------
    Petsiuk et al. 2018, arXiv:1806.07421.
    """
    gains = tidy(sanity["entries"], CHECK).query("check == 'perturbation'").set_index("of", drop=False)
    figure, axes = plt.subplots(1, 2, figsize=(COLUMN_WIDTH, 2.9), sharey=True)
    words = {"deletion": "blanked", "insertion": "shown"}
    for axis, (name, done) in zip(axes, words.items(), strict=True):
        looks = ((name, ACCENT, "most evidence first"), (f"random_{name}", NEUTRAL, "random order"))
        for curve, colour, title in looks:
            values = sanity["curves"][curve]
            axis.fill_between(FRACTIONS, values["low"], values["high"], color=colour, alpha=0.18, linewidth=0)
            axis.plot(FRACTIONS, values["point"], color=colour, label=title)
        axis.set_title(f"{name.capitalize()}: area gained\n{format_score(gains.loc[name])}", size="small")
        axis.set(xlabel=f"share of the patches {done}", xlim=(0, 1))
    axes[0].set_ylabel(f"output for {sanity['class']} (logit)")
    axes[0].legend(fontsize="x-small")
    return figure
