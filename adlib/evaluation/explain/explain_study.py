"""All explanations of a study: maps, where they lie in the brain, and whether they can be believed."""

import hashlib
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from adlib.evaluation.explain.attribution import AttributionMaps, class_means, scan_maps
from adlib.evaluation.explain.regions import FOLDER, REGIONAL, class_images, read_images, regional_table, write_images
from adlib.evaluation.explain.sanity import check_maps
from adlib.study.code_digest import code_digest
from adlib.study.params import StudyParams
from adlib.study.records import atomic_path, digest, file_digest, read_json, read_table, write_json
from adlib.training.model_file import Classifier

READ = ("slices.npy", "slices.tsv", "splits.tsv")


@dataclass(frozen=True, eq=False)
class Explained:
    """Results of `explain_study`.

    Attributes
    ----------
    means : AttributionMaps
    sanity : dict
        See `sanity.check_maps`.
    images : dict of str to NIfTI image
        Mean map of each true class in MNI152 space; empty for 2-D studies, whose slices have no place there.
    regions : DataFrame or None
        See `regions.regional_table`; None for 2-D studies.
    """

    means: AttributionMaps
    sanity: dict[str, Any]
    images: dict[str, nib.Nifti1Image]
    regions: pd.DataFrame | None


def explain_study(params: StudyParams, classifier: Classifier) -> Explained:
    """Attribute test scans of the first fold and store means, images, regional shares and checks.

    Writes ``attribution.npz``, ``attribution/sanity.json`` and, where scans are volumes, ``attribution/*.nii.gz`` and
    ``attribution/regions.tsv``. Stored results are read instead where model, slices, params and code are the same.

    Parameters
    ----------
    params : StudyParams
    classifier : Classifier

    Returns
    -------
    Explained

    Raises
    ------
    StudyError
        If a class has no test scan.
    """
    folder, flat = params.folder / FOLDER, classifier.card.input.flat
    key, stored = _key(params, classifier), params.folder / "attribution.npz"
    if not (folder / "done.json").is_file() or read_json(folder / "done.json") != _proof(params, key):
        maps = scan_maps(params, classifier)
        with atomic_path(stored) as temporary:
            np.savez_compressed(temporary, **vars(class_means(maps, params.classes, classifier.card.input.plane)))
        if not flat:
            write_images(params, class_images(maps, classifier.card))
            regional_table(params, maps, classifier.card)
        check_maps(params, classifier, maps)
        write_json(_proof(params, key), folder / "done.json")
    with np.load(stored) as arrays:
        means = AttributionMaps(**arrays)
    images, regions = ({}, None) if flat else (read_images(params), read_table(folder / "regions.tsv", REGIONAL))
    return Explained(means, read_json(folder / "sanity.json"), images, regions)


def _key(params: StudyParams, classifier: Classifier) -> str:
    tables = [file_digest(params.folder / name) for name in READ]
    weights = hashlib.sha256(classifier.card.to_json().encode())
    for value in classifier.network.state_dict().values():
        weights.update(value.cpu().contiguous().numpy().tobytes())
    settings = [params.evaluate.model_dump(), params.seed, params.classes, params.source.kind]
    return digest([code_digest(__name__), weights.hexdigest(), *settings, tables])


def _proof(params: StudyParams, key: str) -> dict[str, str]:
    written = [params.folder / "attribution.npz", *sorted((params.folder / FOLDER).glob("*"))]
    kept = [path for path in written if path.name != "done.json" and path.is_file()]
    return {"key": key, **{path.name: file_digest(path) for path in kept}}
