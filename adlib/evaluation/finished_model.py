"""Score a finished model on the labelled people of a study that it never saw, or on those it was tested on."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from adlib.evaluation.evaluate import score_run
from adlib.evaluation.scores import confusion
from adlib.study.metrics import NETWORK
from adlib.study.params import StudyParams
from adlib.study.records import (
    FEATURES,
    MANIFEST,
    PREDICTIONS,
    SPLITS,
    TISSUE_MAPS,
    StudyError,
    content_digest,
    file_digest,
    read_table,
    some,
    write_json,
    write_table,
)
from adlib.study.steps import STEPS, StepState
from adlib.training import model_file
from adlib.training.folds import Fold
from adlib.training.loop import prediction_table
from adlib.training.model_card import ModelCard
from adlib.training.network import slice_outputs
from adlib.training.pooling import LEVELS, arrays, pool_level
from adlib.training.slices import load_slices, scan_percentiles, to_landmarks
from adlib.training.split_table import by_hash
from adlib.training.targets import as_numbers

_READ = ("manifest.tsv", "features.tsv", "slices.npy", "slices.tsv")


def score_model(model: Path, params: StudyParams, *, held_out: bool = False) -> dict[str, Any]:
    """Score the network of a model file, with the calibration in its card, on the people of a study.

    The study's steps 01 and 02 must be up to date. Writes ``predictions.parquet`` and ``metrics.json`` to the folder
    ``scored/<study of the model>`` of the study.

    Parameters
    ----------
    model : path
        File or folder, see `adlib.training.model_file.load`.
    params : StudyParams
        Of the cohort that is scored; classes, input and preprocessing are those of the model.
    held_out : bool
        Score the test participants of the model's own study, of its first fold.

    Returns
    -------
    dict
        The content of ``metrics.json``: ``entries`` and ``confusion`` as `evaluate_study` writes them; ``left_out``
        scans; ``people_checked``, whether it is known that nobody was trained on; ``sources`` with digests.

    Raises
    ------
    StudyError
        If the steps are not up to date, the model does not fit the study, or a participant was trained on.
    """
    _check_steps(params)
    path, folder = model_file.weights_path(model), params.folder
    classifier = model_file.load(path, trusted=path.resolve().parent == folder.resolve())
    model_file.check_alike(classifier.card, path, params)
    manifest = read_table(folder / "manifest.tsv", MANIFEST)
    _check_spaces(classifier.card, manifest, path)
    slices, table = load_slices(params)
    own = _own_parts(classifier.card, params)
    if held_out and own is None:
        raise StudyError(
            f"{path} was not trained on the split of {folder / 'splits.tsv'}, so nobody is known as held out"
        )
    if own is not None and not held_out:
        names = some(sorted(own.index[own != "test"]))
        raise StudyError(f"{path} was trained on this study, on {names}; --held-out scores those it was tested on")
    checked = own is not None or _check_people(classifier.card, table["participant_id"].unique(), params, path)
    table = table.assign(split="test" if own is None else table["participant_id"].map(own))
    predictions = _predict(classifier, slices, table, manifest, params)
    features = read_table(folder / "features.tsv", FEATURES)
    metrics = _scored(predictions, params) | {
        "study": params.study,
        "model": {"study": classifier.card.study, "sha256": file_digest(path), "simulated": classifier.card.simulated},
        "people_checked": checked,
        "left_out": features.loc[features["qc_verdict"] == "fail", ["scan_id", "qc_reasons"]].to_dict("records"),
        "sources": {name: content_digest(folder / name) for name in _READ},
    }
    place = folder / "scored" / classifier.card.study
    write_table(predictions, place / "predictions.parquet", PREDICTIONS)
    write_json(metrics, place / "metrics.json")
    return metrics


def _check_steps(params: StudyParams) -> None:
    for step in STEPS[:2]:
        if reason := StepState(step, params).why():
            raise StudyError(
                f"{step.name} of study {params.study!r} is not up to date ({reason}); run "
                "`python run_all.py --params FILE --only 01 --only 02` first"
            )


def _check_spaces(card: ModelCard, manifest: pd.DataFrame, path: Path) -> None:
    expected, found = TISSUE_MAPS in card.spaces, set(manifest["space"].eq(TISSUE_MAPS))
    if found != {expected}:
        kind = "grey-matter maps" if expected else "T1w images"
        raise StudyError(f"{path} takes {kind}, the images of the cohort are others")


def _own_parts(card: ModelCard, params: StudyParams) -> pd.Series | None:
    """Part of each participant in the model's fold, if the study is the one that it was trained in."""
    path = params.folder / "splits.tsv"
    if not path.is_file() or file_digest(path) != card.splits_sha256:
        return None
    splits = read_table(path, SPLITS)
    return splits[splits["fold"] == splits["fold"].min()].set_index("participant_id")["split"]


def _check_people(card: ModelCard, names: np.ndarray, params: StudyParams, path: Path) -> bool:
    """Refuse people of the training; False where the card has no hashes by which they could be known."""
    if not card.people:
        print(f"{path} has no hashes of its training participants: that none of them is scored is not checked")
        return False
    hashed = by_hash([*names, ""], params.splits.salt)
    shared = sorted(hashed[token] for token in set(card.people) & set(hashed))
    if "" not in shared:
        raise StudyError(f"splits.salt {params.splits.salt} is not the secret that {path} was trained with")
    if shared[1:]:
        raise StudyError(f"{path} was trained on {some(shared[1:])}; leave them out of the cohort")
    return True


def _predict(
    classifier: model_file.Classifier,
    slices: np.ndarray,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    params: StudyParams,
) -> pd.DataFrame:
    """Predictions of the tested slices; validation slices come first, so that batches are those of the training."""
    card = classifier.card
    if card.landmarks:
        slices = to_landmarks(slices, table["scan_id"], scan_percentiles(params), np.array(card.landmarks))
    targets = table["diagnosis"].map({name: k for k, name in enumerate(params.classes)}).to_numpy()
    none = np.zeros((len(table), 0), np.float32)
    fold = Fold(NETWORK, 0, 1, slices, table, targets, none, _covariates(card, table, manifest))
    rows = np.concatenate([fold.rows("validation"), fold.rows("test")])
    network = classifier.network.to(memory_format=torch.channels_last)
    predictions = prediction_table(fold, rows, slice_outputs(network, slices[rows], fold.covariates[rows]), params)
    biases = {f"bias_{name}": value for name, value in zip(card.classes, card.bias, strict=bool(card.bias))}
    predictions = predictions.assign(temperature=card.temperature, **biases)
    return predictions[predictions["split"] == "test"]


def _covariates(card: ModelCard, table: pd.DataFrame, manifest: pd.DataFrame) -> np.ndarray:
    """(rows, C) float32 covariates in units of the training; 0, its mean, where unknown."""
    scans = manifest.set_index("scan_id").loc[table["scan_id"]]
    columns = [(as_numbers(name, scans[name]) - mean) / sd for name, (mean, sd) in card.covariates.items()]
    return np.nan_to_num(np.array(columns).reshape(-1, len(table)).T).astype(np.float32)


def _scored(predictions: pd.DataFrame, params: StudyParams) -> dict[str, Any]:
    pooled = {level: pool_level(predictions, level, params.classes, params.input.pooling) for level in LEVELS}
    y, p, _ = arrays(pooled["subject"], params.classes)
    return {
        "classes": list(params.classes),
        "bootstrap": params.evaluate.bootstrap,
        "entries": [entry for level, items in pooled.items() for entry in score_run(items, NETWORK, level, params)],
        "confusion": {NETWORK: confusion(y, p, np.ones((1, len(y))))[0].astype(int).tolist()},
    }
