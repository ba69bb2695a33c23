"""Can the maps be believed? Checks that a map of the network must pass and a map of the image alone does not."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage
from scipy.stats import spearmanr

from adlib.evaluation.explain.attribution import SMOOTHING
from adlib.evaluation.explain.estimate import entry, resampled_means
from adlib.evaluation.explain.ground_truth import DEFINITIONS, TOP, changed_pixels, ratio_to_chance
from adlib.evaluation.explain.maps import THREE_PLANES, ScanMaps, attribute_positions
from adlib.evaluation.explain.perturb import FRACTIONS, perturbation_curves
from adlib.evaluation.explain.randomise import cascade
from adlib.evaluation.explain.space import FOLDER
from adlib.study.params import StudyParams
from adlib.study.records import write_json
from adlib.training.model_file import Classifier

TRAINED, RANDOMISED, EDGES = "trained", "randomised", "edges"


def check_maps(params: StudyParams, classifier: Classifier, maps: ScanMaps) -> dict[str, Any]:
    """Randomise the network, delete and insert pixels, and for the phantom compare with the truth.

    Stored as ``attribution/sanity.json``. Randomisation, deletion and insertion look at the middle slice of each scan,
    the comparison with the truth (`changed.DEFINITIONS`) at all slices.

    Returns
    -------
    dict
        ``entries`` with check, what is compared, n, participants, point and ci95; ``curves`` with the mean outputs at
        each fraction of the pixels and their intervals; for the phantom ``changed``, the regions.
    """
    told, content = (params.evaluate.bootstrap, params.seed), {"study": params.study}
    content |= {"attribution": params.evaluate.attribution, "class": classifier.card.classes[-1]}
    entries, forgotten = _randomisation(params, classifier, maps)
    curves, found = _perturbation(classifier, maps, told)
    content |= {"curves": curves, "entries": entries + found}
    if params.source.kind == "phantom" and not classifier.card.input.flat:
        plane, found = classifier.card.input.plane, (maps.values, forgotten, edges(maps.slices))
        kinds = {
            name: of_slices(values, plane) for name, values in zip((TRAINED, RANDOMISED, EDGES), found, strict=True)
        }
        content |= {"top_share": TOP, "changed": {}}
        for of, definition in DEFINITIONS.items():
            changed, brain = (of_slices(region, plane) for region in changed_pixels(classifier.card, of))
            ratios = {name: ratio_to_chance(values, changed, brain) for name, values in kinds.items()}
            content["entries"] += _overlap(ratios, maps, of, told)
            content["changed"][of] = {"definition": definition, "share_of_brain": float(changed[brain].mean())}
    write_json(content, params.folder / FOLDER / "sanity.json")
    return content


def find_check(sanity: dict[str, Any], check: str, of: str, metric: str) -> dict[str, Any] | None:
    """The entry of a check, a stage or curve, and a metric; None where it was not made."""
    wanted = (check, of, metric)
    return next((e for e in sanity["entries"] if (e["check"], e["of"], e["metric"]) == wanted), None)


def _randomisation(
    params: StudyParams, classifier: Classifier, maps: ScanMaps
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Rank correlation with the maps of ever more random networks, and all maps of the wholly random one."""
    method, told = params.evaluate.attribution, (params.evaluate.bootstrap, params.seed)
    middle = maps.slices.shape[1] // 2
    x, entries, last = maps.slices[:, [middle]], [], None
    for stage, network in cascade(classifier.network, _flat(maps.slices), params.seed):
        last = attribute_positions(classifier, network, x, method)
        for metric, change in (("rank_correlation", np.asarray), ("rank_correlation_absolute", np.abs)):
            values = [
                rank_correlation(change(a), change(b), seen != 0)
                for a, b, seen in zip(maps.values[:, middle], last[:, 0], x[:, 0], strict=True)
            ]
            entries.append(entry(np.array(values), maps.scans, *told, check="randomisation", of=stage, metric=metric))
    others = [k for k in range(maps.slices.shape[1]) if k != middle]
    if not others:
        return entries, last
    beside = attribute_positions(classifier, network, maps.slices[:, others], method)
    return entries, np.insert(beside, middle, last[:, 0], axis=1)


def _flat(slices: np.ndarray) -> np.ndarray:
    return slices.reshape(-1, *slices.shape[2:])


def rank_correlation(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> float:
    """Spearman's rank correlation of two maps over the pixels inside; 0 where one of them is constant."""
    a, b = a[inside], b[inside]
    if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def _perturbation(
    classifier: Classifier, maps: ScanMaps, told: tuple[int, int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    middle, target = maps.slices.shape[1] // 2, len(classifier.card.classes) - 1
    evidence = maps.values[:, middle].sum(1)
    curves = perturbation_curves(classifier.network, maps.slices[:, middle], evidence, target, told[1])
    stored: dict[str, Any] = {"fraction": FRACTIONS.tolist()}
    for name in ("deletion", "insertion", "random_deletion", "random_insertion"):
        means = resampled_means(getattr(curves, name), maps.scans, *told)
        low, high = np.percentile(means[1:], [2.5, 97.5], axis=0)
        stored[name] = {"point": means[0].tolist(), "low": low.tolist(), "high": high.tolist()}
    entries = [
        entry(curves.gain(name), maps.scans, *told, check="perturbation", of=name, metric="area_gained_over_random")
        for name in ("deletion", "insertion")
    ]
    return stored, entries


def of_slices(values: np.ndarray, plane: str) -> np.ndarray:
    """What a slice as a whole shows, (..., C, H, W) to (..., 1, H, W): a slice and its neighbours are one picture.

    Evidence is summed over the channels, a region (bool) is that of the middle one. Planes of their own stay apart.
    """
    if plane in THREE_PLANES:
        return values
    return values[..., 1:2, :, :] if values.dtype == bool else values.sum(-3, keepdims=True)


def _overlap(ratios: dict[str, np.ndarray], maps: ScanMaps, of: str, told: tuple[int, int]) -> list[dict[str, Any]]:
    """Ratio to chance of the maps, of those of the random network and of the edges of the image, and differences."""
    check = f"overlap_{of}"
    found = [
        entry(values, maps.scans, *told, check=check, of=name, metric="ratio_to_chance")
        for name, values in ratios.items()
    ]
    for other in (RANDOMISED, EDGES):
        values = ratios[TRAINED] - ratios[other]
        found.append(entry(values, maps.scans, *told, check=check, of=f"{TRAINED} - {other}", metric="difference"))
    return found


def edges(slices: np.ndarray) -> np.ndarray:
    """How steep the image is at each pixel, smoothed like the maps: a map that knows nothing of the network."""
    gradients = (ndimage.gaussian_filter(slices, (0, 0, 0, 1, 1), order=(0, 0, 0, *o)) for o in ((1, 0), (0, 1)))
    return ndimage.gaussian_filter(np.hypot(*gradients), (0, 0, 0, SMOOTHING, SMOOTHING))
