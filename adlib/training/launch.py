"""Start a training on several devices or computers, and say in words when one of its processes is lost.

``python -m adlib.training.launch --params FILE`` joins, on every computer but the first, the training that step 03 of
``run_all.py`` begins on the first with the same params.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from collections import deque

from adlib.study.digests import code_digest
from adlib.study.params import StudyParams, dump_params, load_params
from adlib.study.records import StudyError, write_text

JOB, CODE = "adlib.training.worker_process", "adlib.training.runs"
KEPT_LINES = 12
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG, linux/prctl.h


def launch(params: StudyParams, code: str) -> None:
    """Run `adlib.training.runs.train_study` in one process per device under torchrun, and print what it prints.

    Parameters
    ----------
    params : StudyParams
        ``exec.devices``, ``exec.nodes`` and ``exec.rendezvous`` say how many processes, and where they meet.
    code : str
        Digest of the training code.

    Raises
    ------
    StudyError
        If a process fails or is killed; torchrun then ends the others. Finished epochs are kept.
    """
    path = params.folder / "training" / "job.yaml"
    write_text(dump_params(params), path)
    last: deque[str] = deque(maxlen=KEPT_LINES)
    process = subprocess.Popen(
        [*command(params), str(path), code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"}, preexec_fn=_end_with_parent,
    )  # fmt: skip
    try:
        for line in process.stdout:
            last.append(line.rstrip())
            print(line, end="", flush=True)
    except BaseException:
        process.terminate()
        raise
    finally:
        process.wait()
    if process.returncode:
        raise StudyError(
            f"the training on {params.exec.devices * params.exec.nodes} processes ended with code "
            f"{process.returncode}: one of them failed or was killed, its last words are above. Finished epochs are "
            "kept; the same command goes on from there.\n" + "\n".join(last)
        )


def command(params: StudyParams) -> list[str]:
    """The torchrun command, without the arguments of the job."""
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={params.exec.devices}"]
    if params.exec.nodes == 1:
        return [*run, "--standalone", "-m", JOB]
    if not params.exec.rendezvous:
        raise StudyError("exec.nodes is over 1: set exec.rendezvous to host:port of the first node on every node")
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={params.exec.rendezvous}", f"--rdzv-id={params.study}"]
    return [*run, f"--nnodes={params.exec.nodes}", *meeting, "-m", JOB]


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    """Join a training on a further computer; 1 where it failed."""
    parser = argparse.ArgumentParser(prog="python -m adlib.training.launch", description=__doc__)
    parser.add_argument("--params", required=True, help="of the study, as for run_all.py on the first computer")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="the same, too")
    options = parser.parse_args(arguments)
    try:
        params = load_params(options.params, tuple(options.set))
        if params.exec.nodes == 1:
            raise StudyError("exec.nodes is 1: there is no training of several computers to join")
        launch(params, code_digest(CODE))
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
