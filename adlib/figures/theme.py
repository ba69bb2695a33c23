"""One theme for all figures and one colour for each class."""

import matplotlib.pyplot as plt
import seaborn as sns

COLUMN_WIDTH = 6.3  # inches, the text width of an A4 page
NEUTRAL = "#5f6368"
ACCENT = "#0072b2"


def apply_theme() -> None:
    """Set the seaborn theme that all figures share: paper context, colour-blind-safe, readable at column width."""
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind", font_scale=1.0)
    plt.rcParams |= {"figure.dpi": 110, "savefig.dpi": 160, "figure.constrained_layout.use": True}
    plt.rcParams |= {"axes.titleweight": "bold", "axes.titlesize": "medium", "axes.grid.axis": "y"}
    plt.rcParams["svg.hashsalt"] = "adlib"


def class_palette(classes: tuple[str, ...]) -> dict[str, tuple[float, float, float]]:
    """One colour per class, light to dark with disease: the classes are ordered.

    Parameters
    ----------
    classes : tuple of str
        From healthy to most severe.

    Returns
    -------
    dict of str to (r, g, b)
        Each channel 0 to 1.
    """
    return dict(zip(classes, sns.color_palette("viridis_r", len(classes) + 1)[1:], strict=True))
