"""Where in the slices the network finds its evidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from captum.attr import IntegratedGradients
from scipy import ndimage

from adlib.dataset import load_slices, scan_percentiles, to_landmarks
from adlib.model_file import Classifier
from adlib.params import StudyParams
from adlib.records import SPLITS, StudyError, atomic_path, read_table

STEPS = 16


@dataclass(frozen=True)
class AttributionMaps:
    """Mean attribution and mean slice by true class.

    Attributes
    ----------
    attribution : (K, S, size, size) float32
        Evidence for the last class, averaged over test scans of each true class and summed over channels; S slices.
    slices : (K, S, size, size) float32
        The mean middle channel.
    scans : (K,) int64
        Test scans behind each mean.
    """

    attribution: np.ndarray
    slices: np.ndarray
    scans: np.ndarray


def attribute(classifier: Classifier, slices: np.ndarray, target: int) -> np.ndarray:
    """Integrated gradients of one class's logit against a blank slice.

    Parameters
    ----------
    classifier : Classifier
    slices : (n, 3, H, W) float32
    target : int
        Index of the class.

    Returns
    -------
    (n, H, W) float32
        Signed attribution, summed over channels, smoothed with sigma 1.5 pixels.

    References
    ----------
    Sundararajan et al. 2017, arXiv:1703.01365.
    """
    method = IntegratedGradients(classifier.network)
    x = torch.from_numpy(np.asarray(slices, dtype=np.float32))
    values = method.attribute(x, target=target, n_steps=STEPS, internal_batch_size=64)
    summed = values.sum(1).detach().numpy().astype(np.float32)
    return ndimage.gaussian_filter(summed, (0, 1.5, 1.5))


def study_maps(params: StudyParams, classifier: Classifier) -> AttributionMaps:
    """Attribute test scans of the first fold, evenly over classes, and store the means as ``attribution.npz``."""
    slices, table = load_slices(params)
    splits = read_table(params.folder / "splits.tsv", SPLITS)
    tested = splits.loc[(splits["fold"] == 0) & (splits["split"] == "test"), "participant_id"]
    table = table[table["participant_id"].isin(tested)]
    each = max(1, params.evaluate.attribution_scans // len(params.classes))
    if classifier.card.landmarks:
        rows = table["row"].to_numpy()
        table = table.assign(row=np.arange(len(table)))
        slices = to_landmarks(slices[rows], table["scan_id"], scan_percentiles(params), classifier.card.landmarks)
    means = [_class_means(slices, table[table["diagnosis"] == name], each, classifier) for name in params.classes]
    maps = AttributionMaps(*(np.stack(part) for part in zip(*means, strict=True)))
    with atomic_path(params.folder / "attribution.npz") as temporary:
        np.savez_compressed(temporary, attribution=maps.attribution, slices=maps.slices, scans=maps.scans)
    return maps


def _class_means(
    slices: np.ndarray, table: pd.DataFrame, each: int, classifier: Classifier
) -> tuple[np.ndarray, np.ndarray, int]:
    scans = sorted(table["scan_id"].unique())[:each]
    if not scans:
        raise StudyError("a class has no test scan to explain; lower splits.folds or add participants")
    chosen = table[table["scan_id"].isin(scans)].sort_values(["slice", "scan_id"])
    x = np.asarray(slices[chosen["row"].to_numpy()], dtype=np.float32)
    values = attribute(classifier, x, len(classifier.card.classes) - 1)
    shape = (chosen["slice"].nunique(), len(scans), *x.shape[2:])
    return values.reshape(shape).mean(1), x[:, 1].reshape(shape).mean(1), len(scans)
