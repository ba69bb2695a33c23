"""What lies under a source's root and what becomes of each file: a scan, a table, or left out for a reason."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from adlib.sources.image_files import PICTURES, SEPARATOR, SLICES
from adlib.sources.scanfile import PAIR_SUFFIXES, RENAME, RENAMED, VOLUME_SUFFIXES
from adlib.sources.sequence import sequence_of_file
from adlib.study.tree import printable, walk

_OTHER_FORMATS = (".mnc", ".mnc.gz", ".img.gz", ".hdr.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".gii")
_IMAGES = (*VOLUME_SUFFIXES, *PAIR_SUFFIXES, *PICTURES, *SLICES, *_OTHER_FORMATS)
_NAMED = "its name is not UTF-8, as those of old archives; rename it (`convmv -f latin1 -t utf8 -r --notest FOLDER`)"
_SHOWN = 6


class Inventory:
    """The files under a root, each once.

    Parameters
    ----------
    root : path or None
        None where the source has no folder.

    Attributes
    ----------
    files : list of Path
        Those that can be read, in order.
    found : int
        Number of all, with those that cannot be read.
    faults : dict of Path to str
        Why files are not used.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = Path(root or ".")
        entries = list(walk(self.root)) if root is not None else []
        self.found = len(entries)
        self._inside = {entry.path: entry.inside for entry in entries}
        faults = {
            entry.path: entry.fault or ("" if str(entry.path) == printable(entry.path) else _NAMED) for entry in entries
        }
        self.faults = {path: fault for path, fault in faults.items() if fault}
        self.files = [path for path, fault in faults.items() if not fault]
        self._taken: set[Path] = set()

    def named(self, *suffixes: str) -> list[Path]:
        """The readable files whose names end so, in whatever case.

        Parameters
        ----------
        *suffixes : str
        """
        return [path for path in self.files if path.name.lower().endswith(suffixes)]

    def images(self) -> list[Path]:
        """The readable files whose names are those of images of any kind."""
        return [path for path in self.files if _is_image(path.name)]

    def inside(self, path: Path) -> str:
        """Path relative to the root, with ``/``.

        Parameters
        ----------
        path : Path
            One of the files.
        """
        return self._inside[path]

    def take(self, paths: Iterable[Path]) -> None:
        """State that files are used, or are listed under another path.

        Parameters
        ----------
        paths : iterable of Path
        """
        self._taken.update(paths)

    def leave(self, path: Path, reason: str) -> None:
        """State why a file is not used.

        Parameters
        ----------
        path : Path
        reason : str
        """
        self.faults.setdefault(path, reason)

    def left_out(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """A row, with the reason, for each image file that is not among a source's rows and was not taken.

        Parameters
        ----------
        rows : iterable of dict
            By `records.LISTING`.
        """
        used = {name for row in rows for name in str(row["path"]).split(SEPARATOR)}
        return [
            {"scan_id": self.name(path), "path": printable(path), "sha256": None, "excluded": reason}
            for path, inside in self._inside.items()
            if path not in self._taken and str(path) not in used and (reason := self._reason(path, inside))
        ]

    def name(self, path: Path) -> str:
        """A scan id from a path under the root.

        Parameters
        ----------
        path : Path
        """
        inside = path.relative_to(self.root).as_posix()
        return re.sub(r"[^A-Za-z0-9]+", "-", inside).strip("-") or "root"

    def _reason(self, path: Path, inside: str) -> str:
        """Why an image file is not used; empty for other files."""
        if not _is_image(path.name) and self.faults.get(path) != _NAMED:
            return ""
        if path in self.faults:
            return self.faults[path]
        if RENAMED.search(path.name):
            return RENAME
        if "derivatives/" in inside or "sourcedata/" in inside:
            return "under derivatives or sourcedata"
        other = sequence_of_file(path.name).other
        return f"named '{other}', not T1w" if other else "not a T1w image as this kind of source names them"

    def summary(self, kind: str, listed: pd.DataFrame) -> str:
        """One line that counts scans, what is left out by reason, and all files under the root.

        Parameters
        ----------
        kind : str
            Of the source.
        listed : DataFrame
            Schema `records.LISTING`, with the rows of `left_out`.
        """
        reasons = listed["excluded"].value_counts()
        shown = [f"{count} x {reason}" for reason, count in reasons[:_SHOWN].items()]
        shown += [f"{len(reasons) - _SHOWN} other reasons"] if len(reasons) > _SHOWN else []
        told = f": {'; '.join(shown)}" if shown else ""
        under = f" ({self.found} files under {self.root})" if self.found else ""
        return f"{kind}: {len(listed) - reasons.sum()} listed, {reasons.sum()} left out{told}{under}"


def _is_image(name: str) -> bool:
    return name.lower().endswith(_IMAGES) or bool(RENAMED.search(name))
