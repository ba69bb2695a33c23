"""One run at a time in a folder: without locks, with locks of each computer, after kills, and in races."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_run_all import gone, wait_for

from adlib.study import lock
from adlib.study.digests import path_digest
from adlib.study.lock import locked
from adlib.study.records import StudyError, write_text

QUICK = {"BEAT": 0.05, "LOOK": 0.1, "LOOKS": 20}
ELSEWHERE = """
import fcntl, socket, time
from pathlib import Path
from adlib import lock

fcntl.flock = lambda *_: None
socket.gethostname = lambda: "elsewhere"
vars(lock).update({quick})
with lock.locked(Path({folder!r})):
    Path({ready!r}).touch()
    time.sleep(60)
"""


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def locks_of_each_computer(monkeypatch):
    """A file system whose locks other computers do not see."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)


@pytest.fixture
def quick(monkeypatch):
    """Marks that are written and judged in fractions of a second."""
    for name, value in QUICK.items():
        monkeypatch.setattr(lock, name, value, raising=False)


@pytest.fixture
def elsewhere(tmp_path):
    """Start a run of another computer in a folder that both share, and wait until it is at work."""
    started = []

    def start_elsewhere():
        ready = tmp_path / f"ready-{len(started)}"
        code = ELSEWHERE.format(quick=QUICK, folder=str(tmp_path / "shared"), ready=str(ready))
        started.append(subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True))
        wait_for(ready)
        return started[-1]

    yield start_elsewhere
    for process in started:
        process.kill()
        process.communicate()


def marks(folder):
    return sorted(path.name for path in folder.glob(".running*"))


def test_without_locks_a_second_run_is_refused_all_the_same(tmp_path, no_locks, quick):
    with locked(tmp_path):
        with pytest.raises(StudyError, match=rf"another run is at work.*process {os.getpid()}"), locked(tmp_path):
            pass
        assert marks(tmp_path) == [".running"]
    with pytest.raises(ValueError), locked(tmp_path):
        raise ValueError
    assert marks(tmp_path) == []


def left_by(process):
    """The mark that a process of this computer would leave if it were killed."""
    return f"{socket.gethostname()} {process.pid} {lock._system()} 0123456789abcdef"


def test_without_locks_what_a_killed_run_left_is_taken_over_at_once(tmp_path, no_locks, capsys):
    process = subprocess.Popen(["sleep", "60"])
    (tmp_path / ".running").write_text(left_by(process))
    process.kill()
    assert gone([process.pid])
    began = time.monotonic()
    with locked(tmp_path):
        pass
    process.wait()
    (tmp_path / ".running").write_text(left_by(process))
    with locked(tmp_path):
        assert marks(tmp_path) == [".running"]
    assert time.monotonic() - began < lock.LOOK and capsys.readouterr().err == ""


@pytest.mark.parametrize("days", [-3650, 0, 3650])
@pytest.mark.parametrize("content", ["", "elsewhere 1", "of a process whose number another has now"])
def test_a_mark_that_nobody_writes_anew_is_taken_over_whatever_its_time(tmp_path, no_locks, monkeypatch, content, days):
    monkeypatch.setattr(lock, "LOOK", 0.01, raising=False)
    process = subprocess.Popen(["sleep", "60"])
    mark, moment = tmp_path / ".running", time.time() + days * 86400
    mark.write_text(left_by(process) if content.startswith("of a process") else content)
    os.utime(mark, (moment, moment))
    with locked(tmp_path):
        assert str(os.getpid()) in mark.read_text()
    process.kill()
    process.wait()
    assert marks(tmp_path) == []


def test_of_two_computers_with_locks_of_their_own_the_second_is_refused_until_the_first_is_killed(
    tmp_path, locks_of_each_computer, quick, elsewhere, capsys
):
    first = elsewhere()
    for _ in range(3):
        with pytest.raises(StudyError, match=rf"at work in .*shared \(elsewhere, process {first.pid}\)"):
            locked(tmp_path / "shared").__enter__()
    assert "watching it for up to" in capsys.readouterr().err
    first.kill()
    first.wait()
    with locked(tmp_path / "shared"):
        assert str(os.getpid()) in (tmp_path / "shared" / ".running").read_text()
    assert marks(tmp_path / "shared") == []


def test_a_computer_may_go_on_when_the_run_of_another_ends(tmp_path, locks_of_each_computer, quick, elsewhere):
    first = elsewhere()
    os.kill(first.pid, signal.SIGSTOP)
    mark = tmp_path / "shared" / ".running"
    began = time.monotonic()
    threading.Timer(0.2, mark.unlink).start()
    with locked(tmp_path / "shared"):
        assert time.monotonic() - began < lock.LOOKS * lock.LOOK
        assert str(os.getpid()) in mark.read_text()


@pytest.mark.parametrize("meanwhile", ["is at work", "has ended"])
def test_a_run_that_stood_still_while_another_took_over_stops_and_leaves_its_mark(
    tmp_path, locks_of_each_computer, quick, elsewhere, meanwhile
):
    first = elsewhere()
    os.kill(first.pid, signal.SIGSTOP)
    second = locked(tmp_path / "shared")
    second.__enter__()
    mark = tmp_path / "shared" / ".running"
    own = mark.read_text()
    if meanwhile == "has ended":
        second.__exit__(None, None, None)
    os.kill(first.pid, signal.SIGCONT)
    _, errors = first.communicate(timeout=20)
    assert first.returncode == 1 and "StudyError: this run stood still for so long that another" in errors
    if meanwhile == "is at work":
        assert f"process {os.getpid()}" in errors and mark.read_text() == own
        second.__exit__(None, None, None)
    assert marks(tmp_path / "shared") == []


@pytest.mark.parametrize("beat", [5.0, 0.01])
def test_a_run_whose_mark_is_lost_reports_no_success_though_it_ends_before_that_is_sure(tmp_path, monkeypatch, beat):
    monkeypatch.setattr(lock, "BEAT", beat, raising=False)
    monkeypatch.setattr(lock, "LOOK", 0.2, raising=False)
    mark = tmp_path / ".running"
    with pytest.raises(StudyError, match=r"another \(elsewhere, process 7\) took over"), locked(tmp_path):
        mark.write_text("elsewhere 7")
        time.sleep(0.05)
    assert mark.read_text() == "elsewhere 7"


def test_of_two_that_take_over_at_once_only_one_gets_in(tmp_path, locks_of_each_computer, quick, monkeypatch):
    """The first has judged what was left and is about to move it away; the second has just done so and is at work."""
    process = subprocess.Popen(["true"])
    process.wait()
    mark, second, inside = tmp_path / ".running", locked(tmp_path), []
    mark.write_text(left_by(process))
    acts = {name: getattr(Path, name) for name in ("unlink", "rename")}

    def late(name, path, *arguments, **options):
        if path == mark and not inside:
            inside.append("second")
            second.__enter__()
        return acts[name](path, *arguments, **options)

    for name in acts:
        monkeypatch.setattr(Path, name, lambda path, *rest, name=name, **options: late(name, path, *rest, **options))
    with pytest.raises(StudyError, match="another run is at work"), locked(tmp_path):
        pass
    assert inside == ["second"] and len(marks(tmp_path)) == 1
    second.__exit__(None, None, None)
    assert marks(tmp_path) == []


def test_marks_are_in_no_digest_of_a_folder(tmp_path):
    write_text("1", tmp_path / "result.txt")
    before = path_digest(tmp_path)
    with locked(tmp_path):
        assert marks(tmp_path) and path_digest(tmp_path) == before
