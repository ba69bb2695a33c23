"""A BIDS dataset, or Clinica's CAPS folder of one, becomes a listing.

BIDS has labels in participants.tsv or sessions.tsv and facts of the scanner in sidecars. The images of a CAPS folder
after t1-linear are registered already; their labels come from a table of the user's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from bids2table import index_dataset, load_bids_metadata

from adlib.sources.image_files import image_facts, sidecar_facts
from adlib.sources.participant_table import ParticipantTable, indexed
from adlib.study.records import REGISTERED, StudyError
from adlib.study.source_params import BidsSource, CapsSource
from adlib.study.user_tables import read_user_table

_ENTITIES = ("sub", "ses", "space", "desc", "part", "suffix", "ext", "path")
_CAPS_NAME = re.compile(
    r"(?P<participant>sub-[A-Za-z0-9]+)_(?P<session>ses-[A-Za-z0-9]+)_space-MNI152NLin2009cSym(?P<crop>_desc-Crop)?"
    r"_res-1x1x1_T1w\.nii(\.gz)?$"
)


def list_bids(source: BidsSource) -> list[dict[str, Any]]:
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


def list_caps(source: CapsSource) -> list[dict[str, Any]]:
    """List the t1-linear output of every session; of a cropped and an uncropped one the uncropped is used.

    Parameters
    ----------
    source : CapsSource

    Returns
    -------
    list of dict
        Rows by `records.LISTING`.

    Raises
    ------
    StudyError
        If the folder holds no t1-linear output or the table cannot be read.

    References
    ----------
    Routier et al. 2021, doi:10.3389/fninf.2021.689675 (Clinica and its CAPS layout).
    """
    root = Path(source.root)
    images = sorted(root.glob("subjects/sub-*/ses-*/t1_linear/*_T1w.nii*"), key=Path.as_posix)
    named = [(path, match) for path in images if (match := _CAPS_NAME.search(path.name))]
    if not named:
        raise StudyError(
            f"no subjects/sub-*/ses-*/t1_linear/*_space-MNI152NLin2009cSym*_res-1x1x1_T1w.nii.gz under {root}; "
            "run clinica's t1-linear pipeline first and give its CAPS folder"
        )
    table = ParticipantTable(source.table, label_column=source.label_column, labels=source.labels)
    uncropped = {match.group("participant", "session") for _, match in named if not match["crop"]}
    rows = []
    for path, match in named:
        participant, session = match.group("participant", "session")
        row = {"participant_id": participant, "session_id": session, "scan_id": f"{participant}_{session}_T1w"}
        row = table.about(row["scan_id"], str(path), participant, session) | row
        if match["crop"] and (participant, session) in uncropped:
            row["scan_id"] += "_desc-Crop"
            row["excluded"] = "the uncropped image of the session is used"
        rows.append(row | {"path": str(path), "space": REGISTERED})
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
