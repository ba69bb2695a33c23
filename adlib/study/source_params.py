"""One frozen model per kind of source: where the scans lie, and how their labels are read."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from adlib.study.records import StudyError


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent conversion from text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    @field_validator("*")
    @classmethod
    def _at_home(cls, value: Any) -> Any:
        """A path that begins with ``~`` under the user's home."""
        return value.expanduser() if isinstance(value, Path) else value

    @property
    def naming(self) -> dict[str, Any]:
        """What a table calls the label and the columns, where the section says so."""
        return self.model_dump(include={"label_column", "labels", "columns"})


_LABELS = "Mapping of labels to classes; other labels stay as they are, and scans without a class are dropped."
_COLUMNS: Any = Field(
    {}, description="Mapping of the tables' column names, such as {subject: participant_id, M/F: sex}."
)
_TABLE: Any = Field(description="Table with participant_id, diagnosis and, where available, session_id, age and sex.")
_CDR = Field({"0": "CN", "0.5": "MCI", "1": "AD", "2": "AD"}, description="Mapping of CDR scores to classes.")


class PhantomSource(Section):
    """The simulated cohort: what `adlib.phantom.cohort` writes."""

    kind: Literal["phantom"]
    participants_per_class: int = Field(100, ge=1, description="Participants per class.")
    voxel_mm: float = Field(2.0, gt=0.5, le=4, description="Nominal voxel size, scaled by site, mm.")
    followup_fraction: float = Field(
        0.15, ge=0, le=1, description="Fraction of participants with two or three sessions."
    )
    severity_mean: tuple[float, ...] = Field(
        (0.1, 0.4, 0.65, 1.0), description="Mean atrophy severity of each class at age 74, in the order of `classes`."
    )
    severity_sd: float = Field(
        0.35,
        gt=0,
        description="Standard deviation of severity within a class; 0.35 limits the balanced accuracy of AD "
        "against CN to 0.9, slightly above leak-free studies of patients.",
    )


class BidsSource(Section):
    """A BIDS dataset with the label in participants.tsv or sessions.tsv."""

    kind: Literal["bids"]
    root: Path = Field(description="Dataset folder, with dataset_description.json.")
    label_column: str = Field("diagnosis", description="Column of the diagnosis.")
    labels: dict[str, str] = Field({}, description=_LABELS)
    columns: dict[str, str] = _COLUMNS


class CapsSource(Section):
    """Clinica's CAPS folder after its t1-linear pipeline: already registered to MNI152."""

    kind: Literal["caps"]
    root: Path = Field(description="CAPS folder, with subjects/.")
    table: Path = _TABLE
    label_column: str = Field("diagnosis", description="Column of the diagnosis.")
    labels: dict[str, str] = Field({}, description=_LABELS)
    columns: dict[str, str] = _COLUMNS


class AdniSource(Section):
    """An ADNI download from the Image and Data Archive, or any folder of files with ADNI names."""

    kind: Literal["adni"]
    root: Path = Field(description="Folder of the images, at any depth.")
    tables: tuple[Path, ...] = Field(
        (),
        description="Collection, ADNIMERGE and DXSUM tables; empty for every csv under root, recognised by its "
        "columns.",
    )
    label: Literal["collection", "baseline", "visit"] = Field(
        "collection", description="Diagnosis: Group of the collection, first visit, or visit nearest to the scan."
    )
    window_days: int = Field(90, ge=0, description="Maximum time between a visit's diagnosis and a scan, days.")
    phases: tuple[str, ...] = Field((), description="ADNI phases (ADNI1, ADNIGO, ADNI2, ADNI3, ADNI4); empty for all.")
    labels: dict[str, str] = Field({"SMC": "CN", "EMCI": "MCI"}, description=_LABELS)
    columns: dict[str, str] = _COLUMNS


class Oasis1Source(Section):
    """OASIS-1 as distributed on its discs, with oasis_cross-sectional.csv."""

    kind: Literal["oasis1"]
    root: Path = Field(description="Folder of disc*/ or OAS1_*, and of the table.")
    cdr_labels: dict[str, str] = _CDR
    columns: dict[str, str] = _COLUMNS


class Oasis2Source(Section):
    """OASIS-2 as distributed, OAS2_RAW_PART*/, with its longitudinal table."""

    kind: Literal["oasis2"]
    root: Path = Field(description="Folder of the OAS2_* folders, at any depth, and of the table.")
    cdr_labels: dict[str, str] = _CDR
    columns: dict[str, str] = _COLUMNS


class OasisSlicesSource(Section):
    """2-D slices of OASIS-1 or OASIS-2: all slices of one session are one scan."""

    kind: Literal["oasis_slices"]
    root: Path = Field(description="Folder of the slices (or their zip) and of the release's table.")
    cdr_labels: dict[str, str] = _CDR
    columns: dict[str, str] = _COLUMNS


class Oasis3Source(Section):
    """OASIS-3: scans named by days since entry, diagnoses matched by days."""

    kind: Literal["oasis3"]
    root: Path = Field(description="Folder of the OAS3* session folders, at any depth, and of the tables.")
    window_days: int = Field(365, ge=0, description="Maximum time between a clinical visit and a scan, days.")
    cdr_labels: dict[str, str] = _CDR
    columns: dict[str, str] = _COLUMNS


class OasisVbmSource(Section):
    """Grey-matter maps of OASIS-1 in MNI152, which nilearn fetches (about 800 MB, needs a network once)."""

    kind: Literal["oasis_vbm"]
    data_dir: Path | None = Field(None, description="Download folder of nilearn; empty for its default.")
    participants: int | None = Field(None, ge=1, description="Number of participants; empty for all 416.")
    cdr_labels: dict[str, str] = _CDR


class FoldersSource(Section):
    """Class folders: <root>/[<part>/]<class>/ with volumes, folders of slices, or 2-D images."""

    kind: Literal["folders"]
    root: Path = Field(description="Folder of the class folders or of the parts (train, test).")
    contents: Literal["volumes", "slices", "images"] = Field(
        "volumes", description="Form of a scan: a 3-D file, a folder of 2-D slices, or one 2-D image."
    )
    parts: tuple[str, ...] = Field(
        (), description="Folders between root and the class folders, such as [train, test]: a given split."
    )
    participant: str = Field(
        "",
        description="Regular expression on a scan's path relative to root with the group (?P<participant>...) "
        "and optionally (?P<session>...); empty for ADNI file names.",
    )
    table: Path | None = Field(
        None, description="Table with path (relative to root), scan_id or participant_id, and participant_id, age, sex."
    )
    columns: dict[str, str] = _COLUMNS
    labels: dict[str, str] = Field({}, description="Mapping of folder names to classes; other names stay as they are.")


class DicomSource(Section):
    """A tree of DICOM: one folder per session, its T1w series chosen and converted."""

    kind: Literal["dicom"]
    root: Path = Field(description="Folder with one folder per session.")
    participant: str = Field(
        r"^(?P<participant>[^/]+)(/(?P<session>[^/]+))?",
        description="Regular expression on a session folder's path relative to root.",
    )
    table: Path = _TABLE
    label_column: str = Field("diagnosis", description="Column of the diagnosis.")
    labels: dict[str, str] = Field({}, description=_LABELS)
    columns: dict[str, str] = _COLUMNS


class CohortsSource(Section):
    """Several cohorts: the sources that `sources` names."""

    kind: Literal["cohorts"] = "cohorts"


Source = Annotated[
    PhantomSource
    | BidsSource
    | CapsSource
    | AdniSource
    | Oasis1Source
    | Oasis2Source
    | OasisSlicesSource
    | Oasis3Source
    | OasisVbmSource
    | FoldersSource
    | DicomSource
    | CohortsSource,
    Field(discriminator="kind"),
]
SEVERAL = "cohorts"
KINDS = {get_args(model.model_fields["kind"].annotation)[0]: model for model in get_args(get_args(Source)[0])[:-1]}


def check_source(source: Any, place: str = "source") -> None:
    """Refuse a source whose folder or table is not there, as where a variable in its path is not set.

    Parameters
    ----------
    source : section of this module
    place : str
        Its key in the params, for the error.

    Raises
    ------
    StudyError
    """
    check_variables(source, place)
    for name, path in _paths(source):
        if name == "root" and not path.is_dir():
            described = type(source).model_fields[name].description
            raise StudyError(f"{place}.root {path} is not a folder; expected: {described}")
        if name in ("table", "tables") and not path.is_file():
            raise StudyError(f"{place}.{name} {path} is not a file; give a csv, tsv or xlsx table")


def check_variables(section: Section, name: str) -> None:
    """Refuse a path with a variable of the environment that is not set.

    Parameters
    ----------
    section : Section
    name : str
        Of the section, for the error.

    Raises
    ------
    StudyError
    """
    for key, path in _paths(section):
        if unset := re.search(r"\$\{?(\w+)", str(path)):
            raise StudyError(
                f"{name}.{key} is {path}, but {unset[1]} is not set; write {unset[1]}=/path/of/it before the command"
            )


def _paths(section: Section) -> Iterator[tuple[str, Path]]:
    """Key and path of each field that holds paths."""
    for key, value in section:
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path):
                yield key, path
