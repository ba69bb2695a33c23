"""What a network is to tell of a simulated head from its slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adlib.pretrain.planes import FACTS, PLANES, SHARES

VOLUMES = ("nbv", "gm", "wm", "hippocampus", "ventricles", "temporal", "severity", "age")
CELLS = 4
CELL_WEIGHT = 0.3
_CHUNK = 200


@dataclass(frozen=True)
class Targets:
    """Standardised values and what they are.

    Attributes
    ----------
    names : tuple of str
        Whole-head values first, in the order of `VOLUMES`.
    values : (n, T) float32
        Mean 0 and standard deviation 1 over the heads that they were fitted on.
    mean, sd : (T,) float32
        Of those heads.
    weight : (T,) float32
        How much each counts in the loss.
    """

    names: tuple[str, ...]
    values: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    weight: np.ndarray


def head_values(facts: np.ndarray) -> np.ndarray:
    """Values (n, 8) float64 of whole heads, in the order of `VOLUMES`.

    Brain, grey and white matter are shares of the intracranial volume; hippocampus, ventricles and temporal lobes are
    logarithms of theirs.

    Parameters
    ----------
    facts : (n, 9) array
        In the order of `planes.FACTS`.
    """
    of = dict(zip(FACTS, np.asarray(facts, float).T, strict=True))
    share = {name: of[f"{name}_ml"] / of["icv_ml"] for name in ("gm", "wm", "hippocampus", "ventricles", "temporal")}
    logs = [np.log(share[name]) for name in ("hippocampus", "ventricles", "temporal")]
    return np.stack([share["gm"] + share["wm"], share["gm"], share["wm"], *logs, of["severity"], of["age"]], axis=1)


def plane_values(planes: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Values (n, 10 + 3 * CELLS²) float32 that can be read off the slices themselves, and their names.

    Parameters
    ----------
    planes : (n, 3, 6, H, W) uint8
        From `planes.head_planes`.
    """
    parts = [_plane_values(planes[k : k + _CHUNK]) for k in range(0, len(planes), _CHUNK)]
    whole = [f"{what}_{plane}" for what in ("fluid", "gm", "ventricles") for plane in PLANES]
    cells = [f"fluid_{plane}_{r}{c}" for plane in PLANES for r in range(CELLS) for c in range(CELLS)]
    return np.concatenate(parts), (*whole, "hippocampus_coronal", *cells)


def _plane_values(planes: np.ndarray) -> np.ndarray:
    n, _, _, height, width = planes.shape
    grid = planes.reshape(n, 3, len(SHARES), CELLS, height // CELLS, CELLS, width // CELLS)
    cells = grid.sum(axis=(4, 6), dtype=np.int64)  # (n, 3, 6, CELLS, CELLS)
    whole = cells.sum(axis=(3, 4))
    gm, wm, sulci, ventricles, hippocampus = np.moveaxis(whole[:, :, :5], 2, 0)  # each (n, 3)
    total = gm + wm + sulci + ventricles
    fluid = (cells[:, :, 2] + cells[:, :, 3]) / total[:, :, None, None]
    coronal = np.sqrt(hippocampus[:, 1:2] / total[:, 1:2])
    found = [(sulci + ventricles) / total, gm / total, np.sqrt(ventricles / total), coronal, fluid.reshape(n, -1)]
    return np.concatenate(found, axis=1).astype(np.float32)


def make_targets(planes: np.ndarray, facts: np.ndarray, fitted: slice) -> Targets:
    """Targets of heads, standardised over some of them.

    Parameters
    ----------
    planes : (n, 3, 6, H, W) uint8
    facts : (n, 9) float32
    fitted : slice
        The heads whose mean and standard deviation are taken.
    """
    seen, names = plane_values(planes)
    raw = np.concatenate([head_values(facts), seen], axis=1)
    mean, sd = raw[fitted].mean(0), raw[fitted].std(0)
    sd = np.where(sd > 1e-6, sd, 1.0)
    weight = np.ones(raw.shape[1], np.float32)
    weight[-3 * CELLS**2 :] = CELL_WEIGHT
    values = ((raw - mean) / sd).astype(np.float32)
    return Targets((*VOLUMES, *names), values, mean.astype(np.float32), sd.astype(np.float32), weight)
