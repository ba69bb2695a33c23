"""The order of training slices, and the small parts of a step that a device computes at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from adlib.study.params import StudyParams
from adlib.training.augmentation import augment, augment_mri, mirror
from adlib.training.folds import Fold
from adlib.training.pooling import ATTENTION

SIDES = {"sagittal": (), "three_planes": (0, 1), "three_planes_2d": (0, 1)}  # channels whose last axis is left-right
LOADERS = 2  # processes that vary slices beside the training, for the slower augmentation


@dataclass(frozen=True)
class Batch:
    """A part of a step: number, slices (B, 3, H, W), targets (B,), auxiliary (B, M), covariates (B, C), scans (B,)."""

    number: int
    x: torch.Tensor
    y: torch.Tensor
    auxiliary: torch.Tensor
    covariates: torch.Tensor
    scan: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        x = self.x.to(device, memory_format=torch.channels_last)
        return Batch(
            self.number, x, *(part.to(device) for part in (self.y, self.auxiliary, self.covariates, self.scan))
        )


def epoch_rows(fold: Fold, params: StudyParams, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Rows of the training slices of an epoch, by step and, within it, by part.

    The unit of chance is a slice or, where attention pools a scan, all training slices of a scan. Each step has
    ``batch_size`` slices in ``micro_batches`` parts, whatever the number of devices that share them.

    Returns
    -------
    list of list of (B,) int arrays
    """
    settings = params.train
    units = _units(fold, params)
    drawn = _balanced(fold, units, rng) if settings.balance == "sampling" else rng.permutation(len(units))
    each = max(len(unit) for unit in units)
    size = max(settings.batch_size // each, 2 * settings.micro_batches)
    if len(units) < 2 * settings.micro_batches:
        size = len(units)
    steps = [drawn[start : start + size] for start in range(0, max(len(drawn) - size + 1, 1), size)]
    return [
        [np.sort(np.concatenate([units[k] for k in part])) for part in np.array_split(step, settings.micro_batches)]
        for step in steps
    ]


def _units(fold: Fold, params: StudyParams) -> list[np.ndarray]:
    rows = fold.rows("train")
    if params.input.pooling != ATTENTION:
        return list(rows[:, None])
    scans = fold.scans[rows]
    return [rows[scans == scan] for scan in np.unique(scans)]


def _balanced(fold: Fold, units: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """As many units as there are, each from a class, then a participant of the class, then a unit, drawn evenly."""
    first = np.array([unit[0] for unit in units])
    classes, people = fold.targets[first], fold.table["participant_id"].to_numpy()[first]
    drawn = np.empty(len(units), int)
    for k, label in enumerate(rng.permutation(np.resize(np.unique(classes), len(units)))):
        person = rng.choice(np.unique(people[classes == label]))
        drawn[k] = rng.choice(np.flatnonzero((classes == label) & (people == person)))
    return drawn


def part_seed(seed: list[int], number: int) -> int:
    """Seed of all that is random in one part of an epoch, whichever device computes it."""
    return int(np.random.default_rng([*seed, number]).integers(2**31))


class _Parts(Dataset):
    """The parts of an epoch that one device computes, each varied by a seed of its own, whoever loads it."""

    def __init__(self, fold: Fold, params: StudyParams, parts: list[tuple[int, np.ndarray]], seed: list[int]):
        self.fold, self.params, self.parts, self.seed = fold, params, parts, seed
        self.scans = fold.scans

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Batch:
        number, rows = self.parts[index]
        fold, kind = self.fold, self.params.train.augment
        x = torch.from_numpy(fold.slices[rows].astype(np.float32))  # (B, 3, H, W)
        if kind != "none":
            generator = torch.Generator().manual_seed(part_seed(self.seed, number))
            x = mirror(x, generator, SIDES.get(self.params.input.plane, (0, 1, 2)))
            x = (augment if kind == "light" else augment_mri)(x, generator)
        covariates = fold.covariates[rows] if len(fold.covariates) else np.zeros((len(rows), 0), np.float32)
        others = (fold.targets[rows], fold.auxiliary[rows], covariates, self.scans[rows])
        return Batch(number, x, *map(torch.from_numpy, others))


def load_parts(
    fold: Fold, params: StudyParams, steps: list[list[np.ndarray]], seed: list[int], rank: int, ranks: int
) -> DataLoader:
    """Load what device `rank` of `ranks` computes: of each step its share of the parts, in order."""
    share = params.train.micro_batches // ranks
    numbered = [
        (step * params.train.micro_batches + k, rows)
        for step, parts in enumerate(steps)
        for k, rows in list(enumerate(parts))[rank * share : (rank + 1) * share]
    ]
    workers = LOADERS if params.train.augment == "mri" else 0
    return DataLoader(_Parts(fold, params, numbered, seed), batch_size=None, num_workers=workers)
