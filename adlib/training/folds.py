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

Augment = Callable[[torch.Tensor, torch.Generator, StudyParams], torch.Tensor]

LOADERS = 2  # processes that vary slices during the training, for the slower augmentation
SHARES = ("gm_ml", "wm_ml", "csf_ml", "hippocampus_ml", "temporal_ml", "ventricles_ml")


@dataclass(frozen=True)
class Fold:
    """The data of one training.

    Attributes
    ----------
    run : str
        ``resnet50`` or the name of a control.
    number : int
    slices : (rows, 3, size, size) float16
        All slices of the study.
    table : DataFrame
        Their names and diagnoses, and the column ``split`` of this fold.
    targets : (rows,) int64
        Class indices of the diagnoses.
    auxiliary : (rows, M) float32
        Standardised age and volumes, predicted with the class in training; see `auxiliary_targets`.
    covariates : (rows, C) float32
        Concatenated to the image features; standardised on training rows, 0 where unknown.
    landmarks : tuple of float
        The standard scale, fitted on the scans of this fold's training part, that the slices are on; empty for none.
    covariate_stats : dict of str to (float, float)
        Mean and standard deviation in training of each column of `covariates`, by name.
    """

    run: str
    number: int
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


def make_fold(number: int, slices: np.ndarray, table: pd.DataFrame, splits: pd.DataFrame, params: StudyParams) -> Fold:
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

    Returns
    -------
    Fold
        Slices are on the landmarks of the training scans where ``preprocess.normalise`` is ``landmarks``.

    Raises
    ------
    StudyError
        If a participant with slices has no split, or no training scan has a covariate of the params.
    """
    chosen = splits[splits["fold"] == number].set_index("participant_id")["split"]
    table = table.assign(split=table["participant_id"].map(chosen))
    if table["split"].isna().any():
        name = table.loc[table["split"].isna(), "participant_id"].iloc[0]
        raise StudyError(f"{name} has slices but no split in fold {number}; run step 03 again")
    targets = table["diagnosis"].map({name: k for k, name in enumerate(params.classes)}).to_numpy()
    train = np.flatnonzero(table["split"] == "train")
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST)
    features = read_table(params.folder / "features.tsv", FEATURES)
    auxiliary = auxiliary_targets(table, manifest, features, train)
    covariates, stats = _covariates(table, manifest, train, params.train.covariates)
    standard = np.empty(0)
    if params.preprocess.normalise == "landmarks" and not params.input.flat:
        scans = scan_percentiles(params)
        standard = fit_landmarks(scans.loc[table["scan_id"].iloc[train].unique()].to_numpy())
        slices = to_landmarks(slices, table["scan_id"], scans, standard)
    return Fold(NETWORK, number, slices, table, targets, auxiliary, covariates, tuple(map(float, standard)), stats)


def _covariates(
    table: pd.DataFrame, manifest: pd.DataFrame, train: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, tuple[float, float]]]:
    """Standardised covariates (rows, C) float32 and their mean and spread among training rows."""
    scans = manifest.set_index("scan_id").loc[table["scan_id"]]
    columns, spreads = [np.zeros((len(table), 0))], {}
    for name in names:
        values = as_numbers(name, scans[name])
        if not np.isfinite(values[train]).any():
            raise StudyError(f"train.covariates names {name}, which no training scan of the manifest has; leave it out")
        spreads[name] = (float(np.nanmean(values[train])), float(np.nanstd(values[train])) or 1.0)
        columns.append(((values - spreads[name][0]) / spreads[name][1])[:, None])
    return np.nan_to_num(np.concatenate(columns, axis=1)).astype(np.float32), spreads


def as_numbers(name: str, values: pd.Series) -> np.ndarray:
    """A covariate as numbers.

    Parameters
    ----------
    name : str
        ``age`` or ``sex``.
    values : Series
        As in the manifest.

    Returns
    -------
    (n,) float64
        Years, or 1 for female and 0 for male; not a number where unknown.
    """
    if name != "sex":
        return values.to_numpy(float)
    first = values.astype("string").str.upper().str[0]
    return first.map({"F": 1.0, "M": 0.0}).to_numpy(float, na_value=np.nan)


def auxiliary_targets(
    table: pd.DataFrame, manifest: pd.DataFrame, features: pd.DataFrame, train: np.ndarray
) -> np.ndarray:
    """Standardised age, intracranial volume, brain fraction and volumes as shares of the intracranial volume.

    They guide training only (multi-task learning, Caruana 1997, doi:10.1023/A:1007379606734); a prediction needs
    nothing but the image.

    Parameters
    ----------
    table : DataFrame
        Slices in the order of the array's rows; column scan_id.
    manifest, features : DataFrame
        With whatever of ``age``, ``icv_ml``, ``nbv`` and `SHARES` the study has.
    train : (n,) int
        Rows whose mean and spread standardise all rows.

    Returns
    -------
    (rows, M) float32
        0 where a value is missing; M counts those that some training scan has.
    """
    scans = features.drop(columns=[c for c in features if c in manifest and c != "scan_id"])
    scans = manifest.merge(scans, on="scan_id").set_index("scan_id").loc[table["scan_id"]]
    shares = [scans[name] / scans["icv_ml"] for name in SHARES if name in scans and "icv_ml" in scans]
    columns = [scans[name] for name in ("age", "icv_ml", "nbv") if name in scans] + shares
    present = [values for column in columns if np.isfinite((values := column.to_numpy(float))[train]).any()]
    if not present:
        return np.zeros((len(table), 0), np.float32)
    values = np.stack(present, axis=1)
    mean, spread = np.nanmean(values[train], axis=0), np.nanstd(values[train], axis=0)
    return np.nan_to_num((values - mean) / np.where(spread > 0, spread, 1)).astype(np.float32)


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
