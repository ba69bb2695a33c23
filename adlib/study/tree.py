"""The files under a folder: each once, with the reason where one cannot be read, and a digest of all of them."""

import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from adlib.study.records import StudyError, digest, file_digest

SHADOW = "shadow file that macOS writes beside a file; it holds no image"
HIDDEN = "hidden, its name begins with a dot"
NO_CONTENT = "link without content; fetch it with `datalad get` or `git annex get`"
_LINKED = "link to a folder that is listed itself"
_LOCK = "lock file of an open document"
_SPECIAL = "neither a file nor a folder"
_POINTERS = (b"/annex/objects/", b"version https://git-lfs")  # what git-annex and Git LFS leave for a file not fetched
_MAX_POINTER = 512  # bytes
_BINARY = (".gz", ".nii", ".mgz", ".mgh", ".img", ".dcm", ".zip")


class Found(NamedTuple):
    """A file, or a folder that is not entered.

    Attributes
    ----------
    path : Path
    inside : str
        Its path relative to the folder that is walked, with ``/``; bytes that are no UTF-8 are escaped.
    state : os.stat_result
    fault : str
        Why it cannot be read; empty where it can.
    """

    path: Path
    inside: str
    state: os.stat_result
    fault: str


def walk(root: Path) -> Iterator[Found]:
    """Every file under a folder once, in the order of their paths; linked folders outside it are entered.

    Parameters
    ----------
    root : path

    Yields
    ------
    Found
        A hidden folder, or a link to a folder that is walked already, is one entry.

    Raises
    ------
    StudyError
        If a folder cannot be read.
    """
    top = Path(root).resolve()
    yield from _walk(os.fspath(root), "", {top}, set(top.parents))


def _walk(folder: str, inside: str, walked: set[Path], above: set[Path]) -> Iterator[Found]:
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise StudyError(
            f"{folder} cannot be read ({error.strerror}); make every folder of the data readable"
        ) from None
    for entry in ordered:
        if not _is_folder(entry):
            yield _found(entry, inside)
        elif entry.name.startswith("."):
            yield Found(Path(entry.path), inside + entry.name, entry.stat(), HIDDEN)
        elif entry.is_symlink() and _is_walked(Path(entry.path).resolve(), walked, above):
            yield Found(Path(entry.path), printable(inside + entry.name), entry.stat(), _LINKED)
        else:
            yield from _walk(entry.path, f"{inside}{entry.name}/", walked, above)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def printable(path: Path | str) -> str:
    """A path as text that any file can hold; bytes that are no UTF-8 are escaped.

    Parameters
    ----------
    path : path
    """
    text = os.fspath(path)
    return text if text.isascii() else os.fsencode(text).decode(errors="backslashreplace")


def _is_walked(target: Path, walked: set[Path], above: set[Path]) -> bool:
    """Whether a link's target is in, or holds, a folder that is walked; if not, it is from now on."""
    if target in above or not walked.isdisjoint((target, *target.parents)):
        return True
    walked.add(target)
    above.update(target.parents)
    return False


def _found(entry: os.DirEntry[str], inside: str) -> Found:
    name, fault = entry.name, ""
    try:
        state = entry.stat()
    except OSError:
        state, fault = entry.stat(follow_symlinks=False), NO_CONTENT
    if name.startswith("."):
        fault = SHADOW if name.startswith("._") else HIDDEN
    elif name.startswith("~$"):
        fault = _LOCK
    elif not fault and not stat.S_ISREG(state.st_mode):
        fault = _SPECIAL
    elif not fault and 0 < state.st_size < _MAX_POINTER and name.lower().endswith(_BINARY) and is_pointer(entry.path):
        fault = NO_CONTENT
    return Found(Path(entry.path), printable(inside + name), state, fault)


def is_pointer(path: Path | str) -> bool:
    """Whether a file is what git-annex or Git LFS leaves in place of one that is not fetched.

    Parameters
    ----------
    path : path
    """
    try:
        with Path(path).open("rb") as stream:
            return stream.read(_MAX_POINTER).startswith(_POINTERS)
    except OSError:
        return False


def path_digest(path: Path) -> str | None:
    """Digest of a file's bytes or, for a folder, of the names, sizes and times in it; None where nothing is.

    Parameters
    ----------
    path : path
        File or folder.
    """
    if path.is_dir():
        seen = [found for found in walk(path) if found.fault not in (HIDDEN, SHADOW)]
        return digest(sorted((found.inside, found.state.st_size, found.state.st_mtime_ns) for found in seen))
    if not path.exists():
        return None
    state = path.stat()
    return _cached_file_digest(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _cached_file_digest(path: Path, size: int, modified: int) -> str:
    return file_digest(path)
