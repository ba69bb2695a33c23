"""One run at a time in a folder: on one computer, on two that share it, after kills and suspensions."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_run_all import wait_for

from adlib.study import lock
from adlib.study.lock import locked
from adlib.study.records import StudyError, write_text
from adlib.study.tree import path_digest

QUICK = {"HEARTBEAT_SECONDS": 0.1, "LEASE_SECONDS": 2.0}
RUN = """
import fcntl, socket, time
from pathlib import Path
from adlib.study import lock

fcntl.flock = lambda *_: None
socket.gethostname = lambda: {host!r}
vars(lock).update({quick})
with lock.locked(Path({folder!r})):
    Path({ready!r}).touch()
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch):
    """A lease of two seconds."""
    for name, value in QUICK.items():
        monkeypatch.setattr(lock, name, value)


@pytest.fixture
def local_locks(monkeypatch):
    """A file system whose locks other computers do not see."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)


@pytest.fixture
def start_run(tmp_path):
    """Start a run of a named computer in a shared folder, and wait until it holds the folder."""
    started = []

    def start(host):
        ready = tmp_path / f"ready-{len(started)}"
        code = RUN.format(host=host, quick=QUICK, folder=str(tmp_path / "shared"), ready=str(ready))
        started.append(subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True))
        wait_for(ready)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def claims(folder):
    return sorted(path.name for path in folder.glob(".running*"))


@pytest.mark.parametrize("system_locks", ["yes", "none", "local"])
def test_second_run_is_refused(tmp_path, quick, monkeypatch, system_locks):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if system_locks != "yes":
        monkeypatch.setattr(fcntl, "flock", refuse if system_locks == "none" else lambda *_: None)
    with locked(tmp_path):
        with pytest.raises(StudyError, match=rf"another run is active.*process {os.getpid()}"), locked(tmp_path):
            pass
        assert claims(tmp_path) == [".running"]
    with pytest.raises(ValueError), locked(tmp_path):
        raise ValueError
    assert claims(tmp_path) == []


def test_killed_run_is_taken_over_at_once(tmp_path, local_locks, start_run):
    first = start_run(os.uname().nodename)
    first.kill()
    first.wait()
    began = time.monotonic()
    with locked(tmp_path / "shared"):
        assert f"pid={os.getpid()}" in (tmp_path / "shared" / ".running").read_text()
    assert time.monotonic() - began < lock.HEARTBEAT_SECONDS
    assert claims(tmp_path / "shared") == []


def test_run_of_another_computer_is_refused_until_killed(tmp_path, local_locks, quick, start_run, capsys):
    first = start_run("elsewhere")
    for _ in range(3):
        with pytest.raises(StudyError, match=rf"active in .*shared \(elsewhere, process {first.pid}\)"):
            locked(tmp_path / "shared").__enter__()
    assert "watching it for up to" in capsys.readouterr().err
    first.kill()
    first.wait()
    with locked(tmp_path / "shared"):
        assert f"pid={os.getpid()}" in (tmp_path / "shared" / ".running").read_text()
    assert claims(tmp_path / "shared") == []


def test_suspended_run_that_lost_its_claim_stops(tmp_path, local_locks, quick, start_run):
    first = start_run("elsewhere")
    os.kill(first.pid, signal.SIGSTOP)
    with locked(tmp_path / "shared"):
        claim = (tmp_path / "shared" / ".running").read_text()
        os.kill(first.pid, signal.SIGCONT)
        _, errors = first.communicate(timeout=20)
        assert first.returncode == 1 and "StudyError: this run was suspended for so long that another run" in errors
        assert f"process {os.getpid()}" in errors
        assert (tmp_path / "shared" / ".running").read_text() == claim
    assert claims(tmp_path / "shared") == []


@pytest.mark.parametrize("heartbeat", [5.0, 0.01])
def test_run_without_its_claim_reports_no_success(tmp_path, monkeypatch, heartbeat):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", heartbeat)
    claim = tmp_path / ".running"
    with pytest.raises(StudyError, match=r"another run \(elsewhere, process 7\) took over"), locked(tmp_path):
        other = Path(f"{claim}-other")
        other.write_text("filelock/2\npid=7\nhost=elsewhere\nmode=lease\n")
        other.rename(claim)
        time.sleep(0.1)
    assert "elsewhere" in claim.read_text()


def test_claim_is_in_no_digest_of_a_folder(tmp_path):
    write_text("1", tmp_path / "result.txt")
    before = path_digest(tmp_path)
    with locked(tmp_path):
        assert claims(tmp_path) and path_digest(tmp_path) == before
