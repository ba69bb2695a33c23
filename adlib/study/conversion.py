"""A conversion is done once for a source and its code, and what it wrote is checked before it is taken again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from adlib.study.digests import code_digest, package_versions
from adlib.study.records import StudyError, TryAgain, digest, file_digest, is_passing, read_json, write_json


def raise_if_passing(error: Exception, path: Path) -> None:
    """Return if `error` may come from the bytes of `path`.

    Raises
    ------
    TryAgain
        If it tells of the disk, the memory or the permissions.
    """
    if is_passing(error):
        raise TryAgain(
            f"{path} could not be read or converted ({type(error).__name__}: {error}); "
            "see to the disk, the memory and the permissions of this machine, then run again"
        ) from error


@lru_cache(maxsize=64)
def code_of(module: str, *packages: str) -> str:
    """Digest of a module that converts, with all that it imports, and of the versions of more packages."""
    return digest([code_digest(module), package_versions(packages)])


def converted(target: Path, record: Path, key: str, convert: Callable[[], Any]) -> Any:
    """Convert, unless that was done for the same key and the target and its record are as they were left.

    Parameters
    ----------
    target : path
        File or folder that `convert` writes; it is removed first. `convert` may leave it out.
    record : path
        JSON file, written last: the key, the target's SHA-256, and what `convert` returned.
    key : str
        Digest of everything that decides the outcome.
    convert : callable
        Returns something that JSON can hold.

    Returns
    -------
    object
        What `convert` returned, as JSON gives it back.
    """
    stored = _stored(record)
    if stored is not None and stored == _entry(key, target, stored.get("told")):
        return stored["told"]
    _remove(target)
    write_json(_entry(key, target, convert()), record)
    return read_json(record)["told"]


def _stored(record: Path) -> dict[str, Any] | None:
    try:
        stored = read_json(record)
    except StudyError:
        return None
    return stored if isinstance(stored, dict) else None


def _entry(key: str, target: Path, told: Any) -> dict[str, Any]:
    entry = {"key": key, "sha256": _content(target), "told": told}
    return entry | {"record_sha256": digest(entry)}


def _content(target: Path) -> str | None:
    if target.is_dir():
        files = sorted(path for path in target.rglob("*") if path.is_file())
        return digest([(path.relative_to(target).as_posix(), file_digest(path)) for path in files])
    return file_digest(target) if target.is_file() else None


def _remove(target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
