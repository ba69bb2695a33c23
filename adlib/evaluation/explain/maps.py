"""Attribution maps of test scans, and their means by true class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from adlib.evaluation.explain.attribution import attribute
from adlib.study.params import StudyParams
from adlib.study.records import SPLITS, StudyError, atomic_path, read_table
from adlib.training.model_file import Classifier
from adlib.training.slices import load_slices, scan_percentiles, to_landmarks

THREE_PLANES = ("three_planes", "three_planes_2d")


@dataclass(frozen=True, eq=False)
class ScanMaps:
    """Attribution of single scans.

    Attributes
    ----------
    values : (N, S, 3, size, size) float32
        Evidence for the last class by scan, slice and channel.
    slices : (N, S, 3, size, size) float32
        What the network saw.
    scans : DataFrame
        scan_id, participant_id and diagnosis of the N scans.
    """

    values: np.ndarray
    slices: np.ndarray
    scans: pd.DataFrame


@dataclass(frozen=True, eq=False)
class AttributionMaps:
    """Mean attribution and mean slice by true class, ready to be drawn.

    Attributes
    ----------
    attribution : (K, S, size, size) float32
        Evidence for the last class, averaged over test scans of each true class and summed over channels; S slices,
        or the channels where they are planes of their own.
    slices : (K, S, size, size) float32
        The mean middle channel, or each channel.
    scans : (K,) int64
        Test scans behind each mean.
    """

    attribution: np.ndarray
    slices: np.ndarray
    scans: np.ndarray


def scan_maps(params: StudyParams, classifier: Classifier) -> ScanMaps:
    """Attribute test scans of the first fold, evenly over classes.

    Raises
    ------
    StudyError
        If a class has no test scan.
    """
    slices, table = load_slices(params)
    splits = read_table(params.folder / "splits.tsv", SPLITS)
    tested = splits.loc[(splits["fold"] == 0) & (splits["split"] == "test"), "participant_id"]
    table = _evenly(table[table["participant_id"].isin(tested)], params)
    scans = table.drop_duplicates("scan_id")[["scan_id", "participant_id", "diagnosis"]].reset_index(drop=True)
    x = np.asarray(slices[table["row"].to_numpy()])
    if landmarks := classifier.card.landmarks:
        x = to_landmarks(x, table["scan_id"], scan_percentiles(params), np.array(landmarks))
    x = x.astype(np.float32).reshape(len(scans), -1, *x.shape[1:])
    values = attribute_positions(classifier, classifier.network, x, params.evaluate.attribution)
    return ScanMaps(values, x, scans)


def attribute_positions(classifier: Classifier, network: object, x: np.ndarray, method: str) -> np.ndarray:
    """Evidence of a network for the last class of a classifier's card, position by position.

    Parameters
    ----------
    classifier : Classifier
        Its card says what the classes are and whether channels are planes.
    network : nn.Module
        The classifier's, or another in its place.
    x : (N, S, 3, size, size) float32
    method : str
        See `methods.attribute`.

    Returns
    -------
    (N, S, 3, size, size) float32
    """
    card = classifier.card
    target, apart = len(card.classes) - 1, card.input.plane in THREE_PLANES
    parts = [attribute(network, x[:, k], target, method, apart) for k in range(x.shape[1])]
    return np.stack(parts, axis=1)


def _evenly(table: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """Rows of as many scans of each class as `evaluate.attribution_scans` has room for, by class, scan and slice."""
    each, parts = max(1, params.evaluate.attribution_scans // len(params.classes)), []
    for name in params.classes:
        own = table[table["diagnosis"] == name]
        scans = sorted(own["scan_id"].unique())[:each]
        if not scans:
            raise StudyError(f"class {name} has no test scan to explain; lower splits.folds or add participants")
        parts.append(own[own["scan_id"].isin(scans)].sort_values(["scan_id", "slice"]))
    return pd.concat(parts)


def class_means(maps: ScanMaps, classes: tuple[str, ...], plane: str) -> AttributionMaps:
    """Means by true class; `plane` is that of the network's input."""
    means, images, counts = [], [], []
    for name in classes:
        own = (maps.scans["diagnosis"] == name).to_numpy()
        values, slices = maps.values[own].mean(0), maps.slices[own].mean(0)
        if plane in THREE_PLANES:
            means.append(values.reshape(-1, *values.shape[2:]))
            images.append(slices.reshape(means[-1].shape))
        else:
            means.append(values.sum(1))
            images.append(slices[:, 1])
        counts.append(own.sum())
    return AttributionMaps(np.stack(means), np.stack(images), np.array(counts))


def read_means(params: StudyParams) -> AttributionMaps:
    """The means in ``attribution.npz``."""
    with np.load(params.folder / "attribution.npz") as stored:
        return AttributionMaps(**{name: stored[name] for name in ("attribution", "slices", "scans")})


def write_means(params: StudyParams, means: AttributionMaps) -> None:
    """Store the means as ``attribution.npz``."""
    with atomic_path(params.folder / "attribution.npz") as temporary:
        np.savez_compressed(temporary, attribution=means.attribution, slices=means.slices, scans=means.scans)
