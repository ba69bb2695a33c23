"""Digests of the code that results depend on, so that only a change of what is computed makes it run again."""

import ast
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
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
BOOKKEEPING = tuple(  # decides when and where code runs or records it, not what it computes
    f"{PACKAGE}.{name}"
    for name in (
        "parallel",
        "study.code_digest",
        "study.exec_params",
        "study.lock",
        "study.steps",
        "training.devices.command",
        "training.devices.launch",
        "training.recipe._code",
        "training.recipe.describe",
        "training.recipe.write_network",
    )
)
_COUNTED = f"{PACKAGE}.parallel.threads"  # the order of sums
_PROSE = re.compile(r"[A-Za-z',.;:()-]+( [A-Za-z',.;:()-]+){3,}")  # four words: a message, not a name or a query
_TEXTS = ("caption", "description", "help", "title")  # arguments that hold text for readers
_CODE_TEXTS = ("eval", "query")  # methods whose text is code
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def code_digest(*parts: str | Callable[..., Any]) -> str:
    """SHA-256 of the code that computes the results of functions of adlib, and of the packages' versions.

    The code is that of each function, of all functions, classes and constants of adlib that it names, of those that
    these name, and so on. Docstrings, comments, layout, messages of errors, printed lines and other sentences do not
    count, nor does what `BOOKKEEPING` lists. Annotations count for the classes that they name, and values of
    parameters enter a key by themselves.

    Parameters
    ----------
    *parts : str or callable
        Functions, or dotted names of functions or modules, such as ``adlib.training.runs.train_study``.

    Raises
    ------
    StudyError
        If a name does not exist.
    """
    names = [part if isinstance(part, str) else f"{part.__module__}.{part.__qualname__}" for part in parts]
    return digest([module_digests(names), package_versions()])


def module_digests(names: Iterable[str], root: Path = ROOT, *, texts: bool = False) -> dict[str, str]:
    """Digest of the part of each module that the named functions or modules need.

    Parameters
    ----------
    names : iterable of str
    root : path
        Folder that holds ``adlib/``.
    texts : bool
        Whether sentences for readers count too, also those in a yaml file beside a module; messages of errors never do.

    Returns
    -------
    dict of str to str
        By module name.
    """
    _module_file.cache_clear()
    needed: dict[str, set[str]] = {}
    queue = [_resolved(name, root, texts) for name in names]
    while queue:
        module, name = queue.pop()
        if (f"{module}.{name}".startswith(BOOKKEEPING) and module != _COUNTED) or name in needed.get(module, ()):
            continue
        for parent in _parents(module):  # importing a module runs what stands at its top
            if parent not in needed:
                needed[parent] = {""}
                queue += _parse(parent, root, texts).part("")[1]
        needed[module].add(name)
        queue += _parse(module, root, texts).part(name)[1]
    return {
        module: digest([(name, _parse(module, root, texts).part(name)[0]) for name in sorted(used)])
        for module, used in sorted(needed.items())
    } | {name: file_digest(path) for name, path in _text_files(needed, root) if texts}


def notebook_digests(notebook: Path, root: Path = ROOT) -> tuple[str, dict[str, str]]:
    """Digest of a notebook's code cells, and of the code of adlib that they use, by module.

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
    _module_file.cache_clear()
    module = _Module("", tree, root, is_package=False, texts=True)
    stripped = _Strip(texts=True).visit(tree)
    used = sorted(set(module.used(stripped)))
    cells = _dumped([stripped])
    names = [f"{module}.{name}".removesuffix(".*") for module, name in used]
    return cells, module_digests(names, root, texts=True)


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


@dataclass
class _Module:
    """The top level of a module: what each name is, and what it uses."""

    name: str
    tree: ast.Module
    root: Path
    is_package: bool
    texts: bool
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)  # local name to dotted name

    def __post_init__(self) -> None:
        self.definitions[""] = []  # statements that bind no name, run on import
        self._enter(self.tree.body)
        self._parts: dict[str, tuple[str, set[tuple[str, str]]]] = {}

    def _enter(self, body: list[ast.stmt]) -> None:
        for statement in body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.imports |= self._imported(statement)
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                continue  # a docstring
            elif isinstance(statement, ast.If | ast.Try | ast.With):
                if "__name__" not in ast.dump(statement):  # else it runs in a program alone
                    self._enter([child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)])
                    self.definitions[""].append(statement)
            else:
                for name in _bound(statement) or [""]:
                    self.definitions.setdefault(name, []).append(statement)

    def _imported(self, statement: ast.Import | ast.ImportFrom) -> dict[str, str]:
        if isinstance(statement, ast.Import):
            return {(a.asname or a.name.split(".")[0]): (a.name if a.asname else a.name.split(".")[0])
                    for a in statement.names}  # fmt: skip
        parents = self.name.split(".")
        above = parents[: len(parents) - statement.level + self.is_package] if statement.level else []
        base = ".".join([*above, *filter(None, [statement.module])])
        return {a.asname or a.name: f"{base}.{a.name}" for a in statement.names}

    def part(self, name: str) -> tuple[str, set[tuple[str, str]]]:
        """Digest of a definition, and the modules and names of adlib that it names; ``*`` means the whole module."""
        if name not in self._parts:
            if name == "*":
                parts = [self.part(each) for each in sorted(self.definitions)]
                self._parts[name] = digest([part for part, _ in parts]), {pair for _, used in parts for pair in used}
            elif name not in self.definitions:
                self._parts[name] = _dumped([]), set(_of_package(self.imports[name], self.root, self.texts))
            else:
                trees = [_Strip(self.texts).visit(statement) for statement in self.definitions[name]]
                used = {pair for tree in trees for pair in self.used(tree)}
                self._parts[name] = _dumped(trees), used  # the trees are changed by this, so the order matters
        return self._parts[name]

    def used(self, tree: ast.AST) -> Iterator[tuple[str, str]]:
        imports = dict(self.imports)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports |= self._imported(node)
        for chain in _chains(tree):
            first, *rest = chain.split(".")
            if first in imports:
                yield from _of_package(".".join([imports[first], *rest]), self.root, self.texts)
            elif first in self.definitions and self.name:
                yield self.name, first


def _parse(name: str, root: Path, texts: bool) -> _Module:
    file = _module_file(name, root)
    if file is None:
        raise StudyError(f"{name} is no module under {root / PACKAGE}; check the name")
    return _parsed(name, *file, root, texts)


@lru_cache(maxsize=512)
def _parsed(name: str, path: Path, modified: int, root: Path, texts: bool) -> _Module:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise StudyError(f"{path} is not valid Python: {error}") from None
    return _Module(name, tree, root, is_package=path.name == "__init__.py", texts=texts)


@lru_cache(maxsize=4096)  # cleared by each call from outside, since files change between calls
def _module_file(name: str, root: Path) -> tuple[Path, int] | None:
    """Path of a module and when it was last changed, in ns; None where there is no such module."""
    place = root.joinpath(*name.split("."))
    candidates = (place.with_name(place.name + ".py"), place / "__init__.py")
    path = next((path for path in candidates if path.is_file()), None)
    return (path, path.stat().st_mtime_ns) if path else None


def _text_files(modules: Iterable[str], root: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of the yaml file beside each module that has its texts in one."""
    for module in modules:
        path = root.joinpath(*module.split(".")).with_suffix(".yaml")
        if path.is_file():
            yield f"texts of {module}", path


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _of_package(dotted: str, root: Path, texts: bool) -> list[tuple[str, str]]:
    """Module and name of what a dotted name means, where it is of adlib."""
    return [_resolved(dotted, root, texts)] if dotted.split(".")[0] == PACKAGE else []


def _resolved(dotted: str, root: Path, texts: bool) -> tuple[str, str]:
    for module in reversed(_parents(dotted)):
        if _module_file(module, root):
            rest = dotted[len(module) + 1 :].split(".")[0]
            parsed = _parse(module, root, texts)
            if rest and rest not in parsed.definitions and rest not in parsed.imports:
                raise StudyError(f"{module} has no {rest}; check the name {dotted}")
            return module, rest or "*"
    raise StudyError(f"{dotted} is no module under {root / PACKAGE}; check the name")


def _bound(statement: ast.stmt) -> list[str]:
    """Names that a statement binds or changes."""
    if isinstance(statement, _Function | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign | ast.For):
        targets = [statement.target]
    else:
        return []
    names = []
    for target in targets:
        while isinstance(target, ast.Attribute | ast.Subscript | ast.Starred):
            target = target.value
        names += [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]
    return names


def _chains(tree: ast.AST) -> Iterator[str]:
    """Dotted names from outside a piece of code, as long as they go: ``scores.kappa``, ``params.train.epochs``."""
    local = _locals(tree) if isinstance(tree, _Function) else set()
    stack = list(ast.iter_child_nodes(tree))
    while stack:
        node = base = stack.pop()
        if isinstance(node, _Function):
            yield from (chain for chain in _chains(node) if chain.split(".")[0] not in local)
            continue
        rest: list[str] = []
        while isinstance(base, ast.Attribute):
            rest.insert(0, base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            stack += ast.iter_child_nodes(base)
        elif base.id not in local and isinstance(base.ctx, ast.Load):
            yield ".".join([base.id, *rest])


def _locals(function: Any) -> set[str]:
    """Names that a function binds itself: its arguments and what it assigns, but for inner functions and imports."""
    names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    stack = list(function.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if not isinstance(node, _Function | ast.Lambda | ast.comprehension):
            stack += ast.iter_child_nodes(node)
    return names


class _Strip(ast.NodeTransformer):
    """Drops docstrings, what errors say, what is printed, and, unless they count, sentences.

    Of a section of the params only its methods stay: values enter keys by themselves.
    """

    def __init__(self, texts: bool) -> None:
        self.texts = texts

    def visit_FunctionDef(self, node: Any) -> Any:
        return self._without_docstring(self.generic_visit(node))

    visit_AsyncFunctionDef = visit_Module = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        if any(isinstance(base, ast.Name) and base.id == "Section" for base in node.bases):
            functions = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            node.body = [part for part in functions if "validator" not in "".join(map(ast.dump, part.decorator_list))]
        return self._without_docstring(self.generic_visit(node))

    @staticmethod
    def _without_docstring(node: Any) -> Any:
        node.body = [part for part in node.body if not (isinstance(part, ast.Expr) and _is_text(part.value))]
        node.body = node.body or [ast.Pass()]
        return node

    def visit_Raise(self, node: ast.Raise) -> Any:
        return ast.Raise(node.exc.func if isinstance(node.exc, ast.Call) else node.exc, None)

    def visit_Expr(self, node: ast.Expr) -> Any:
        called = node.value.func if isinstance(node.value, ast.Call) else None
        return ast.Pass() if isinstance(called, ast.Name) and called.id == "print" else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute) and node.func.attr in _CODE_TEXTS:
            node.func = self.visit(node.func)
            return node
        if not self.texts:
            node.keywords = [item for item in node.keywords if item.arg not in _TEXTS or not _is_text(item.value)]
        return self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> Any:
        words = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
        return self._unless_prose(node, words)

    def visit_Constant(self, node: ast.Constant) -> Any:
        return self._unless_prose(node, node.value) if isinstance(node.value, str) else node

    def _unless_prose(self, node: Any, words: str) -> Any:
        return ast.Constant("") if not self.texts and _PROSE.search(words) else node


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _dumped(trees: Iterable[ast.AST]) -> str:
    """Digest of stripped code, which loses the annotations of its functions."""
    trees = list(trees)
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, _Function)):
        node.returns = None
        for inner in ast.walk(node):
            if isinstance(inner, ast.arg | ast.AnnAssign):
                inner.annotation = None
    return hashlib.sha256("\n".join(map(ast.dump, trees)).encode()).hexdigest()
