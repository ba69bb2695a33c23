"""Public functions and methods document their parameters in NumPy style."""

import ast
from pathlib import Path

import pytest
from numpydoc.docscrape import NumpyDocString

PACKAGE = Path(__file__).parents[2] / "adlib"


def public_functions(path):
    """Name, argument names and docstring of each public function and method of a module."""
    for scope in ast.walk(ast.parse(path.read_text())):
        if not isinstance(scope, ast.Module | ast.ClassDef) or getattr(scope, "name", "").startswith("_"):
            continue
        for node in scope.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = [*node.args.args, node.args.vararg, *node.args.kwonlyargs, node.args.kwarg]
                names = [argument.arg for argument in arguments if argument]
                documented = [name for name in names if name not in ("self", "cls", "_")]
                yield node.name, documented, ast.get_docstring(node) or ""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_public_functions_document_their_parameters(path):
    wrong = {}
    for function, names, docstring in public_functions(path):
        parsed = NumpyDocString(docstring)
        documented = [name.strip("* ") for item in parsed["Parameters"] for name in item.name.split(",")]
        if not docstring or documented != names:
            wrong[function] = f"documents {documented}, takes {names}"
    assert not wrong
