"""Two hosts made of network namespaces on this computer, with a Dask worker on each; needs root and iproute2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adlib.parallel.threads import MEMORY_VARIABLES

ROOT = Path(__file__).resolve().parents[1]
HOSTS = {"adlib-a": "10.77.0.1", "adlib-b": "10.77.0.2"}
FIRST, SECOND = HOSTS
PORT = 8786
SCHEDULER = f"tcp://{HOSTS[FIRST]}:{PORT}"
START_SECONDS = 10


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def inside(host: str) -> tuple[str, ...]:
    """What stands before a command to have it run on a host."""
    return ("ip", "netns", "exec", host)


def cut_off(host: str) -> None:
    """Take a host's network away."""
    run("ip", "-n", host, "link", "set", "eth", "down")


@contextmanager
def two_hosts() -> Iterator[None]:
    """Two namespaces with a cable between them, a scheduler on the first and a worker on each."""
    try:
        for name in HOSTS:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "link", "add", "eth", "netns", FIRST, "type", "veth", "peer", "name", "eth", "netns", SECOND)
        for name, address in HOSTS.items():
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth")
            run("ip", "-n", name, "link", "set", "eth", "up")
        with _cluster():
            yield
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], check=False)


@contextmanager
def _cluster() -> Iterator[None]:
    dask = [sys.executable, "-m", "dask"]
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"} | MEMORY_VARIABLES
    lines = [[*inside(FIRST), *dask, "scheduler", "--host", HOSTS[FIRST], "--port", str(PORT), "--no-dashboard"]]
    lines += [[*inside(name), *dask, "worker", SCHEDULER, "--nthreads", "1", "--no-dashboard"] for name in HOSTS]
    started = []
    try:
        for line in lines:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            started.append(subprocess.Popen(line, env=own, cwd=ROOT, start_new_session=True, **quiet))
        time.sleep(START_SECONDS)
        yield
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
