"""One run at a time in a study's folder, also where computers share it."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLease, Timeout

from adlib.study.records import StudyError

LEASE_SECONDS = 30.0  # a claim that is not refreshed for so long is taken over
HEARTBEAT_SECONDS = 5.0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study's folder for this process.

    A lock of the operating system refuses a second run of this computer at once. Some shared file systems keep locks to
    each computer (NFS with ``local_lock``, Lustre with ``localflock``), so a run also holds a lease: a file that it
    refreshes every `HEARTBEAT_SECONDS`. The claim of a killed run is taken over at once on the same computer, and after
    `LEASE_SECONDS` without a refresh on another one; the clocks of the computers do not matter.

    Parameters
    ----------
    folder : Path
        Created if missing.

    Raises
    ------
    StudyError
        If another process holds the folder, or took it over while this one was suspended; then the main thread is
        interrupted, as by Ctrl-C.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim = folder / ".running"
    system = FileLock(folder / ".lock", timeout=0)
    try:
        system.acquire()
    except Timeout:
        raise _refusal(claim) from None
    except (OSError, NotImplementedError):
        pass  # no locks on this file system: the lease decides alone
    try:
        with _leased(claim):
            yield
    finally:
        system.release()


@contextmanager
def _leased(claim: Path) -> Iterator[None]:
    lease = SoftFileLease(
        claim,
        lease_duration=LEASE_SECONDS,
        heartbeat_interval=HEARTBEAT_SECONDS,
        on_compromise=_interrupt,
        timeout=LEASE_SECONDS + HEARTBEAT_SECONDS,
        poll_interval=min(0.5, HEARTBEAT_SECONDS / 2),
    )
    try:
        lease.acquire(cancel_check=_Watch(claim))
    except Timeout:
        raise _refusal(claim) from None
    lost = False
    try:
        try:
            yield
        finally:
            lost = not lease.is_lock_held_by_us
            lease.release()
    except KeyboardInterrupt:
        if not (lost or lease.compromise):
            raise
    if lost or lease.compromise:
        raise StudyError(
            f"this run was suspended for so long that another run{_owner(claim)} took over {claim.parent}, which may "
            "hold results of both; run the same command again when no run is active there"
        )


class _Watch:
    """Whether the owner of a claim refreshes it, asked again and again."""

    def __init__(self, claim: Path) -> None:
        self.claim = claim
        self.first: int | None = None

    def __call__(self) -> bool:
        with suppress(FileNotFoundError):
            refreshed = self.claim.stat().st_mtime_ns
            if self.first is None:
                self.first = refreshed
                print(
                    f"{self.claim} is the claim of another run{_owner(self.claim)}; watching it for up to "
                    f"{LEASE_SECONDS:.0f} seconds",
                    file=sys.stderr,
                )
            return refreshed != self.first
        return False


def _interrupt(_: object) -> None:
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:  # elsewhere the end of the run reports it
        signal.pthread_kill(main, signal.SIGINT)


def _owner(claim: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        fields = dict(line.split("=", 1) for line in claim.read_text("utf-8").splitlines() if "=" in line)
        if {"host", "pid"} <= fields.keys():
            return f" ({fields['host'].partition('?')[0]}, process {fields['pid']})"
    return ""


def _refusal(claim: Path) -> StudyError:
    return StudyError(
        f"another run is active in {claim.parent}{_owner(claim)}; wait until it ends, or give this one a folder of its "
        "own with --set exec.outputs=FOLDER"
    )
