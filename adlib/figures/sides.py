"""Which side of a picture is the left of the head: neurological (left is left) or radiological (left is right)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from adlib.imaging.volume import extract_slice
from adlib.study.params import Display, InputParams
from adlib.training.slices import PLANES

Views = Sequence[tuple[str, float]]
SIDED = ("axial", "coronal")  # planes in which left and right differ
VIEWS = (("sagittal", 4.0), ("coronal", -20.0), ("axial", 8.0))  # mm


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


def strip(
    volume: np.ndarray, affine: np.ndarray, display: Display = "neurological", views: Views = VIEWS
) -> np.ndarray:
    """Slices of a volume, side by side.

    Parameters
    ----------
    volume : (X, Y, Z) float32
    affine : (4, 4) float
        Voxel to world, mm.
    display : {"neurological", "radiological"}
    views : sequence of (str, float)
        Plane and position of each slice, mm; default: a sagittal, a coronal and an axial one.

    Returns
    -------
    (rows, columns) float32
    """
    slices = [turned(extract_slice(volume, affine, plane, position), plane, display) for plane, position in views]
    height = max(map(len, slices))
    return np.hstack([np.pad(each, ((height - len(each), 0), (0, 0)), constant_values=each.min()) for each in slices])


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
    edge = [withStroke(linewidth=1.5, foreground="black")]
    look = {"color": "white", "size": "x-small", "va": "bottom", "path_effects": edge}
    for x, letter, ha in zip((0.03, 0.97), letters, ("left", "right"), strict=True):
        axis.text(x, 0.02, letter, transform=axis.transAxes, ha=ha, **look)
