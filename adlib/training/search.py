"""Choose training parameters inside the training participants of a fold, by inner cross-validation."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
from lightning_fabric import Fabric
from sklearn.model_selection import StratifiedGroupKFold

from adlib.study.params import StudyParams
from adlib.study.records import StudyError, digest, read_json, write_json
from adlib.study.train_params import TrainParams
from adlib.training.folds import Fold
from adlib.training.loop import best_epoch, fit


def chosen_params(fold: Fold, params: StudyParams, folder: Path, key: str, fabric: Fabric) -> StudyParams:
    """The study with the training parameters that did best on inner folds; unchanged where no trial is asked for.

    Test participants of the fold are never looked at, so that the outer score stays honest (nested cross-validation:
    Varma & Simon 2006, doi:10.1186/1471-2105-7-91). A setting that was scored before an interruption is not run again.

    Parameters
    ----------
    fold : Fold
        That of the network; its controls are trained with what was chosen here.
    params : StudyParams
    folder : path
        Receives ``search.json``: each setting tried and its score, and the chosen one.
    key : str
        That of the network's training; scores of another key are not used.
    fabric : Fabric
    """
    search = params.search
    if not search.trials:
        return params
    stored = read_json(folder / "search.json") if (folder / "search.json").is_file() else {}
    scores: dict[str, float] = stored.get("scores", {}) if stored.get("key") == key else {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=params.seed + fold.number)
    )

    def objective(trial: optuna.Trial) -> float:
        setting = {name: trial.suggest_categorical(name, values) for name, values in sorted(search.space.items())}
        name = digest(setting)
        if name not in scores:
            scores[name] = _score(fold, with_setting(params, setting), folder, digest([key, name]), fabric)
            if fabric.is_global_zero:
                write_json({"key": key, "scores": scores}, folder / "search.json")
                print(f"fold {fold.number}, setting {setting}: balanced accuracy {scores[name]:.3f} on inner folds")
        return scores[name]

    study.optimize(objective, n_trials=search.trials)
    if fabric.is_global_zero:
        tried = [{**trial.params, "balanced_accuracy": trial.value} for trial in study.trials]
        found = {"key": key, "scores": scores, "tried": tried, "chosen": study.best_params}
        write_json(found, folder / "search.json")
    return with_setting(params, study.best_params)


def with_setting(params: StudyParams, setting: dict[str, float]) -> StudyParams:
    """The study with other values for some keys of `train`.

    Raises
    ------
    StudyError
        If a value is not allowed for its key.
    """
    fields = TrainParams.model_fields
    values = {k: int(v) if fields[k].annotation is int and v == int(v) else v for k, v in setting.items()}
    try:
        train = TrainParams.model_validate(params.train.model_dump() | values)
    except ValueError as error:
        raise StudyError(f"search.space holds what train does not take: {str(error).splitlines()[2].strip()}") from None
    return params.model_copy(update={"train": train})


def _score(fold: Fold, params: StudyParams, folder: Path, name: str, fabric: Fabric) -> float:
    """Mean balanced accuracy of inner validation participants."""
    rows = np.flatnonzero(fold.table["split"] != "test")
    people, found = fold.table["participant_id"].to_numpy()[rows], []
    cutter = StratifiedGroupKFold(params.search.folds, shuffle=True, random_state=params.seed)
    for number, (_, held_out) in enumerate(cutter.split(rows, fold.targets[rows], people)):
        split = fold.table["split"].replace("validation", "train").to_numpy(copy=True)
        split[rows[held_out]] = "validation"
        inner = replace(fold, run=f"search {name[:6]}, inner fold {number} of", table=fold.table.assign(split=split))
        place = folder / name[:12] / f"inner-{number}"
        fit(inner, params, place, digest([name, number]), fabric)
        history = read_json(place / "history.json")
        at = best_epoch(history) if params.train.patience else -1
        found.append(history[at]["validation_balanced_accuracy"])
    fabric.barrier()
    if fabric.is_global_zero:
        shutil.rmtree(folder / name[:12])
    return float(np.mean(found))
