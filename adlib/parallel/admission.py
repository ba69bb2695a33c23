"""Which workers of other computers may be given work: those with this process's code, packages and files."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Client

from adlib.study.exec_params import Pool
from adlib.study.records import StudyError


def admitted(client: Client, new: set[str], pool: Pool) -> set[str]:
    """Those of the new workers that answered, all of them as this process is.

    Parameters
    ----------
    client : Client
    new : set of str
        Addresses of workers that were not asked before.
    pool : Pool
        Its folder and data must be there for each of them.

    Raises
    ------
    StudyError
        If a worker has other code, another Python or other packages, or does not see the same files.
    """
    _same_python(client, new)
    with _marker(pool.folder) as marker:
        shared = {pool.folder.resolve(): marker, Path.cwd(): Path.cwd()} | _witness(pool.data)
        state = _state_of(shared)
        answers = client.run(state, workers=list(new), on_error="return")
        here = state()
        del here["unseen"]
    for address, there in answers.items():
        if isinstance(there, Exception):
            continue
        if unseen := there.pop("unseen"):
            raise StudyError(
                f"worker {address} does not see {' and '.join(unseen)} as this process does; "
                "put study, data and working folder on a file system that all computers share, under one path"
            )
        for name, value in here.items():
            if there[name] != value:
                raise StudyError(
                    f"worker {address} has {name} {there[name]}, this process has {value}; results would depend on "
                    "who computes them. Start the workers from this very installation, and again after each change"
                )
    return {address for address, there in answers.items() if not isinstance(there, Exception)}


def _same_python(client: Client, new: set[str]) -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    for address, facts in client.get_versions()["workers"].items():
        there = ".".join(str(facts["host"]["python"]).split(".")[:2]) if address in new else here
        if there != here:
            raise StudyError(
                f"worker {address} runs Python {there}, this process {here}; start it with this very installation"
            )


def _witness(data: Path | None) -> dict[Path, Path]:
    """A file or folder of the images: a node without the disk may well have an empty folder where it belongs."""
    found = next(data.absolute().iterdir(), None) if data is not None and data.is_dir() else None
    return {data.absolute(): found} if found else {}


def _state_of(shared: dict[Path, Path]) -> Callable[[], dict[str, Any]]:
    """A function that travels as its own code, since a worker's adlib may be another one."""

    def state() -> dict[str, Any]:
        import hashlib
        from importlib import metadata
        from importlib.util import find_spec
        from pathlib import Path

        found: dict[str, Any] = {"unseen": [str(path) for path, inside in shared.items() if not inside.exists()]}
        for name in ("numpy", "scipy", "nibabel", "nilearn", "SimpleITK", "torch"):
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = "not at all"
        package = find_spec("adlib")
        if package is None:
            return found | {"adlib code": "not at all"}
        root = Path(package.origin).parent
        code = hashlib.sha256()
        for file in sorted(root.rglob("*.py")):
            code.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
        return found | {"adlib code": code.hexdigest()[:12]}

    return state


@contextmanager
def _marker(folder: Path) -> Iterator[Path]:
    """A file for a moment, by which others show that they see the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".seen-", dir=folder.resolve())
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
