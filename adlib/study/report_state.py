"""Whether the report of a study is of its present records, params, templates and code."""

from pathlib import Path
from typing import Any

from adlib.study.code_digest import ROOT, module_digests, package_versions
from adlib.study.params import StudyParams, dump_params
from adlib.study.records import StudyError, digest, file_digest, read_json, write_json
from adlib.study.steps import STEPS
from adlib.study.tree import path_digest

PAGE = Path("report") / "index.html"
_WRITER = "adlib.report.pages"
_TEMPLATES = Path("adlib") / "report" / "templates"
_RECORD = PAGE.with_name(".written.json")  # hidden: no part of the report
_SCANS = ("source", "derivatives")  # the report reads no image
_ALSO = ("provenance.json", "figures", "notebooks", "report", "ro-crate-metadata.json")


def is_written(params: StudyParams, root: Path = ROOT) -> bool:
    """Whether writing the report again would change nothing.

    Parameters
    ----------
    params : StudyParams
    root : path
        Repository root.
    """
    record = params.folder / _RECORD
    try:
        return record.is_file() and read_json(record) == _state(params, root)
    except StudyError:
        return False


def mark_written(params: StudyParams, root: Path = ROOT) -> None:
    """Record what the report has been written from, and the report.

    Parameters
    ----------
    params : StudyParams
    root : path
        Repository root.
    """
    write_json(_state(params, root), params.folder / _RECORD)


def _state(params: StudyParams, root: Path) -> dict[str, Any]:
    names = {name for step in STEPS for name in (*step.writes, *step.may_write)}.difference(_SCANS)
    templates = {path.name: file_digest(path) for path in sorted((root / _TEMPLATES).glob("*"))}
    return {
        "code": module_digests([_WRITER], root),
        "templates": digest(templates),
        "params": digest(dump_params(params)),
        "packages": package_versions(),
        "files": {name: path_digest(params.folder / name) for name in sorted(names.union(_ALSO))},
    }
