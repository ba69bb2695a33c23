"""What a person uploads: taken out of the page at once, kept in a private folder, within limits, gone afterwards."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adlib.sources.dicom import MAX_FILES
from adlib.sources.scanfile import PAIR_SUFFIXES, SUFFIXES
from adlib.study.params import ClassifyParams

PREFIX = "adlib-app-"
DICOM_SUFFIXES = (".dcm", ".ima")
ACCEPT = (*SUFFIXES, *DICOM_SUFFIXES, ".gz")
LONGEST = 100  # characters of a file name that are kept
MIB = 2**20


@dataclass(frozen=True)
class Chosen:
    """One scan that waits: a file, or a folder of DICOM; `bytes` is its size."""

    name: str
    path: Path
    bytes: int


def open_home() -> Path:
    """Make a folder that only its owner can read (mode 0700); it goes when this process ends.

    Folders of processes that died without removing theirs are removed first.
    """
    sweep()
    home = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    atexit.register(_remove, home, os.getpid())
    return home


def _remove(home: Path, owner: int) -> None:
    if os.getpid() == owner:  # a fork ends without taking the folder with it
        shutil.rmtree(home, ignore_errors=True)


def sweep() -> list[Path]:
    """Remove what processes of this user that live no more have left behind; return the folders."""
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = re.match(rf"{PREFIX}(\d+)-", folder.name)
        if owner is None or folder.is_symlink() or not folder.is_dir() or _lives(int(owner[1])):
            continue
        if not hasattr(os, "getuid") or folder.lstat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def safe_name(name: str) -> str:
    """The last part of a file name, of letters, digits, dot, dash and underscore alone, and not too long."""
    last = re.split(r"[/\\:]", name)[-1]
    plain = re.sub(r"[^\w.\-+ ]", "_", last, flags=re.ASCII).lstrip(".").strip()
    return plain[-LONGEST:] or "scan"


@dataclass
class Inbox:
    """Uploaded scans that wait to be classified.

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
    _made: int = 0

    def receive(self, files: Iterable[Mapping[str, Any]]) -> list[str]:
        """Write uploaded files to the private folder.

        Parameters
        ----------
        files : iterable of mapping
            ``name`` and ``content`` of each, as in the value of `ipywidgets.FileUpload`. Loose DICOM files make one
            scan, and so does a pair of ``.hdr`` and ``.img``.

        Returns
        -------
        list of str
            What was left out and why.
        """
        left_out: list[str] = []
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for file in files:
            groups.setdefault(_group(file), []).append(file)
        for name, members in groups.items():
            fault = self._fault(name, members)
            left_out += [fault] if fault else []
            if not fault:
                self._keep(name, members)
        return left_out

    def _fault(self, name: str, members: list[Mapping[str, Any]]) -> str:
        size = sum(_size(member) for member in members)
        waiting = sum(one.bytes for one in self.chosen)
        most = self.limits.max_upload_mb * MIB
        if len(self.chosen) >= self.limits.max_scans:
            return f"{name} was left out: at most {self.limits.max_scans} scans are taken at once; classify these first"
        if len(members) > MAX_FILES:
            return f"{name} was left out: {len(members)} files, at most {MAX_FILES} are read; choose one series"
        if size + waiting > most:
            return (
                f"{name} was left out: with it {(size + waiting) / MIB:.0f} MiB would wait, at most "
                f"{self.limits.max_upload_mb} are taken; give its path on this computer instead"
            )
        return ""

    def _keep(self, name: str, members: list[Mapping[str, Any]]) -> None:
        self._made += 1
        loose = _is_dicom(members[0])
        folder = self.home / f"upload-{self._made:04d}" / ("DICOM_files" if loose else "")
        folder.mkdir(mode=0o700, parents=True)
        names: list[str] = []
        for number, member in enumerate(members):
            own = safe_name(str(member["name"]))
            names.append(f"{number:05d}-{own}" if own in names else own)
            with (folder / names[-1]).open("xb") as stream:
                stream.write(member["content"])
        self.chosen.append(
            Chosen(name, folder if loose else folder / names[0], sum(_size(member) for member in members))
        )

    def take(self) -> list[Chosen]:
        """All that waits; afterwards nothing does."""
        taken, self.chosen = self.chosen, []
        return taken

    def drop(self, one: Chosen) -> None:
        """Remove the files of a scan."""
        if one.path.is_relative_to(self.home):
            shutil.rmtree(self.home / one.path.relative_to(self.home).parts[0], ignore_errors=True)


def _group(file: Mapping[str, Any]) -> str:
    """What a file belongs to: its pair, the loose DICOM files, or itself."""
    name = str(file["name"])
    if _is_dicom(file):
        return "DICOM files"
    if name.lower().endswith(PAIR_SUFFIXES):
        return f"{name[:-4]}.hdr"
    return name


def _is_dicom(file: Mapping[str, Any]) -> bool:
    content = memoryview(file["content"])
    return str(file["name"]).lower().endswith(DICOM_SUFFIXES) or bytes(content[128:132]) == b"DICM"


def _size(file: Mapping[str, Any]) -> int:
    return memoryview(file["content"]).nbytes
