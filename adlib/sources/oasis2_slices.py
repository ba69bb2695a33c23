"""OASIS-2 mid-slices become a listing: one scan is the axial, coronal and sagittal slice of one session."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.parallel.mapping import map_scans
from adlib.sources.oasis_tables import read_oasis_table, visit_facts
from adlib.sources.planes import SEPARATOR, joined_facts
from adlib.study.conversion import code_of, converted, raise_if_passing
from adlib.study.exec_params import EVERY_CORE, Pool
from adlib.study.records import StudyError, digest, file_digest
from adlib.study.source_params import Oasis2SlicesSource

PLANES = ("axl", "cor", "sag")


def read_manifest(source: Oasis2SlicesSource, folder: Path, *, pool: Pool = EVERY_CORE) -> pd.DataFrame:
    """List the sessions of the table, with age, sex, CDR class, nWBV and eTIV.

    `path` of a row holds the three files, joined by ``|`` in the order axial, coronal, sagittal; its ``sha256`` is the
    digest of their three digests. The extra columns ``nbv`` (nWBV) and ``icv_ml`` (eTIV) are volumes that OASIS
    publishes (Marcus et al. 2010, doi:10.1162/jocn.2009.21407). A session without all three slices is listed as left
    out.

    Parameters
    ----------
    source : Oasis2SlicesSource
    folder : path
        Receives the slices in ``slices/`` where the root holds them as a zip.

    Raises
    ------
    StudyError
        If the folder, the table, a column or all slices are missing.
    """
    root = Path(source.root)
    if not root.is_dir():
        raise StudyError(f"source.root {root} is not a folder; give the folder of the OASIS-2 slices and their table")
    table = read_oasis_table(root, "*longitudinal*.csv", "mriid")
    slices = _slice_folder(root, folder)
    rows = [_session(str(name), visit, slices, source) for name, visit in table.iterrows()]
    whole = [row for row in rows if "excluded" not in row]
    if not whole:
        raise StudyError(f"none of the {len(table)} sessions of the table has slices axl/, cor/, sag/ under {slices}")
    facts = map_scans(joined_facts, [row["path"] for row in whole], pool=pool, label="reading slices")
    for row, found in zip(whole, facts, strict=True):
        row |= found
    return pd.DataFrame(rows)


def _slice_folder(root: Path, folder: Path) -> Path:
    if (root / PLANES[0]).is_dir():
        return root
    archives = sorted(root.glob("*.zip"))
    if len(archives) != 1:
        raise StudyError(f"expected folders {PLANES} or one zip of them in {root}, found {[p.name for p in archives]}")
    slices = folder / "slices"
    key = digest([file_digest(archives[0]), code_of(__name__)])
    converted(slices, folder / "slices.json", key, partial(_unpack, archives[0], slices))
    return slices


def _unpack(archive: Path, slices: Path) -> None:
    slices.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as contents:
            contents.extractall(slices)
    except Exception as error:  # zipfile meets arbitrary bytes here and raises whatever its parsers raise
        raise_if_passing(error, archive)
        raise StudyError(f"{archive} is not a readable zip of slices ({error}); fetch it again") from None


def _session(name: str, visit: pd.Series, slices: Path, source: Oasis2SlicesSource) -> dict[str, Any]:
    files = [slices / plane / f"{name}_{plane}.nii.gz" for plane in PLANES]
    lacking = [path.parent.name for path in files if not path.is_file()]
    number = "".join(c for c in name.partition("_MR")[2] if c.isdigit()) or "1"
    return {
        "participant_id": f"sub-{name.partition('_MR')[0].replace('_', '')}",
        "session_id": f"ses-{int(number):02d}",
        "scan_id": name,
        "path": SEPARATOR.join(str(path) for path in files),
        "site": "OASIS-2",
        **visit_facts(visit, source.cdr_labels),
        **({"excluded": f"no slice in {', '.join(lacking)}"} if lacking else {}),
    }
