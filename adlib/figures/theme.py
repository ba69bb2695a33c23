"""One look for all figures, one colour for each class, and the register of what was drawn."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from adlib.study.records import FIGURES, atomic_path, file_digest, read_table, write_table

COLUMN_WIDTH = 6.3  # inches, the text width of an A4 page
NEUTRAL = "#5f6368"
ACCENT = "#0072b2"
FIXED = {"figure.constrained_layout.use": False, "figure.autolayout": False}  # or each file is laid out again


def apply_theme() -> None:
    """Set the seaborn theme that all figures share: paper context, colour-blind-safe, readable at column width."""
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind", font_scale=1.0)
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "figure.constrained_layout.use": True,
            "axes.titleweight": "bold",
            "axes.titlesize": "medium",
            "axes.grid.axis": "y",
            "svg.hashsalt": "adlib",
        }
    )


def class_palette(classes: tuple[str, ...]) -> dict[str, tuple[float, float, float]]:
    """One colour per class, light to dark with disease: the classes are ordered."""
    return dict(zip(classes, sns.color_palette("viridis_r", len(classes) + 1)[1:], strict=True))


def save_figure(figure: Figure, folder: Path, name: str, *, notebook: str, sources: str, caption: str) -> Image:
    """Write `<name>.png` and `<name>.svg` and register them in `figures.tsv` of the same folder.

    Parameters
    ----------
    figure : matplotlib Figure
    folder : path
        The study's figures folder.
    name : str
        File name without suffix.
    notebook, sources, caption : str
        Which notebook drew it, from which stored tables, and what a reader should see in it.

    Returns
    -------
    IPython Image
        The picture as stored, with the caption as its text for those who cannot see it, so that a notebook cell can
        end with this call and show it.
    """
    folder = Path(folder)
    with plt.rc_context(FIXED):
        box = _settled(figure)
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            with atomic_path(folder / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, metadata=metadata, bbox_inches=box)
    register = folder / "figures.tsv"
    row = {"name": name, "notebook": notebook, "sources": sources, "caption": caption}
    row["sha256"] = file_digest(folder / f"{name}.png")
    known = read_table(register, FIGURES) if register.is_file() else pd.DataFrame(columns=list(FIGURES.columns))
    table = pd.concat([known[known["name"] != name], pd.DataFrame([row])], ignore_index=True)
    write_table(table.sort_values("name"), register, FIGURES)
    plt.close(figure)
    return Image(folder / f"{name}.png", width=round(box.width * plt.rcParams["figure.dpi"]), alt=caption)


def _settled(figure: Figure) -> Bbox:
    """Lay the figure out, once for all its files; the box around all that it shows, in inches."""
    if (dpi := plt.rcParams["savefig.dpi"]) != "figure":
        figure.set_dpi(dpi)
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    return figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])


def leave_panel(axis: Axes, words: str) -> None:
    """Say in a panel why nothing is drawn in it."""
    axis.set_xticks([])
    axis.grid(False)
    axis.text(0.5, 0.5, words, transform=axis.transAxes, ha="center", va="center", size="x-small", wrap=True)
