"""Digests of code, inputs and outputs: what decides whether a step must run again."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from adlib.study.records import StudyError, digest, file_digest

ROOT = Path(__file__).parents[2]
PACKAGE = "adlib"
NUMERIC_PACKAGES = (
    "captum",
    "dcm2niix",
    "lightning-fabric",
    "nibabel",
    "nilearn",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "pydicom",
    "scikit-learn",
    "scipy",
    "SimpleITK",
    "torch",
    "torchio",
    "torchvision",
)
BOOKKEEPING = frozenset(  # decide when and where code runs, not what it computes
    f"{PACKAGE}.{name}"
    for name in (
        "parallel.admission",
        "parallel.cluster",
        "parallel.dispatch",
        "study.digests",
        "study.exec_params",
        "study.params",
        "study.steps",
    )
)


def code_digest(*modules: str) -> str:
    """SHA-256 of the given adlib modules, of all adlib modules that they import, and of the packages' versions.

    Docstrings, comments and layout do not count, nor do the modules of `BOOKKEEPING` (parameter values enter a key
    by themselves).

    Parameters
    ----------
    *modules : str
        Dotted names, such as ``adlib.training.runs``.

    Raises
    ------
    StudyError
        If a module does not exist.
    """
    return digest([module_digests(modules), package_versions()])


def module_digests(modules: Iterable[str], root: Path = ROOT) -> dict[str, str]:
    """Digest by name of each module that the given ones need, found by following imports inside adlib."""
    for name in modules:
        if _module_file(name, root) is None:
            raise StudyError(f"{name} is no module under {root / PACKAGE}; check the name")
    found: dict[str, str] = {}
    queue = list(modules)
    while queue:
        name = queue.pop()
        path = _module_file(name, root)
        if name in found or name in BOOKKEEPING or path is None:
            continue
        found[name], imports = _parsed(name, path, path.stat().st_mtime_ns)
        queue += [part for module in imports for part in _with_parents(module)]
    return dict(sorted(found.items()))


def notebook_digests(notebook: Path, root: Path = ROOT) -> tuple[str, dict[str, str]]:
    """Digest of a notebook's code cells, and of the adlib modules that they import.

    Raises
    ------
    StudyError
        If the notebook is missing or its code is not plain Python.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    except FileNotFoundError:
        raise StudyError(f"{notebook} does not exist; fetch it again from the repository") from None
    except (SyntaxError, ValueError, KeyError) as error:
        raise StudyError(f"{notebook} is not a notebook of plain Python: {error}") from None
    modules = {part for name in _imports(tree, "", is_package=False) for part in _with_parents(name)}
    return _tree_digest(tree), module_digests([name for name in modules if _module_file(name, root)], root)


def path_digest(path: Path) -> str | None:
    """Digest of a file's bytes or, for a folder, of the names, sizes and times in it; None where nothing is."""
    if path.is_dir():
        return digest(sorted(_listing(path, path)))
    if not path.exists():
        return None
    state = path.stat()
    return _cached_file_digest(path, state.st_size, state.st_mtime_ns)


def package_versions(names: Iterable[str] = NUMERIC_PACKAGES) -> dict[str, str]:
    """Installed version of each package, and of Python."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"python": python} | {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    if not isinstance(content, dict) or not content:
        return {prefix: content}
    return {
        name: leaf
        for key, value in content.items()
        for name, leaf in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


@lru_cache(maxsize=4096)
def _cached_file_digest(path: Path, size: int, modified: int) -> str:
    return file_digest(path)


def _listing(folder: Path, top: Path) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _listing(Path(entry.path), top)
            else:
                state = entry.stat()
                yield Path(entry.path).relative_to(top).as_posix(), state.st_size, state.st_mtime_ns


@lru_cache(maxsize=512)
def _parsed(name: str, path: Path, modified: int) -> tuple[str, frozenset[str]]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise StudyError(f"{path} is not valid Python: {error}") from None
    imports = _imports(tree, name, is_package=path.name == "__init__.py")
    return _tree_digest(tree), frozenset(imports)


def _tree_digest(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _documented(node):
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _documented(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return ast.get_docstring(node, clean=False) is not None


def _imports(tree: ast.Module, module: str, *, is_package: bool) -> set[str]:
    """Names that `tree` imports and that may be modules of adlib; ``from a import b`` may mean a module ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == PACKAGE}


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parents = module.split(".")
    kept = parents[: len(parents) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _with_parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _module_file(name: str, root: Path) -> Path | None:
    place = root.joinpath(*name.split("."))
    candidates = (place.with_name(place.name + ".py"), place / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)
