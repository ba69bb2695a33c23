"""map_scans: order, one thread, the same results with any number of workers, and honest failures."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from adlib.compute import map_scans
from adlib.records import StudyError

ROOT = Path(__file__).parents[1]


def late_first(index):
    time.sleep(0.3 if index == 0 else 0.0)
    return index, os.getpid()


def matrix_product(seed):
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((2, 300, 300), dtype=np.float32)
    return (left @ right).tobytes()


def threads(_):
    import SimpleITK
    import torch

    pools = [pool["num_threads"] for pool in threadpool_info()]
    return max([*pools, torch.get_num_threads(), SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()])


def die_on_three(index):
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return index


def fail_on_two(index):
    if index == 2:
        raise ValueError("unreadable header")
    return index


def test_results_come_in_input_order_from_several_processes():
    results = map_scans(late_first, range(8), workers=2, label="counting")
    assert [index for index, _ in results] == list(range(8))
    assert len({pid for _, pid in results}) == 2
    assert os.getpid() not in {pid for _, pid in results}


def test_workers_never_change_a_result():
    alone = map_scans(matrix_product, range(4), workers=1, label="products")
    assert alone == map_scans(matrix_product, range(4), workers=2, label="products")


def test_one_thread_everywhere_and_only_while_mapping():
    import torch

    before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    assert map_scans(threads, range(2), workers=1, label="threads") == [1, 1]
    assert map_scans(threads, range(2), workers=2, label="threads") == [1, 1]
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == before


def test_no_items():
    assert map_scans(late_first, [], workers=0, label="nothing") == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_keeps_its_type_and_names_the_item(workers):
    with pytest.raises(ValueError, match="unreadable header") as caught:
        map_scans(fail_on_two, range(5), workers=workers, label="reading")
    assert "while reading: 2" in caught.value.__notes__


def test_a_dead_worker_is_reported_with_its_suspects():
    with pytest.raises(StudyError, match="worker process died") as caught:
        map_scans(die_on_three, range(40), workers=2, label="reading")
    suspects = [int(line) for line in str(caught.value).splitlines() if line.strip().isdigit()]
    assert 3 in suspects and len(suspects) <= 2


SLOW = """
import os, sys, time
from pathlib import Path
from adlib.compute import map_scans

def slow(index):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    map_scans(slow, range(10), workers=2, label="sleeping")
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_soon_after_the_parent_is_killed_or_interrupted(tmp_path, kind):
    script, started = tmp_path / "slow.py", tmp_path / "started"
    script.write_text(SLOW)
    started.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script, started], env=environment, stderr=subprocess.DEVNULL)
    assert _soon(lambda: len(list(started.iterdir())) == 2, seconds=20)
    parent.send_signal(kind)
    assert parent.wait(timeout=10) != 0
    assert _soon(lambda: not any(_alive(int(path.name)) for path in started.iterdir()), seconds=10)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state != "Z"
    except FileNotFoundError:
        return False


def _soon(condition, *, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()
