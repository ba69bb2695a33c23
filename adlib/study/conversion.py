"""Conversions that run once for the same source and code; their output is verified before it is used again."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from adlib.study.code_digest import code_digest, package_versions
from adlib.study.records import StudyError, TryAgain, digest, file_digest, is_passing, read_json, write_json


def raise_if_passing(error: Exception, path: Path) -> None:
    """Return if the bytes of `path` may cause `error`.

    Parameters
    ----------
    error : Exception
    path : path
        File that was read.

    Raises
    ------
    TryAgain
        If the cause is the disk, the memory or the permissions.
    """
    if is_passing(error):
        raise TryAgain(
            f"{path} could not be read or converted ({type(error).__name__}: {error}); "
            "check the disk, the memory and the permissions of this machine, then run again"
        ) from error


@lru_cache(maxsize=64)
def code_of(module: str, *packages: str) -> str:
    """Digest of a converting module with all its imports, and of the versions of further packages.

    Parameters
    ----------
    module : str
        Dotted name.
    *packages : str
        Names of distributions.
    """
    return digest([code_digest(module), package_versions(packages)])


def converted(target: Path, record: Path, key: str, convert: Callable[[], Any]) -> Any:
    """Convert, unless the target and its record are unchanged since a conversion for the same key.

    Parameters
    ----------
    target : path
        File or folder that `convert` writes; it is removed first. `convert` may leave it out.
    record : path
        JSON file, written last: the key, the target's SHA-256, and the return value of `convert`.
    key : str
        Digest of everything that determines the output.
    convert : callable
        Returns something that JSON can hold.

    Returns
    -------
    object
        Return value of `convert`, after JSON.
    """
    with suppress(StudyError, KeyError, TypeError):  # no record yet, or a damaged one
        stored = read_json(record)
        if stored == _entry(key, target, stored["result"]):
            return stored["result"]
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    write_json(_entry(key, target, convert()), record)
    return read_json(record)["result"]


def _entry(key: str, target: Path, result: Any) -> dict[str, Any]:
    entry = {"key": key, "sha256": _content(target), "result": result}
    return entry | {"record_sha256": digest(entry)}


def _content(target: Path) -> str | None:
    if target.is_dir():
        files = sorted(path for path in target.rglob("*") if path.is_file())
        return digest([(path.relative_to(target).as_posix(), file_digest(path)) for path in files])
    return file_digest(target) if target.is_file() else None
