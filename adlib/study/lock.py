"""One run at a time in a folder, on every file system, also where computers share it.

A lock of the system is the quick answer, but some shared file systems keep locks to each computer (NFS with
``local_lock``, Lustre with ``localflock``). So a run also keeps a mark in the folder and writes it anew every few
seconds; a mark that stays as it is belongs to nobody. Only whether it changes counts, not how old it is: the clocks of
computers differ.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adlib.study.records import StudyError

BEAT = 5.0  # seconds from one writing of a mark to the next
LOOK = 1.0  # seconds from one look at a mark to the next
LOOKS = 30  # a mark that so many looks find unchanged is left over


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study's folder for this process.

    What a killed run left is taken over: at once if its process was one of this computer, else after `LOOKS` looks.

    Raises
    ------
    StudyError
        If another process holds the folder, or took it over because this one stood still; then the main thread is
        interrupted, as by Ctrl-C, to get there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / ".running"
    with (folder / ".lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(mark) from None
        except (ImportError, OSError):
            pass  # the file system knows no locks: the mark decides alone
        with _marked(mark):
            yield


@contextmanager
def _marked(path: Path) -> Iterator[None]:
    mark = f"{socket.gethostname()} {os.getpid()} {_system()} {secrets.token_hex(8)}"
    _claim(path, mark)
    done, lost = threading.Event(), threading.Event()
    heart = threading.Thread(target=_beat, args=(path, mark, done, lost), daemon=True)
    heart.start()
    try:
        try:
            yield
        finally:
            done.set()
            heart.join()
        if not _held(path, mark):
            lost.set()
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
    finally:
        with suppress(OSError):
            _remove(path, mark)
    if lost.is_set():
        raise StudyError(
            f"this run stood still for so long that another{_owner(path)} took over {path.parent}, which may hold "
            "results of both now; when no run is at work there, run the same command again"
        )


def _claim(path: Path, mark: str) -> None:
    found = _look(path)
    free = found is None or (_left_over(path, found) and _remove(path, found[1]))
    if not (free and _create(path, mark) and _held(path, mark)):
        raise _refusal(path)


def _beat(path: Path, mark: str, done: threading.Event, lost: threading.Event) -> None:
    while not done.wait(BEAT):
        with suppress(OSError):
            if not _held(path, mark):
                lost.set()
                if not done.is_set() and hasattr(signal, "pthread_kill"):  # else the end of the run tells it
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                return


def _held(path: Path, mark: str) -> bool:
    """Write a mark anew if it is still there; a second look, as another run may have it aside for an instant."""
    for wait in (LOOK, 0):
        with suppress(FileNotFoundError), path.open("r+", encoding="utf-8", errors="replace") as stream:
            if stream.read() == mark:
                stream.seek(0)
                stream.write(mark)
                return True
        time.sleep(wait)
    return False


def _ended(mark: str) -> bool:
    """Whether a mark is of a process of this computer that is no more."""
    import psutil

    words = mark.split()
    if len(words) != 4 or (words[0], words[2]) != (socket.gethostname(), _system()):
        return False
    try:
        return psutil.Process(int(words[1])).status() == psutil.STATUS_ZOMBIE
    except psutil.Error as error:
        return isinstance(error, psutil.NoSuchProcess)


def _left_over(path: Path, found: tuple[int, str]) -> bool:
    """Whether a mark's process has ended or, as one watches, nobody writes it anew, or it goes away."""
    if _ended(found[1]):
        return True
    limit = f"{LOOKS * LOOK:.0f} seconds"
    print(f"{path} is the mark of another run{_owner(path)}; watching it for up to {limit}", file=sys.stderr)
    for _ in range(LOOKS):
        time.sleep(LOOK)
        now = _look(path)
        if now != found:
            return now is None
        if _ended(found[1]):
            return True
    return True


def _look(path: Path) -> tuple[int, str] | None:
    """Time and text of a mark; of the open file, as network file systems may answer by name from memory."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return os.fstat(stream.fileno()).st_mtime_ns, stream.read()
    except FileNotFoundError:
        return None


def _read(path: Path) -> str:
    return (_look(path) or (0, ""))[1]


def _create(path: Path, mark: str) -> bool:
    try:
        with path.open("xb", buffering=0) as stream:
            try:
                stream.write(mark.encode())
            except OSError:
                path.unlink()
                raise
    except FileExistsError:
        return False
    return True


def _remove(path: Path, mark: str) -> bool:
    """Remove a mark; another that came in its place meanwhile stays or is put back. Whether there is none now."""
    aside = path.with_name(f"{path.name}-{secrets.token_hex(8)}")
    if _read(path) == mark:
        with suppress(FileNotFoundError):
            path.rename(aside)
            if (found := _read(aside)) != mark:
                _create(path, found)
            aside.unlink()
    return not path.exists()


def _system() -> str:
    """The running system and its process namespace: computers and containers of one name are told apart."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{uuid.getnode():x}"


def _owner(path: Path) -> str:
    words = _read(path).split()
    return f" ({words[0]}, process {words[1]})" if len(words) > 1 else ""


def _refusal(path: Path) -> StudyError:
    return StudyError(
        f"another run is at work in {path.parent}{_owner(path)}; wait for its end, or give this one a folder of its "
        "own with --set exec.outputs=FOLDER"
    )
