"""The data of one training: slices, targets and split; the order of an epoch; and the parts of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from adlib.preprocess.intensity import fit_landmarks
from adlib.study.metrics import NETWORK
from adlib.study.params import StudyParams
from adlib.study.records import FEATURES, MANIFEST, StudyError, read_table
from adlib.training.pooling import ATTENTION
from adlib.training.slices import scan_percentiles, to_landmarks
from adlib.training.splits import member_parts
from adlib.training.targets import auxiliary_targets, standardised_covariates

Augment = Callable[[torch.Tensor, torch.Generator, StudyParams], torch.Tensor]

LOADERS = 2  # processes that vary slices during the training, for the slower augmentation


@dataclass(frozen=True)
class Fold:
    """The data of one training.

    Attributes
    ----------
    run : str
        ``resnet50`` or the name of a control.
    number : int
    member : int
        Number of the network among those of an ensemble, from 1.
    slices : (rows, 3, size, size) float16
        All slices of the study.
    table : DataFrame
        Their names and diagnoses, and the column ``split`` of this fold.
    targets : (rows,) int64
        Class indices of the diagnoses.
    auxiliary : (rows, M) float32
        Standardised age and volumes, predicted with the class in training; see
        `adlib.training.targets.auxiliary_targets`.
    covariates : (rows, C) float32
        Concatenated to the image features; standardised on training rows, 0 where unknown.
    landmarks : tuple of float
        The standard scale, fitted on the scans of this fold's training part, that the slices are on; empty for none.
    covariate_stats : dict of str to (float, float)
        Mean and standard deviation in training of each column of `covariates`, by name.
    """

    run: str
    number: int
    member: int
    slices: np.ndarray
    table: pd.DataFrame
    targets: np.ndarray
    auxiliary: np.ndarray
    covariates: np.ndarray
    landmarks: tuple[float, ...] = ()
    covariate_stats: dict[str, tuple[float, float]] = field(default_factory=dict)

    def rows(self, split: str) -> np.ndarray:
        """Rows of the slices of one part of the split.

        Parameters
        ----------
        split : str
            ``train``, ``validation`` or ``test``.

        Returns
        -------
        (n,) int64
        """
        return np.flatnonzero(self.table["split"] == split)

    @property
    def scans(self) -> np.ndarray:
        """The scan of each row (rows,), numbered from 0."""
        return pd.factorize(self.table["scan_id"])[0]


def make_fold(
    number: int, slices: np.ndarray, table: pd.DataFrame, splits: pd.DataFrame, params: StudyParams, member: int = 1
) -> Fold:
    """Join slices with the split of their participant, its auxiliary targets and its covariates.

    Parameters
    ----------
    number : int
        Of the fold, from 0.
    slices : (rows, 3, size, size) float16
    table : DataFrame
        Schema `records.SLICES`.
    splits : DataFrame
        Schema `records.SPLITS`.
    params : StudyParams
    member : int
        Of an ensemble, from 1; each leaves out other validation participants.

    Returns
    -------
    Fold
        Slices are on the landmarks of the training scans where ``preprocess.normalise`` is ``landmarks``.

    Raises
    ------
    StudyError
        If a participant with slices has no split, or no training scan has a covariate of the params.
    """
    table = table.assign(split=table["participant_id"].map(member_parts(splits, number, member)))
    if table["split"].isna().any():
        name = table.loc[table["split"].isna(), "participant_id"].iloc[0]
        raise StudyError(f"{name} has slices but no split in fold {number}; run step 03 again")
    targets = table["diagnosis"].map({name: k for k, name in enumerate(params.classes)}).to_numpy()
    train = np.flatnonzero(table["split"] == "train")
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST)
    features = read_table(params.folder / "features.tsv", FEATURES)
    auxiliary = auxiliary_targets(table, manifest, features, train)
    covariates, stats = standardised_covariates(table, manifest, train, params.train.covariates)
    standard = np.empty(0)
    if params.preprocess.normalise == "landmarks" and not params.input.flat:
        scans = scan_percentiles(params)
        standard = fit_landmarks(scans.loc[table["scan_id"].iloc[train].unique()].to_numpy())
        slices = to_landmarks(slices, table["scan_id"], scans, standard)
    return Fold(
        NETWORK, number, member, slices, table, targets, auxiliary, covariates, tuple(map(float, standard)), stats
    )


class Batch(NamedTuple):
    """A part of a step: number, slices (B, 3, H, W), targets (B,), auxiliary (B, M), covariates (B, C), scans (B,)."""

    number: int
    x: torch.Tensor
    y: torch.Tensor
    auxiliary: torch.Tensor
    covariates: torch.Tensor
    scan: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """Copy to a device, slices in channels-last memory format.

        Parameters
        ----------
        device : torch.device

        Returns
        -------
        Batch
        """
        x = self.x.to(device, memory_format=torch.channels_last)
        return Batch(self.number, x, *(part.to(device) for part in self[2:]))


def epoch_rows(fold: Fold, params: StudyParams, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Rows of the training slices of an epoch, by step and, within it, by part.

    The unit of chance is a slice or, where attention pools a scan, all training slices of a scan. Each step has
    ``batch_size`` slices in ``micro_batches`` parts, whatever the number of devices that share them.

    Parameters
    ----------
    fold : Fold
    params : StudyParams
    rng : numpy Generator

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
    """Seed of all that is random in one part of an epoch, whichever device computes it.

    Parameters
    ----------
    seed : list of int
        Of the epoch.
    number : int
        Of the part in the epoch, from 0.

    Returns
    -------
    int
        Below 2**31.
    """
    return int(np.random.default_rng([*seed, number]).integers(2**31))


def load_parts(
    fold: Fold,
    params: StudyParams,
    steps: list[list[np.ndarray]],
    seed: list[int],
    augment: Augment,
    rank: int = 0,
    ranks: int = 1,
) -> DataLoader:
    """Load what one device computes in an epoch: of each step its share of the parts, in order.

    Parameters
    ----------
    fold : Fold
    params : StudyParams
    steps : list of list of (B,) int arrays
        From `epoch_rows`.
    seed : list of int
        Of the epoch.
    augment : callable
        ``(slices, generator, params)`` to slices (B, 3, H, W).
    rank : int
        Number of the device, from 0.
    ranks : int
        Number of devices; divides ``train.micro_batches``.

    Returns
    -------
    DataLoader
        Of `Batch`.
    """
    share = params.train.micro_batches // ranks
    numbered = [
        (step * params.train.micro_batches + k, rows)
        for step, parts in enumerate(steps)
        for k, rows in list(enumerate(parts))[rank * share : (rank + 1) * share]
    ]
    make = partial(_batch, fold=fold, scans=fold.scans, params=params, seed=seed, augment=augment)
    workers = LOADERS if params.train.augment == "mri" else 0
    return DataLoader(numbered, batch_size=None, collate_fn=make, num_workers=workers)


def _batch(
    part: tuple[int, np.ndarray], fold: Fold, scans: np.ndarray, params: StudyParams, seed: list[int], augment: Augment
) -> Batch:
    number, rows = part
    x = torch.from_numpy(fold.slices[rows].astype(np.float32))  # (B, 3, H, W)
    x = augment(x, torch.Generator().manual_seed(part_seed(seed, number)), params)
    others = (fold.targets[rows], fold.auxiliary[rows], fold.covariates[rows], scans[rows])
    return Batch(number, x, *map(torch.from_numpy, others))
