"""Train the network and its controls on every fold, and predict the participants they never saw."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from adlib.study.metrics import MEMBER, NETWORK
from adlib.study.params import StudyParams
from adlib.study.records import (
    FEATURES,
    MANIFEST,
    PREDICTIONS,
    SPLITS,
    StudyError,
    atomic_path,
    check_table,
    content_digest,
    digest,
    file_digest,
    read_json,
    read_table,
    write_json,
    write_table,
)
from adlib.training.calibration import calibrate
from adlib.training.cohort_reference import make_reference
from adlib.training.controls import control_fold
from adlib.training.devices import is_worker, launch, launch_side_by_side, make_fabric, side_by_side
from adlib.training.folds import Fold, make_fold
from adlib.training.loop import OnEpoch, fit, prediction_table, training_title
from adlib.training.model_file import Classifier, ModelCard, outputs, save
from adlib.training.network import slice_outputs
from adlib.training.recipe import RECORD, Recipe, describe, training_record, write_network
from adlib.training.slices import load_slices
from adlib.training.split_table import by_hash
from adlib.training.splits import check_disjoint, fold_numbers

MODEL, DONE = "model.safetensors", "done.json"
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
    training.train_side_by_side()
    _train_all(training, trainings(params))
    return training.finish()


def train_named(params: StudyParams, names: list[str], **parts: Callable[..., Any]) -> None:
    """Train some networks of a study, as one of several processes; the study's predictions and model are not written.

    Parameters
    ----------
    params : StudyParams
    names : list of str
        ``run/fold/member`` each, such as ``resnet50/0/2``.
    **parts : callable
        As of `train_study`.
    """
    chosen = [(run, int(number), int(member)) for run, number, member in (name.split("/") for name in names)]
    _train_all(Training(params, Recipe(**parts)), chosen)


def _train_all(training: Training, chosen: list[tuple[str, int, int]]) -> None:
    slices, table = load_slices(training.params)
    splits = read_table(training.params.folder / "splits.tsv", SPLITS)
    for run, number, member in chosen:
        training.train(run, make_fold(number, slices, table, splits, training.params, member))


def trainings(params: StudyParams) -> list[tuple[str, int, int]]:
    """All trainings of a study: run, number of the fold, and number of the network in an ensemble, from 1.

    Parameters
    ----------
    params : StudyParams
        Its ``splits.tsv`` names the folds.
    """
    folds = fold_numbers(read_table(params.folder / "splits.tsv", SPLITS))
    runs = (NETWORK, *params.train.controls)
    return [(run, number, member) for run in runs for number, member in product(folds, members(run, params))]


def members(run: str, params: StudyParams) -> list[int]:
    """Numbers of the networks of a run, from 1: an ensemble of the network; of a control the first member only.

    Parameters
    ----------
    run : str
    params : StudyParams

    Returns
    -------
    list of int
    """
    return list(range(1, 1 + (params.train.members if run == NETWORK else 1)))


class Training:
    """The trainings of a study, one for each run, fold and member of an ensemble.

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
        self.predictions: dict[tuple[str, int, int], pd.DataFrame] = {}
        check_disjoint(read_table(params.folder / "splits.tsv", SPLITS))
        if not is_worker():
            write_network(self.recipe, params.folder)
            if params.exec.devices * params.exec.nodes > 1:
                launch(params, self.recipe)
        self.fabric = make_fabric(params)

    def train_side_by_side(self) -> None:
        """Train what is not finished, several networks at a time, where ``exec.trainings`` asks for it.

        Each is trained in a process with its share of the cores, on the folds that `make_fold` makes; `train` then
        reads what they stored.

        Raises
        ------
        StudyError
            If a process fails or is killed; finished epochs are not lost.
        """
        pending = [names for names in trainings(self.params) if not self._is_done(*names)]
        processes = side_by_side(self.params, self.recipe, len(pending))
        if processes == 1:
            return
        seen = dict.fromkeys(pending, 0)

        def show_curves() -> None:
            for names in pending:
                path = self._folder(*names) / "history.json"
                history = read_json(path) if path.is_file() else []
                if self.on_epoch is not None and len(history) != seen[names]:
                    seen[names] = len(history)
                    self.on_epoch(training_title(*names, self.params), history)

        texts = ["/".join(map(str, names)) for names in pending]
        launch_side_by_side(self.params, self.recipe, texts, processes, show_curves)

    def train(self, run: str, fold: Fold) -> pd.DataFrame:
        """Train a network on a fold, or read its stored result, and predict its validation and test slices.

        Writes ``predictions.parquet`` in ``training/<run>/fold-<n>`` or, of an ensemble, in a folder of the member
        there and, of the network's first fold and member, its weights.

        Parameters
        ----------
        run : str
            ``resnet50``, the network, or the name of a control.
        fold : Fold

        Returns
        -------
        DataFrame
            Schema `records.PREDICTIONS`, uncalibrated.
        """
        params, fabric = self.params, self.fabric
        names = run, fold.number, fold.member
        folder, key = self._folder(*names), training_key(params, run, self.code)
        stored, record, *weights = self._written(*names)
        if self._is_done(*names):
            if fabric.is_global_zero:
                print(f"{training_title(*names, params)}: stored, nothing changed since")
        else:
            fold = fold if run == NETWORK else control_fold(run, fold, params)
            network, origin = fit(fold, params, folder, key, fabric, self.recipe, self.on_epoch)
            if fabric.is_global_zero:
                write_json(describe(self.recipe, network, origin, params), record)
                for path in weights:
                    with atomic_path(path) as temporary:
                        save_model(network.to(memory_format=torch.contiguous_format), str(temporary))
                write_table(predict_fold(fold, network, params), stored, PREDICTIONS)
                write_json(_proof(key, [stored, record, *weights]), folder / DONE)
                (folder / "checkpoint.pt").unlink(missing_ok=True)
            fabric.barrier()
        self.predictions[names] = read_table(stored, PREDICTIONS)
        return self.predictions[names]

    def _written(self, run: str, number: int, member: int) -> list[Path]:
        """Files of a finished training: predictions, record and, of the network's first fold and member, weights."""
        folder = self._folder(run, number, member)
        first = (run, number, member) == (NETWORK, 0, 1)
        return [folder / "predictions.parquet", folder / "record.json", *([folder / MODEL] if first else [])]

    def _is_done(self, run: str, number: int, member: int) -> bool:
        """Whether a training has finished with the present data, params, recipe and code."""
        done, key = self._folder(run, number, member) / DONE, training_key(self.params, run, self.code)
        return done.is_file() and read_json(done) == _proof(key, self._written(run, number, member))

    def _folder(self, run: str, number: int, member: int) -> Path:
        folder = self.params.folder / "training" / run / f"fold-{number}"
        return folder / f"member-{member}" if len(members(run, self.params)) > 1 else folder

    def finish(self) -> pd.DataFrame:
        """Calibrate the predictions and write those of all runs and folds that were trained, the record, and the model.

        An ensemble predicts with the mean of the probabilities of its members, a validation participant with those of
        the members that left the participant out; its calibration is that of its members, too.

        Returns
        -------
        DataFrame
            Schema `records.PREDICTIONS` with columns ``p_<class>``, uncalibrated, ``temperature`` and ``bias_<class>``
            and, where attention pools slices, ``weight``. Each member of an ensemble is a separate run.

        Raises
        ------
        StudyError
            If the network itself was not trained.
        """
        trained = [number for run, number, _ in self.predictions if run == NETWORK]
        if not trained:
            raise StudyError(f"the network itself, run {NETWORK!r}, was not trained; train it with its controls")
        folds = dict.fromkeys((run, number) for run, number, _ in self.predictions)
        predictions = pd.concat([self._pooled(run, number) for run, number in folds], ignore_index=True)
        predictions = check_table(predictions, PREDICTIONS, "predictions")
        if self.fabric.is_global_zero:
            runs: dict[str, dict[str, int]] = {}
            for run, number in folds:
                history = self._folder(run, number, 1) / "history.json"
                runs.setdefault(run, {})[str(number)] = len(read_json(history))
            about = read_json(self._folder(NETWORK, min(trained), 1) / "record.json")
            write_json(about | {"runs": runs}, self.params.folder / RECORD)
            write_table(predictions, self.params.folder / "predictions.parquet", PREDICTIONS)
            if 0 in trained:
                self._write_model(predictions[(predictions["run"] == NETWORK) & (predictions["fold"] == 0)])
        return predictions

    def _pooled(self, run: str, number: int) -> pd.DataFrame:
        """Calibrated predictions of a run and, of an ensemble, of its members with the same calibration."""
        parts = {key[2]: table for key, table in self.predictions.items() if key[:2] == (run, number)}
        together = pd.concat(parts.values(), ignore_index=True)
        values = together.filter(regex="^(p_|weight$)").columns.tolist()
        names = [name for name in together if name not in values]
        mean = together.groupby(names, sort=False, dropna=False)[values].mean().reset_index()[list(together)]
        pooled = calibrate(mean, self.params.classes, self.params.input.pooling)
        if len(parts) == 1:
            return pooled
        fitted = pooled.filter(regex="^(temperature|bias_)").columns.tolist()
        rows = ["scan_id", "slice"]
        own = [
            table.drop(columns="temperature").assign(run=f"{MEMBER}{k}").merge(pooled[rows + fitted], on=rows)
            for k, table in parts.items()
        ]
        return pd.concat([pooled, *own], ignore_index=True)

    def _write_model(self, predictions: pd.DataFrame) -> None:
        """The first member, with the calibration and the bounds that all participants who are not tested give."""
        params, folder = self.params, self._folder(NETWORK, 0, 1)
        splits = read_table(params.folder / "splits.tsv", SPLITS)
        fold = make_fold(0, *load_slices(params), splits, params)
        count = outputs(params.classes, params.input)
        network = self.recipe.build_network(count, fold.covariates.shape[1], 0.0)
        load_model(network, folder / MODEL)
        about, key = read_json(folder / "record.json"), training_key(params, NETWORK, self.code)
        save(_classifier(fold, network.eval(), params, predictions, about, key), params.folder / MODEL)


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


def predict_fold(fold: Fold, network: nn.Module, params: StudyParams) -> pd.DataFrame:
    """Predict validation and test slices, uncalibrated.

    Parameters
    ----------
    fold : Fold
    network : nn.Module
    params : StudyParams

    Returns
    -------
    DataFrame
        Schema `records.PREDICTIONS` and ``p_<class>``.
    """
    rows = np.concatenate([fold.rows("validation"), fold.rows("test")])
    return prediction_table(fold, rows, slice_outputs(network, fold.slices[rows], fold.covariates[rows]), params)


def _classifier(
    fold: Fold, network: nn.Module, params: StudyParams, predictions: pd.DataFrame, about: dict[str, Any], key: str
) -> Classifier:
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST).set_index("scan_id")
    features = read_table(params.folder / "features.tsv", FEATURES).set_index("scan_id")
    tested = predictions[predictions["split"] == "test"].iloc[0]
    reference, distributions = make_reference(fold, network, predictions, manifest, features, params)
    trained = fold.table.loc[fold.rows("train"), "scan_id"].unique()
    manifest, features = manifest.loc[trained], features.loc[trained]
    card = ModelCard(
        study=params.study,
        classes=params.classes,
        simulated=params.simulated,
        input=params.input,
        preprocess=params.preprocess,
        temperature=float(tested["temperature"]),
        bias=tuple(float(tested[f"bias_{name}"]) for name in params.classes),
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
