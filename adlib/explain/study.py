"""All explanations of a study: maps, where they lie in the brain, and whether they can be believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import pandas as pd

from adlib.explain.maps import AttributionMaps, class_means, scan_maps, write_means
from adlib.explain.regions import regional_table
from adlib.explain.sanity import check_maps
from adlib.explain.space import class_images, write_images
from adlib.model_file import Classifier
from adlib.params import StudyParams


@dataclass(frozen=True, eq=False)
class Explained:
    """What `explain_study` found and stored.

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
    ``attribution/regions.tsv``.

    Raises
    ------
    StudyError
        If a class has no test scan.
    """
    maps = scan_maps(params, classifier)
    means = class_means(maps, params.classes, classifier.card.input.plane)
    write_means(params, means)
    images: dict[str, nib.Nifti1Image] = {}
    regions = None
    if not classifier.card.input.flat:
        images = class_images(maps, classifier.card)
        write_images(params, images)
        regions = regional_table(params, maps, classifier.card)
    return Explained(means, check_maps(params, classifier, maps), images, regions)
