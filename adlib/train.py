"""Fit the ResNet50, fold by fold, with a checkpoint every epoch and the same numbers after an interruption."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import recall_score
from torch import nn

from adlib.augment import augment
from adlib.auxiliary import auxiliary_targets
from adlib.calibration import fit_calibration
from adlib.dataset import load_slices, scan_percentiles, to_landmarks
from adlib.device import pick_device, takes_bf16
from adlib.model import Classifier, ModelCard, build_network, save, slice_logits, softmax
from adlib.params import StudyParams
from adlib.preprocess.normalise import fit_landmarks
from adlib.records import (
    FEATURES,
    MANIFEST,
    PREDICTIONS,
    SPLITS,
    StudyError,
    atomic_path,
    content_digest,
    digest,
    file_digest,
    read_json,
    read_table,
    write_json,
    write_table,
)
from adlib.splits import check_disjoint, fold_numbers

RUN = "resnet50"
READ = ("manifest.tsv", "features.tsv", "slices.npy", "slices.tsv", "splits.tsv")


@dataclass(frozen=True)
class Fold:
    """What one training sees.

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
        What else the network is to tell of each slice while it is trained, see `adlib.auxiliary`.
    landmarks : tuple of float
        The standard scale, fitted on the scans of this fold's training part, that the slices are on; empty for none.

    In the control of shuffled labels diagnosis, target and auxiliary values are another participant's, in all parts of
    the split: who then does better than chance knows something of the tested participants.
    """

    run: str
    number: int
    slices: np.ndarray
    table: pd.DataFrame
    targets: np.ndarray
    auxiliary: np.ndarray
    landmarks: tuple[float, ...] = ()

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.table["split"] == split)


def train_study(params: StudyParams, code: str = "") -> pd.DataFrame:
    """Train the network and its controls on every fold and predict every validation and test slice.

    Writes ``predictions.parquet`` and, from the first fold, ``model.safetensors``. Finished folds are kept and an
    interrupted one goes on from its last epoch, as long as data, params and code are the same.

    Parameters
    ----------
    params : StudyParams
    code : str
        Digest of the training code.

    Returns
    -------
    DataFrame
        Schema `records.PREDICTIONS` with columns ``p_<class>``, ``temperature`` and ``bias_<class>``.
    """
    slices, table = load_slices(params)
    splits = read_table(params.folder / "splits.tsv", SPLITS)
    check_disjoint(splits)
    settings = [params.train.model_dump(exclude={"controls"}), params.classes, params.seed, params.preprocess.normalise]
    key = digest([*settings, code, [content_digest(params.folder / name) for name in READ]])
    parts = []
    for run in (RUN, *params.train.controls):
        for number in fold_numbers(splits):
            fold = make_fold(run, number, slices, table, splits, params)
            parts.append(_finished(fold, params, digest([key, run])))
    predictions = pd.concat(parts, ignore_index=True)
    return write_table(predictions, params.folder / "predictions.parquet", PREDICTIONS)


def make_fold(
    run: str, number: int, slices: np.ndarray, table: pd.DataFrame, splits: pd.DataFrame, params: StudyParams
) -> Fold:
    """Join slices with the split of their participant; a control is trained and scored on dealt labels."""
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
    if run == "shuffled_labels":
        dealt = _dealt_rows(table, params.seed)
        targets, auxiliary = targets[dealt], auxiliary[dealt]
        table = table.assign(diagnosis=table["diagnosis"].to_numpy()[dealt])
    standard = ()
    if params.preprocess.normalise == "landmarks" and not params.input.flat:
        own = scan_percentiles(params)
        standard = fit_landmarks(own.loc[table["scan_id"].iloc[train].unique()].to_numpy())
        slices = to_landmarks(slices, table["scan_id"], own, standard)
    return Fold(run, number, slices, table, targets, auxiliary, tuple(map(float, standard)))


def _dealt_rows(table: pd.DataFrame, seed: int) -> np.ndarray:
    """For each row (rows,) the row of the participant whose label, age and volumes it is given, one for all its scans.

    Every participant's are dealt out once, so class sizes over participants stay.
    """
    first = pd.Series(np.arange(len(table))).groupby(table["participant_id"].to_numpy()).first()
    dealt = pd.Series(np.random.default_rng(seed).permutation(first.to_numpy()), index=first.index)
    return table["participant_id"].map(dealt).to_numpy()


def _finished(fold: Fold, params: StudyParams, key: str) -> pd.DataFrame:
    folder = params.folder / "training" / fold.run / f"fold-{fold.number}"
    done, stored = folder / "done.json", folder / "predictions.parquet"
    made = [stored, *([params.folder / "model.safetensors"] if fold.run == RUN and fold.number == 0 else [])]
    if done.is_file() and read_json(done) == _proof(key, made):
        print(f"{fold.run}, fold {fold.number}: kept, nothing changed")
        return read_table(stored, PREDICTIONS)
    network, origin = fit(fold, params, folder, key)
    predictions = predict_fold(fold, network, params)
    if fold.run == RUN and fold.number == 0:
        card = _card(fold, params, predictions, origin, key)
        save(Classifier(network, card), params.folder / "model.safetensors")
    predictions = write_table(predictions, stored, PREDICTIONS)
    write_json(_proof(key, made), done)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return predictions


def _proof(key: str, files: list[Path]) -> dict[str, str | None]:
    return {"key": key, **{path.name: file_digest(path) if path.is_file() else None for path in files}}


def fit(fold: Fold, params: StudyParams, folder: Path, key: str) -> tuple[nn.Module, str]:
    """Train one network; the last epoch of the one-cycle schedule is the result.

    All randomness of an epoch comes from (seed, fold, epoch), so that a run resumed from ``checkpoint.pt`` ends with
    the same weights as one that was never interrupted.

    Returns
    -------
    network : nn.Module
    origin : str
        Where its initial weights came from.
    """
    settings = params.train
    device = pick_device(params.exec.device)
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    torch.manual_seed(params.seed + fold.number)
    network, origin = build_network(len(params.classes) + fold.auxiliary.shape[1], settings.weights)
    network = network.to(device, memory_format=torch.channels_last)
    train = fold.rows("train")
    steps = max(len(train) // settings.batch_size, 1)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(settings.epochs * steps, 8), pct_start=0.25
    )
    history = _resume(folder / "checkpoint.pt", key, network, optimizer, schedule, device)
    kind = "bf16" if takes_bf16(settings.precision, device) else "fp32"
    print(f"{fold.run}, fold {fold.number}: {len(train)} slices, {origin}, {kind} on {device}", flush=True)
    for epoch in range(len(history), settings.epochs):
        started = time.monotonic()
        loss = _train_epoch(fold, network, optimizer, schedule, params, epoch)
        history.append({"epoch": epoch + 1, "train_loss": loss, **_validate(fold, network, params)})
        _checkpoint(folder / "checkpoint.pt", key, network, optimizer, schedule, history)
        seconds = time.monotonic() - started
        print(_line(history[-1], settings.epochs, seconds), flush=True)
    write_json(history, folder / "history.json")
    return _without_auxiliary(network, len(params.classes)), origin


def _without_auxiliary(network: nn.Module, classes: int) -> nn.Module:
    last = nn.Linear(network.fc.in_features, classes)
    last.load_state_dict({name: value[:classes] for name, value in network.fc.state_dict().items()})
    network.fc = last.to(next(network.parameters()).device)
    return network


def _line(row: dict, epochs: int, seconds: float) -> str:
    scores = "  ".join(f"{name.replace('_', ' ')} {row[name]:.3f}" for name in row if name != "epoch")
    return f"  epoch {row['epoch']:>3}/{epochs}  {scores}  {seconds:.0f} s"


def _train_epoch(
    fold: Fold,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    params: StudyParams,
    epoch: int,
) -> float:
    settings, device, classes = params.train, next(network.parameters()).device, len(params.classes)
    rng = np.random.default_rng([params.seed, fold.number, epoch])
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    order = rng.permutation(fold.rows("train"))
    criterion = nn.CrossEntropyLoss(class_weights(fold, classes).to(device), label_smoothing=settings.label_smoothing)
    network.train()
    losses = []
    for start in range(0, max(len(order) - settings.batch_size + 1, 1), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        x = torch.from_numpy(fold.slices[np.sort(batch)].astype(np.float32))  # (B, 3, H, W)
        y = torch.from_numpy(fold.targets[np.sort(batch)]).to(device)  # (B,)
        beside = torch.from_numpy(fold.auxiliary[np.sort(batch)]).to(device)  # (B, M)
        if settings.augment:
            x = augment(x, generator, flip=params.input.plane != "sagittal")
        x = x.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=takes_bf16(settings.precision, device)):
            output = network(x).float()  # (B, K + M)
        loss = criterion(output[:, :classes], y)
        if beside.numel():
            loss = loss + settings.auxiliary_weight * nn.functional.mse_loss(output[:, classes:], beside)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def class_weights(fold: Fold, classes: int) -> torch.Tensor:
    """Inverse class frequencies (K,) float32 of the training slices, mean 1 over slices."""
    counts = np.bincount(fold.targets[fold.rows("train")], minlength=classes)
    return torch.from_numpy(counts.sum() / (classes * np.maximum(counts, 1))).float()


def _validate(fold: Fold, network: nn.Module, params: StudyParams) -> dict[str, float]:
    rows = fold.rows("validation")
    p = softmax(slice_logits(network, fold.slices[rows])[:, : len(params.classes)])
    y = fold.targets[rows]
    return {
        "validation_loss": float(-np.log(p[np.arange(len(y)), y]).mean()),
        "validation_balanced_accuracy": float(recall_score(y, p.argmax(1), labels=np.unique(y), average="macro")),
    }


def _checkpoint(path: Path, key: str, network, optimizer, schedule, history: list[dict]) -> None:
    states = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    with atomic_path(path) as temporary:
        torch.save({"key": key, "history": history, **states}, temporary)


def _resume(path: Path, key: str, network, optimizer, schedule, device: torch.device) -> list[dict]:
    if not path.is_file():
        return []
    stored = torch.load(path, map_location=device, weights_only=True)
    if stored["key"] != key:
        return []
    network.load_state_dict(stored["network"])
    optimizer.load_state_dict(stored["optimizer"])
    schedule.load_state_dict(stored["schedule"])
    print(f"going on after epoch {len(stored['history'])} of {path}")
    return stored["history"]


def predict_fold(fold: Fold, network: nn.Module, params: StudyParams) -> pd.DataFrame:
    """Predict validation and test slices; fit temperature and biases on validation slices only.

    Returns
    -------
    DataFrame
        Schema `records.PREDICTIONS`; ``p_<class>`` uncalibrated, the fold's ``temperature`` and ``bias_<class>``.
    """
    rows = np.concatenate([fold.rows("validation"), fold.rows("test")])
    logits = slice_logits(network, fold.slices[rows])
    held_out = (fold.table["split"].to_numpy()[rows] == "validation").nonzero()[0]
    temperature, bias = fit_calibration(logits[held_out], fold.targets[rows][held_out])
    table = fold.table.iloc[rows][["participant_id", "session_id", "scan_id", "slice", "split"]].copy()
    table = table.assign(run=fold.run, fold=fold.number, truth=fold.table["diagnosis"].to_numpy()[rows])
    p = pd.DataFrame(softmax(logits), columns=[f"p_{name}" for name in params.classes], index=table.index)
    biases = {f"bias_{name}": value for name, value in zip(params.classes, bias, strict=True)}
    return table.join(p).assign(temperature=temperature, **biases)


def _card(fold: Fold, params: StudyParams, predictions: pd.DataFrame, origin: str, key: str) -> ModelCard:
    trained = fold.table.loc[fold.rows("train"), "scan_id"].unique()
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST).set_index("scan_id").loc[trained]
    features = read_table(params.folder / "features.tsv", FEATURES).set_index("scan_id").loc[trained]
    return ModelCard(
        study=params.study,
        classes=params.classes,
        simulated=params.source.kind == "phantom",
        input=params.input,
        preprocess=params.preprocess,
        temperature=float(predictions["temperature"].iloc[0]),
        bias=tuple(float(predictions[f"bias_{name}"].iloc[0]) for name in params.classes),
        landmarks=fold.landmarks,
        spaces=tuple(sorted(manifest["space"].dropna().unique())) if "space" in manifest else (),
        cohort={
            "participants": manifest.groupby("diagnosis")["participant_id"].nunique().to_dict(),
            "volumes": volume_summary(features, manifest["diagnosis"]),
        },
        weights_origin=origin,
        splits_sha256=file_digest(params.folder / "splits.tsv"),
        code=key,
        seed=params.seed,
    )


def volume_summary(features: pd.DataFrame, diagnosis: pd.Series) -> dict[str, dict[str, list[float]]]:
    """Mean and sd of every volume by class: aggregates that may travel with a model."""
    names = [n for n in features.columns if n.endswith("_ml") and not n.startswith("qc_")]
    names += [n for n in features.columns if n == "nbv"]
    grouped = features[names].astype(float).groupby(diagnosis)
    mean, sd = grouped.mean(), grouped.std().fillna(0.0)
    return {n: {str(c): [float(mean.loc[c, n]), float(sd.loc[c, n])] for c in mean.index} for n in names}


def read_histories(params: StudyParams) -> dict[str, list[dict[str, float]]]:
    """Stored learning curves, by ``run, fold``, the network before its controls."""
    folds = fold_numbers(read_table(params.folder / "splits.tsv", SPLITS))
    names = [(run, fold) for run in (RUN, *params.train.controls) for fold in folds]
    folder = params.folder / "training"
    return {f"{run}, fold {fold}": read_json(folder / run / f"fold-{fold}" / "history.json") for run, fold in names}
