"""Write a simulated cohort in the layouts in which real cohorts come, so that every source can be tried on it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from dicom_writer import write_series
from made_head import reoriented
from PIL import Image

from adlib.imaging.volume import extract_slice, resample, to_canonical
from adlib.parallel.mapping import map_scans
from adlib.phantom.cohort import TRUTH
from adlib.sources.reading import list_source
from adlib.study.exec_params import EVERY_CORE, Pool
from adlib.study.records import atomic_path, read_table, write_json, write_text
from adlib.study.source_params import BidsSource

Row = dict[str, Any]

_SITE_NUMBERS = {"north": "002", "east": "011", "south": "023", "west": "041"}
_RATINGS = {"CN": 0.0, "SMC": 0.0, "EMCI": 0.5, "MCI": 0.5, "LMCI": 0.5, "AD": 1.0}
_OASIS_COLUMNS = {"sex": "M/F", "age": "Age", "cdr": "CDR", "unknown": "eTIV", "unmeasured": "nWBV"}


def write_layout(cohort: Path, kind: str, root: Path, *, pool: Pool = EVERY_CORE) -> Path:
    """Write a BIDS cohort of `adlib.phantom.cohort` under `root` in another layout.

    Parameters
    ----------
    cohort : path
        BIDS root.
    kind : str
        One of `LAYOUTS`.
    root : path
        Empty or missing folder.
    pool : Pool

    Returns
    -------
    path
        What ``source.root`` is to name.
    """
    listed = list_source(BidsSource(kind="bids", root=cohort), root, pool=pool)
    truth = read_table(Path(cohort).parent / "truth" / "truth.tsv", TRUTH)
    listed = listed.merge(truth[["scan_id", "scan_to_mni"]], on="scan_id", validate="one_to_one")
    rows = [_renamed(row) for row in listed.sort_values(["participant_id", "session_id"]).to_dict("records")]
    place, tables = LAYOUTS[kind]
    map_scans(partial(place, root=Path(root)), rows, pool=pool, label=f"writing {kind}")
    tables(rows, Path(root))
    return Path(root)


def _renamed(row: Row) -> Row:
    """The row with the names that archives would give to the same scan."""
    number = int(row["participant_id"].removeprefix("sub-"))
    visit = int(row["session_id"].removeprefix("ses-"))
    site = _SITE_NUMBERS.get(row["site"], "099")
    image_id = f"I{1000 * number + visit}"
    date = row["acquisition_date"].replace("-", "")
    subject = f"{site}_S_{number:04d}"
    return row | {
        "number": number,
        "visit": visit,
        "subject": subject,
        "image_id": image_id,
        "flat": f"ADNI_{subject}_MR_MPRAGE_Br_{date}101500000_S{number}_{image_id}",
        "adni": f"sub-ADNI{subject.replace('_', '')}",
        "date": date,
        "american_date": f"{int(date[4:6])}/{int(date[6:])}/{date[:4]}",
        "site_number": site,
        "viscode": "bl" if visit == 1 else f"m{12 * (visit - 1):02d}",
        "modality": "MRI",
        "description": "MPRAGE",
        "days": 365 * (visit - 1) + number % 30,
        "cdr": _RATINGS[row["diagnosis"]],
        "oasis1": f"OAS1_{number:04d}_MR{visit}",
        "oasis2": f"OAS2_{number:04d}_MR{visit}",
        "oasis3": f"OAS3{number:04d}",
        "unknown": None,
        "unmeasured": None,
    }


def _save(row: Row, path: Path) -> None:
    image = nib.load(row["path"])
    with atomic_path(path) as temporary:
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine), temporary)


def _csv(rows: list[Row], columns: dict[str, str] | list[str], path: Path, separator: str = ",") -> None:
    """Write columns of the rows; `columns` may give them other names."""
    table = pd.DataFrame(rows)[list(columns)].rename(columns=columns if isinstance(columns, dict) else {})
    decimal = "," if separator == ";" else "."
    write_text(table.to_csv(index=False, sep=separator, decimal=decimal, lineterminator="\n"), path)


def _place_bids(row: Row, root: Path) -> None:
    stem = f"{row['adni']}_ses-{row['date']}_acq-{row['image_id']}_T1w"
    anat = root / row["adni"] / f"ses-{row['date']}" / "anat"
    _save(row, anat / f"{stem}.nii.gz")
    write_json({"Modality": "MR", "SeriesDescription": "MPRAGE"}, anat / f"{stem}.json")


def _tables_bids(rows: list[Row], root: Path) -> None:
    write_json({"Name": "adlib phantom cohort", "BIDSVersion": "1.9.0"}, root / "dataset_description.json")
    facts = {"diagnosis": "diagnosis", "age": "age", "sex": "sex"}
    firsts = [row for row in rows if row["visit"] == 1]
    _csv(firsts, {"adni": "participant_id", "site_number": "site", **facts}, root / "participants.tsv", "\t")
    for name in sorted({row["adni"] for row in rows}):
        visits = [row | {"session_id": f"ses-{row['date']}"} for row in rows if row["adni"] == name]
        columns = {"session_id": "session_id", "acquisition_date": "acq_time", **facts}
        _csv(visits, columns, root / name / f"{name}_sessions.tsv", "\t")


def _place_adni(row: Row, root: Path) -> None:
    when = f"{row['acquisition_date']}_10_15_00.0"
    _save(row, root / "ADNI" / row["subject"] / "MPRAGE" / when / row["image_id"] / f"{row['flat']}.nii")


def _place_adni_flat(row: Row, root: Path) -> None:
    _save(row, root / row["diagnosis"] / f"{row['flat']}.nii")


def _collection(rows: list[Row], root: Path) -> None:
    columns = {
        "image_id": "Image Data ID",
        "subject": "Subject",
        "diagnosis": "Group",
        "sex": "Sex",
        "age": "Age",
        "viscode": "Visit",
        "modality": "Modality",
        "description": "Description",
        "american_date": "Acq Date",
    }
    _csv(rows, columns, root / "phantom_1_02_2026.csv")


def _place_folders(row: Row, root: Path) -> None:
    _save(row, root / row["diagnosis"] / f"{row['scan_id']}.nii.gz")


def _place_dicom(row: Row, root: Path) -> None:
    image = nib.load(row["path"])
    folder = root / row["participant_id"] / row["session_id"] / "mprage"
    write_series(np.asanyarray(image.dataobj), image.affine, folder, "T1w MPRAGE", number=3)


def _people(rows: list[Row], root: Path) -> None:
    columns = ["participant_id", "session_id", "diagnosis", "age", "sex", "acquisition_date"]
    _csv(rows, columns, root / "people.csv")


def _place_caps(row: Row, root: Path) -> None:
    """The scan in MNI152 space by its true pose, on the 1 mm grid of t1-linear."""
    image = nib.load(row["path"])
    grid = np.array([[1, 0, 0, -96.0], [0, 1, 0, -132.0], [0, 0, 1, -78.0], [0, 0, 0, 1]])
    to_scan = np.linalg.inv(np.array(json.loads(row["scan_to_mni"])))
    volume, affine = to_canonical(image.get_fdata(dtype=np.float32), image.affine)
    moved = resample(volume, affine, (193, 229, 193), grid, to_scan)
    name = f"{row['participant_id']}_{row['session_id']}_space-MNI152NLin2009cSym_res-1x1x1_T1w.nii.gz"
    path = root / "subjects" / row["participant_id"] / row["session_id"] / "t1_linear" / name
    with atomic_path(path) as temporary:
        nib.save(nib.Nifti1Image(moved.astype(np.int16), grid), temporary)


def _place_images(row: Row, root: Path) -> None:
    """Three axial pictures of each scan, dealt out over train and test as if nobody owned them: a leaking set."""
    image = nib.load(row["path"])
    volume, affine = to_canonical(image.get_fdata(dtype=np.float32), image.affine)
    middle = float((affine @ [*(np.array(volume.shape) / 2), 1])[2])
    for index, offset in enumerate((-6.0, 0.0, 6.0)):
        picture = extract_slice(volume, affine, "axial", middle + offset)
        levels = np.clip(255 * picture / max(float(picture.max()), 1.0), 0, 255).astype(np.uint8)
        with atomic_path(root / _picture(row, index)) as path:
            Image.fromarray(levels).save(path, quality=95)


def _picture(row: Row, index: int) -> str:
    part = "test" if (row["number"] + index) % 3 == 0 else "train"
    return f"{part}/{row['diagnosis']}/{3 * row['number'] + index} ({row['visit']}).jpg"


def _table_images(rows: list[Row], root: Path) -> None:
    """The key to whose picture is which; who does not give it to the source knows no participants."""
    pictures = [row | {"path": _picture(row, index)} for row in rows for index in range(3)]
    _csv(pictures, ["path", "participant_id", "session_id", "age", "sex"], root / "pictures.csv")


def _place_oasis1(row: Row, root: Path) -> None:
    name = row["oasis1"]
    folder = root / f"disc{1 + row['number'] % 12}" / name / "PROCESSED" / "MPRAGE" / "SUBJ_111"
    image = reoriented(nib.load(row["path"]), "ASL")  # see adlib.sources.oasis
    folder.mkdir(parents=True, exist_ok=True)
    bare = nib.Spm2AnalyzeImage(np.asanyarray(image.dataobj)[..., None], None)
    bare.header.set_zooms((*image.header.get_zooms()[:3], 1.0))
    nib.save(bare, folder / f"{name}_mpr_n4_anon_sbj_111.img")


def _tables_oasis1(rows: list[Row], root: Path) -> None:
    _csv(rows, {"oasis1": "ID", **_OASIS_COLUMNS}, root / "oasis_cross-sectional.csv")


def _place_oasis2(row: Row, root: Path) -> None:
    path = root / "OAS2_RAW_PART1" / row["oasis2"] / "RAW" / "mpr-1.nifti.img"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.load(row["path"])
    nib.save(nib.Nifti1Pair(np.asanyarray(image.dataobj), image.affine), path)


def _tables_oasis2(rows: list[Row], root: Path) -> None:
    _csv(rows, {"oasis2": "MRI ID", **_OASIS_COLUMNS}, root / "oasis_longitudinal_demographics.csv", ";")


def _place_oasis3(row: Row, root: Path) -> None:
    subject, day = row["oasis3"], f"d{row['days']:04d}"
    _save(row, root / f"{subject}_MR_{day}" / "anat2" / "NIFTI" / f"sub-{subject}_ses-{day}_T1w.nii.gz")


def _tables_oasis3(rows: list[Row], root: Path) -> None:
    later = [row | {"days": row["days"] + 20} for row in rows]
    visits = {"oasis3": "OASISID", "days": "days_to_visit", "age": "age at visit", "cdr": "CDRTOT"}
    _csv(later, visits, root / "OASIS3_UDSb4_cdr.csv")
    firsts = [row | {"sex": {"M": 1, "F": 2}[row["sex"]]} for row in rows if row["visit"] == 1]
    _csv(firsts, {"oasis3": "OASISID", "age": "AgeatEntry", "sex": "GENDER"}, root / "OASIS3_demographics.csv")


LAYOUTS: dict[str, tuple[Callable[..., None], Callable[[list[Row], Path], None]]] = {
    "bids": (_place_bids, _tables_bids),
    "adni": (_place_adni, _collection),
    "adni_flat": (_place_adni_flat, _collection),
    "folders": (_place_folders, _people),
    "images": (_place_images, _table_images),
    "caps": (_place_caps, _people),
    "dicom": (_place_dicom, _people),
    "oasis1": (_place_oasis1, _tables_oasis1),
    "oasis2": (_place_oasis2, _tables_oasis2),
    "oasis3": (_place_oasis3, _tables_oasis3),
}
