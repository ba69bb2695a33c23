"""A BIDS dataset becomes a manifest: labels from participants.tsv or sessions.tsv, scanner facts from sidecars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from adlib.compute import map_scans
from adlib.params import BidsSource
from adlib.records import StudyError, file_digest, read_json

_SIDECAR = {
    "manufacturer": "Manufacturer",
    "model": "ManufacturersModelName",
    "field_strength_T": "MagneticFieldStrength",
    "series_description": "SeriesDescription",
    "site": "InstitutionName",
}


def read_manifest(source: BidsSource, *, workers: int = 0) -> pd.DataFrame:
    """List every T1w scan of a BIDS dataset with its label, one row per scan.

    Rows without a label keep an empty diagnosis; the audit reports and drops them. A file that nibabel cannot open
    keeps an empty shape, and preprocessing will report it.

    Raises
    ------
    StudyError
        If the folder is no BIDS dataset, has no T1w image, or its tables lack the label column.
    """
    root = Path(source.root)
    if not root.is_dir():
        raise StudyError(f"source.root {root} is not a folder; give the folder that holds dataset_description.json")
    scans = sorted(path for path in root.glob("sub-*/**/anat/*_T1w.nii*") if path.name.endswith((".nii", ".nii.gz")))
    if not scans:
        raise StudyError(f"no sub-*/[ses-*/]anat/*_T1w.nii[.gz] under {root}; is it a BIDS dataset with T1w images?")
    people = _table(root / "participants.tsv", "participant_id")
    rows = [_describe(path, root, people, source) for path in scans]
    if all(row["diagnosis"] is None for row in rows):
        raise StudyError(
            f"no scan under {root} has a value in column {source.label_column!r} of participants.tsv "
            f"(columns {list(people.columns)}) or sessions.tsv; set source.label_column"
        )
    headers = map_scans(image_facts, scans, workers=workers, label="reading headers")
    return pd.DataFrame([row | facts for row, facts in zip(rows, headers, strict=True)])


def _table(path: Path, key: str) -> pd.DataFrame:
    if not path.is_file():
        raise StudyError(f"{path} does not exist; a BIDS dataset needs it for labels, age and sex")
    try:
        table = pd.read_csv(
            path, sep="\t", dtype=str, keep_default_na=False, na_values=["n/a", ""], encoding="utf-8-sig"
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is not a tab-separated table: {error}") from None
    if key not in table.columns:
        raise StudyError(f"{path} lacks column {key!r}; it has {list(table.columns)} (tab-separated?)")
    if table[key].duplicated().any():
        raise StudyError(f"{path} names {table[key][table[key].duplicated()].iloc[0]!r} more than once")
    return table.set_index(key)


def _describe(path: Path, root: Path, people: pd.DataFrame, source: BidsSource) -> dict[str, Any]:
    participant = path.relative_to(root).parts[0]
    session = next((part for part in path.relative_to(root).parts if part.startswith("ses-")), "ses-01")
    person = people.loc[participant].to_dict() if participant in people.index else {}
    visits = root / participant / f"{participant}_sessions.tsv"
    if visits.is_file():
        table = _table(visits, "session_id")
        visit = table.loc[session].dropna().to_dict() if session in table.index else {}
        person = {**person, **visit}
    label = person.get(source.label_column)
    label = None if label is None or pd.isna(label) else source.labels.get(label, label)
    sidecar = next(_sidecars(path), {})
    return {
        "participant_id": participant,
        "session_id": session,
        "scan_id": path.name.removesuffix(".gz").removesuffix(".nii"),
        "path": str(path),
        "diagnosis": label,
        "label_source": f"{source.label_column} of the BIDS tables",
        "age": person.get("age"),
        "sex": person.get("sex"),
        "acquisition_date": str(person["acq_time"])[:10] if person.get("acq_time") else None,
        **{name: sidecar.get(key) for name, key in _SIDECAR.items()},
        **({"site": person["site"]} if person.get("site") else {}),
    }


def _sidecars(path: Path) -> Iterator[dict[str, Any]]:
    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if sidecar.is_file():
        yield read_json(sidecar)


def image_facts(path: Path) -> dict[str, Any]:
    """Digest, voxel edges (mm) and shape of an image file; shape is empty where the header cannot be read."""
    facts: dict[str, Any] = {"sha256": file_digest(path), "shape": None}
    try:
        image = nib.load(path)
    except Exception:  # any reader fault means the same here: preprocessing will say which
        return facts
    zooms = np.array(image.header.get_zooms()[:3], dtype=float)
    names = ("voxel_x_mm", "voxel_y_mm", "voxel_z_mm")
    edges = {name: round(float(edge), 4) for name, edge in zip(names, zooms, strict=False)}
    return facts | edges | {"shape": "x".join(str(n) for n in image.shape)}
