"""How much of the attribution lies in which region of the brain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from adlib.evaluation.explain.estimate import resampled_means
from adlib.evaluation.explain.maps import ScanMaps
from adlib.evaluation.explain.space import FOLDER, in_slices, slice_voxels
from adlib.imaging import atlas
from adlib.study.params import StudyParams
from adlib.study.records import Schema, write_table
from adlib.training.model_file import ModelCard

REST, BRAIN = "rest_of_brain", "brain"
REGIONAL = Schema(
    "regional attribution",
    {
        "diagnosis": str,
        "region": str,
        "within": str,
        "pixels": float,
        "positive": float,
        "absolute": float,
    },
    {"ratio": float, "ratio_low": float, "ratio_high": float},
    ("diagnosis", "region"),
)


def pixel_regions(card: ModelCard) -> dict[str, np.ndarray]:
    """Regions at the pixels of a scan's slices, (S, 3, size, size) bool each.

    Those of `atlas.REGIONS` (the temporal lobes hold most of the hippocampi), the rest of the brain, and the brain: the
    template's mask, the same for every scan.
    """
    resolution, voxels = card.preprocess.resolution_mm, slice_voxels(card)
    brain = in_slices(atlas.template(resolution).mask, voxels)
    named = {name: in_slices(atlas.region(name, resolution), voxels) & brain for name in atlas.REGIONS}
    return named | {REST: brain & ~np.any(list(named.values()), axis=0), BRAIN: brain}


def regional_table(params: StudyParams, maps: ScanMaps, card: ModelCard) -> pd.DataFrame:
    """Share of the attribution in each region against the region's share of the pixels.

    Stored as ``attribution/regions.tsv``. Shares are means over scans: of regions, within the brain; of the brain,
    within the slices.

    Returns
    -------
    DataFrame
        Schema `REGIONAL`: ``pixels``, ``positive`` and ``absolute`` are shares of the region's pixels, of all positive
        and of all absolute attribution; ``ratio`` is absolute / pixels, with its 95 % interval over participants,
        undefined where no slice shows the region.
    """
    regions = pixel_regions(card)
    rows = [row for name in (*card.classes, "all") for row in _rows(params, maps, regions, name)]
    return write_table(pd.DataFrame(rows), params.folder / FOLDER / "regions.tsv", REGIONAL)


def _rows(
    params: StudyParams, maps: ScanMaps, regions: dict[str, np.ndarray], diagnosis: str
) -> Iterator[dict[str, Any]]:
    own = np.full(len(maps.scans), True) if diagnosis == "all" else (maps.scans["diagnosis"] == diagnosis).to_numpy()
    values, scans = maps.values[own], maps.scans[own]
    for region, inside in regions.items():
        whole = np.ones_like(inside) if region == BRAIN else regions[BRAIN]
        pixels = inside.sum() / whole.sum()
        positive = share_inside(np.maximum(values, 0), inside, whole)
        absolute = share_inside(np.abs(values), inside, whole)
        means = resampled_means(absolute, scans, params.evaluate.bootstrap, params.seed)
        ratio = means / pixels if pixels else np.full(len(means), np.nan)
        low, high = np.percentile(ratio[1:], [2.5, 97.5])
        yield {
            "diagnosis": diagnosis,
            "region": region,
            "within": "slices" if region == BRAIN else BRAIN,
            "pixels": pixels,
            "positive": positive.mean(),
            "absolute": means[0],
            "ratio": ratio[0],
            "ratio_low": low,
            "ratio_high": high,
        }


def written_table(table: pd.DataFrame) -> pd.DataFrame:
    """The regional table for reading: regions by true class, as percentages, and the ratio with its interval."""
    shares = table[["pixels", "positive", "absolute"]].map(lambda share: f"{share:.1%}")
    ratio = [
        "undefined" if np.isnan(row.ratio) else f"{row.ratio:.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]"
        for row in table.itertuples()
    ]
    return table[["diagnosis", "region", "within"]].join(shares).assign(ratio=ratio).set_index(["diagnosis", "region"])


def share_inside(values: np.ndarray, inside: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Share (N,) of the sum of non-negative values (N, S, 3, size, size) that lies inside; 0 where there is none."""
    total = values[:, whole].sum(1, dtype=np.float64)
    return values[:, inside & whole].sum(1, dtype=np.float64) / np.where(total > 0, total, 1.0)
