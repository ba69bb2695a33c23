"""A BIDS dataset, or Clinica's CAPS folder of one, becomes a listing.

BIDS has labels in participants.tsv or sessions.tsv and facts of the scanner in sidecars. The images of a CAPS folder
after t1-linear are registered already; their labels come from a table of the user's.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.sources.image_files import joined, sidecar_facts
from adlib.sources.inventory import Inventory
from adlib.sources.participant_table import ParticipantTable
from adlib.study.records import REGISTERED, StudyError
from adlib.study.source_params import BidsSource, CapsSource
from adlib.study.tree import NO_CONTENT
from adlib.study.user_tables import read_user_json, read_user_table

_T1W = re.compile(
    r"(?P<sub>sub-[^_/]+)/(?:(?P<ses>ses-[^_/]+)/)?anat/(?P<name>(?P=sub)(?:_(?P=ses))?(?:_[A-Za-z0-9]+-[^_/]+)*_(?i:T1w))"
    r"(?i:\.nii(?:\.gz)?)"
)
_DERIVED = {"space": "in another space", "desc": "derived, not raw", "part": "a part of complex values"}
_CAPS_NAME = re.compile(
    r"^subjects/(?P<participant>sub-[A-Za-z0-9]+)/(?P<session>ses-[A-Za-z0-9]+)/t1_linear/(?P=participant)_(?P=session)"
    r"(?P<more>(?:_(?:acq|run|ce|rec)-[A-Za-z0-9]+)*)(?:_T1w)?_space-MNI152NLin2009cSym(?P<crop>_desc-Crop)?"
    r"_res-1x1x1_T1w(?i:\.nii(?:\.gz)?)$"
)


def list_bids(source: BidsSource, files: Inventory) -> list[dict[str, Any]]:
    """List every T1w scan of a BIDS dataset with its label, one row per scan.

    Rows without a label have an empty diagnosis; the audit reports and drops them. A file that nibabel cannot open
    has an empty shape, and preprocessing reports it. Sidecars are inherited as BIDS prescribes.

    Parameters
    ----------
    source : BidsSource
    files : Inventory
        Of the root.

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
    root, scans = files.root, _images(files)
    if not (root / "participants.tsv").is_file():
        raise StudyError(f"{root / 'participants.tsv'} does not exist; a BIDS dataset needs it for labels, age and sex")
    settings: Any = source.naming | {"strict": False}
    people = ParticipantTable(root / "participants.tsv", **settings)
    people.meet(scans)
    visits, faults = _visits(root, scans, source)
    later = None if visits.empty else ParticipantTable(root / "sessions.tsv", **settings, rows=visits)
    read = Sidecars(files)
    rows = [joined(read.about(scan["path"]), _describe(scan, people, later, faults)) for scan in scans]
    for row in rows:
        row["label_source"] = f"{source.label_column} of the BIDS tables"
    if all(row.get("diagnosis") is None for row in rows):
        raise StudyError(
            f"no scan under {root} has a value in column {source.label_column!r} of participants.tsv "
            f"(columns {list(people.columns)}) or sessions.tsv; set source.label_column"
        )
    return rows


def list_caps(source: CapsSource, files: Inventory) -> list[dict[str, Any]]:
    """List the t1-linear output of every session; of a cropped and an uncropped one the uncropped is used.

    Parameters
    ----------
    source : CapsSource
    files : Inventory
        Of the root.

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
    named = [(path, match) for path in files.files if (match := _CAPS_NAME.search(files.inside(path)))]
    if not named:
        raise StudyError(
            f"no subjects/sub-*/ses-*/t1_linear/*_space-MNI152NLin2009cSym*_res-1x1x1_T1w.nii.gz under {files.root}; "
            "run clinica's t1-linear pipeline first and give its CAPS folder"
        )
    scan = ("participant", "session", "more")
    uncropped = {match.group(*scan) for _, match in named if not match["crop"]}
    rows: list[dict[str, Any]] = []
    for path, match in named:
        participant, session = match.group("participant", "session")
        row = {
            "participant_id": participant,
            "session_id": session,
            "scan_id": f"{participant}_{session}{match['more']}_T1w",
            "path": str(path),
            "space": REGISTERED,
        }
        if match["crop"] and match.group(*scan) in uncropped:
            row |= {"scan_id": f"{row['scan_id']}_desc-Crop", "excluded": "the uncropped image of the session is used"}
        rows.append(row)
    table = ParticipantTable(source.table, **source.naming)
    table.meet(rows)
    return [table.about(row) | row for row in rows]


def _images(files: Inventory) -> list[dict[str, str]]:
    """Participant, session, name and path of each raw T1w image."""
    scans = []
    for path in files.named("_t1w.nii", "_t1w.nii.gz"):
        match = _T1W.fullmatch(files.inside(path))
        derived = next((why for entity, why in _DERIVED.items() if f"_{entity}-" in path.name), "")
        if match and not derived:
            names = {
                "participant_id": match["sub"],
                "session_id": match["ses"] or "ses-01",
                "scan_id": f"{match['name'][:-3]}T1w",
            }
            scans.append(names | {"path": str(path)})
        elif match:
            files.leave(path, derived)
    if not scans:
        raise StudyError(
            f"no sub-*/[ses-*/]anat/*_T1w.nii[.gz] under {files.root}; is it a BIDS dataset with T1w images?"
        )
    return scans


def _visits(root: Path, scans: list[dict[str, str]], source: BidsSource) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows of all sessions.tsv, each by its line and file, and the fault of each such table by its participant."""
    needed = () if "session_id" in source.columns.values() else ("session_id",)
    tables, faults = [], {}
    for name in dict.fromkeys(scan["participant_id"] for scan in scans):
        path = root / name / f"{name}_sessions.tsv"
        if path.is_file():
            try:
                rows = read_user_table(path, required=needed)
            except StudyError as error:
                faults[name] = f"{error}; participants.tsv is used"
                continue
            rows.index = [f"{line} of {path.name}" for line in rows.index]
            tables.append(rows.assign(participant_id=name))
    return pd.concat(tables) if tables else pd.DataFrame(), faults


def _describe(
    scan: dict[str, str], people: ParticipantTable, later: ParticipantTable | None, faults: dict[str, str]
) -> dict[str, Any]:
    person, visit = people.about(scan), later.about(scan) if later else {}
    facts = {"diagnosis": None} | joined(person, visit)
    known = later.rows.get(scan["participant_id"], ()) if later else ()
    if known and not visit.keys() - {"label_source"}:
        note = f"{scan['participant_id']}_sessions.tsv has no {scan['session_id']}, only {', '.join(list(known)[:3])}"
        facts = joined(facts, {"notes": f"{note}; participants.tsv is used"})
    if fault := faults.get(scan["participant_id"]):
        facts = joined(facts, {"notes": fault})
    day = {"acquisition_date": facts["acquisition_date"][:10]} if "acquisition_date" in facts else {}
    return facts | scan | day


class Sidecars:
    """The JSON files of T1w images, inherited from the folders above as BIDS prescribes.

    Parameters
    ----------
    files : Inventory
    """

    def __init__(self, files: Inventory) -> None:
        self.root = files.root
        self._read: dict[Path, tuple[dict[str, Any], str]] = {}
        self._by_folder: dict[Path, list[tuple[set[str], Path]]] = defaultdict(list)
        unread = (path for path, fault in files.faults.items() if fault == NO_CONTENT)
        for path in (*files.named("t1w.json"), *unread):
            *entities, suffix = path.name.split("_")
            if suffix == "T1w.json":
                self._by_folder[path.parent].append((set(entities), path))
        for found in self._by_folder.values():
            found.sort(key=lambda item: len(item[0]))

    def about(self, image: str) -> dict[str, Any]:
        """Facts of an image by the columns of a listing; those of the nearest and most specific file prevail.

        Parameters
        ----------
        image : str
        """
        entities = set(Path(image).name.split("_")[:-1])
        content: dict[str, Any] = {}
        notes: list[str] = []
        for folder in reversed(Path(image).relative_to(self.root).parents):
            for own, path in self._by_folder.get(self.root / folder, ()):
                if own <= entities:
                    if path not in self._read:
                        self._read[path] = read_user_json(path)
                    content |= self._read[path][0]
                    notes += filter(None, self._read[path][1:])
        facts = {"site": content.get("InstitutionName")} | sidecar_facts(content)
        notes += [f"{Path(image).name}: {facts['notes']}"] if "notes" in facts else []
        return facts | ({"notes": "; ".join(notes)} if notes else {})
