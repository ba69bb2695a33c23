"""Which side of a picture is the left of the head: neurological (left is left) or radiological (left is right)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from adlib.study.params import Display, InputParams
from adlib.training.slices import PLANES

SIDED = ("axial", "coronal")  # planes in which left and right differ


def turned(picture: np.ndarray, plane: str, display: Display) -> np.ndarray:
    """A neurological picture as `display` shows it.

    Parameters
    ----------
    picture : (rows, columns) array
        From `adlib.imaging.volume.extract_slice`.
    plane : str
        Sagittal pictures stay as they are.
    display : {"neurological", "radiological"}

    Returns
    -------
    (rows, columns) array
    """
    return picture[:, ::-1] if display == "radiological" and plane in SIDED else picture


def note(display: Display) -> str:
    """The side in words, for pictures of several planes.

    Parameters
    ----------
    display : {"neurological", "radiological"}
    """
    side = "left" if display == "neurological" else "right"
    return f"coronal, axial: {side} of the head on the left ({display})"


def channel_planes(params: InputParams) -> tuple[str, str, str]:
    """The plane of each channel of a network input; empty where the source does not say which side is left.

    Parameters
    ----------
    params : InputParams
    """
    if params.flat:
        return ("", "", "")
    return PLANES if params.plane == "three_planes" else (params.plane,) * 3


def mark_sides(axis: Axes, plane: str, display: Display) -> None:
    """Turn a drawn neurological slice as `display` shows it, with all that is drawn on it, and write L and R.

    Parameters
    ----------
    axis : matplotlib Axes
    plane : str
        Nothing is done to planes other than `SIDED`.
    display : {"neurological", "radiological"}
    """
    if plane not in SIDED:
        return
    letters = "LR"
    if display == "radiological":
        axis.invert_xaxis()
        letters = "RL"
    look = {
        "color": "white",
        "size": "x-small",
        "va": "bottom",
        "path_effects": [withStroke(linewidth=1.5, foreground="black")],
    }
    for x, letter, ha in zip((0.03, 0.97), letters, ("left", "right"), strict=True):
        axis.text(x, 0.02, letter, transform=axis.transAxes, ha=ha, **look)
