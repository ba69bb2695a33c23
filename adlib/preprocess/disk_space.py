"""How much a study will write, and whether there is room for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from adlib.imaging import atlas
from adlib.study.params import StudyParams
from adlib.study.records import MANIFEST, StudyError, read_table

HEAD_MM3 = 204 * 246 * 198  # field of view of a simulated head
SOURCE_BYTES = 1.4  # of each voxel, compressed; these measured on the default study
BRAIN_BYTES, KEPT_BYTES = 0.58, {"head": 0.77, "tissues": 0.55}  # of brain with its mask, and of what may be kept
TRAINING_BYTES = 600 * 2**20  # weights, their mean, and two moments of the optimiser, of one training at a time
SPARE = 1.25  # noisier images are larger
GIB = 2**30


def predicted_bytes(params: StudyParams, scans: int) -> dict[str, float]:
    """Expected disk use of a study.

    Parameters
    ----------
    params : StudyParams
    scans : int
        Number of scans.

    Returns
    -------
    dict of str to float
        Bytes by file or folder of the study.
    """
    found: dict[str, float] = {"model.safetensors": TRAINING_BYTES}
    if params.source.kind == "phantom":
        found["source"] = scans * SOURCE_BYTES * HEAD_MM3 / params.source.voxel_mm**3
    if not params.input.flat:
        each = BRAIN_BYTES + sum(KEPT_BYTES[part] for part in set(params.derivatives.keep))
        found["derivatives"] = scans * each * atlas.template(params.preprocess.resolution_mm).mask.size
    items = 1 if params.input.plane.startswith("three_planes") else len(params.input.positions_mm)
    found["slices.npy"] = scans * items * 3 * params.input.size**2 * 2
    return found


def expected_scans(params: StudyParams) -> int | None:
    """Number of scans of a study: of its manifest or, before there is one, of a cohort to be simulated.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    int or None
        None where there is no manifest and the cohort is not simulated.
    """
    manifest = params.folder / "manifest.tsv"
    if manifest.is_file():
        return len(read_table(manifest, MANIFEST))
    if params.source.kind != "phantom":
        return None
    people = params.source.participants_per_class * len(params.classes)
    return round(people * (1 + params.source.followup_fraction))


def require_room(params: StudyParams, writes: Iterable[str]) -> None:
    """Refuse a step for which the disk has too little room left.

    Parameters
    ----------
    params : StudyParams
    writes : iterable of str
        Files and folders of the study that the step makes.

    Raises
    ------
    StudyError
        With the expected and the free space.
    """
    scans = expected_scans(params)
    if scans is None:
        return
    parts = {name: size for name, size in predicted_bytes(params, scans).items() if name in set(writes)}
    needed = SPARE * sum(max(size - _size(params.folder / name), 0) for name, size in parts.items())
    free = shutil.disk_usage(params.folder).free
    if needed > free:
        raise StudyError(
            f"{', '.join(parts)} of {scans} scans will take about {needed / GIB:.2f} GiB more, and {params.folder} has "
            f"{free / GIB:.2f} GiB left: make room, or choose another disk with --set exec.outputs=FOLDER"
        )


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
