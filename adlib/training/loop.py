"""One training: a checkpoint every epoch, and the same numbers after an interruption or on more devices."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from sklearn.metrics import recall_score
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from adlib.study.params import StudyParams
from adlib.study.records import StudyError, atomic_path, write_json, write_text
from adlib.training.devices import takes_bf16
from adlib.training.folds import Batch, Fold, epoch_rows, load_parts, part_seed
from adlib.training.matrix_convolution import use_matrix_products
from adlib.training.model_file import continue_from, outputs
from adlib.training.network import check_network, frozen, keep_outputs, load_initial_weights, slice_outputs, softmax
from adlib.training.pooling import ATTENTION, arrays, pool_level, within_scan
from adlib.training.recipe import Loss, Recipe, class_weights

CLIP_NORM = 5.0
CONTINUED = "adlib:"

OnEpoch = Callable[[str, list[dict[str, float]]], None]


@dataclass
class Progress:
    """The state of a training: networks, optimizer, schedule, weights of the best epoch so far, and the curves."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: AveragedModel | None
    best: dict[str, torch.Tensor] | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    wrapped: Any = None  # network and optimizer as Fabric has set them up

    @property
    def used(self) -> nn.Module:
        """The network that predicts: the moving average where there is one."""
        return self.network if self.average is None else self.average.module

    @property
    def _parts(self) -> dict[str, Any]:
        parts = {"network": self.network, "optimizer": self.optimizer, "schedule": self.schedule}
        return parts if self.average is None else parts | {"average": self.average}

    def save(self, path: Path, key: str) -> None:
        """Write a checkpoint, whole or not at all.

        Parameters
        ----------
        path : path
        key : str
            Name of the training, see `training_key`.
        """
        states = {name: part.state_dict() for name, part in self._parts.items()}
        with atomic_path(path) as temporary:
            torch.save({"key": key, "history": self.history, "best": self.best, **states}, temporary)

    def load(self, path: Path, key: str, device: torch.device) -> bool:
        """Continue from a checkpoint of the same key.

        Parameters
        ----------
        path : path
        key : str
            Name of the training, see `training_key`.
        device : torch.device

        Returns
        -------
        bool
            Whether there is such a checkpoint.
        """
        if not path.is_file():
            return False
        stored = torch.load(path, map_location=device, weights_only=True)
        if stored["key"] != key:
            return False
        for name, part in self._parts.items():
            part.load_state_dict(stored[name])
        self.best, self.history = stored["best"], stored["history"]
        return True


def fit(
    fold: Fold,
    params: StudyParams,
    folder: Path,
    key: str,
    fabric: Fabric,
    recipe: Recipe,
    on_epoch: OnEpoch | None = None,
) -> tuple[nn.Module, str]:
    """Train one network; the last epoch is the result or, where `train.patience` is set, the best one.

    All randomness comes from (seed, fold, member, epoch, part), so that a run resumed from ``checkpoint.pt`` ends with
    the same weights as one that was never interrupted, and several devices see what one would.

    Parameters
    ----------
    fold : Fold
    params : StudyParams
    folder : path
        Receives ``checkpoint.pt``, and the curves as ``history.json`` and ``history.csv``, after every epoch.
    key : str
        A checkpoint with another key is ignored.
    fabric : Fabric
    recipe : Recipe
        Network, loss, optimizer and augmentation.
    on_epoch : callable, optional
        Receives the name of the run and its curves after every epoch.

    Returns
    -------
    network : nn.Module
    origin : str
        Where its initial weights came from.

    Raises
    ------
    StudyError
        If the loss is no longer finite.
    """
    settings = params.train
    repeat_exactly(fabric.device)
    torch.manual_seed(params.training_seed + fold.number + 1000 * (fold.member - 1))
    network, origin = initial_network(fold, params, recipe)
    steps = len(epoch_rows(fold, params, np.random.default_rng(0)))
    progress = start(network.to(fabric.device, memory_format=torch.channels_last), params, recipe, steps)
    if progress.load(folder / "checkpoint.pt", key, fabric.device) and fabric.is_global_zero:
        print(f"resuming after epoch {len(progress.history)} of {folder / 'checkpoint.pt'}")
    progress.wrapped = fabric.setup(progress.network, progress.optimizer)
    title = training_title(fold.run, fold.number, fold.member, params)
    if fabric.is_global_zero:
        kind = "bf16" if takes_bf16(settings.precision, fabric.device) else "fp32"
        where = f"{fabric.world_size} × {fabric.device.type}" if fabric.world_size > 1 else str(fabric.device)
        print(f"{title}: {len(fold.rows('train'))} slices, {origin}, {kind} on {where}", flush=True)
    while len(progress.history) < settings.epochs and not _stalled(progress.history, settings.patience):
        started = time.monotonic()
        seed = [params.training_seed, fold.number, fold.member - 1, len(progress.history)]
        loss, waited = train_epoch(fold, progress, params, recipe, seed, fabric)
        row = {"epoch": len(progress.history) + 1, "train_loss": loss}
        scores = _validate(fold, progress.used, params) if fabric.is_global_zero else {}
        progress.history.append(row | fabric.broadcast(scores))
        if settings.patience and best_epoch(progress.history) == len(progress.history) - 1:
            progress.best = {name: value.clone() for name, value in progress.used.state_dict().items()}
        if fabric.is_global_zero:
            progress.save(folder / "checkpoint.pt", key)
            write_json(progress.history, folder / "history.json")
            write_text(pd.DataFrame(progress.history).to_csv(index=False), folder / "history.csv")
            print(_line(title, progress.history[-1], settings.epochs, time.monotonic() - started, waited), flush=True)
            if on_epoch is not None:
                on_epoch(title, progress.history)
        fabric.barrier()
    if progress.best is not None:
        progress.used.load_state_dict(progress.best)
    if settings.micro_batches > 1:
        _settle(progress.used, fold, params, steps)
    return keep_outputs(progress.used, outputs(params.classes, params.input)), origin


def repeat_exactly(device: torch.device) -> None:
    """Make the same training give the same bits; no operation here reads memory before it is written.

    Parameters
    ----------
    device : torch.device
        On a processor an operation without a deterministic version is an error, elsewhere a warning.
    """
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False


def initial_network(fold: Fold, params: StudyParams, recipe: Recipe) -> tuple[nn.Module, str]:
    """A network with an output for each class, attention where it pools, and each auxiliary value.

    Parameters
    ----------
    fold : Fold
    params : StudyParams
    recipe : Recipe

    Returns
    -------
    network : nn.Module
        With its first weights; ``train.frozen_stages`` are frozen.
    origin : str
        Where the weights came from.

    Raises
    ------
    StudyError
        If the network is not as `ImageNetwork` describes it, or the weights do not fit.
    """
    settings = params.train
    count = outputs(params.classes, params.input) + fold.auxiliary.shape[1]
    network = recipe.build_network(count, fold.covariates.shape[1], settings.dropout)
    check_network(network, count)
    if settings.weights.startswith(CONTINUED):
        path = Path(settings.weights.removeprefix(CONTINUED))
        origin = continue_from(network, path, params, recipe.build_network)
    elif settings.weights == "random" and "build_network" in recipe.changed():
        origin = f"weights as {recipe.build_network.__qualname__} makes them"
    else:
        origin = load_initial_weights(network, settings.weights)
    for part in frozen(network, settings.frozen_stages):
        part.requires_grad_(False)
    return network, origin


def start(network: nn.Module, params: StudyParams, recipe: Recipe, steps: int) -> Progress:
    """The state of a training before its first epoch.

    Parameters
    ----------
    network : nn.Module
        On the device.
    params : StudyParams
    recipe : Recipe
    steps : int
        Steps of an epoch.

    Returns
    -------
    Progress
    """
    settings = params.train
    if next(network.parameters()).device.type == "cpu":
        use_matrix_products(network)
    trainable = [value for value in network.parameters() if value.requires_grad]
    optimizer, schedule = recipe.optimizer(trainable, params, settings.epochs * steps)
    average = None
    if settings.average:
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.average), use_buffers=True)
    return Progress(network, optimizer, schedule, average)


def train_epoch(
    fold: Fold, progress: Progress, params: StudyParams, recipe: Recipe, seed: list[int], fabric: Fabric
) -> tuple[float, float]:
    """Train for one epoch.

    Parameters
    ----------
    fold : Fold
    progress : Progress
        Its schedule and moving average advance with each step.
    params : StudyParams
    recipe : Recipe
    seed : list of int
        Of the epoch; its last number is that of the epoch, from 0.
    fabric : Fabric

    Returns
    -------
    loss : float
        Mean over the parts of the epoch.
    waited : float
        Share of time spent waiting for slices.

    Raises
    ------
    StudyError
        If the loss is not finite.
    """
    settings, (trained, optimizer) = params.train, progress.wrapped
    steps = epoch_rows(fold, params, np.random.default_rng(seed))
    parts = iter(load_parts(fold, params, steps, seed, recipe.augment, fabric.global_rank, fabric.world_size))
    share = settings.micro_batches // fabric.world_size
    weights = class_weights(fold, len(params.classes)).to(fabric.device) if settings.balance == "weights" else None
    progress.network.train()
    for part in frozen(progress.network, settings.frozen_stages):
        part.eval()
    losses, waited, started = [], 0.0, time.monotonic()
    for _ in range(len(steps)):
        for k in range(share):
            asked = time.monotonic()
            batch = next(parts).to(fabric.device)
            waited += time.monotonic() - asked
            torch.manual_seed(part_seed(seed, batch.number))
            with fabric.no_backward_sync(trained, enabled=fabric.world_size > 1 and k < share - 1):
                loss = _loss(trained, batch, weights, params, recipe.loss)
                fabric.backward(loss / share)
            losses.append(loss.detach())
        fabric.clip_gradients(trained, optimizer, max_norm=CLIP_NORM, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.schedule.step()
        if progress.average is not None:
            progress.average.update_parameters(progress.network)
    mean = float(fabric.all_reduce(torch.stack(losses).float().mean(), reduce_op="mean"))
    if not np.isfinite(mean):
        raise StudyError(f"the loss of epoch {seed[-1] + 1} is not finite; lower train.learning_rate")
    return mean, waited / max(time.monotonic() - started, 1e-9)


def _loss(
    network: nn.Module, batch: Batch, weights: torch.Tensor | None, params: StudyParams, criterion: Loss
) -> torch.Tensor:
    """Loss of a part of a step: of the classes, of mixed pairs where asked for, and of the auxiliary values."""
    settings, classes = params.train, len(params.classes)
    x, y, auxiliary, share, other = batch.x, batch.y, batch.auxiliary, 1.0, None
    if settings.mixup:
        share = float(torch.distributions.Beta(settings.mixup, settings.mixup).sample())
        other = torch.randperm(len(x)).to(x.device)
        x, auxiliary = torch.lerp(x[other], x, share), torch.lerp(auxiliary[other], auxiliary, share)
    values = network(x, *([batch.covariates] if batch.covariates.shape[1] else [])).float()  # (B, K [+ 1] + M)
    logits, predicted = values[:, :classes], values[:, outputs(params.classes, params.input) :]
    if params.input.pooling == ATTENTION:
        logits, y = _attended(logits, values[:, classes], batch)
    loss = criterion(logits, y, weights, params)
    if other is not None:
        loss = share * loss + (1 - share) * criterion(logits, y[other], weights, params)
    if auxiliary.shape[1]:
        loss = loss + settings.auxiliary_weight * nn.functional.mse_loss(predicted, auxiliary)
    return loss


def _attended(logits: torch.Tensor, score: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (G, K) and targets (G,) of scans: the sum of their slices' logits by the softmax of their scores."""
    scans, member = batch.scan.unique(return_inverse=True)
    same = member[None] == torch.arange(len(scans), device=member.device)[:, None]  # (G, B)
    weights = score.expand(len(scans), -1).masked_fill(~same, float("-inf")).softmax(dim=1)
    first = same.float().argmax(dim=1)
    return weights @ logits, batch.y[first]


def prediction_table(fold: Fold, rows: np.ndarray, values: np.ndarray, params: StudyParams) -> pd.DataFrame:
    """Uncalibrated predictions of slices, schema `records.PREDICTIONS`.

    Parameters
    ----------
    fold : Fold
    rows : (n,) int
    values : (n, K) or (n, K + 1) float64
        Logits and, where attention pools slices, their scores.
    params : StudyParams
    """
    table = fold.table.iloc[rows][["participant_id", "session_id", "scan_id", "slice", "split"]].copy()
    table = table.assign(run=fold.run, fold=fold.number, truth=fold.table["diagnosis"].to_numpy()[rows])
    p = pd.DataFrame(softmax(values[:, : len(params.classes)]), index=table.index)
    table = table.join(p.set_axis([f"p_{name}" for name in params.classes], axis=1)).assign(temperature=1.0)
    if params.input.pooling != ATTENTION:
        return table
    return table.assign(weight=within_scan(values[:, len(params.classes)], pd.factorize(table["scan_id"])[0]))


def _validate(fold: Fold, network: nn.Module, params: StudyParams) -> dict[str, float]:
    """Log loss of validation slices, and balanced accuracy of validation participants."""
    rows = fold.rows("validation")
    values = slice_outputs(network, fold.slices[rows], fold.covariates[rows])
    p, y = softmax(values[:, : len(params.classes)]), fold.targets[rows]
    people = pool_level(prediction_table(fold, rows, values, params), "subject", params.classes, params.input.pooling)
    truth, pooled, _ = arrays(people, params.classes)
    right = recall_score(truth, pooled.argmax(1), labels=np.unique(truth), average="macro")
    loss = -np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()
    return {"validation_loss": float(loss), "validation_balanced_accuracy": float(right)}


def best_epoch(history: list[dict[str, float]]) -> int:
    """Index of the first epoch of the highest balanced accuracy of validation participants.

    Parameters
    ----------
    history : list of dict
        Curves, one row per epoch.

    Returns
    -------
    int
    """
    return int(np.argmax([row["validation_balanced_accuracy"] for row in history]))


def _stalled(history: list[dict[str, float]], patience: int) -> bool:
    """Whether the last epochs did not improve on the best one before them."""
    return bool(patience and history and len(history) - 1 - best_epoch(history) >= patience)


def _settle(network: nn.Module, fold: Fold, params: StudyParams, steps: int) -> None:
    """Take batch statistics anew over the training slices, as no device has seen all parts of a step."""
    rows = fold.rows("train")
    parts = np.array_split(rows, steps)
    device = next(network.parameters()).device
    held = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d) and not part.weight.requires_grad]
    kept = [{name: value.clone() for name, value in part.state_dict().items()} for part in held]
    update_bn((torch.from_numpy(fold.slices[part].astype(np.float32)) for part in parts), network, device)
    for part, state in zip(held, kept, strict=True):
        part.load_state_dict(state)


def training_title(run: str, number: int, member: int, params: StudyParams) -> str:
    """What a training is called, such as ``resnet50, fold 0, member 2``.

    Parameters
    ----------
    run : str
    number, member : int
        Of the fold, from 0, and of the network in an ensemble, from 1.
    params : StudyParams
        ``train.members`` counts.
    """
    return f"{run}, fold {number}" + (f", member {member}" if params.train.members > 1 else "")


def _line(title: str, row: dict[str, float], epochs: int, seconds: float, waited: float) -> str:
    scores = "  ".join(f"{name.replace('_', ' ')} {row[name]:.3f}" for name in row if name != "epoch")
    return f"{title}  epoch {row['epoch']:>3}/{epochs}  {scores}  {seconds:.0f} s, {waited:.0%} waiting for slices"
