"""Checks of attribution maps: randomised networks, deletion and insertion, and overlap with the true change."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy.integrate import trapezoid
from scipy.stats import spearmanr
from torch import nn

from adlib.evaluation.explain.attribution import BATCH, SMOOTHING, THREE_PLANES, ScanMaps, attribute_positions
from adlib.evaluation.explain.regions import DEFINITIONS, FOLDER, TOP, changed_pixels, ratio_to_chance
from adlib.evaluation.scores import resampled_means
from adlib.study.params import StudyParams
from adlib.study.records import write_json
from adlib.training.model_file import Classifier
from adlib.training.network import slice_outputs, stages

TRAINED, RANDOMISED, EDGES = "trained", "randomised", "edges"
PATCH = 8  # pixels
FRACTIONS = np.linspace(0, 1, 11)  # of the patches


def check_maps(params: StudyParams, classifier: Classifier, maps: ScanMaps) -> dict[str, Any]:
    """Randomise the network, delete and insert pixels, and for the phantom compare with the truth.

    Stored as ``attribution/sanity.json``. Randomisation, deletion and insertion use the middle slice of each scan,
    the comparison with the truth (`regions.DEFINITIONS`) all slices.

    Parameters
    ----------
    params : StudyParams
    classifier : Classifier
    maps : ScanMaps
        Of the classifier's network, from `scan_maps`.

    Returns
    -------
    dict
        ``entries`` with check, the compared network or region, n, participants, point and ci95; ``curves`` with the
        mean outputs at each fraction of the pixels and their intervals; for the phantom ``changed``, the regions.

    References
    ----------
    Adebayo et al. 2018, arXiv:1810.03292 (randomisation); Petsiuk et al. 2018, arXiv:1806.07421 (deletion, insertion).
    """
    content: dict[str, Any] = {"study": params.study}
    content |= {"attribution": params.evaluate.attribution, "class": classifier.card.classes[-1]}
    entries, random, of_middle = _randomisation(params, classifier, maps)
    content["curves"], gains = _perturbation(params, classifier, maps)
    content["entries"] = entries + gains
    if params.source.kind == "phantom" and not classifier.card.input.flat:
        plane = classifier.card.input.plane
        randomised = _with_middle(params, classifier, random, maps, of_middle)
        kinds = {TRAINED: maps.values, RANDOMISED: randomised, EDGES: edges(maps.slices)}
        kinds = {name: of_slices(values, plane) for name, values in kinds.items()}
        content |= {"top_share": TOP, "changed": {}}
        for of, definition in DEFINITIONS.items():
            changed, brain = (of_slices(region, plane) for region in changed_pixels(classifier.card, of))
            ratios = {name: ratio_to_chance(values, changed, brain) for name, values in kinds.items()}
            content["entries"] += _overlap(params, ratios, maps, of)
            content["changed"][of] = {"definition": definition, "share_of_brain": float(changed[brain].mean())}
    write_json(content, params.folder / FOLDER / "sanity.json")
    return content


def _randomisation(
    params: StudyParams, classifier: Classifier, maps: ScanMaps
) -> tuple[list[dict[str, Any]], nn.Module, np.ndarray]:
    """Rank correlation with the maps of ever more random networks; the wholly random one, its maps of middle slices."""
    method, middle, entries = params.evaluate.attribution, maps.slices.shape[1] // 2, []
    x, all_slices = maps.slices[:, [middle]], maps.slices.reshape(-1, *maps.slices.shape[2:])
    for stage, network in cascade(classifier.network, all_slices, params.seed):
        other = attribute_positions(classifier, network, x, method)
        for metric, change in (("rank_correlation", np.asarray), ("rank_correlation_absolute", np.abs)):
            values = [
                rank_correlation(change(a), change(b), seen != 0)
                for a, b, seen in zip(maps.values[:, middle], other[:, 0], x[:, 0], strict=True)
            ]
            entries.append(_entry(np.array(values), maps.scans, params, check="randomisation", of=stage, metric=metric))
    return entries, network, other


def _with_middle(
    params: StudyParams, classifier: Classifier, network: nn.Module, maps: ScanMaps, of_middle: np.ndarray
) -> np.ndarray:
    """Maps of a network for all slices, whose middle ones (N, 1, 3, size, size) are there already."""
    middle = maps.slices.shape[1] // 2
    others = np.delete(maps.slices, middle, axis=1)
    if not others.shape[1]:
        return of_middle
    values = attribute_positions(classifier, network, others, params.evaluate.attribution)
    return np.insert(values, middle, of_middle[:, 0], axis=1)


def rank_correlation(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> float:
    """Spearman's rank correlation of two maps.

    Parameters
    ----------
    a, b : array
        Of one shape.
    inside : bool array
        Pixels that count, of that shape.

    Returns
    -------
    float
        0 where a map is constant or no pixel counts.
    """
    a, b = a[inside], b[inside]
    if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def _perturbation(
    params: StudyParams, classifier: Classifier, maps: ScanMaps
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    middle, target = maps.slices.shape[1] // 2, len(classifier.card.classes) - 1
    evidence = maps.values[:, middle].sum(1)
    curves = perturbation_curves(classifier.network, maps.slices[:, middle], evidence, target, params.seed)
    stored: dict[str, Any] = {"fraction": FRACTIONS.tolist()}
    for name, values in curves.items():
        means = resampled_means(values, maps.scans, params.evaluate.bootstrap, params.seed)
        low, high = np.percentile(means[1:], [2.5, 97.5], axis=0)
        stored[name] = {"point": means[0].tolist(), "low": low.tolist(), "high": high.tolist()}
    names = {"check": "perturbation", "metric": "area_gained_over_random"}
    return stored, [_entry(gain(curves, of), maps.scans, params, of=of, **names) for of in ("deletion", "insertion")]


def of_slices(values: np.ndarray, plane: str) -> np.ndarray:
    """Join the channels of a slice, the slice and its neighbours, to one; planes of three-plane inputs stay apart.

    Parameters
    ----------
    values : (..., C, H, W) array
        Evidence, summed over the channels, or a region (bool), whose middle channel is taken.
    plane : str
        ``input.plane`` of the network.

    Returns
    -------
    (..., 1, H, W) array
        `values` themselves for three planes.
    """
    if plane in THREE_PLANES:
        return values
    return values[..., 1:2, :, :] if values.dtype == bool else values.sum(-3, keepdims=True)


def _overlap(params: StudyParams, ratios: dict[str, np.ndarray], maps: ScanMaps, of: str) -> list[dict[str, Any]]:
    """Ratio to chance of the maps, of those of the random network and of the edges of the image, and differences."""
    differences = {f"{TRAINED} - {other}": ratios[TRAINED] - ratios[other] for other in (RANDOMISED, EDGES)}
    return [
        _entry(values, maps.scans, params, check=f"overlap_{of}", of=name, metric=metric)
        for metric, kinds in (("ratio_to_chance", ratios), ("difference", differences))
        for name, values in kinds.items()
    ]


def edges(slices: np.ndarray) -> np.ndarray:
    """Steepness of the image at each pixel, smoothed like the maps: a map that does not depend on the network.

    Parameters
    ----------
    slices : (N, S, 3, H, W) float32

    Returns
    -------
    (N, S, 3, H, W) float32
    """
    gradients = (ndimage.gaussian_filter(slices, (0, 0, 0, 1, 1), order=(0, 0, 0, *o)) for o in ((1, 0), (0, 1)))
    return ndimage.gaussian_filter(np.hypot(*gradients), (0, 0, 0, SMOOTHING, SMOOTHING))


def cascade(network: nn.Module, slices: np.ndarray, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Randomise a network from its last layer down (Adebayo et al. 2018, arXiv:1810.03292).

    Layers get PyTorch's initial values. The batch statistics of all randomised stages are taken anew
    over the slices at each step: those of the training fit no other weights, and activations would vanish or burst.

    Parameters
    ----------
    network : nn.Module
        Its stages are those of `adlib.training.network.stages`; it is not changed.
    slices : (n, 3, H, W) float32
    seed : int

    Yields
    ------
    stage : str
        Title of the stage; that stage and all after it in the network are random.
    network : nn.Module
        In evaluation mode; the next step goes on changing the same one.
    """
    random = copy.deepcopy(network).eval()
    done: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for stage, parts in reversed(stages(random).items()):
            done += parts
            for module in (m for part in parts for m in part.modules()):
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            _renew_statistics(random, done, slices)
            yield stage, random


@torch.no_grad()
def _renew_statistics(network: nn.Module, parts: list[nn.Module], slices: np.ndarray) -> None:
    norms = [module for part in parts for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    if norms:
        for batch in torch.from_numpy(slices).split(BATCH):
            network(batch)
    network.eval()


def perturbation_curves(
    network: nn.Module, slices: np.ndarray, maps: np.ndarray, target: int, seed: int
) -> dict[str, np.ndarray]:
    """Deletion and insertion curves of maps (Petsiuk et al. 2018, arXiv:1806.07421), in logits, by patches.

    Parameters
    ----------
    network : nn.Module
    slices : (n, 3, H, W) float32
    maps : (n, H, W) float32
        Signed evidence for the output.
    target : int
        Index of the output.
    seed : int
        Of the random orders.

    Returns
    -------
    dict of str to (n, len(FRACTIONS)) float64
        The output while the share `FRACTIONS` of the patches is blanked (``deletion``) or shown on a blank slice
        (``insertion``), those with most evidence first, and with the same patches in random order
        (``random_deletion``, ``random_insertion``). Only patches that show anything of the slice take part. Insertion
        in random order is deletion in the reverse of that order, read backwards.
    """
    ranks = [
        _ranks(x, evidence, np.random.default_rng([seed, k]))
        for k, (x, evidence) in enumerate(zip(slices, maps, strict=True))
    ]
    ordered, random = (np.stack(part) for part in zip(*ranks, strict=True))
    deletion = _outputs(network, slices, ordered, target)
    insertion = _outputs(network, slices, 1 - ordered, target)[:, ::-1]
    by_chance = _outputs(network, slices, random, target)
    curves = {"random_deletion": by_chance, "random_insertion": by_chance[:, ::-1]}
    return {"deletion": deletion, "insertion": insertion, **curves}


def gain(curves: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Area between a curve and that of random order.

    Parameters
    ----------
    curves : dict of str to array
        From `perturbation_curves`.
    name : str
        ``deletion`` or ``insertion``.

    Returns
    -------
    (n,) float64
        In units of the output; positive where the map's order is the better one.
    """
    sign = 1 if name == "insertion" else -1
    return sign * trapezoid(curves[name] - curves[f"random_{name}"], FRACTIONS, axis=1)


def _ranks(x: np.ndarray, evidence: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """When each pixel (H, W) goes, in (0, 1], by falling evidence of its patch and in random order."""
    rows, columns = np.indices(evidence.shape) // PATCH
    patches = rows * (columns.max() + 1) + columns
    shown = np.unique(patches[(x != 0).any(0)])
    if not len(shown):
        return np.ones(evidence.shape), np.ones(evidence.shape)
    sums = np.bincount(patches.ravel(), weights=evidence.ravel())[shown]
    ranks = []
    for order in (np.argsort(-sums, kind="stable"), rng.permutation(len(shown))):
        place = np.ones(patches.max() + 1)
        place[shown[order]] = (np.arange(len(shown)) + 0.5) / len(shown)
        ranks.append(place[patches])
    return ranks[0], ranks[1]


def _outputs(network: nn.Module, slices: np.ndarray, ranks: np.ndarray, target: int) -> np.ndarray:
    """Output (n, len(FRACTIONS)) with the pixels blanked whose rank is below each fraction."""
    values = [slice_outputs(network, slices * (ranks >= fraction)[:, None])[:, target] for fraction in FRACTIONS]
    return np.stack(values, axis=1)


def _entry(values: np.ndarray, scans: pd.DataFrame, params: StudyParams, **names: str) -> dict[str, Any]:
    """An entry with names, n (scans), participants, point and ci95 (2.5th and 97.5th percentile) of values by scan."""
    means = resampled_means(values, scans, params.evaluate.bootstrap, params.seed)
    interval = np.percentile(means[1:], [2.5, 97.5]).tolist()
    counts = {"n": len(scans), "participants": int(scans["participant_id"].nunique())}
    return {**names, **counts, "point": float(means[0]), "ci95": interval}
