"""OASIS-1, OASIS-2 and OASIS-3 as distributed, 2-D slices of the first two, and OASIS-1 tissue maps from nilearn.

Of a session of OASIS-1 the averaged, motion-corrected image (``PROCESSED/MPRAGE/SUBJ_111``) is used, else its first
acquisition; of OASIS-2 the first acquisition (``RAW/mpr-1``). The others are listed with the reason. Labels come from
the Clinical Dementia Rating in the release's tables; OASIS-3 matches scans and visits by their days since entry.
"""

import re
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.datasets import fetch_oasis_vbm

from adlib.imaging.nifti import load
from adlib.parallel.mapping import map_scans
from adlib.sources.image_files import SEPARATOR, image_facts
from adlib.sources.inventory import Inventory
from adlib.sources.participant_table import indexed
from adlib.sources.sequence import sequence_of_file
from adlib.study.cells import ISO_5218, read_cells
from adlib.study.conversion import code_of, converted, raise_if_passing
from adlib.study.exec_params import Pool
from adlib.study.records import TISSUE_MAPS, StudyError, atomic_path, digest, file_digest
from adlib.study.source_params import Oasis1Source, Oasis2Source, Oasis3Source, OasisSlicesSource, OasisVbmSource
from adlib.study.user_tables import read_user_table

ACKNOWLEDGEMENT = (
    "Data were provided in part by OASIS. OASIS-1 (Cross-Sectional) and OASIS-2 (Longitudinal): principal "
    "investigators D. Marcus, R. Buckner, J. Csernansky, J. Morris; P50 AG05681, P01 AG03991, P01 AG026276, "
    "R01 AG021910, P20 MH071616, U24 RR021382 (Marcus et al. 2007, doi:10.1162/jocn.2007.19.9.1498; 2010, "
    "doi:10.1162/jocn.2009.21407). OASIS-3: P30 AG066444, P50 AG00561, P30 NS09857781, P01 AG026276, P01 AG003991, "
    "R01 AG043434, UL1 TR000448, R01 EB009352 (LaMontagne et al. 2019, doi:10.1101/2019.12.13.19014902)."
)
_TABLES = {
    "1": ("*cross-sectional*.[cx][sl]*", "id"),
    "2": ("*longitudinal*.[cx][sl]*", "mriid"),
}  # file, column of the session
_SESSION = re.compile(r"OAS[12]_\d{4}_MR\d+$")
_SLICE = re.compile(r"(?P<session>OAS[12]_\d{4}_MR\d+)[._](?P<place>\w+)\.(png|nii|nii\.gz)$")
_DERIVED = {"T88_111": "in Talairach space", "FSL_SEG": "a segmentation"}
_RANKS = ("SUBJ_111", "_mpr-1", "mpr-1", "_mpr-2", "mpr-2", "_mpr-3", "mpr-3", "_mpr-4", "mpr-4")
_NUMBERS = ("age", "cdr", "etiv", "nwbv")
_NAMES = {"oasisid": "subject", "cdrtot": "cdr", "gender": "sex", "mf": "sex"}
_OASIS3_SCAN = re.compile(
    r"(?P<subject>OAS3\d{4})_(?:ses(?:s)?-)?(?:MR_)?d(?P<days>\d+).*?(?:_run-(?P<run>\d+))?_T1w\.nii(?:\.gz)?$"
)
_DAYS_PER_YEAR = 365.25
Rows = list[dict[str, Any]]


def list_sessions(source: Oasis1Source | Oasis2Source, files: Inventory, folder: Path, pool: Pool) -> Rows:
    """List the sessions of OASIS-1 or OASIS-2, one row per image; the chosen images with their true orientation.

    Parameters
    ----------
    source : Oasis1Source or Oasis2Source
    files : Inventory
        Of the root.
    folder : path
        Receives the chosen images as NIfTI.
    pool : Pool
        Processes that convert.

    Returns
    -------
    list of dict
        Rows by `records.LISTING`.

    Raises
    ------
    StudyError
        If the table is missing or no session has an image.

    References
    ----------
    Marcus et al. 2007, doi:10.1162/jocn.2007.19.9.1498, and 2010, doi:10.1162/jocn.2009.21407.
    """
    root, release = Path(source.root), source.kind[-1]
    table = _read_table(files, *_TABLES[release], source.columns)
    sessions = _sessions(files, f"OAS{release}_")
    rows = [row for name, images in sessions.items() for row in _session_rows(name, images, table, source.cdr_labels)]
    if not rows:
        raise StudyError(f"no OAS{release}_*_MR*/ folder with an image (.hdr and .img, or .nii) under {root}")
    print(f"OASIS-{release}: {len(sessions)} of the table's {len(table)} sessions are on disk")
    chosen = [row for row in rows if "excluded" not in row]
    facts = map_scans(partial(_converted, folder=folder / "nifti"), chosen, pool=pool, label="reading images")
    for row, converted_facts in zip(chosen, facts, strict=True):
        row |= converted_facts
    return rows


def list_slices(source: OasisSlicesSource, files: Inventory, folder: Path, _pool: Pool) -> Rows:
    """List the sessions of OASIS-1 or OASIS-2 of which there are 2-D slices: all slices of a session are one scan.

    `path` of a row holds the files, ordered by the place in their names and joined by ``|``. A session that lacks a
    place which others have, or that is only in the table, is listed as excluded.

    Parameters
    ----------
    source : OasisSlicesSource
    files : Inventory
        Of the root.
    folder : path
        Receives the slices in ``slices/`` where the root holds them as a zip.
    _pool : Pool
        Not used.

    Returns
    -------
    list of dict
        Rows by `records.LISTING`, with ``nbv`` (nWBV) and ``icv_ml`` (eTIV) as OASIS publishes them (Marcus et al.
        2007, doi:10.1162/jocn.2007.19.9.1498; 2010, doi:10.1162/jocn.2009.21407).

    Raises
    ------
    StudyError
        If the table, a column or all slices are missing.
    """
    slices = _slice_folder(files, folder)
    release = min(slices)[3]
    table = _read_table(files, *_TABLES[release], source.columns)
    places = sorted({place for session in slices.values() for place in session})
    rows = [_slice_session(name, slices.get(name, {}), places) for name in sorted({*slices, *map(str, table.index)})]
    for row in rows:
        if row["scan_id"] in table.index:
            row |= _visit_facts(table.loc[row["scan_id"]], source.cdr_labels)
    return rows


def list_tissue_maps(source: OasisVbmSource, _files: Inventory) -> Rows:
    """List the grey- and white-matter maps in MNI152 space that nilearn fetches, one scan for each participant.

    Parameters
    ----------
    source : OasisVbmSource
    _files : Inventory
        Not used: nilearn knows its files.

    Returns
    -------
    list of dict
        Rows by `records.LISTING`.

    Raises
    ------
    StudyError
        If the maps are not on disk and cannot be fetched.

    References
    ----------
    Marcus et al. 2007, doi:10.1162/jocn.2007.19.9.1498; maps by nilearn (doi:10.5281/zenodo.8397156).
    """
    try:
        fetched = fetch_oasis_vbm(n_subjects=source.participants, data_dir=source.data_dir, verbose=0)
    except Exception as error:  # the fetcher raises whatever its network library raises
        where = source.data_dir or "nilearn's data folder"
        raise StudyError(
            f"the OASIS maps are not in {where} and cannot be fetched ({type(error).__name__}: {error}); "
            "fetch them where there is a network (about 800 MB) and set source.data_dir"
        ) from None
    table = fetched.ext_vars.rename(columns=_NAMES).set_index("id")
    rows = []
    for grey, white in zip(fetched.gray_matter_maps, fetched.white_matter_maps, strict=True):
        session = Path(grey).parent.name
        maps = {"path": f"{grey}{SEPARATOR}{white}", "space": TISSUE_MAPS}
        rows.append(_names(session) | maps | _visit_facts(table.loc[session], source.cdr_labels))
    return rows


def _names(session: str) -> dict[str, Any]:
    """Names as BIDS has them for a session such as OAS1_0001_MR1."""
    participant, visit = session.replace("_", "").split("MR")
    names = {"participant_id": f"sub-{participant}", "session_id": f"ses-MR{visit}", "site": "OASIS"}
    return names | {"scan_id": f"sub-{participant}_ses-MR{visit}_T1w"}


def list_oasis3(source: Oasis3Source, files: Inventory) -> Rows:
    """List every T1w image; its diagnosis is the Clinical Dementia Rating of the visit nearest in days.

    A scan without a visit inside the window has an empty diagnosis. Of several runs of a session the first is used,
    the others are listed with that reason.

    Parameters
    ----------
    source : Oasis3Source
    files : Inventory
        Of the root.

    Returns
    -------
    list of dict
        Rows by `records.LISTING`.

    Raises
    ------
    StudyError
        If there is no image or no clinical table.

    References
    ----------
    LaMontagne et al. 2019, doi:10.1101/2019.12.13.19014902.
    """
    named = [(path, match) for path in files.files if (match := _OASIS3_SCAN.search(path.name))]
    if not named:
        raise StudyError(f"no sub-OAS3*_ses-d*_T1w.nii.gz under {files.root}; is it an OASIS-3 download?")
    visits, people = _oasis3_tables(files, source.columns)
    rows = [_oasis3_scan(path, match, visits, people, source) for path, match in named]
    repeats = pd.DataFrame(rows).duplicated(["participant_id", "session_id"])
    return [
        row | ({"excluded": "another run of the session is used"} if repeated else {})
        for row, repeated in zip(rows, repeats, strict=True)
    ]


def _sessions(files: Inventory, prefix: str) -> dict[str, list[Path]]:
    """Native images by session: those already forced into Talairach space and segmentations are no scans."""
    sessions: dict[str, list[Path]] = {}
    for path in files.named(".hdr", ".nii", ".nii.gz"):
        above = files.inside(path).split("/")[:-1]
        name = next((part for part in reversed(above) if part.startswith(prefix) and _SESSION.match(part)), None)
        files.take([path.with_suffix(".img")])
        if derived := _DERIVED.keys() & set(above):
            files.leave(path, f"{_DERIVED[min(derived)]}, no native image")
        elif name and not sequence_of_file(path.name).other:
            sessions.setdefault(name, []).append(path)
            files.take([path])
    return sessions


def _session_rows(name: str, images: list[Path], table: pd.DataFrame, labels: dict[str, str]) -> Rows:
    facts = _names(name)
    if name in table.index:
        facts |= _visit_facts(table.loc[name], labels)
    images = sorted(images, key=_rank)
    rows = [facts | {"series_description": f"MPRAGE, {_kind(image)}", "path": str(image)} for image in images]
    for number, row in enumerate(rows[1:], 2):
        row["scan_id"] = row["scan_id"].replace("_T1w", f"_run-{number}_T1w")
        row |= {"excluded": f"{_kind(images[0])} of the session is used", "sha256": None}
    return rows


def _rank(image: Path) -> tuple[int, str]:
    return next((k for k, part in enumerate(_RANKS) if part in str(image)), len(_RANKS)), str(image)


def _kind(image: Path) -> str:
    return "the averaged image" if "SUBJ_111" in image.parts else f"acquisition {image.name.partition('.')[0]}"


def _converted(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write a session's image as NIfTI unless that was done, and return the facts of its header.

    Raises
    ------
    TryAgain
        If the disk or the memory does not suffice.
    """
    source, target, record = Path(row["path"]), *(folder / f"{row['scan_id']}{end}" for end in (".nii.gz", ".json"))
    voxels = source.with_suffix(".img") if source.suffix == ".hdr" else source
    state = [file_digest(path) for path in sorted({source, voxels}) if path.is_file()]
    key = digest([source.name, state, code_of(__name__)])
    fault = converted(target, record, key, partial(_write_nifti, voxels, source.name, target))
    if fault:
        return {"sha256": file_digest(source), "excluded": fault}
    return {"path": str(target)} | image_facts(target)


def _write_nifti(source: Path, name: str, target: Path) -> str:
    """Write one volume with its true affine, or return why it is none."""
    if not source.is_file():
        return f"{name} is half of a pair: {source.name} is missing"
    try:
        image, _ = load(source)
        data = np.squeeze(np.asanyarray(image.dataobj))
        if data.ndim != 3:
            return f"{name} has shape {data.shape}, not one volume"
        with atomic_path(target) as temporary:
            nib.save(nib.Nifti1Image(data, _affine(image, data.shape)), temporary)
    except Exception as error:  # nibabel meets arbitrary bytes here and raises whatever its parsers raise
        raise_if_passing(error, source)
        return f"{name} cannot be read: {error}"
    return ""


def _affine(image: nib.spatialimages.SpatialImage, shape: tuple[int, int, int]) -> np.ndarray:
    """The true affine (4, 4), RAS mm: the header's where it states one, else that of all OASIS Analyze images.

    Their axes run to the front, up and to the left; the header does not say so (Clinica's OASIS converter gives the
    same affine for SUBJ_111, doi:10.3389/fninf.2021.689675).
    """
    if isinstance(image, nib.Nifti1Pair) and int(image.header["sform_code"]) + int(image.header["qform_code"]) > 0:
        return image.affine
    x, y, z = (float(edge) for edge in image.header.get_zooms()[:3])
    i, j, k = shape
    return np.array([[0, 0, -z, z * k / 2], [x, 0, 0, -x * i / 2], [0, y, 0, -y * j / 2], [0, 0, 0, 1]])


def _slice_folder(files: Inventory, folder: Path) -> dict[str, dict[str, Path]]:
    """The files of each session by their place, below the root or in the one zip that it holds."""
    found = _slices_among(files.files)
    archives = [path for path in files.named(".zip") if path.parent == files.root]
    if not found and len(archives) == 1:
        slices = folder / "slices"
        key = digest([file_digest(archives[0]), code_of(__name__)])
        converted(slices, folder / "slices.json", key, partial(_unpack, archives[0], slices))
        found = _slices_among(Inventory(slices).files)
    if not found:
        raise StudyError(
            f"no slices such as OAS1_0001_MR1.90.png or OAS2_0001_MR1_axl.nii.gz under {files.root} or in the one zip "
            f"there (zips: {[path.name for path in archives]})"
        )
    return found


def _slices_among(paths: Iterable[Path]) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    for path in paths:
        if match := _SLICE.match(path.name):
            found.setdefault(match["session"], {})[match["place"]] = path
    return found


def _unpack(archive: Path, slices: Path) -> None:
    slices.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as contents:
            contents.extractall(slices)
    except Exception as error:  # zipfile meets arbitrary bytes here and raises whatever its parsers raise
        raise_if_passing(error, archive)
        raise StudyError(f"{archive} is not a readable zip of slices ({error}); fetch it again") from None


def _slice_session(name: str, files: dict[str, Path], places: list[str]) -> dict[str, Any]:
    lacking = [place for place in places if place not in files]
    participant, _, number = name.replace("_", "").partition("MR")
    return {
        "participant_id": f"sub-{participant}",
        "session_id": f"ses-{int(number):02d}",
        "scan_id": name,
        "path": SEPARATOR.join(str(files[place]) for place in sorted(files)) or name,
        "site": f"OASIS-{name[3]}",
        **({"excluded": f"no slice in {', '.join(lacking)}", "sha256": None} if lacking else {}),
    }


def _read_table(files: Inventory, pattern: str, key: str, columns: dict[str, str]) -> pd.DataFrame:
    """The one table of a release by MRI session: float columns age, cdr, etiv (ml), nwbv (share) and text column sex.

    Column names lose case and punctuation (``M/F`` and ``M.F`` both become ``mf``), numbers may have decimal commas.
    `key` is the column of the session; its cells are such as ``OAS1_0001_MR1``.
    """
    tables = [path for path in files.files if path.parent == files.root and path.match(pattern)]
    if len(tables) != 1:
        raise StudyError(
            f"expected one {pattern} (csv or xlsx) in {files.root}, found {[path.name for path in tables]}; keep 1"
        )
    table = _with_bare_names(tables[0], columns)
    missing = [name for name in (key, "sex", *_NUMBERS) if name not in table]
    if missing:
        raise StudyError(
            f"{tables[0]} lacks columns {missing}; it has {list(table.columns)}; name them in source.columns"
        )
    return indexed(read_cells(table, tables[0], {"sex": "M/F"}, *_NUMBERS), key, tables[0])


def _with_bare_names(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """A table whose column names are lower-case letters and digits, and those that OASIS or the user gives others."""
    table = read_user_table(path).rename(columns=columns)
    bare = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in table.columns}
    table = table.rename(columns={name: _NAMES.get(other, other) for name, other in bare.items()})
    return table.loc[:, ~table.columns.duplicated()]


def _visit_facts(visit: pd.Series, labels: dict[str, str]) -> dict[str, Any]:
    """Diagnosis by Clinical Dementia Rating, age, sex and the published volumes of one row of a table.

    ``nbv`` is nWBV, the brain's share of the intracranial volume, and ``icv_ml`` is eTIV.
    """
    return {
        "diagnosis": _rating_label(visit["cdr"], labels),
        "label_source": "Clinical Dementia Rating at the visit",
        "age": visit["age"],
        "sex": visit["sex"],
        **({"notes": visit["notes"]} if pd.notna(visit.get("notes")) else {}),
        "nbv": visit["nwbv"],
        "icv_ml": visit["etiv"],
    }


def _rating_label(rating: float, labels: dict[str, str]) -> str | None:
    """The class of a Clinical Dementia Rating (Morris 1993, doi:10.1212/WNL.43.11.2412-a), where `labels` has one."""
    return labels.get("missing" if pd.isna(rating) else f"{rating:g}")


def _oasis3_tables(files: Inventory, columns: dict[str, str]) -> tuple[dict[str, pd.DataFrame], dict[str, pd.Series]]:
    """Clinical visits (days, cdr, age) and facts at entry (sex, ageatentry) by subject, recognised by their columns."""
    visits: list[pd.DataFrame] = []
    people: dict[str, pd.Series] = {}
    for path in files.named(".csv", ".tsv", ".xlsx"):
        try:
            table = _with_bare_names(path, columns)
        except StudyError as error:
            print(f"OASIS-3: {path.name} is ignored: {error}")
            continue
        table = table.rename(columns={"ageatvisit": "age"}) if "age" not in table else table
        table = table.assign(subject=table["subject"].str.upper()) if "subject" in table else table
        if {"subject", "cdr"} <= set(table) and (dated := _with_days(table)) is not None:
            read = read_cells(dated, path, {}, "days", "cdr")
            usable = read[["days", "cdr"]].notna().all(axis=1)
            visits.append(read[usable])
            for note in read["notes"][~usable].dropna() if "notes" in read else ():
                print(f"OASIS-3: {note}; the visit is left out")
        if {"subject", "sex"} <= set(table):
            known = read_cells(table.assign(sex=table["sex"].replace(ISO_5218)), path, {}, "ageatentry")
            people = {row["subject"]: row for _, row in known.iterrows()} | people
    if not visits:
        raise StudyError(
            f"no table under {files.root} has a subject (OASISID, Subject), a CDR (CDRTOT, cdr) and days_to_visit or "
            "a session label that ends in _d0000; name its columns in source.columns"
        )
    return dict(list(pd.concat(visits, ignore_index=True).groupby("subject"))), people


def _with_days(table: pd.DataFrame) -> pd.DataFrame | None:
    """The table with a column days, from that of OASIS-3 or from a session label; None where it has neither."""
    if "daystovisit" in table:
        return table.rename(columns={"daystovisit": "days"}).assign(days=table["daystovisit"].str.removeprefix("d"))
    label = next((name for name in table if table[name].astype(str).str.contains(r"_d\d+$").any()), None)
    return None if label is None else table.assign(days=table[label].str.extract(r"_d(\d+)$", expand=False))


def _oasis3_scan(
    path: Path, match: re.Match[str], visits: dict[str, pd.DataFrame], people: dict[str, Any], source: Oasis3Source
) -> dict[str, Any]:
    subject, days, run = match["subject"], int(match["days"]), match["run"]
    person = people.get(subject, {})
    row = {
        "participant_id": f"sub-{subject}",
        "session_id": f"ses-d{match['days']}",
        "scan_id": f"sub-{subject}_ses-d{match['days']}{f'_run-{run}' if run else ''}_T1w",
        "path": str(path),
        "site": "OASIS-3",
        "label_source": f"Clinical Dementia Rating nearest the scan, within {source.window_days} days",
        "sex": person.get("sex"),
    }
    if pd.notna(person.get("ageatentry")):
        row["age"] = round(person["ageatentry"] + days / _DAYS_PER_YEAR, 2)
    notes = [person.get("notes")]
    near = visits.get(subject, pd.DataFrame({"days": []}))
    away = (near["days"] - days).abs()
    if len(near) and away.min() <= source.window_days:
        visit = near.loc[away.idxmin()]
        notes.append(visit.get("notes"))
        row["diagnosis"] = _rating_label(visit["cdr"], source.cdr_labels)
        if "age" not in row and pd.notna(visit.get("age")):
            row["age"] = round(visit["age"] + (days - visit["days"]) / _DAYS_PER_YEAR, 2)
    told = "; ".join(note for note in notes if pd.notna(note))
    return row | ({"notes": told} if told else {})
