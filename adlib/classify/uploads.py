"""Uploaded files: received in parts of a few megabytes, stored in a private folder within limits, deleted afterwards.

The form's `DropZone` receives them, chosen, dropped, or a whole folder; its `Inbox` stores them.
"""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anywidget
import psutil
import traitlets

from adlib.sources.dicom import MAX_FILES
from adlib.sources.image_files import SLICES
from adlib.sources.scanfile import PAIR_SUFFIXES, SUFFIXES
from adlib.study.params import ClassifyParams

PREFIX = "adlib-app-"
ACCEPT = (*SUFFIXES, ".gz")
LONGEST = 100  # characters of a file name
MIB = 2**20
TEMPLATES = Path(__file__).with_name("templates")


class DropZone(anywidget.AnyWidget):
    """Buttons and an area for files, whose bytes never enter the state of the widget.

    Parameters
    ----------
    received : callable
        Called with a list of ``name``, ``size`` and ``content`` of each file; one beyond `most` has no content.
    accept : list of str
        Suffixes.
    most : int
        Bytes of all files together.
    """

    _esm = TEMPLATES / "drop_zone.js"
    _css = TEMPLATES / "form.css"
    accept: traitlets.List[str] = traitlets.List().tag(sync=True)
    most = traitlets.Int().tag(sync=True)
    progress = traitlets.Unicode().tag(sync=True)

    def __init__(self, received: Callable[[list[dict[str, Any]]], None], accept: list[str], most: int) -> None:
        super().__init__(accept=accept, most=most)
        self._received = received
        self._files: list[dict[str, Any]] = []
        self.on_msg(self._take)

    def _take(self, _: Any, message: dict[str, Any], buffers: list[memoryview]) -> None:
        """Start with the names, append a part to a file and ask for the next, or hand all files over."""
        if "files" in message:
            self._files = [{**file, "content": bytearray()} for file in message["files"]]
        elif "number" in message:
            self._files[message["number"]]["content"] += buffers[0]
            self.send({})
        else:
            files, self._files = self._files, []
            self._received(files)


@dataclass(frozen=True)
class Chosen:
    """A scan to be classified: a file, or a folder of DICOM.

    Attributes
    ----------
    name : str
    path : Path
    bytes : int
        Size of all its files.
    """

    name: str
    path: Path
    bytes: int


def open_home() -> Path:
    """Make a folder that only its owner can read (mode 0700); it is removed when this process ends.

    Folders that crashed processes left behind are removed first.

    Returns
    -------
    path
    """
    sweep()
    home = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    atexit.register(_remove, home, os.getpid())
    return home


def _remove(home: Path, owner: int) -> None:
    if os.getpid() == owner:  # the end of a fork does not remove the folder
        shutil.rmtree(home, ignore_errors=True)


def sweep() -> list[Path]:
    """Remove the folders that ended processes of this user left behind.

    Returns
    -------
    list of path
        The removed folders.
    """
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = re.match(rf"{PREFIX}(\d+)-", folder.name)
        if owner is None or folder.is_symlink() or not folder.is_dir() or psutil.pid_exists(int(owner[1])):
            continue
        if not hasattr(os, "getuid") or folder.lstat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def safe_name(name: str) -> str:
    """The last part of a file name, reduced to letters, digits, ``.-+_`` and spaces, at most `LONGEST` characters.

    Parameters
    ----------
    name : str
        As the browser sends it.

    Returns
    -------
    str
    """
    last = re.split(r"[/\\:]", name)[-1]
    plain = re.sub(r"[^\w.\-+ ]", "_", last, flags=re.ASCII).lstrip(".").strip()
    return plain[-LONGEST:] or "scan"


@dataclass
class Inbox:
    """Uploaded scans waiting for classification.

    Attributes
    ----------
    limits : ClassifyParams
    home : Path
        Private folder, see `open_home`.
    chosen : list of Chosen
    """

    limits: ClassifyParams
    home: Path
    chosen: list[Chosen] = field(default_factory=list)
    _count: int = 0

    def receive(self, files: Iterable[Mapping[str, Any]]) -> list[str]:
        """Write uploaded files to the private folder.

        Parameters
        ----------
        files : iterable of mapping
            ``name``, with its folder if it has one, ``size`` in bytes and ``content`` of each. The DICOM files of a
            folder make one scan, and so do loose ones, and a pair of ``.hdr`` and ``.img``; other files of a folder
            are no scans.

        Returns
        -------
        list of str
            Why files were left out.
        """
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for file in files:
            if "/" not in str(file["name"]) or _is_dicom(file) or str(file["name"]).lower().endswith(SUFFIXES):
                groups.setdefault(_group(file), []).append(file)
        return [reason for name, members in groups.items() if (reason := self._add(name, members))]

    def _add(self, name: str, members: list[Mapping[str, Any]]) -> str:
        """Write the files of one scan, or return why it is left out."""
        limits, size = self.limits, sum(member["size"] for member in members)
        total = size + sum(scan.bytes for scan in self.chosen)
        if len(self.chosen) >= limits.max_scans:
            return f"{name} was left out: at most {limits.max_scans} scans at once (classify.max_scans)"
        if len(members) > MAX_FILES:
            return f"{name} was left out: {len(members)} files, expected at most {MAX_FILES}; choose one series"
        if total > limits.max_upload_mb * MIB:
            return (
                f"{name} was left out: {total / MIB:.0f} MiB of uploads, expected at most {limits.max_upload_mb} "
                "(classify.max_upload_mb); give its path on this computer instead"
            )
        self._count += 1
        loose = _is_dicom(members[0])
        folder = self.home / f"upload-{self._count:04d}" / (safe_name(name).replace(" ", "_") if loose else "")
        folder.mkdir(mode=0o700, parents=True)
        names: list[str] = []
        for number, member in enumerate(members):
            safe = safe_name(str(member["name"]))
            names.append(f"{number:05d}-{safe}" if safe in names else safe)
            with (folder / names[-1]).open("xb") as stream:
                stream.write(member["content"])
        self.chosen.append(Chosen(name, folder if loose else folder / names[0], size))
        return ""

    def delete(self, scan: Chosen) -> None:
        """Delete the files of an uploaded scan; files outside the private folder remain.

        Parameters
        ----------
        scan : Chosen
        """
        if scan.path.is_relative_to(self.home):
            shutil.rmtree(self.home / scan.path.relative_to(self.home).parts[0], ignore_errors=True)


def _group(file: Mapping[str, Any]) -> str:
    """Name of the scan that a file belongs to."""
    name = str(file["name"])
    if _is_dicom(file):
        return name.rpartition("/")[0] or "DICOM files"
    if name.lower().endswith(PAIR_SUFFIXES):
        return f"{name[:-4]}.hdr"
    return name


def _is_dicom(file: Mapping[str, Any]) -> bool:
    content = memoryview(file["content"])
    return str(file["name"]).lower().endswith(SLICES) or bytes(content[128:132]) == b"DICM"
