"""Tables with schemas, hashes, atomic writes, and the one error that users see."""

import errno
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import pandas as pd

_SHOWN = 5  # names in a message
LOST = "lost.json"  # in a study's folder: scans that the next run tries again, with the reasons
DASHBOARD = "dashboard of the workers:"  # begins the line that gives its address
AUDITED = "audit:"  # begins the lines that name its warnings


class StudyError(Exception):
    """An error for users; its message has the expected and the actual value, the place, and the remedy."""


class TryAgain(StudyError):
    """A transient failure, such as a full disk: nothing is stored about the scan, and the next run tries again."""


def is_passing(error: Exception) -> bool:
    """Whether an error may be gone the next time: lack of memory, or a system error of a file, a disk, a program.

    An `OSError` without a number is not of the system (gzip raises such for damaged bytes) unless its kind is. EINVAL
    is what a header leads to that points before the file.

    Parameters
    ----------
    error : Exception
    """
    system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
    return system or isinstance(error, MemoryError | FileNotFoundError | PermissionError | TryAgain)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it becomes `path`, on error it is removed.

    The temporary name has all suffixes of `path`, so that writers which choose a format by suffix work.

    Parameters
    ----------
    path : path
        Its folder is made if it is missing.

    Yields
    ------
    path
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".part-{token_hex(4)}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_unfinished(folder: Path) -> None:
    """Delete the temporary files of `atomic_path` that killed writers left under a folder that nothing writes in now.

    Parameters
    ----------
    folder : path
    """
    for path in folder.rglob(".part-*"):
        path.unlink(missing_ok=True)


def write_text(text: str, path: Path | str) -> Path:
    """Write `text` as UTF-8, whole or not at all.

    Parameters
    ----------
    text : str
    path : path

    Returns
    -------
    path
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(content: Any, path: Path | str) -> Path:
    """Write `content` as indented JSON with sorted keys, whole or not at all.

    Parameters
    ----------
    content : any
        What JSON can hold.
    path : path

    Returns
    -------
    path

    Raises
    ------
    ValueError
        If a number is NaN or infinite.
    """
    return write_text(json_text(content), path)


def json_text(content: Any) -> str:
    """The text that `write_json` writes.

    Parameters
    ----------
    content : any
        What JSON can hold.
    """
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    path : path

    Raises
    ------
    StudyError
        If the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path} does not exist; run the step that writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is not readable JSON ({error}); delete it and run its step again") from None


def digest(content: Any) -> str:
    """SHA-256 (hex) of anything JSON can hold, independent of key order.

    Parameters
    ----------
    content : any
        What JSON cannot hold enters as its text.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path | str) -> str:
    """SHA-256 (hex) of a file's bytes.

    Parameters
    ----------
    path : path
    """
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def some(names: Sequence[str]) -> str:
    """The first names of a list, and the number of the others.

    Parameters
    ----------
    names : sequence of str
    """
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


@dataclass(frozen=True)
class Schema:
    """Columns of a table.

    Attributes
    ----------
    name : str
        What the table is called in messages.
    required : dict of str to type
        Columns that must be there and hold a value in every row.
    optional : dict of str to type
        Columns that are added, empty, where absent.
    key : tuple of str
        Columns that together name a row once.
    """

    name: str
    required: dict[str, type]
    optional: dict[str, type] = field(default_factory=dict)
    key: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, type]:
        """Type of each column, required ones first."""
        return {**self.required, **self.optional}


REGISTERED = "MNI152"  # values of the manifest's column space; none for a head in the scanner's own space
TISSUE_MAPS = "MNI152 tissue maps"

SAME_PERSON = "same_person"  # column of a manifest whose audit finds one person under several ids: the first of them

MANIFEST = Schema(
    "manifest",
    {"participant_id": str, "session_id": str, "scan_id": str, "path": str, "sha256": str, "diagnosis": str},
    {
        "label_source": str,
        "age": float,
        "sex": str,
        "site": str,
        "manufacturer": str,
        "model": str,
        "field_strength_T": float,
        "phase": str,
        "series_description": str,
        "acquisition_date": str,
        "voxel_x_mm": float,
        "voxel_y_mm": float,
        "voxel_z_mm": float,
        "shape": str,
        "dtype": str,
        "orientation": str,
        "modality": str,
        "image_type": str,
        "echo_time_ms": float,
        "repetition_time_ms": float,
        "inversion_time_ms": float,
        "image_id": str,
        "space": str,
        "given_split": str,
        "participant_source": str,
    },
    ("scan_id",),
)
# What a source lists: participant and label may be unknown, and `excluded` says why the source itself left a scan out.
LISTING = Schema(
    "listing",
    {"scan_id": str, "path": str},
    {
        **{name: kind for name, kind in MANIFEST.columns.items() if name not in ("scan_id", "path")},
        "excluded": str,
    },
)
AUDIT = Schema(
    "audit",
    {"check": str, "severity": str, "subject": str, "value": str, "limit": str, "decision": str, "meaning": str},
)
FLOW = Schema("flow", {"step": str, "scans": int, "participants": int}, key=("step",))
FEATURES = Schema(
    "features",
    {"participant_id": str, "session_id": str, "scan_id": str, "qc_verdict": str},
    {"qc_reasons": str},
    ("scan_id",),
)
SPLITS = Schema(
    "splits",
    {"participant_id": str, "fold": int, "split": str, "diagnosis": str},
    {"member": str},
    ("participant_id", "fold"),
)
SLICES = Schema(
    "slices",
    {"row": int, "participant_id": str, "session_id": str, "scan_id": str, "slice": int, "diagnosis": str},
    {"position_mm": float},
    ("row",),
)
PREDICTIONS = Schema(
    "predictions",
    {
        "run": str,
        "participant_id": str,
        "session_id": str,
        "scan_id": str,
        "slice": int,
        "fold": int,
        "split": str,
        "truth": str,
    },
    key=("run", "fold", "scan_id", "slice"),
)
ANSWERS = Schema(
    "answers",
    {"fold": int, "participant_id": str, "session_id": str, "scan_id": str, "truth": str},
    key=("fold", "scan_id"),
)
FIGURES = Schema(
    "figures",
    {"name": str, "notebook": str, "sources": str, "sha256": str, "caption": str},
    key=("name",),
)


TABLES = {
    "listing.tsv": LISTING,
    "manifest.tsv": MANIFEST,
    "audit.tsv": AUDIT,
    "flow.tsv": FLOW,
    "features.tsv": FEATURES,
    "splits.tsv": SPLITS,
    "slices.tsv": SLICES,
    "predictions.parquet": PREDICTIONS,
    "baselines.parquet": PREDICTIONS,
    "figures/figures.tsv": FIGURES,
}  # of a study's folder


def table_schemas() -> dict[str, Any]:
    """JSON Schema of a row of each table of `TABLES`; a row may have further columns.

    Returns
    -------
    dict
        One definition for each file, under ``$defs``.
    """
    names = {str: "string", int: "integer", float: "number"}
    rows = {
        path: {
            "type": "object",
            "title": schema.name,
            "properties": {
                name: {"type": names[kind] if name in schema.required else [names[kind], "null"]}
                for name, kind in schema.columns.items()
            },
            "required": list(schema.required),
        }
        for path, schema in TABLES.items()
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": rows}


def check_table(table: pd.DataFrame, schema: Schema, where: str) -> pd.DataFrame:
    """Return `table` with the schema's types and column order; extra columns follow at the end.

    Parameters
    ----------
    table : DataFrame
    schema : Schema
    where : str
        Name of the table's file, for the error.

    Raises
    ------
    StudyError
        If a required column is missing or has an empty cell, a value is of the wrong type, or a key repeats.
    """
    missing = [name for name in schema.required if name not in table.columns]
    if missing:
        raise StudyError(f"{where}: the {schema.name} table lacks {missing}; it has {list(table.columns)}")
    table = table.copy()
    for name, kind in schema.columns.items():
        if name not in table.columns:
            table[name] = None
        table[name] = _typed(table[name], kind, required=name in schema.required, where=f"{where}: column {name}")
    repeated = table.duplicated(list(schema.key)) if schema.key else pd.Series(False, index=table.index)
    if repeated.any():
        first = table.loc[repeated, list(schema.key)].iloc[0].to_dict()
        raise StudyError(f"{where}: {int(repeated.sum())} repeated rows in the {schema.name} table, first {first}")
    extra = [name for name in table.columns if name not in schema.columns]
    return table[[*schema.columns, *extra]].reset_index(drop=True)


def _typed(column: pd.Series, kind: type, *, required: bool, where: str) -> pd.Series:
    empty = column.isna()
    if required and empty.any():
        raise StudyError(f"{where} is empty in {int(empty.sum())} rows, first row {int(empty.to_numpy().argmax()) + 1}")
    if kind is str:
        return column.astype(object).where(empty, column.astype(str)).where(~empty, None)
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = numbers.isna() & ~empty
    if wrong.any():
        raise StudyError(f"{where} holds {column[wrong].iloc[0]!r} where a number is expected")
    return numbers.astype("int64" if kind is int else "float64")


def write_table(table: pd.DataFrame, path: Path | str, schema: Schema) -> pd.DataFrame:
    """Check `table` against `schema` and write it as TSV or, by suffix, as parquet.

    Parameters
    ----------
    table : DataFrame
    path : path
    schema : Schema

    Returns
    -------
    DataFrame
        The table as written.

    Raises
    ------
    StudyError
        If the table breaks the schema.
    """
    path = Path(path)
    table = check_table(table, schema, str(path))
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
    return table


def read_table(path: Path | str, schema: Schema) -> pd.DataFrame:
    """Read a table that `write_table` wrote and check it again.

    Parameters
    ----------
    path : path
        ``.parquet`` or TSV.
    schema : Schema

    Raises
    ------
    StudyError
        If the file is missing, cannot be read, or breaks the schema.
    """
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"{path} does not exist; run the step that writes the {schema.name} table")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            types = {name: str for name, kind in schema.columns.items() if kind is str}
            table = pd.read_csv(path, sep="\t", dtype=types, keep_default_na=False, na_values=["n/a"])
    except (ValueError, OSError) as error:
        raise StudyError(f"{path} cannot be read as the {schema.name} table: {error}") from None
    return check_table(table, schema, str(path))


def content_digest(path: Path) -> str:
    """SHA-256 of a file; of a manifest without its paths, so that the same study in another folder has the same.

    Parameters
    ----------
    path : path
    """
    if path.name != "manifest.tsv":
        return file_digest(path)
    return digest(read_table(path, MANIFEST).drop(columns="path").astype(str).to_dict("records"))


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``.

    Parameters
    ----------
    content : any
        Nested dictionaries; anything else is a leaf.
    prefix : str
        Put before each name, with a dot.
    """
    if not isinstance(content, dict) or not content:
        return {prefix: content}
    return {
        name: leaf
        for key, value in content.items()
        for name, leaf in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def clock(seconds: float) -> str:
    """Seconds as ``h:mm:ss``.

    Parameters
    ----------
    seconds : float
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
