"""Slices of simulated brains as shares of tissue: three planes of each, sampled alone and kept as shards."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from adlib.compute import map_scans
from adlib.exec_params import HERE, Pool
from adlib.pretrain.heads import Head, displacement, draw_head, to_grid, volumes
from adlib.records import StudyError, atomic_path, digest, read_json, write_json
from adlib.sources.phantom_fields import sample
from adlib.sources.phantom_head import MEASURED, Anatomy, anatomy

PLANES = ("axial", "coronal", "sagittal")
SHARES = ("gm", "wm", "sulci", "ventricles", "hippocampus", "residual")
SIZE = 96
PIXEL_MM = 0.752 * 256 / SIZE
SUPERSAMPLED = 2
SHARD = 50
FACTS = (*(f"{name}_ml" for name in (*MEASURED, "icv")), "severity", "age")
# Where the mid-slices of OASIS-2 lie, MNI152 mm: along the normal, and the image's centre along columns and rows.
POSITION = {"axial": 14.0, "coronal": -12.0, "sagittal": 5.0}
_CENTRE = {"axial": (0.0, -16.0), "coronal": (0.0, 6.0), "sagittal": (-16.0, 6.0)}
_AXES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
_OFFSET_SD = 2.0
_TILT_SD = np.radians(2.0)


def plane_points(plane: str, rng: np.random.Generator | None = None) -> np.ndarray:
    """Points of a slice, finer than its pixels by `SUPERSAMPLED`.

    Parameters
    ----------
    plane : str
        One of `PLANES`.
    rng : numpy Generator, optional
        Draws where the slice lies and how it is tilted; left out, it lies exactly where it should.

    Returns
    -------
    (3, SIZE * SUPERSAMPLED, SIZE * SUPERSAMPLED) float32
        MNI152 mm; row 0 is the top, anterior in axial slices and superior in the others.
    """
    if plane not in PLANES:
        raise StudyError(f"unknown plane {plane!r}; there are {', '.join(PLANES)}")
    right, up, normal = _AXES[plane]
    count = SIZE * SUPERSAMPLED
    line = (np.arange(count) - (count - 1) / 2) * PIXEL_MM / SUPERSAMPLED
    columns, rows = np.meshgrid(line, -line)
    offset, tilt = (0.0, (0.0, 0.0)) if rng is None else (rng.normal(0, _OFFSET_SD), rng.normal(0, _TILT_SD, 2))
    position = POSITION[plane]
    if plane == "sagittal":
        position, offset = (position, 0.5 * offset) if rng is None or rng.random() < 0.5 else (-position, 0.5 * offset)
    points = np.empty((3, count, count), np.float32)
    points[right] = columns + _CENTRE[plane][0]
    points[up] = rows + _CENTRE[plane][1]
    points[normal] = position + offset + tilt[0] * columns + tilt[1] * rows
    return points


@cache
def _sampled(resolution_mm: float) -> tuple[torch.Tensor, Anatomy]:
    """The template's `SHARES` (6, X, Y, Z) float32."""
    head = anatomy(resolution_mm)
    gm, wm, csf, hippocampus, ventricles, _ = head.measured
    channels = np.stack([gm, wm, csf - ventricles, ventricles, hippocampus, head.residual])
    return torch.from_numpy(channels), head


def head_planes(head: Head, moved: torch.Tensor, resolution_mm: float = 1.0, jitter: bool = True) -> np.ndarray:
    """What share of each pixel is what.

    Parameters
    ----------
    head : Head
    moved : (3, *GRID_SHAPE) float32
        Its displacement.
    resolution_mm : float
        Voxel edge of the template, mm.
    jitter : bool
        Whether position and tilt of the slices vary.

    Returns
    -------
    (3, 6, SIZE, SIZE) uint8
        Of each of `PLANES` the `SHARES` in 255ths; the residual, -0.5 to 0.5, is stored from 0 to 254.
    """
    channels, template = _sampled(resolution_mm)
    rng = np.random.default_rng([*head.seed, 2]) if jitter else None
    points = torch.from_numpy(np.stack([plane_points(plane, rng) for plane in PLANES], axis=1))  # (3, 3, N, N)
    pulled = points + sample(moved, to_grid(points), "border")
    origin = torch.from_numpy(template.affine[:3, 3]).float().view(3, 1, 1, 1)
    shares = sample(channels, (pulled - origin) / resolution_mm)  # (6, 3, N, N)
    shares = torch.nn.functional.avg_pool2d(shares, SUPERSAMPLED).transpose(0, 1)
    shares[:, -1] = shares[:, -1] + 127 / 255
    return (shares * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def write_shards(folder: Path, count: int, seed: int, *, pool: Pool = HERE, resolution_mm: float = 1.0) -> None:
    """Sample heads into ``shard-<n>.npz``, `SHARD` each; shards already there are kept.

    Raises
    ------
    StudyError
        If the folder holds heads of another seed or resolution.
    """
    key = digest([seed, resolution_mm, SHARD])
    stamp = folder / "heads.json"
    if stamp.is_file() and read_json(stamp)["key"] != key:
        raise StudyError(f"{folder} holds heads of another seed or resolution; give another folder or delete it")
    write_json({"key": key}, stamp)
    wanted = [n for n in range(-(-count // SHARD)) if not shard_path(folder, n).is_file()]
    write = partial(_write_shard, folder=folder, seed=seed, resolution_mm=resolution_mm)
    map_scans(write, wanted, pool=pool, label="simulating heads")


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` lies."""
    return folder / f"shard-{number:04d}.npz"


def _write_shard(number: int, folder: Path, seed: int, resolution_mm: float) -> None:
    planes, facts = [], []
    for index in range(number * SHARD, (number + 1) * SHARD):
        head = draw_head(seed, index)
        moved = displacement(head)
        planes.append(head_planes(head, moved, resolution_mm))
        facts.append([*volumes(moved).values(), head.severity, head.age])
    with atomic_path(shard_path(folder, number)) as temporary:
        np.savez(temporary, planes=np.stack(planes), facts=np.array(facts, np.float32))


def read_shards(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` heads of a folder.

    Returns
    -------
    planes : (count, 3, 6, SIZE, SIZE) uint8
        See `head_planes`.
    facts : (count, 9) float32
        In the order of `FACTS`.

    Raises
    ------
    StudyError
        If there are not that many.
    """
    paths = [shard_path(folder, n) for n in range(-(-count // SHARD))]
    lacking = [path.name for path in paths if not path.is_file()]
    if lacking:
        raise StudyError(f"{folder} lacks {lacking[0]} of {count} heads; sample them first")
    planes, facts = np.empty((len(paths) * SHARD, 3, len(SHARES), SIZE, SIZE), np.uint8), []
    for k, path in enumerate(paths):
        with np.load(path) as stored:
            planes[k * SHARD : (k + 1) * SHARD] = stored["planes"]
            facts.append(stored["facts"])
    return planes[:count], np.concatenate(facts)[:count]
