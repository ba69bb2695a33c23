"""A scan turned and cut with the mouse: NiiVue in the page, for browsers that draw with WebGL 2."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
from ipyniivue import NiiVue, ShowRender

HEIGHT = 420  # pixels
OVERLAYS = {"brain mask": ("mask", "blue", 0.35), "tissues": ("tissue", "viridis", 0.45)}


class Scene(NiiVue):
    """Three planes and a rendering of one scan that follow the mouse.

    Parameters
    ----------
    view : dict of str to array
        See `adlib.widget.worker.view_arrays`.
    shown : str
        The overlay to begin with.
    """

    def __init__(self, view: dict[str, np.ndarray], shown: str) -> None:
        super().__init__(height=HEIGHT, multiplanar_show_render=ShowRender.ALWAYS, crosshair_width=0.3)
        parts: list[dict[str, Any]] = [{"colormap": "gray", "cal_min": 0, "cal_max": 255, **_bytes(view, "head")}]
        for title, (part, colours, opacity) in OVERLAYS.items():
            visible = opacity if title == shown else 0.0
            parts.append({"colormap": colours, "opacity": visible, "cal_min": 0.5, **_bytes(view, part)})
        self.load_volumes(parts)

    def show(self, shown: str) -> None:
        """Draw one overlay, or none."""
        for volume, (title, (_, _, opacity)) in zip(self.volumes[1:], OVERLAYS.items(), strict=True):
            volume.opacity = opacity if title == shown else 0.0


def _bytes(view: dict[str, np.ndarray], part: str) -> dict[str, Any]:
    """A part of the view as a NIfTI file in memory."""
    return {"name": f"{part}.nii", "data": nib.Nifti1Image(view[part], view["affine"]).to_bytes()}
