"""Train on one or several devices: device and precision, and the processes of one training or of several at a time.

``python -m adlib.training.devices --params FILE`` joins, on every computer but the first, the training that step 03 of
``run_all.py`` begins on the first with the same params.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from adlib.parallel.threads import THREAD_VARIABLES, keep_memory
from adlib.study.params import StudyParams, dump_params, load_params
from adlib.study.records import StudyError, write_text
from adlib.training.recipe import Recipe, importable_name

MODULE, JOB, TRAININGS = "adlib.training.devices", "--job", "--trainings"
KEPT_LINES = 12
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG, linux/prctl.h


def _pick_device(name: str) -> torch.device:
    """The device to train on."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def takes_bf16(precision: str, device: torch.device) -> bool:
    """Whether the forward pass runs in bfloat16.

    A processor without such instructions takes about twenty times as long in bfloat16 as in float32.

    Parameters
    ----------
    precision : str
        As ``train.precision``; ``auto`` takes bfloat16 where the device need not emulate it.
    device : torch.device

    Returns
    -------
    bool
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def is_worker() -> bool:
    """Whether this process is one of several that torchrun started to train together."""
    return torch.distributed.is_torchelastic_launched()


def make_fabric(params: StudyParams) -> Fabric:
    """Lightning Fabric on the study's device: one process or, in a process of torchrun, one of several.

    Parameters
    ----------
    params : StudyParams
        ``exec`` and ``train.precision`` count.

    Returns
    -------
    Fabric
        Launched.
    """
    device = _pick_device(params.exec.device)
    together = {}
    if is_worker():
        together = {"strategy": DDPStrategy(broadcast_buffers=False), "num_nodes": params.exec.nodes}
    if device.type == "cpu":
        keep_memory()
    precision = "bf16-mixed" if takes_bf16(params.train.precision, device) else "32-true"
    devices = params.exec.devices if is_worker() else 1
    fabric = Fabric(accelerator=device.type, devices=devices, precision=precision, **together)
    fabric.launch()
    return fabric


def launch(params: StudyParams, recipe: Recipe) -> None:
    """Train a study in one process per device under torchrun, and print what it prints.

    Parameters
    ----------
    params : StudyParams
        ``exec.devices``, ``exec.nodes`` and ``exec.rendezvous`` set the number of processes and where they meet.
    recipe : Recipe

    Raises
    ------
    StudyError
        If a part of the recipe cannot be imported by another process, or a process fails or is killed; torchrun then
        ends the others. Finished epochs are not lost.
    """
    parts = [f"{name}={_shared(name, part, params)}" for name, part in recipe.changed().items()]
    job = [*command(params), JOB, _write_job(params), *parts]
    _run([job], {"PYTHONUNBUFFERED": "1"}, params.exec.devices * params.exec.nodes)


def side_by_side(params: StudyParams, recipe: Recipe, pending: int) -> int:
    """Number of trainings at a time, each in a process with its share of the cores.

    The layers of a ResNet50 on small slices are too small for several cores: two trainings of one core each take
    little more than half of the time that they take one after the other on both cores.

    Parameters
    ----------
    params : StudyParams
        ``exec.trainings`` counts, on a processor alone.
    recipe : Recipe
    pending : int
        Trainings that are not finished.

    Returns
    -------
    int
        1 where a part of the recipe cannot be imported by another process.
    """
    alone = params.exec.devices * params.exec.nodes > 1 or _pick_device(params.exec.device).type != "cpu"
    if alone or not all(map(importable_name, recipe.changed().values())):
        return 1
    return max(1, min(params.exec.trainings or torch.get_num_threads(), pending))


def launch_side_by_side(
    params: StudyParams, recipe: Recipe, names: list[str], processes: int, on_line: Callable[[], None]
) -> None:
    """Train several networks at a time, and print what they print.

    Parameters
    ----------
    params : StudyParams
    recipe : Recipe
        All parts can be imported.
    names : list of str
        Of the trainings, see `adlib.training.runs.train_named`.
    processes : int
        From `side_by_side`.
    on_line : callable
        Called after every line that a process prints.

    Raises
    ------
    StudyError
        If a process fails or is killed; the others then end. Finished epochs are not lost.
    """
    parts = [f"{name}={importable_name(part)}" for name, part in recipe.changed().items()]
    settings = params.exec.model_copy(update={"trainings": 1})
    job = [sys.executable, "-m", MODULE, JOB, _write_job(params.model_copy(update={"exec": settings})), *parts]
    threads = str(max(1, torch.get_num_threads() // processes))
    commands = [[*job, TRAININGS, *names[k::processes]] for k in range(processes)]
    whole_lines = {"PYTHONUNBUFFERED": ""}  # so that those of several processes are not mixed
    _run(commands, dict.fromkeys(THREAD_VARIABLES, threads) | whole_lines, processes, on_line)


def _write_job(params: StudyParams) -> str:
    path = params.folder / "training" / "job.yaml"
    write_text(dump_params(params), path)
    return str(path)


def _run(
    commands: list[list[str]], environment: dict[str, str], count: int, on_line: Callable[[], None] | None = None
) -> None:
    """Run commands at once, print what they print, and end all as soon as one fails."""
    reading, writing = os.pipe()
    last: deque[str] = deque(maxlen=KEPT_LINES)
    processes = [
        subprocess.Popen(
            line, stdout=writing, stderr=subprocess.STDOUT, env=os.environ | environment, preexec_fn=_end_with_parent
        )
        for line in commands
    ]
    os.close(writing)
    failed = 0
    try:
        with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                last.append(line.rstrip())
                print(line, end="", flush=True)
                if on_line is not None:
                    on_line()
                if failed := _failed(processes):
                    break
            else:
                codes = [process.wait() for process in processes]
                failed = next(filter(None, codes), 0)
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    if failed:
        raise StudyError(
            f"the training on {count} processes ended with code {failed}: one of them failed or was killed, its last "
            "lines are below. Finished epochs are kept; the same command goes on from there.\n" + "\n".join(last)
        )


def _failed(processes: list[subprocess.Popen[bytes]]) -> int:
    return next((process.returncode for process in processes if process.poll()), 0)


def _shared(name: str, part: Callable[..., Any], params: StudyParams) -> str:
    found = importable_name(part)
    if found is None:
        raise StudyError(
            f"{name} is {part.__qualname__}, defined in the notebook, where the {params.exec.devices} processes of "
            "exec.devices cannot find it; put it into a .py file beside run_all.py and import it, or set exec.devices "
            "and exec.nodes to 1"
        )
    if params.exec.nodes > 1:
        raise StudyError(f"{name} is {found}; several computers (exec.nodes) train with the package's own recipe only")
    return found


def command(params: StudyParams) -> list[str]:
    """The torchrun command, without the arguments of the job.

    Parameters
    ----------
    params : StudyParams
        ``exec.devices``, ``exec.nodes`` and ``exec.rendezvous`` count.

    Returns
    -------
    list of str

    Raises
    ------
    StudyError
        If there are several nodes and no rendezvous.
    """
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={params.exec.devices}"]
    if params.exec.nodes == 1:
        return [*run, "--standalone", "-m", MODULE]
    if not params.exec.rendezvous:
        raise StudyError("exec.nodes is over 1: set exec.rendezvous to host:port of the first node on every node")
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={params.exec.rendezvous}", f"--rdzv-id={params.study}"]
    return [*run, f"--nnodes={params.exec.nodes}", *meeting, "-m", MODULE]


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    """Join a training on a further computer; with ``--job``, be one process of a training or of several.

    Parameters
    ----------
    arguments : list of str, optional
        Of the command line, by default those of this process.

    Returns
    -------
    int
        Exit status: 1 where the training failed.
    """
    from adlib.training.runs import train_named, train_study

    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--params", help="of the study, as for run_all.py on the first computer")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="the same, too")
    parser.add_argument(JOB, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument(TRAININGS, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job:
        path, *parts = options.job
        pairs = (part.split("=", 1) for part in parts)
        named = {name: resolve_name(where) for name, where in pairs}
        if options.trainings:
            train_named(load_params(path), options.trainings, **named)
        else:
            train_study(load_params(path), **named)
        return 0
    try:
        params = load_params(options.params or parser.error("--params is required"), tuple(options.set))
        if params.exec.nodes == 1:
            raise StudyError("exec.nodes is 1: there is no training of several computers to join")
        launch(params, Recipe())
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
