"""The project's own files agree with each other: packages, pins, params, notebooks."""

import ast
import re
import runpy
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import get_args

import nbformat
import pytest
import yaml
from jinja2 import Environment, nodes
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel

from adlib.study.params import StudyParams, load_params
from adlib.study.steps import STEPS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK, TOOLS = ((ROOT / name).read_text() for name in ("requirements.lock", "requirements-dev.lock"))
CONDA_NAMES = {"pytorch-cpu": "torch"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONDA_PYTHON = {
    "python_version": "3.11",
    "python_full_version": "3.11.9",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
}


def requirements(lines):
    parsed = [Requirement(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return {
        canonicalize_name(item.name): item for item in parsed if not item.marker or item.marker.evaluate(CONDA_PYTHON)
    }


@pytest.mark.parametrize(
    ("pinned", "packages"),
    [(LOCK, PROJECT["dependencies"]), (LOCK + TOOLS, PROJECT["optional-dependencies"]["dev"])],
    ids=["study", "tools"],
)
def test_the_locks_pin_every_direct_package_within_its_bounds(pinned, packages):
    pins, wanted = requirements(pinned.splitlines()), requirements(packages)
    assert wanted
    for name, requirement in wanted.items():
        pin = str(pins[name].specifier)
        assert pin.startswith("==") and requirement.specifier.contains(pin[2:]), name


def test_the_locks_name_no_address_and_no_package_twice():
    assert not re.search(r"://|@|--", LOCK + TOOLS)
    assert not requirements(LOCK.splitlines()).keys() & requirements(TOOLS.splitlines()).keys()


def test_the_study_needs_no_tool():
    """All that a package of the study's lock requires is in that lock."""
    pins, tools = (requirements(text.splitlines()) for text in (LOCK, TOOLS))
    installed = [package for package in metadata.distributions() if canonicalize_name(package.name) in pins]
    needed = [Requirement(line) for package in installed for line in package.requires or ()]
    names = {canonicalize_name(item.name) for item in needed if not item.marker or item.marker.evaluate({"extra": ""})}
    assert installed and not names & tools.keys()


def test_environment_yml_has_every_direct_package():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, *conda, nested = content["dependencies"]
    assert content["channels"] == ["conda-forge"] and (python, pip) == ("python=3.11", "pip")
    *packages, itself = nested["pip"]
    wanted, pins = requirements(PROJECT["dependencies"]), requirements(LOCK.splitlines())
    named = {CONDA_NAMES.get(name, name): item for name, item in requirements(conda).items()}
    assert itself == "--editable ."
    assert all(str(item.specifier) == str(wanted[name].specifier) for name, item in named.items())
    pinned = {name: str(item.specifier) for name, item in requirements(packages).items()}
    assert pinned == {name: str(pins[name].specifier) for name in set(wanted) - set(named)}


def sections(model=StudyParams):
    """All params models, found from the study's fields."""
    found = {model}
    for field in model.model_fields.values():
        stack = [field.annotation]
        while stack:
            kind = stack.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= sections(kind)
            stack += get_args(kind)
    return found


FIELDS = sorted(
    (model.__name__, name)
    for model in sections()
    for name in model.model_fields
    if name not in StudyParams.model_fields
)


def test_all_params_models_are_found():
    assert {"PhantomSource", "BidsSource", "TrainParams", "ExecParams"} <= {name for name, _ in FIELDS}


@cache
def attributes_read():
    """Attributes that adlib (but for its params models), its templates, the notebooks and run_all.py read."""
    files = [path for path in (ROOT / "adlib").rglob("*.py") if path.name != "params.py"]
    texts = [path.read_text() for path in [*files, ROOT / "run_all.py"]]
    for path in NOTEBOOKS:
        texts += [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    read = {node.attr for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    for path in (ROOT / "adlib").rglob("*.j2"):
        read |= {node.attr for node in Environment().parse(path.read_text()).find_all(nodes.Getattr)}
    return read | {"outputs"}  # read by StudyParams.folder


@pytest.mark.parametrize(("model", "name"), FIELDS)
def test_every_parameter_is_described_and_used(model, name):
    field = next(item for item in sections() if item.__name__ == model).model_fields[name]
    assert name == "kind" or field.description
    assert name in attributes_read(), f"{model}.{name} is read nowhere"


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_params_files_are_valid_and_named_after_their_study(path, monkeypatch):
    for name in re.findall(r"\$\{(\w+)\}", path.read_text()):
        monkeypatch.setenv(name, "/nowhere")
    params = load_params(path)
    assert params.study == path.stem
    assert set(getattr(params.source, "labels", {}).values()) <= set(params.classes)


def test_there_is_a_notebook_for_each_step():
    assert [path.stem for path in NOTEBOOKS] == [step.name for step in STEPS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_hygiene(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.metadata.kernelspec.name == "python3" and "language_info" in notebook.metadata
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert all(len(cell.source.splitlines()) < 15 for cell in code), "a cell has 15 lines or more"
    assert notebook.cells[0].cell_type == notebook.cells[-1].cell_type == "markdown"
    assert all(word in notebook.cells[0].source.lower() for word in ("question", "reads", "writes"))
    assert "what to look for" in notebook.cells[-1].source.lower()


def test_parameters_page_is_up_to_date():
    page = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    params_page = runpy.run_path(str(ROOT / "docs" / "parameters.py"))["params_page"]
    assert page == params_page(), "write it again: python docs/parameters.py"
