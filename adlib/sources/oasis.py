"""OASIS-2 mid-slices become a manifest: one scan is the axial, coronal and sagittal slice of one session."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.compute import map_scans
from adlib.params import Oasis2SlicesSource
from adlib.records import StudyError, digest
from adlib.sources.bids import image_facts

PLANES = ("axl", "cor", "sag")
SEPARATOR = "|"
ACKNOWLEDGEMENT = (
    "Data were provided in part by OASIS. OASIS-2 (Longitudinal): principal investigators D. Marcus, R. Buckner, "
    "J. Csernansky, J. Morris; P50 AG05681, P01 AG03991, P01 AG026276, R01 AG021910, P20 MH071616, U24 RR021382 "
    "(Marcus et al. 2010, doi:10.1162/jocn.2009.21407)."
)
_COLUMNS = ("Subject ID", "MRI ID", "CDR", "Age", "M/F", "eTIV", "nWBV", "Visit")


def read_manifest(source: Oasis2SlicesSource, unpacked: Path, *, workers: int = 0) -> pd.DataFrame:
    """List the sessions that have all three mid-slices, with age, sex, CDR class, nWBV and eTIV.

    `path` of a row holds the three files, joined by ``|`` in the order axial, coronal, sagittal; its ``sha256`` is the
    digest of their three digests. The extra columns ``nbv`` (nWBV) and ``icv_ml`` (eTIV) are volumes that OASIS
    publishes (Marcus et al. 2010, doi:10.1162/jocn.2009.21407).

    Parameters
    ----------
    source : Oasis2SlicesSource
    unpacked : path
        Folder that receives the slices where the root holds them as a zip.

    Raises
    ------
    StudyError
        If the folder, the table, a column or all slices are missing.
    """
    root = Path(source.root)
    if not root.is_dir():
        raise StudyError(f"source.root {root} is not a folder; give the folder of the OASIS-2 slices and their table")
    table = _longitudinal_table(root)
    slices = _slice_folder(root, unpacked)
    rows = [row for _, visit in table.iterrows() if (row := _session(visit, slices, source)) is not None]
    print(
        f"OASIS-2: {len(rows)} of the table's {len(table)} sessions have all three mid-slices; the others are left out"
    )
    if not rows:
        raise StudyError(f"none of the {len(table)} sessions of the table has slices axl/, cor/, sag/ under {slices}")
    paths = [Path(p) for row in rows for p in row["path"].split(SEPARATOR)]
    facts = map_scans(image_facts, paths, workers=workers, label="reading slices")
    for index, row in enumerate(rows):
        three = facts[3 * index : 3 * index + 3]
        row["sha256"] = digest([f["sha256"] for f in three])
        row["shape"] = SEPARATOR.join(f["shape"] or "unreadable" for f in three)
    return pd.DataFrame(rows)


def _longitudinal_table(root: Path) -> pd.DataFrame:
    tables = sorted(root.glob("*longitudinal*.csv"))
    if len(tables) != 1:
        raise StudyError(f"expected one *longitudinal*.csv in {root}, found {[p.name for p in tables]}")
    header = tables[0].read_text(encoding="utf-8-sig").partition("\n")[0]
    separator, decimal = (";", ",") if header.count(";") > header.count(",") else (",", ".")
    table = pd.read_csv(tables[0], sep=separator, decimal=decimal, encoding="utf-8-sig")
    missing = [name for name in _COLUMNS if name not in table.columns]
    if missing:
        raise StudyError(f"{tables[0]} lacks columns {missing}; it has {list(table.columns)}")
    return table


def _slice_folder(root: Path, unpacked: Path) -> Path:
    if (root / PLANES[0]).is_dir():
        return root
    archives = sorted(root.glob("*.zip"))
    if len(archives) != 1:
        raise StudyError(f"expected folders {PLANES} or one zip of them in {root}, found {[p.name for p in archives]}")
    if not (unpacked / PLANES[0]).is_dir():
        partial = unpacked.with_name(unpacked.name + ".part")
        partial.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archives[0]) as archive:
            archive.extractall(partial)
        partial.rename(unpacked)
    return unpacked


def _session(visit: pd.Series, slices: Path, source: Oasis2SlicesSource) -> dict[str, Any] | None:
    name = str(visit["MRI ID"])
    files = [slices / plane / f"{name}_{plane}.nii.gz" for plane in PLANES]
    if not all(path.is_file() for path in files):
        return None
    rating = f"{float(visit['CDR']):g}" if pd.notna(visit["CDR"]) else None
    return {
        "participant_id": f"sub-{str(visit['Subject ID']).replace('_', '')}",
        "session_id": f"ses-{int(visit['Visit']):02d}",
        "scan_id": name,
        "path": SEPARATOR.join(str(path) for path in files),
        "diagnosis": source.cdr_labels.get(rating) if rating is not None else None,
        "label_source": "CDR at the visit",
        "age": float(visit["Age"]),
        "sex": visit["M/F"],
        "site": "OASIS-2",
        "nbv": float(visit["nWBV"]),
        "icv_ml": float(visit["eTIV"]),
    }
