"""Attribution of an output to the pixels of slices: methods, maps of test scans, and their means by true class."""

import copy
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from captum.attr import GradientShap, IntegratedGradients, LayerAttribution, LayerGradCam, Occlusion
from scipy import ndimage
from torch import nn

from adlib.study.params import StudyParams
from adlib.study.records import SPLITS, StudyError, read_table
from adlib.training.model_file import Classifier
from adlib.training.slices import load_slices, scan_percentiles, to_landmarks

STEPS = 16
SMOOTHING = 2.0  # standard deviation, pixels
BATCH = 64
THREE_PLANES = ("three_planes", "three_planes_2d")
TITLES = {
    "integrated_gradients": "integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365)",
    "gradient_shap": "expected gradients (GradientShap; Lundberg & Lee 2017, arXiv:1705.07874)",
    "grad_cam": "Grad-CAM on the last stage (Selvaraju et al. 2017, doi:10.1109/ICCV.2017.74)",
    "occlusion": "occlusion (Zeiler & Fergus 2014, doi:10.1007/978-3-319-10590-1_53)",
}


def attribute(
    network: nn.Module, slices: np.ndarray, target: int, method: str = "integrated_gradients", apart: bool = False
) -> np.ndarray:
    """Share out one output of a network over the pixels of slices.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode, on the processor; it is not changed.
    slices : (n, 3, H, W) array
        For ``gradient_shap`` they are also the background that each is compared with.
    target : int
        Index of the output, a logit.
    method : str
        One of `TITLES`. Integrated gradients and occlusion compare with a blank slice (0).
    apart : bool
        Whether the channels are planes of their own (``three_planes``), so that occlusion covers one at a time.

    Returns
    -------
    (n, 3, H, W) float32
        Signed evidence for the output, smoothed in the plane with `SMOOTHING`. ``grad_cam``, and ``occlusion`` of
        channels that are not apart, do not differ by channel: each channel then has a third.

    Raises
    ------
    StudyError
        If the method is unknown.

    References
    ----------
    The methods are those of Captum (Kokhlikyan et al. 2020, arXiv:2009.07896).
    """
    if method not in TITLES:
        raise StudyError(f"unknown attribution {method!r}; there are {', '.join(TITLES)}")
    frozen = copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    x = torch.from_numpy(np.array(slices, dtype=np.float32)).contiguous(memory_format=torch.channels_last)
    how = {"gradient_shap": _gradient_shap, "grad_cam": _grad_cam, "occlusion": _occlusion}.get(method, _integrated)
    values = how(frozen, x, target, apart).detach().numpy().astype(np.float32)
    return ndimage.gaussian_filter(values, (0, 0, SMOOTHING, SMOOTHING))


def _integrated(network: nn.Module, x: torch.Tensor, target: int, apart: bool) -> torch.Tensor:
    method = IntegratedGradients(network)
    return method.attribute(x, target=target, n_steps=STEPS, internal_batch_size=BATCH)


def _gradient_shap(network: nn.Module, x: torch.Tensor, target: int, apart: bool) -> torch.Tensor:
    method, state = GradientShap(network), np.random.get_state()  # noqa: NPY002
    options = {"baselines": x, "n_samples": STEPS, "stdevs": 0.0, "target": target}
    with torch.random.fork_rng(devices=[]):  # Captum draws from the global generators, which are left as they were
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        parts = [method.attribute(part, **options) for part in x.split(BATCH // STEPS)]
    np.random.set_state(state)  # noqa: NPY002
    return torch.cat(parts)


def _grad_cam(network: nn.Module, x: torch.Tensor, target: int, apart: bool) -> torch.Tensor:
    method = LayerGradCam(network, network.get_submodule(network.explained_layer))
    parts = [method.attribute(part.requires_grad_(), target=target) for part in x.split(BATCH)]
    fine = LayerAttribution.interpolate(torch.cat(parts), tuple(x.shape[2:]), interpolate_mode="bilinear")
    return fine.expand(-1, x.shape[1], -1, -1) / x.shape[1]


def _occlusion(network: nn.Module, x: torch.Tensor, target: int, apart: bool) -> torch.Tensor:
    edge, stride = x.shape[-1] // 8, x.shape[-1] // 12
    channels = 1 if apart else x.shape[1]
    with torch.inference_mode():
        parts = [
            Occlusion(network).attribute(part, (channels, edge, edge), (channels, stride, stride), 0, target)
            for part in x.split(BATCH)
        ]
    return torch.cat(parts) / channels


@dataclass(frozen=True, eq=False)
class ScanMaps:
    """Attribution of single scans.

    Attributes
    ----------
    values : (N, S, 3, size, size) float32
        Evidence for the last class by scan, slice and channel.
    slices : (N, S, 3, size, size) float32
        Input of the network.
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

    Parameters
    ----------
    params : StudyParams
        ``evaluate.attribution`` and ``attribution_scans`` count.
    classifier : Classifier
        Of the first fold.

    Returns
    -------
    ScanMaps

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
        Its card states the classes and whether channels are planes.
    network : nn.Module
        The classifier's, or another in its place.
    x : (N, S, 3, size, size) float32
    method : str
        See `attribute`.

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
        rows = table[table["diagnosis"] == name].sort_values(["scan_id", "slice"])
        if rows.empty:
            raise StudyError(f"class {name} has no test scan to explain; lower splits.folds or add participants")
        parts.append(rows[rows["scan_id"].isin(rows["scan_id"].unique()[:each])])
    return pd.concat(parts)


def class_means(maps: ScanMaps, classes: tuple[str, ...], plane: str) -> AttributionMaps:
    """Mean maps and slices by true class.

    Parameters
    ----------
    maps : ScanMaps
    classes : tuple of str
    plane : str
        ``input.plane`` of the network.

    Returns
    -------
    AttributionMaps
    """
    means, images, counts = [], [], []
    for name in classes:
        inside = (maps.scans["diagnosis"] == name).to_numpy()
        values, slices = maps.values[inside].mean(0), maps.slices[inside].mean(0)
        if plane in THREE_PLANES:
            means.append(values.reshape(-1, *values.shape[2:]))
            images.append(slices.reshape(means[-1].shape))
        else:
            means.append(values.sum(1))
            images.append(slices[:, 1])
        counts.append(inside.sum())
    return AttributionMaps(np.stack(means), np.stack(images), np.array(counts))
