"""map_scans: order, one thread, the same results with any workers, and only the scan at fault is lost."""

import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import dask
import numpy as np
import pytest
from threadpoolctl import threadpool_info
from throwaway import alive, soon

from adlib.parallel import mapping
from adlib.parallel.cluster import close_clusters
from adlib.parallel.mapping import map_scans
from adlib.study.exec_params import HERE, Pool
from adlib.study.execution import LastLine
from adlib.study.records import StudyError

ROOT = Path(__file__).parents[2]
TWO = Pool(workers=2, retries=1)


@pytest.fixture(scope="module", autouse=True)
def _no_workers_are_left():
    yield
    close_clusters()


def lost(item, reason):
    return "lost", item, reason


def late_first(index):
    time.sleep(0.5 if index == 0 else 0.2)
    return index, os.getpid()


def slow_first(index):
    time.sleep(1.2 if index == 0 else 0.01)
    return index, os.getpid()


def matrix_product(seed):
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((2, 300, 300), dtype=np.float32)
    return left @ right


def threads(_):
    import SimpleITK
    import torch

    pools = [pool["num_threads"] for pool in threadpool_info()]
    return max([*pools, torch.get_num_threads(), SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()])


def die_once(item):
    index, folder = item
    with (folder / str(index)).open("a") as log:
        log.write("tried\n")
    time.sleep(0.3)
    if index in (3, 7) and len((folder / str(index)).read_text().splitlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return index


def crash_on_three(index):
    time.sleep(0.3)
    return ctypes.string_at(0) if index == 3 else index


def crash_on_300(index):
    return ctypes.string_at(0) if index == 300 else index


def hang_on_one(index):
    time.sleep(1000 if index == 1 else 0.3)
    return index


def grow_on_one(index):
    held = []
    while index == 1:
        held.append(np.ones(4_000_000))
        time.sleep(0.02)
    return index


def fail_on_two(index):
    if index == 2:
        raise ValueError("unreadable header")
    return index


def test_dashboard_is_named_once_and_answers(capsys):
    pytest.importorskip("bokeh")
    close_clusters()
    lines = []
    stream = LastLine(lines.append)
    map_scans(abs, range(4), pool=TWO, label="counting", isolate=True)
    stream.write(capsys.readouterr().err)
    (line,) = lines
    assert line.startswith("dashboard of the workers: http://127.0.0.1:")
    with urllib.request.urlopen(line.split()[-1]) as page:
        assert b"Dask" in page.read()
    map_scans(abs, range(4), pool=TWO, label="counting", isolate=True)
    assert "dashboard" not in capsys.readouterr().err


def test_results_come_in_order_from_two_processes():
    results = map_scans(late_first, range(20), pool=TWO, label="counting", isolate=True)
    assert [index for index, _ in results] == list(range(20))
    assert len({pid for _, pid in results}) == 2
    assert os.getpid() not in {pid for _, pid in results}


@pytest.mark.parametrize(
    ("count", "settings", "here"),
    [
        (3, {"lost": lost}, True),
        (12, {"lost": lost, "chunksize": 4}, True),
        (13, {"lost": lost, "chunksize": 4}, False),
        (13, {}, True),
        (1, {"isolate": True}, False),
    ],
)
def test_few_or_brief_items_are_done_in_this_process(count, settings, here):
    results = map_scans(late_first, range(count), pool=TWO, label="counting", **settings)
    assert [index for index, _ in results] == list(range(count))
    assert ({pid for _, pid in results} == {os.getpid()}) == here


@pytest.mark.parametrize(("function", "here"), [(late_first, 2), (slow_first, 10)])
def test_workers_take_over_what_would_take_long(function, here, monkeypatch):
    monkeypatch.setattr(mapping, "WORTH_SECONDS", 1.0)
    results = map_scans(function, range(10), pool=TWO, label="counting")
    assert [index for index, _ in results] == list(range(10))
    assert [pid == os.getpid() for _, pid in results] == [True] * here + [False] * (10 - here)


def test_no_items():
    assert map_scans(late_first, [], pool=Pool(), label="nothing") == []


def test_workers_never_change_a_result():
    alone = map_scans(matrix_product, range(4), pool=HERE, label="products")
    others = map_scans(matrix_product, range(4), pool=TWO, label="products", isolate=True)
    assert all(np.array_equal(*pair) for pair in zip(alone, others, strict=True))
    assert all(product.flags.writeable for product in others)


def test_one_thread_everywhere_and_only_while_mapping():
    import torch

    before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    assert map_scans(threads, range(2), pool=HERE, label="threads") == [1, 1]
    assert map_scans(threads, range(2), pool=TWO, label="threads", isolate=True) == [1, 1]
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == before


@pytest.mark.parametrize("patience", ["15s", pytest.param("200ms", marks=pytest.mark.studies)])
def test_killed_worker_costs_a_retry(tmp_path, patience):
    """Also where Dask gives up on a worker before it has restarted."""
    if patience != "15s":
        close_clusters()
    with dask.config.set({"distributed.deploy.lost-worker-timeout": patience}):
        items = [(index, tmp_path) for index in range(10)]
        assert map_scans(die_once, items, pool=TWO, label="reading", isolate=True) == list(range(10))
        processes = map_scans(late_first, range(40), pool=TWO, label="counting", isolate=True)
    tries = {int(path.name): len(path.read_text().splitlines()) for path in tmp_path.iterdir()}
    assert min(tries[3], tries[7]) >= 2
    assert sum(tries.values()) <= 10 + 2 * 2, "a worker takes at most one result that was not fetched with it"
    assert len({pid for _, pid in processes}) == 2


def test_item_that_crashes_every_worker_is_lost_alone():
    found = map_scans(crash_on_three, range(8), pool=TWO, label="reading", lost=lost)
    assert found == [0, 1, 2, ("lost", 3, "its worker process died 2 times"), 4, 5, 6, 7]
    with pytest.raises(StudyError, match="reading: 3 is lost: its worker process died") as caught:
        map_scans(crash_on_three, [3], pool=TWO, label="reading", isolate=True)
    assert "exec.workers=1" in str(caught.value) and "finished is kept" in str(caught.value)


@pytest.mark.studies
def test_item_that_crashes_in_a_chunk_is_lost_alone():
    pool = Pool(workers=2, retries=0)
    found = map_scans(crash_on_300, range(600), pool=pool, label="reading", lost=lost, chunksize=64)
    assert [index for index in range(600) if found[index] != index] == [300]
    assert found[300] == ("lost", 300, "its worker process died")


@pytest.mark.parametrize("pool", [HERE, TWO], ids=["here", "workers"])
def test_error_keeps_its_type_and_names_the_item(pool):
    with pytest.raises(ValueError, match="unreadable header") as caught:
        map_scans(fail_on_two, range(5), pool=pool, label="reading", isolate=pool is TWO)
    assert "while reading: 2" in caught.value.__notes__


@pytest.mark.parametrize(
    ("function", "limit", "reason"),
    [
        (hang_on_one, {"scan_timeout_s": 4}, "it took longer than exec.scan_timeout_s, 4 seconds"),
        pytest.param(
            grow_on_one,
            {"memory_mb": 700},
            "it needs more memory than a worker may take; its worker process died",
            marks=pytest.mark.studies,
        ),
    ],
)
def test_limit_costs_only_the_item_that_breaks_it(function, limit, reason):
    pool = Pool(workers=2, retries=0, **limit)
    found = map_scans(function, range(6), pool=pool, label="reading", lost=lost)
    assert found == [0, ("lost", 1, reason), 2, 3, 4, 5]


SLOW = """
import os, sys, time
from pathlib import Path
from adlib.parallel.mapping import map_scans
from adlib.study.exec_params import Pool

def slow(index):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    map_scans(slow, range(10), pool=Pool(workers=2), label="sleeping", isolate=True)
"""


@pytest.mark.parametrize(
    ("kind", "everyone"),
    [
        (signal.SIGKILL, False),
        pytest.param(signal.SIGINT, False, marks=pytest.mark.studies),
        pytest.param(signal.SIGINT, True, marks=pytest.mark.studies),
    ],
)
def test_workers_end_with_the_parent(tmp_path, kind, everyone):
    """A terminal sends Ctrl-C to everyone in the foreground, a notebook only to the parent."""
    script, started = tmp_path / "slow.py", tmp_path / "started"
    script.write_text(SLOW)
    started.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        parent = subprocess.Popen(
            [sys.executable, script, started], env=environment, stderr=log, start_new_session=True
        )
    assert soon(lambda: len(list(started.iterdir())) == 2, seconds=60), (tmp_path / "log").read_text()
    (os.killpg if everyone else os.kill)(parent.pid, kind)
    assert parent.wait(timeout=30) != 0
    assert soon(lambda: not any(alive(int(path.name)) for path in started.iterdir()), seconds=30)


def test_unguarded_script_is_refused(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from adlib.parallel.mapping import map_scans\nfrom adlib.study.exec_params import Pool\n"
        "map_scans(abs, range(9), pool=Pool(workers=2), label='x', isolate=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode and "keep what calls adlib under `if __name__ ==" in ended.stderr.splitlines()[-1]
