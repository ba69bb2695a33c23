"""A digest changes with the code that computes a result, and with nothing else."""

import ast
import os
import shutil

import pytest

from adlib.study.code_digest import (
    ROOT,
    code_digest,
    module_digests,
    notebook_digests,
    package_versions,
)
from adlib.study.records import StudyError

WORK = {  # what takes long, and is kept under the digest of these functions
    "simulation": "adlib.phantom.cohort.write_cohort",
    "preprocessing": "adlib.preprocess.cohort_run.preprocess_scan",
    "training": "adlib.training.runs.Training",
    "explanation": "adlib.evaluation.explain.explain_study.explain_study",
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
    """Digest of each long piece of work and of the code of each notebook."""
    work = {name: module_digests([function], root) for name, function in WORK.items()}
    return work | {path.stem[:2]: notebook_digests(path, root) for path in sorted((root / "notebooks").glob("*.ipynb"))}


def changed(root, before, paths, edit):
    """What is other code after an edit of some files, which is then undone."""
    texts = {path: (path.read_text(), path.stat().st_mtime_ns) for path in paths}
    try:
        for path, (text, _) in texts.items():
            path.write_text(ast.unparse(ast.fix_missing_locations(edit(ast.parse(text)))))
        now = digests(root)
    finally:
        for path, (text, modified) in texts.items():
            path.write_text(text)
            os.utime(path, ns=(modified, modified))
    return {name for name in now if now[name] != before[name]}


class Edit(ast.NodeTransformer):
    """Rewords docstrings, messages and sentences."""

    def visit_Constant(self, node):
        prose = isinstance(node.value, str) and node.value.count(" ") > 4 and node.value.replace(" ", "").isalpha()
        return ast.Constant("Put in quite other words " + node.value) if prose else node

    def visit_Raise(self, node):
        if isinstance(node.exc, ast.Call) and node.exc.args:
            node.exc.args[0] = ast.Constant("no")
        return node

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        if ast.get_docstring(node):
            node.body[0].value = ast.Constant("Other.")
        return node

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "print":
            node.value.args = [ast.Constant("other")]
        return self.generic_visit(node)


def with_statement(parsed, name=None):
    """Give one function, or all, one more statement."""
    found = [node for node in ast.walk(parsed) if isinstance(node, ast.FunctionDef) and name in (None, node.name)]
    assert found
    for node in found:
        node.body.insert(0, ast.parse("changed = 1").body[0])
    return parsed


def test_words_change_no_work(tree, before):
    assert not changed(tree, before, (tree / "adlib").rglob("*.py"), Edit().visit) & set(WORK)


def test_texts_in_a_yaml_file_change_notebooks_that_show_them(tree, before):
    advice = tree / "adlib" / "audit" / "advice.yaml"
    text = advice.read_text()
    try:
        advice.write_text(text + "# other words\n")
        now = digests(tree)
    finally:
        advice.write_text(text)
    assert {name for name in now if now[name] != before[name]} == {"01", "04"}  # which shows a finding, too


def test_drawing_and_reporting_change_no_work(tree, before):
    rooms = ("figures", "report", "classify")
    paths = [path for room in rooms for path in (tree / "adlib" / room).rglob("*.py") if "def " in path.read_text()]
    assert not changed(tree, before, paths, with_statement) & set(WORK)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("adlib.phantom.head.warp", {"simulation", "01", "05"}),
        ("adlib.preprocess.intensity.bias_field", {"preprocessing", "02", "05"}),
        ("adlib.training.recipe.cross_entropy", {"training", "03"}),
        ("adlib.training.splits.make_splits", {"03"}),
        ("adlib.evaluation.scores.brier", {"04"}),
        ("adlib.evaluation.explain.sanity.perturbation_curves", {"explanation", "04"}),
        ("adlib.classify.nearest.nearest", {"05"}),
        ("adlib.figures.plot_results.plot_roc", {"04"}),
    ],
)
def test_a_computation_changes_its_step(tree, before, function, expected):
    module, _, name = function.rpartition(".")
    path = tree.joinpath(*module.split(".")).with_suffix(".py")
    found = changed(tree, before, [path], lambda parsed: with_statement(parsed, name))
    assert expected <= found and found & set(WORK) == expected & set(WORK)


def test_the_record_of_a_training_changes_no_work(tree, before):
    path = tree / "adlib" / "training" / "recipe.py"
    assert not changed(tree, before, [path], lambda parsed: with_statement(parsed, "describe")) & set(WORK)


@pytest.fixture
def package(tmp_path):
    (tmp_path / "adlib" / "room").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "room/__init__": "from .inner import twice\n",
        "room/inner": "FACTOR = 2\n\ndef twice(x):\n    return FACTOR * x\n\ndef other(x):\n    return x\n",
        "table": "LIMITS = {}\nLIMITS['a'] = 1\n\nclass Row:\n    def size(self):\n        return LIMITS\n",
    }.items():
        (tmp_path / "adlib" / f"{name}.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "from adlib.room import twice\n\ndef f(x):\n    return twice(x)\n",
        "from adlib.room.inner import twice as two\n\ndef f(x):\n    return two(x)\n",
        "from adlib.room import inner\n\ndef f(x):\n    return inner.twice(x)\n",
        "import adlib.room.inner\n\ndef f(x):\n    return adlib.room.inner.twice(x)\n",
        "def f(x):\n    from .room.inner import twice\n    return twice(x)\n",
        "from . import room\n\nLATER = {'twice': room.twice}\n\ndef f(x):\n    return LATER['twice'](x)\n",
        "from adlib.room import inner\n\ndef f(x):\n    return vars(inner)['twice'](x)\n",
    ],
)
def test_every_form_of_import_is_followed(package, text):
    (package / "adlib" / "first.py").write_text(text)
    before = module_digests(["adlib.first.f"], package)
    inner = package / "adlib" / "room" / "inner.py"
    inner.write_text(inner.read_text().replace("FACTOR = 2", "FACTOR = 3"))
    assert module_digests(["adlib.first.f"], package) != before


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("LIMITS['a'] = 1", "LIMITS['a'] = 2", True),
        ("return LIMITS", "return 1 + 1", True),
        ("class Row:", "import os\n\nclass Row:", False),
        ("class Row:", "class Other:\n    pass\n\nclass Row:", False),
        ("    def size(self):", '    """A row."""\n\n    def size(self) -> int:', False),
    ],
)
def test_of_a_module_only_what_is_used_counts(package, old, new, counts):
    (package / "adlib" / "first.py").write_text(
        "from adlib.table import Row\n\ndef f(row: Row):\n    return row.size()\n"
    )
    before = module_digests(["adlib.first.f"], package)
    table = package / "adlib" / "table.py"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))
    assert (module_digests(["adlib.first.f"], package) != before) == counts


def test_an_unknown_name_is_refused():
    with pytest.raises(StudyError, match=r"adlib\.nosuch"):
        code_digest("adlib.nosuch")
    with pytest.raises(StudyError, match="has no nothing"):
        code_digest("adlib.study.records.nothing")


def test_a_function_and_its_name_are_the_same():
    assert code_digest(package_versions) == code_digest("adlib.study.code_digest.package_versions")


def test_another_version_of_a_library_is_other_code(monkeypatch):
    before = code_digest(WORK["preprocessing"])
    versions = package_versions() | {"SimpleITK": "0.0"}
    monkeypatch.setattr("adlib.study.code_digest.package_versions", lambda: versions)
    assert code_digest(WORK["preprocessing"]) != before
