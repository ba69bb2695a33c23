"""One frozen model per kind of source: where the scans lie, and how their labels are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent conversion from text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_LABELS = "Source's label to class; labels not named are kept as they are, and dropped where they are no class."
_CDR = Field({"0": "CN", "0.5": "MCI", "1": "AD", "2": "AD"}, description="Clinical Dementia Rating to class.")


class PhantomSource(Section):
    """The simulated cohort: what `adlib.phantom.cohort` writes."""

    kind: Literal["phantom"]
    participants_per_class: int = Field(100, ge=1, description="Participants of each class.")
    voxel_mm: float = Field(2.0, gt=0.5, le=4, description="Nominal voxel edge; each site scales it, mm.")
    followup_fraction: float = Field(0.15, ge=0, le=1, description="Share of participants with two or three sessions.")
    severity_mean: tuple[float, ...] = Field(
        (0.1, 0.4, 0.65, 1.0), description="Mean atrophy severity of each class at age 74, in the order of `classes`."
    )
    severity_sd: float = Field(
        0.35,
        gt=0,
        description="Standard deviation of severity within a class; at 0.35 the best possible classifier tells AD from "
        "CN with a balanced accuracy of 0.9, a little above what leak-free studies of patients reach.",
    )


class BidsSource(Section):
    """A BIDS dataset with the label in participants.tsv or sessions.tsv."""

    kind: Literal["bids"]
    root: Path = Field(description="Folder that holds dataset_description.json.")
    label_column: str = Field("diagnosis", description="Column of the label.")
    labels: dict[str, str] = Field({}, description=_LABELS)


class CapsSource(Section):
    """Clinica's CAPS folder after its t1-linear pipeline: already registered to MNI152."""

    kind: Literal["caps"]
    root: Path = Field(description="Folder that holds subjects/.")
    table: Path = Field(description="Table with participant_id, the label and, where known, session_id, age and sex.")
    label_column: str = Field("diagnosis", description="Column of the label.")
    labels: dict[str, str] = Field({}, description=_LABELS)


class AdniSource(Section):
    """An ADNI download from the Image and Data Archive, or any folder of files with ADNI names."""

    kind: Literal["adni"]
    root: Path = Field(description="Folder that holds the images in any depth.")
    tables: tuple[Path, ...] = Field(
        (), description="Collection, ADNIMERGE and DXSUM tables; empty: every csv under root, told apart by columns."
    )
    label: Literal["collection", "baseline", "visit"] = Field(
        "collection",
        description="Whose diagnosis: the Group of the collection, that of the first visit, or that nearest the scan.",
    )
    window_days: int = Field(90, ge=0, description="A visit's diagnosis counts for scans up to this many days away.")
    phases: tuple[str, ...] = Field(
        (), description="ADNI phases whose scans are kept (ADNI1, ADNIGO, ADNI2, ADNI3, ADNI4); empty keeps all."
    )
    labels: dict[str, str] = Field({"SMC": "CN", "EMCI": "MCI"}, description=_LABELS)


class Oasis1Source(Section):
    """OASIS-1 as distributed on its discs, with oasis_cross-sectional.csv."""

    kind: Literal["oasis1"]
    root: Path = Field(description="Folder that holds disc*/ or the OAS1_* folders, and the table.")
    cdr_labels: dict[str, str] = _CDR


class Oasis2Source(Section):
    """OASIS-2 as distributed, OAS2_RAW_PART*/, with its longitudinal table."""

    kind: Literal["oasis2"]
    root: Path = Field(description="Folder that holds the OAS2_* folders in any depth, and the table.")
    cdr_labels: dict[str, str] = _CDR


class Oasis2SlicesSource(Section):
    """OASIS-2 mid-slices: three planes of one session become the three input channels."""

    kind: Literal["oasis2_slices"]
    root: Path = Field(description="Folder with the slices (or their zip) and the longitudinal table.")
    cdr_labels: dict[str, str] = _CDR


class Oasis3Source(Section):
    """OASIS-3: scans named by days since entry, diagnoses matched by days."""

    kind: Literal["oasis3"]
    root: Path = Field(description="Folder that holds the OAS3* session folders in any depth, and the tables.")
    window_days: int = Field(365, ge=0, description="A clinical visit counts for scans up to this many days away.")
    cdr_labels: dict[str, str] = _CDR


class OasisVbmSource(Section):
    """Grey-matter maps of OASIS-1 in MNI152, which nilearn fetches (about 800 MB, needs a network once)."""

    kind: Literal["oasis_vbm"]
    data_dir: Path | None = Field(None, description="Where nilearn keeps its downloads; empty: its default folder.")
    participants: int | None = Field(None, ge=1, description="Fetch only the first so many; empty: all 416.")
    cdr_labels: dict[str, str] = _CDR


class FoldersSource(Section):
    """Class folders: <root>/[<part>/]<class>/ with volumes, folders of slices, or 2-D images."""

    kind: Literal["folders"]
    root: Path = Field(description="Folder that holds the class folders or the parts (train, test) that hold them.")
    contents: Literal["volumes", "slices", "images"] = Field(
        "volumes", description="What one scan is: a 3-D file, a folder of 2-D slices, or one 2-D image."
    )
    parts: tuple[str, ...] = Field(
        (), description="Names of folders between root and the class folders, such as [train, test]: a given split."
    )
    participant: str = Field(
        "",
        description="Regular expression on a scan's path under root, with the group (?P<participant>...) and, where "
        "there is one, (?P<session>...); empty: ADNI file names, else unknown.",
    )
    table: Path | None = Field(
        None, description="Table with path (under root) or scan_id or participant_id, and participant_id, age, sex."
    )
    columns: dict[str, str] = Field(
        {}, description="The table's own column names to these, such as {subject: participant_id, M/F: sex}."
    )
    labels: dict[str, str] = Field({}, description="Folder name to class; names not given are kept as they are.")


class DicomSource(Section):
    """A tree of DICOM: one folder per session, its T1w series chosen and converted."""

    kind: Literal["dicom"]
    root: Path = Field(description="Folder that holds one folder per session.")
    participant: str = Field(
        r"^(?P<participant>[^/]+)(/(?P<session>[^/]+))?",
        description="Regular expression on a session folder's path under root.",
    )
    table: Path = Field(description="Table with participant_id, the label and, where known, session_id, age and sex.")
    label_column: str = Field("diagnosis", description="Column of the label.")
    labels: dict[str, str] = Field({}, description=_LABELS)


Source = Annotated[
    PhantomSource
    | BidsSource
    | CapsSource
    | AdniSource
    | Oasis1Source
    | Oasis2Source
    | Oasis2SlicesSource
    | Oasis3Source
    | OasisVbmSource
    | FoldersSource
    | DicomSource,
    Field(discriminator="kind"),
]
KINDS = {get_args(model.model_fields["kind"].annotation)[0]: model for model in get_args(get_args(Source)[0])}
