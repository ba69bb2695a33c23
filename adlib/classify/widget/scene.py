"""A scan turned and cut with the mouse: NiiVue in the page, for browsers that draw with WebGL 2."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
from ipyniivue import NiiVue, ShowRender

HEIGHT = 420  # pixels
STRONGEST = 127  # evidence
OVERLAYS = {
    "brain mask": ("mask", 0.35, {"colormap": "blue", "cal_min": 0.5}),
    "tissues": ("tissue", 0.45, {"colormap": "viridis", "cal_min": 0.5}),
    "evidence": ("evidence", 0.8, {"colormap": "warm", "colormap_negative": "winter", "cal_min": STRONGEST / 4,
                                   "cal_max": STRONGEST, "cal_min_neg": -STRONGEST, "cal_max_neg": -STRONGEST / 4}),
}  # fmt: skip


class Scene(NiiVue):
    """Three planes and a rendering of one scan that follow the mouse.

    Parameters
    ----------
    view : dict of str to array
        See `adlib.classify.widget.worker.view_arrays`.
    shown : str
        The overlay to begin with.
    """

    def __init__(self, view: dict[str, np.ndarray], shown: str) -> None:
        super().__init__(height=HEIGHT, multiplanar_show_render=ShowRender.ALWAYS, crosshair_width=0.3)
        parts: list[dict[str, Any]] = [{"colormap": "gray", "cal_min": 0, "cal_max": 255, **_bytes(view, "head")}]
        self.titles = overlays_of(view)
        for title in self.titles:
            part, opacity, drawn = OVERLAYS[title]
            parts.append({**drawn, "opacity": opacity if title == shown else 0.0, **_bytes(view, part)})
        self.load_volumes(parts)

    def show(self, shown: str) -> None:
        """Draw one overlay, or none."""
        for volume, title in zip(self.volumes[1:], self.titles, strict=True):
            volume.opacity = OVERLAYS[title][1] if title == shown else 0.0


def overlays_of(view: dict[str, np.ndarray]) -> list[str]:
    """What can be drawn over this head."""
    return [title for title, (part, *_) in OVERLAYS.items() if part in view]


def _bytes(view: dict[str, np.ndarray], part: str) -> dict[str, Any]:
    """A part of the view as a NIfTI file in memory."""
    return {"name": f"{part}.nii", "data": nib.Nifti1Image(view[part], view["affine"]).to_bytes()}
