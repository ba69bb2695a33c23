"""The scans of the study's source as one listing, whatever the source."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.parallel.mapping import map_scans
from adlib.phantom import cohort as phantom
from adlib.sources import adni, bids, dicom_tree, folders, oasis
from adlib.sources.image_files import image_facts, joined
from adlib.sources.inventory import Inventory
from adlib.study.exec_params import EVERY_CORE, Pool
from adlib.study.params import StudyParams
from adlib.study.records import LISTING, check_table, digest
from adlib.study.source_params import BidsSource, check_source

_Reader = Callable[..., list[dict[str, Any]]]
# Each takes the source's params and the files under its root, and returns the rows of `records.LISTING`.
READERS: dict[str, _Reader] = {
    "adni": adni.list_scans,
    "bids": bids.list_bids,
    "caps": bids.list_caps,
    "folders": folders.list_scans,
    "oasis3": oasis.list_oasis3,
    "oasis_vbm": oasis.list_tissue_maps,
}
# Each takes a folder for converted images and the pool, too.
CONVERTERS: dict[str, _Reader] = {
    "dicom": dicom_tree.list_scans,
    "oasis1": oasis.list_sessions,
    "oasis2": oasis.list_sessions,
    "oasis_slices": oasis.list_slices,
}


def read_source(params: StudyParams) -> pd.DataFrame:
    """List the scans of the study's source, or of all its sources; a phantom source writes its cohort first.

    Of several sources the listing has the column ``cohort``. A participant whose name is a number gets that of the
    cohort before it, ``sub-0001`` of north becomes ``sub-north0001``, as every dataset counts anew; other names, such
    as ADNI's, are of one person in all cohorts. Names of scans begin with that of their participant.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    DataFrame
        Schema `records.LISTING`; participant and diagnosis may still be unknown, diagnosis outside `params.classes`.

    Raises
    ------
    StudyError
        If a source cannot be read.
    """
    folder = params.folder / "source"
    if not params.sources:
        return _read(params.source, params.seed, folder, params)
    listed = []
    for name, source in params.sources.items():
        seed = int(digest([params.seed, name])[:8], 16)  # no simulated person is in two cohorts
        listed.append(_of_cohort(_read(source, seed, folder / name, params), name))
    return check_table(pd.concat(listed, ignore_index=True), LISTING, "cohorts")


def _read(source: Any, seed: int, folder: Path, params: StudyParams) -> pd.DataFrame:
    pool = params.pool
    if source.kind == "phantom":
        root = phantom.write_cohort(source, params.classes, seed, folder, pool=pool)
        source = BidsSource(kind="bids", root=root)
    listed = list_source(source, folder, pool=pool)
    return check_table(dicom_tree.convert_rows(listed, folder / "nifti", pool), LISTING, "DICOM conversion")


def _of_cohort(listed: pd.DataFrame, name: str) -> pd.DataFrame:
    """A listing with the name of its cohort, in a column and in the names that other cohorts may have, too."""
    people = listed["participant_id"].str.replace(r"^sub-(?=\d+$)", f"sub-{name}", regex=True)
    bare = [
        scan.removeprefix(f"{person}_") if isinstance(person, str) else scan
        for scan, person in zip(listed["scan_id"], listed["participant_id"], strict=True)
    ]
    scans = people.fillna(name) + "_" + pd.Series(bare, index=listed.index)
    return listed.assign(participant_id=people, scan_id=scans, cohort=name)


def list_source(source: Any, folder: Path, *, pool: Pool = EVERY_CORE) -> pd.DataFrame:
    """List the scans of a source, with digest and header facts of each image.

    Parameters
    ----------
    source : section of `study.source_params`
    folder : path
        Receives converted images.
    pool : Pool
        Processes that read headers and convert images.

    Returns
    -------
    DataFrame
        Schema `records.LISTING`. Facts of the source take precedence over those of the file.

    Raises
    ------
    StudyError
        If the root is no folder or holds nothing that the source can read.
    """
    check_source(source)
    kind, files = source.kind, Inventory(getattr(source, "root", None))
    rows = CONVERTERS[kind](source, files, folder, pool) if kind in CONVERTERS else READERS[kind](source, files)
    rows += files.left_out(rows)
    paths = list(dict.fromkeys(row["path"] for row in rows if "sha256" not in row))
    read = map_scans(image_facts, paths, pool=pool, label="reading headers", chunksize=64)
    facts = dict(zip(paths, read, strict=True))
    table = pd.DataFrame([joined(facts.get(row["path"], {}), row) for row in rows])
    listed = check_table(table, LISTING, f"source {kind}")
    print(files.summary(kind, listed))
    return listed
