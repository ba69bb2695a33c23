"""Digests of the code that results depend on: of a module, and of all modules of adlib that it imports."""

import ast
import json
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path

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
BOOKKEEPING = tuple(  # decide when and where code runs, not what it computes
    f"{PACKAGE}.{name}"
    for name in (
        "parallel.cluster",
        "parallel.dispatch",
        "parallel.mapping",
        "study.code_digest",
        "study.exec_params",
        "study.lock",
        "study.steps",
    )
)


def code_digest(module: str) -> str:
    """SHA-256 of a module of adlib, of all modules of adlib that it imports, and of the packages' versions.

    Docstrings, comments and layout do not count, nor do the modules in `BOOKKEEPING`. Values of parameters enter a key
    by themselves.

    Parameters
    ----------
    module : str
        Dotted name.

    Raises
    ------
    StudyError
        If there is no such module.
    """
    return digest([module_digests([module]), package_versions()])


def module_digests(names: Iterable[str], root: Path = ROOT) -> dict[str, str]:
    """Digest of each module and of every module of adlib that it needs.

    Parameters
    ----------
    names : iterable of str
        Dotted names of modules.
    root : path
        Folder that holds ``adlib/``.

    Returns
    -------
    dict of str to str
        By module name; a yaml file of a module's texts counts with it.

    Raises
    ------
    StudyError
        If there is no such module, or it is not valid Python.
    """
    found: dict[str, str] = {}
    queue = list(names)
    while queue:
        name = queue.pop()
        if name not in found and name not in BOOKKEEPING:
            path = _file(name, root)
            if path is None:
                raise StudyError(f"{name} is no module under {root / PACKAGE}; check the name")
            code, imported = _module(path, path.stat().st_mtime_ns, name, root)
            texts = path.with_suffix(".yaml")
            found[name] = digest([code, file_digest(texts)]) if texts.is_file() else code
            queue += imported
    return dict(sorted(found.items()))


def notebook_digests(notebook: Path, root: Path = ROOT) -> tuple[str, dict[str, str]]:
    """Digest of a notebook's code cells, and of the modules of adlib that they need.

    Parameters
    ----------
    notebook : path
    root : path
        Folder that holds ``adlib/``.

    Returns
    -------
    cells : str
        SHA-256 of the code cells.
    modules : dict of str to str
        Digest by module name.

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
    return _digest(tree), module_digests(_imported(tree, "", root), root)


def package_versions(names: Iterable[str] = NUMERIC_PACKAGES) -> dict[str, str]:
    """Installed version of each package, and of Python.

    Parameters
    ----------
    names : iterable of str
        Names of distributions.

    Returns
    -------
    dict of str to str
        Version by name.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"python": python} | {name: metadata.version(name) for name in names}


def _file(name: str, root: Path) -> Path | None:
    place = root.joinpath(*name.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@lru_cache(maxsize=1024)
def _module(path: Path, _changed: int, name: str, root: Path) -> tuple[str, tuple[str, ...]]:
    """Digest of a module, and the modules of adlib that it imports, also within functions."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise StudyError(f"{path} is not valid Python: {error}") from None
    inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return _digest(tree), tuple(_imported(tree, inside, root))


def _imported(tree: ast.AST, package: str, root: Path) -> Iterator[str]:
    """Modules of adlib that code in a package imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            if base.split(".")[0] == PACKAGE:
                yield base
                yield from (name for alias in node.names if _file(name := f"{base}.{alias.name}", root))


def _digest(tree: ast.Module) -> str:
    """Digest of code without its docstrings and those of its attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    return digest(ast.dump(tree))


def _is_text(part: ast.stmt) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)
