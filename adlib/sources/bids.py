"""A BIDS dataset becomes a listing: labels from participants.tsv or sessions.tsv, scanner facts from sidecars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from bids2table import index_dataset, load_bids_metadata

from adlib.sources.image_files import image_facts, sidecar_facts
from adlib.sources.participant_table import indexed
from adlib.study.records import StudyError
from adlib.study.source_params import BidsSource
from adlib.study.user_tables import read_user_table

_ENTITIES = ("sub", "ses", "space", "desc", "part", "suffix", "ext", "path")


def list_scans(source: BidsSource) -> list[dict[str, Any]]:
    """List every T1w scan of a BIDS dataset with its label, one row per scan.

    Rows without a label have an empty diagnosis; the audit reports and drops them. A file that nibabel cannot open
    has an empty shape, and preprocessing reports it. Sidecars are inherited as BIDS prescribes.

    Parameters
    ----------
    source : BidsSource

    Returns
    -------
    list of dict
        Rows by `records.LISTING`.

    Raises
    ------
    StudyError
        If the folder is no BIDS dataset, has no T1w image, or its tables lack the label column.

    References
    ----------
    Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44.
    """
    root = Path(source.root)
    scans = _images(root)
    people = _table(root / "participants.tsv", "participant_id")
    if people is None:
        raise StudyError(f"{root / 'participants.tsv'} does not exist; a BIDS dataset needs it for labels, age and sex")
    visits = {name: _table(root / name / f"{name}_sessions.tsv", "session_id") for name in scans["participant_id"]}
    rows = [_describe(scan, people, visits[scan["participant_id"]], source) for scan in scans.to_dict("records")]
    if all(row["diagnosis"] is None for row in rows):
        raise StudyError(
            f"no scan under {root} has a value in column {source.label_column!r} of participants.tsv "
            f"(columns {list(people.columns)}) or sessions.tsv; set source.label_column"
        )
    return rows


def _images(root: Path) -> pd.DataFrame:
    """Participant, session, name and path of each raw T1w image."""
    index = index_dataset(root).select(list(_ENTITIES)).to_pandas()
    pa.default_memory_pool().release_unused()
    raw = index["space"].isna() & index["desc"].isna() & index["part"].isna()
    index = index[raw & (index["suffix"] == "T1w") & index["ext"].isin([".nii", ".nii.gz"])].sort_values("path")
    if index.empty:
        raise StudyError(f"no sub-*/[ses-*/]anat/*_T1w.nii[.gz] under {root}; is it a BIDS dataset with T1w images?")
    names = [Path(path).name.removesuffix(".gz").removesuffix(".nii") for path in index["path"]]
    return pd.DataFrame(
        {
            "participant_id": "sub-" + index["sub"],
            "session_id": "ses-" + index["ses"].fillna("01"),
            "scan_id": names,
            "path": [str(root / path) for path in index["path"]],
        }
    )


def _table(path: Path, key: str) -> pd.DataFrame | None:
    return indexed(read_user_table(path, required=(key,)), key, path) if path.is_file() else None


def _describe(
    scan: dict[str, Any], people: pd.DataFrame, visits: pd.DataFrame | None, source: BidsSource
) -> dict[str, Any]:
    person = people.loc[scan["participant_id"]].to_dict() if scan["participant_id"] in people.index else {}
    if visits is not None and scan["session_id"] in visits.index:
        person |= visits.loc[scan["session_id"]].dropna().to_dict()
    label = person.get(source.label_column)
    label = None if pd.isna(label) else source.labels.get(label, label)
    date = person.get("acq_time")
    facts = {name: person[name] for name in ("age", "sex", "site", "phase") if not pd.isna(person.get(name))}
    return {
        **scan,
        "diagnosis": label,
        "label_source": f"{source.label_column} of the BIDS tables",
        **({} if pd.isna(date) else {"acquisition_date": str(date)[:10]}),
        **facts,
    }


def file_facts(path: str) -> dict[str, Any]:
    """Header facts of an image and those of its sidecar, inherited as BIDS prescribes.

    Parameters
    ----------
    path : str
        Image in a BIDS dataset.

    Returns
    -------
    dict
        By the columns of a listing.
    """
    sidecar = load_bids_metadata(path)
    return image_facts(path) | {"site": sidecar.get("InstitutionName")} | sidecar_facts(sidecar)
