"""Where and how fast a study runs: never what comes out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from adlib.study.source_params import Section

_ADDRESS = re.compile(r"(tcp|tls)://([\w.-]+|\[[\da-fA-F:.]+\]):\d{1,5}")
_LEAST_MEMORY_MB = 256


class JobQueueParams(Section):
    """Workers as jobs of a batch system, by dask-jobqueue."""

    kind: Literal["", "slurm", "pbs"] = Field(
        "", description="Batch system of the workers, slurm or pbs; empty disables it."
    )
    queue: str = Field("", description="Queue or partition; empty for the default.")
    jobs: int = Field(1, ge=1, description="Number of jobs.")
    cores: int = Field(1, ge=1, description="Cores per job, one worker each.")
    memory: str = Field("4GB", pattern=r"^\d+(\.\d+)?\s*[kMGT]i?B$", description="Memory per job, such as 16GB.")
    walltime: str = Field("01:00:00", pattern=r"^\d+:\d\d:\d\d$", description="Time limit per job, H:MM:SS.")
    interface: str = Field("", description="Network interface of the nodes, such as ib0.")
    directives: tuple[str, ...] = Field(
        (), description="Additional directives of the batch system, such as --account=lab."
    )


class ExecParams(Section):
    """Where and how fast it runs; never changes a result and is no part of any key."""

    outputs: Path = Field(Path("outputs"), description="Folder of the results, <outputs>/<study>.")
    workers: int = Field(0, ge=0, description="Worker processes on this computer; 0 for one per core, 1 for none.")
    scheduler: str = Field(
        "",
        description="Address of a running Dask scheduler, tcp://host:port or tls://host:port; empty for this computer.",
    )
    jobqueue: JobQueueParams = Field(JobQueueParams(), description="Workers as jobs of a batch system.")
    scan_timeout_s: int = Field(0, ge=0, description="Timeout per scan, seconds; 0 disables it.")
    memory_mb: int = Field(0, ge=0, description="Memory limit per worker, MiB; 0 disables it.")
    retries: int = Field(2, ge=0, description="Retries after a worker process dies on a scan.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Device of the network.")
    devices: int = Field(1, ge=1, description="Training processes per node, one per device.")
    trainings: int = Field(
        1, ge=0, description="Trainings at a time on a processor, which share its cores; 0 for one per core."
    )
    nodes: int = Field(1, ge=1, description="Number of computers of a training.")
    rendezvous: str = Field("", description="host:port of the first node of a training on several computers.")
    publish: bool = Field(False, description="Publication of the figures in figures/ after the run.")

    @field_validator("scheduler")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if value and not _ADDRESS.fullmatch(value):
            raise ValueError("expected tcp://host:port or tls://host:port, as `dask scheduler` prints it, or nothing")
        return value

    @field_validator("memory_mb")
    @classmethod
    def _holds_a_worker(cls, value: int) -> int:
        if 0 < value < _LEAST_MEMORY_MB:
            raise ValueError(f"a worker alone takes up to {_LEAST_MEMORY_MB} MiB; set 0 for no limit, or more")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> ExecParams:
        if self.scheduler and self.jobqueue.kind:
            raise ValueError("exec.scheduler and exec.jobqueue.kind name two places to work; leave one empty")
        if self.memory_mb and (self.scheduler or self.jobqueue.kind):
            raise ValueError(
                "exec.memory_mb limits workers of this computer; elsewhere set exec.jobqueue.memory, "
                "or start `dask worker` with --memory-limit"
            )
        return self

    @property
    def elsewhere(self) -> bool:
        """Whether the workers are not processes of this computer."""
        return bool(self.scheduler or self.jobqueue.kind)

    @property
    def limited(self) -> bool:
        """Whether a scan may be ended, so that it cannot be done in this process."""
        return bool(self.scan_timeout_s or self.memory_mb)


class Pool(ExecParams):
    """Which processes do per-scan work, and what they may take; made by `params.StudyParams.pool`.

    Attributes
    ----------
    data : tuple of path
        Folders of the images, which the workers of other computers must see too.
    """

    data: tuple[Path, ...] = ()


EVERY_CORE = Pool()
HERE = Pool(workers=1)
