"""One run at a time in a folder, on every file system."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adlib.records import StudyError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study's folder for this process; the system lets go of it however the process ends.

    Where the file system knows no locks, a file that only one process can make stands for one; what a killed process of
    this computer left of it is taken over.

    Raises
    ------
    StudyError
        If another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(
                f"another run is at work in {folder}; wait for its end, or give this one a folder of its own "
                "with --set exec.outputs=FOLDER"
            ) from None
        except (ImportError, OSError):
            with _marked(folder / ".running"):
                yield
            return
        yield


@contextmanager
def _marked(path: Path) -> Iterator[None]:
    if path.is_file() and _left_over(path.read_text(encoding="utf-8")):
        path.unlink(missing_ok=True)
    try:
        with path.open("x", encoding="utf-8") as mark:
            mark.write(f"{socket.gethostname()} {os.getpid()}")
    except FileExistsError:
        who = path.read_text(encoding="utf-8") or "somebody"
        raise StudyError(
            f"{path} says that {who} (computer, process) is at work here; wait for its end or, if it was cut off, "
            "delete that file"
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _left_over(mark: str) -> bool:
    """Whether a mark is of a process of this computer that is no more."""
    from psutil import pid_exists

    computer, _, process = mark.partition(" ")
    return computer == socket.gethostname() and process.isdigit() and not pid_exists(int(process))
