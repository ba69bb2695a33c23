"""Train the network and its controls on every fold, and predict the participants they never saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from adlib.study.metrics import NETWORK
from adlib.study.params import StudyParams
from adlib.study.records import (
    FEATURES,
    MANIFEST,
    PREDICTIONS,
    SPLITS,
    StudyError,
    content_digest,
    digest,
    file_digest,
    read_json,
    read_table,
    write_json,
    write_table,
)
from adlib.training.calibration import fit_calibration
from adlib.training.cohort_reference import make_reference
from adlib.training.controls import control_fold
from adlib.training.devices import is_worker, launch, make_fabric
from adlib.training.folds import Fold, make_fold
from adlib.training.loop import OnEpoch, fit, prediction_table
from adlib.training.model_file import Classifier, ModelCard, save
from adlib.training.network import slice_outputs, softmax
from adlib.training.pooling import ATTENTION
from adlib.training.recipe import RECORD, Recipe, describe, training_record, write_network
from adlib.training.slices import load_slices
from adlib.training.split_table import by_hash
from adlib.training.splits import check_disjoint, fold_numbers

READ = ("manifest.tsv", "features.tsv", "slices.npy", "slices.tsv", "splits.tsv")


def train_study(params: StudyParams, on_epoch: OnEpoch | None = None, **parts: Callable[..., Any]) -> pd.DataFrame:
    """Train the network and its controls on every fold and predict every validation and test slice.

    Parameters
    ----------
    params : StudyParams
    on_epoch : callable, optional
        See `Training`.
    **parts : callable
        ``build_network``, ``loss``, ``optimizer`` or ``augment`` where they are not the package's own, see
        `adlib.training.recipe.Recipe`.

    Returns
    -------
    DataFrame
        See `Training.finish`.
    """
    training = Training(params, Recipe(**parts), on_epoch)
    slices, table = load_slices(params)
    splits = read_table(params.folder / "splits.tsv", SPLITS)
    for run in (NETWORK, *params.train.controls):
        for number in fold_numbers(splits):
            training.train(run, make_fold(number, slices, table, splits, params))
    return training.finish()


class Training:
    """The trainings of a study, one for each run and fold.

    Finished folds are reused and an interrupted one continues from its last epoch, as long as data, params, recipe and
    code are the same. Where ``exec`` asks for several devices, torchrun starts a process for each at once, and trains
    all runs and folds of the params.

    Parameters
    ----------
    params : StudyParams
    recipe : Recipe
    on_epoch : callable, optional
        Receives the name of a run and its curves after every epoch of a training in this process.

    Raises
    ------
    StudyError
        If a participant is in two parts of a fold, a callable has no source that can be stored, or several devices are
        asked for and a callable cannot be imported.
    """

    def __init__(self, params: StudyParams, recipe: Recipe, on_epoch: OnEpoch | None = None) -> None:
        self.params, self.recipe, self.on_epoch = params, recipe, on_epoch
        self.code = self.recipe.code()
        self.predictions: dict[tuple[str, int], pd.DataFrame] = {}
        check_disjoint(read_table(params.folder / "splits.tsv", SPLITS))
        if not is_worker():
            write_network(self.recipe, params.folder)
            if params.exec.devices * params.exec.nodes > 1:
                launch(params, self.recipe)
        self.fabric = make_fabric(params)

    def train(self, run: str, fold: Fold) -> pd.DataFrame:
        """Train a run on a fold, or read its stored result, and predict its validation and test slices.

        Writes ``predictions.parquet`` in ``training/<run>/fold-<n>`` and, of the network's first fold,
        ``model.safetensors`` in the study's folder.

        Parameters
        ----------
        run : str
            ``resnet50``, the network, or the name of a control.
        fold : Fold

        Returns
        -------
        DataFrame
            Schema `records.PREDICTIONS`, see `finish`.
        """
        params, fabric = self.params, self.fabric
        folder = params.folder / "training" / run / f"fold-{fold.number}"
        done, stored, record = (folder / name for name in ("done.json", "predictions.parquet", "record.json"))
        model = params.folder / "model.safetensors" if run == NETWORK and fold.number == 0 else None
        written = [stored, record, *([model] if model else [])]
        key = training_key(params, run, self.code)
        if done.is_file() and read_json(done) == _proof(key, written):
            if fabric.is_global_zero:
                print(f"{run}, fold {fold.number}: kept, nothing changed")
        else:
            fold = fold if run == NETWORK else control_fold(run, fold, params)
            networks = []
            for member in range(params.train.members):
                place = folder / f"member-{member}" if params.train.members > 1 else folder
                network, origin = fit(fold, params, place, key, fabric, self.recipe, member, self.on_epoch)
                networks.append(network)
            if fabric.is_global_zero:
                about = describe(self.recipe, networks[0], origin, params)
                write_json(about, record)
                if model:
                    predicted = predict_fold(fold, networks[:1], params)
                    save(_classifier(fold, networks[0], params, predicted, about, key), model)
                write_table(predict_fold(fold, networks, params), stored, PREDICTIONS)
                write_json(_proof(key, written), done)
                for checkpoint in folder.rglob("checkpoint.pt"):
                    checkpoint.unlink()
            fabric.barrier()
        self.predictions[run, fold.number] = read_table(stored, PREDICTIONS)
        return self.predictions[run, fold.number]

    def finish(self) -> pd.DataFrame:
        """Write ``predictions.parquet`` of all runs and folds that were trained, and ``training/record.json``.

        Returns
        -------
        DataFrame
            Schema `records.PREDICTIONS` with columns ``p_<class>``, ``temperature`` and ``bias_<class>`` and, where
            attention pools slices, ``weight``.

        Raises
        ------
        StudyError
            If the network itself was not trained.
        """
        if not any(run == NETWORK for run, _ in self.predictions):
            raise StudyError(f"the network itself, run {NETWORK!r}, was not trained; train it with its controls")
        predictions = pd.concat(self.predictions.values(), ignore_index=True)
        if self.fabric.is_global_zero:
            folder = self.params.folder / "training"
            runs: dict[str, dict[str, int]] = {}
            for run, number in self.predictions:
                history = next((folder / run / f"fold-{number}").rglob("history.json"))
                runs.setdefault(run, {})[str(number)] = len(read_json(history))
            first = min(number for run, number in self.predictions if run == NETWORK)
            about = read_json(folder / NETWORK / f"fold-{first}" / "record.json")
            write_json(about | {"runs": runs}, self.params.folder / RECORD)
            write_table(predictions, self.params.folder / "predictions.parquet", PREDICTIONS)
        return predictions


def training_key(params: StudyParams, run: str, code: list[Any]) -> str:
    """Name of a training; it changes with params, recipe, code and data.

    Parameters
    ----------
    params : StudyParams
    run : str
        ``resnet50`` or the name of a control.
    code : list
        From `Recipe.code`.

    Returns
    -------
    str
    """
    settings = params.train.model_dump(exclude={"controls"})
    facts = [settings, params.input.pooling, params.classes, params.seed]
    tables = [content_digest(params.folder / name) for name in READ]
    files = (params.train.weights_file, params.splits.salt)
    tables += [file_digest(path) for path in files if path and path.is_file()]
    return digest([*facts, params.preprocess.normalise, code, tables, run])


def _proof(key: str, files: list[Path]) -> dict[str, str | None]:
    return {"key": key, **{path.name: file_digest(path) if path.is_file() else None for path in files}}


def predict_fold(fold: Fold, networks: list[nn.Module], params: StudyParams) -> pd.DataFrame:
    """Predict validation and test slices with the mean of networks; fit the calibration on validation slices only.

    Where attention pools slices, the calibration is fitted on validation scans, whose logits are what was trained.

    Parameters
    ----------
    fold : Fold
    networks : list of nn.Module
        One, or the members of an ensemble.
    params : StudyParams

    Returns
    -------
    DataFrame
        Schema `records.PREDICTIONS`; ``p_<class>`` uncalibrated, the fold's ``temperature`` and ``bias_<class>``.
    """
    rows = np.concatenate([fold.rows("validation"), fold.rows("test")])
    inputs = fold.slices[rows], fold.covariates[rows]
    values = _mean_outputs([slice_outputs(network, *inputs) for network in networks], params)
    table = prediction_table(fold, rows, values, params)
    held_out = (table["split"] == "validation").to_numpy()
    logits, y = values[held_out, : len(params.classes)], fold.targets[rows][held_out]
    people = table.loc[held_out, "participant_id"].to_numpy()
    if params.input.pooling == ATTENTION:
        scans, first = np.unique(table.loc[held_out, "scan_id"], return_index=True)
        weighted = pd.DataFrame(logits * table.loc[held_out, ["weight"]].to_numpy())
        logits = weighted.groupby(table.loc[held_out, "scan_id"].to_numpy()).sum().loc[scans].to_numpy()
        y, people = y[first], people[first]
    temperature, bias = fit_calibration(logits, y, people)
    biases = {f"bias_{name}": value for name, value in zip(params.classes, bias, strict=True)}
    return table.assign(temperature=temperature, **biases)


def _mean_outputs(values: list[np.ndarray], params: StudyParams) -> np.ndarray:
    """Logits whose softmax is the mean of the networks' probabilities, and the mean of what comes after them."""
    if len(values) == 1:
        return values[0]
    count = len(params.classes)
    p = np.mean([softmax(one[:, :count]) for one in values], axis=0)
    return np.concatenate([np.log(np.maximum(p, 1e-12)), np.mean(values, axis=0)[:, count:]], axis=1)


def _classifier(
    fold: Fold, network: nn.Module, params: StudyParams, predictions: pd.DataFrame, about: dict[str, Any], key: str
) -> Classifier:
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST).set_index("scan_id")
    features = read_table(params.folder / "features.tsv", FEATURES).set_index("scan_id")
    reference, distributions = make_reference(fold, network, predictions, manifest, features, params)
    trained = fold.table.loc[fold.rows("train"), "scan_id"].unique()
    manifest, features = manifest.loc[trained], features.loc[trained]
    card = ModelCard(
        study=params.study,
        classes=params.classes,
        simulated=params.simulated,
        input=params.input,
        preprocess=params.preprocess,
        temperature=float(predictions["temperature"].iloc[0]),
        bias=tuple(float(predictions[f"bias_{name}"].iloc[0]) for name in params.classes),
        landmarks=fold.landmarks,
        covariates=fold.covariate_stats,
        spaces=tuple(sorted(manifest["space"].dropna().unique())) if "space" in manifest else (),
        cohort={
            "participants": manifest.groupby("diagnosis")["participant_id"].nunique().to_dict(),
            "volumes": _volume_summary(features, manifest["diagnosis"]),
        },
        weights_origin=about["weights"],
        splits_sha256=file_digest(params.folder / "splits.tsv"),
        code=key,
        seed=params.seed,
        reference=reference,
        people=_hashed_people(fold, params),
        training=about,
    )
    return Classifier(network, card, distributions)


def _hashed_people(fold: Fold, params: StudyParams) -> tuple[str, ...]:
    """See `ModelCard.people`."""
    if params.splits.salt is None:
        return ()
    names = fold.table.loc[fold.table["split"] != "test", "participant_id"].unique()
    return tuple(sorted(by_hash([*names, ""], params.splits.salt)))


def _volume_summary(features: pd.DataFrame, diagnosis: pd.Series) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation of every volume by class: aggregates that may travel with a model."""
    names = features.filter(regex="^(?!qc_).*_ml$|^nbv$").columns
    grouped = features[names].astype(float).groupby(diagnosis)
    mean, sd = grouped.mean(), grouped.std().fillna(0.0)
    return {n: {str(c): [float(mean.loc[c, n]), float(sd.loc[c, n])] for c in mean.index} for n in names}


def read_histories(params: StudyParams) -> dict[str, list[dict[str, float]]]:
    """Stored learning curves of all trained runs; of an ensemble the first member.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    dict of str to list of dict
        By ``run, fold``; one row per epoch.
    """
    folder, curves = params.folder / "training", {}
    for run, folds in training_record(params.folder)["runs"].items():
        for number in folds:
            path = min((folder / run / f"fold-{number}").rglob("history.json"))
            curves[f"{run}, fold {number}"] = read_json(path)
    return curves
