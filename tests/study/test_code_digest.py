"""A digest changes with the code that may change a result, and not with words or with what is made of the result."""

import os
import shutil

import pytest

from adlib.study.code_digest import ROOT, code_digest, module_digests, notebook_digests, package_versions
from adlib.study.records import StudyError

WORK = {  # what takes long, and is kept under the digest of these modules
    "simulation": "adlib.phantom.cohort",
    "preprocessing": "adlib.preprocess.cohort_run",
    "training": "adlib.training.runs",
    "explanation": "adlib.evaluation.explain.explain_study",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package and the notebooks, to be edited."""
    place = tmp_path_factory.mktemp("tree")
    for name in ("adlib", "notebooks"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    return place


@pytest.fixture(scope="module")
def before(tree):
    return digests(tree)


def digests(root):
    """Digests of each long piece of work and of the code of each notebook."""
    work = {name: module_digests([module], root) for name, module in WORK.items()}
    return work | {path.stem[:2]: notebook_digests(path, root) for path in sorted((root / "notebooks").glob("*.ipynb"))}


def changed(root, before, paths, added):
    """What is other code with some text added to files, from which it is then removed."""
    texts = {path: (path.read_text(), path.stat().st_mtime_ns) for path in paths}
    try:
        for path, (text, _) in texts.items():
            path.write_text(text + added)
        now = digests(root)
    finally:
        for path, (text, modified) in texts.items():
            path.write_text(text)
            os.utime(path, ns=(modified, modified))
    return {name for name in now if now[name] != before[name]}


def test_comments_and_docstrings_change_nothing(tree, before):
    assert not changed(tree, before, (tree / "adlib").rglob("*.py"), '\n# Other.\n"""Other."""\n')


def test_texts_in_a_yaml_file_change_notebooks_that_show_them(tree, before):
    found = changed(tree, before, [tree / "adlib" / "audit" / "advice.yaml"], "# other words\n")
    assert {"01", "04"} <= found and not found & set(WORK)


def test_drawing_and_reporting_change_no_work(tree, before):
    paths = [path for room in ("figures", "report", "classify") for path in (tree / "adlib" / room).rglob("*.py")]
    assert changed(tree, before, paths, "x = 1\n") == {"01", "02", "03", "04", "05"}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("phantom.head", {"simulation", "explanation", "01", "04"}),
        ("preprocess.intensity", {"preprocessing", "training", "explanation", "02", "03", "04", "05"}),
        ("preprocess.tissues", {"preprocessing", "02", "05"}),
        ("training.loop", {"training", "03"}),
        ("training.splits", {"training", "explanation", "03", "04", "05"}),
        ("evaluation.risk", {"04"}),
        ("evaluation.explain.sanity", {"explanation", "04"}),
        ("classify.nearest", {"05"}),
        ("figures.plot_results", {"04"}),
        ("study.params", {*WORK, "01", "02", "03", "04", "05"} - {"simulation"}),
        ("parallel.dispatch", set()),
    ],
)
def test_a_module_changes_the_work_that_needs_it(tree, before, module, expected):
    path = tree.joinpath("adlib", *module.split(".")).with_suffix(".py")
    assert expected <= changed(tree, before, [path], "x = 1\n")
    assert changed(tree, before, [path], "x = 1\n") & set(WORK) == expected & set(WORK)


@pytest.mark.parametrize(
    "text",
    [
        "from adlib.room import twice\n",
        "from adlib.room.inner import twice as two\n",
        "from adlib.room import inner\n",
        "import adlib.room.inner\n",
        "def f(x):\n    from .room.inner import twice\n    return twice(x)\n",
        "from . import room\n",
    ],
)
def test_every_form_of_import_is_followed(tmp_path, text):
    (tmp_path / "adlib" / "room").mkdir(parents=True)
    files = {"__init__": "", "room/__init__": "from .inner import twice\n", "room/inner": "FACTOR = 2\n", "first": text}
    for name, content in files.items():
        (tmp_path / "adlib" / f"{name}.py").write_text(content)
    before = module_digests(["adlib.first"], tmp_path)
    (tmp_path / "adlib" / "room" / "inner.py").write_text("FACTOR = 3\n")
    assert module_digests(["adlib.first"], tmp_path) != before


def test_an_unknown_module_is_refused():
    with pytest.raises(StudyError, match=r"adlib\.nosuch"):
        code_digest("adlib.nosuch")


def test_another_version_of_a_library_is_other_code(monkeypatch):
    before = code_digest(WORK["preprocessing"])
    versions = package_versions() | {"SimpleITK": "0.0"}
    monkeypatch.setattr("adlib.study.code_digest.package_versions", lambda: versions)
    assert code_digest(WORK["preprocessing"]) != before
