"""A small project in a temporary folder: the real run_all.py, three tiny notebooks, a tiny adlib of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[1]
STEPS = """
from adlib.study import steps
from adlib.study.steps import Step

steps.STEPS = (
    Step("01_data_audit", ("seed", "audit"), (), ("manifest.tsv",)),
    Step("02_preprocessing", ("preprocess",), ("manifest.tsv",), ("features.tsv",), ("derivatives",)),
    Step("03_evaluation", ("evaluate",), ("features.tsv",), ("metrics.json",)),
)
"""
CELLS = {
    "01_data_audit": ["science.write(params, 'manifest.tsv', params.seed)", "science.figure(params, '01_cohort')"],
    "02_preprocessing": [
        "science.slow(params, 'derivatives')",
        "science.write(params, 'features.tsv', science.read(params, 'manifest.tsv') * 2)",
    ],
    "03_evaluation": [
        "science.figure(params, '03_scores')",
        "science.metrics(params, science.read(params, 'features.tsv'))",
    ],
}
SCIENCE = '''
"""Tiny science."""
import os, time
from pathlib import Path

import pandas as pd

from adlib.deep import scale
from adlib.figures.theme import register
from adlib.study.records import StudyError, write_json, write_text


class AuditStop(StudyError):
    """The audit says no."""


def write(params, name, value):
    """Write a number."""
    write_text(str(value), params.folder / name)


def read(params, name):
    return scale(int((params.folder / name).read_text()))


def slow(params, name):
    for index in range(5):
        path = params.folder / name / f"{index}.txt"
        if not path.exists():
            time.sleep(float(os.environ.get("SLOW", "0")))
            write_text(str(index), path)


def figure(params, name):
    write_text(f"{name} {params.evaluate.bootstrap}", params.folder / "figures" / f"{name}.png")
    register(params.folder / "figures", name)


def metrics(params, value):
    entry = {"run": "tiny", "level": "subject", "metric": "accuracy", "class": None, "n": 4}
    point = scale(value) / 1000 + params.evaluate.bootstrap / 1e6
    write_json({"study": params.study, "entries": [{**entry, "point": point, "ci95": [0.01, 0.09]}]},
               params.folder / "metrics.json")
    pd.DataFrame({"run": ["tiny"]}).to_parquet(params.folder / "predictions.parquet")
'''
THEME = """
from adlib.study.records import FIGURES, file_digest, read_table, write_table
import pandas as pd

def register(folder, name):
    path = folder / "figures.tsv"
    row = {"name": name, "notebook": "n", "sources": "s", "caption": "c", "sha256": file_digest(folder / f"{name}.png")}
    known = read_table(path, FIGURES) if path.is_file() else pd.DataFrame(columns=list(FIGURES.columns))
    write_table(pd.concat([known[known["name"] != name], pd.DataFrame([row])], ignore_index=True), path, FIGURES)
"""
RECIPE = """
def training_record(folder):
    return {}

def record_differences(record, params):
    return {}
"""
REPORT = """
from adlib.study.records import write_text

def write_report(params):
    return write_text("made", params.folder / "report" / "index.html")
"""


def make_project(folder: Path) -> Path:
    """Lay out the project; the study is called tiny."""
    package = folder / "adlib"
    (package / "figures").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    shutil.copytree(ROOT / "adlib" / "study", package / "study", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run_all.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "tiny.py").write_text(STEPS + "import run_all, sys\nsys.exit(run_all.start())\n")
    (package / "science.py").write_text(SCIENCE)
    (package / "preprocess").mkdir()
    (package / "preprocess" / "__init__.py").write_text("")
    (package / "preprocess" / "disk_space.py").write_text("def require_room(params, writes):\n    pass\n")
    (package / "deep.py").write_text("def scale(value):\n    return value\n")
    (package / "figures" / "__init__.py").write_text("")
    (package / "figures" / "theme.py").write_text(THEME)
    (package / "training").mkdir()
    (package / "training" / "__init__.py").write_text("")
    (package / "training" / "recipe.py").write_text(RECIPE)
    (package / "report").mkdir()
    (package / "report" / "__init__.py").write_text("")
    (package / "report" / "page.py").write_text(REPORT)
    (folder / "params").mkdir()
    (folder / "params" / "phantom.yaml").write_text("study: tiny\nsource: {kind: phantom}\nexec: {publish: true}\n")
    (folder / "notebooks").mkdir()
    for name, lines in CELLS.items():
        write_notebook(folder / "notebooks" / f"{name}.ipynb", lines)
    return folder


def write_notebook(path: Path, lines: list[str]) -> None:
    """A notebook with one code cell for each line."""
    cells = [
        new_markdown_cell(f"# {path.stem}"),
        new_code_cell('params_file = "params/phantom.yaml"', metadata={"tags": ["parameters"]}),
        new_code_cell(
            "from adlib import science\nfrom adlib.study.params import open_study\n\nparams = open_study(params_file)"
        ),
        *(new_code_cell(line) for line in lines),
    ]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    nbformat.write(new_notebook(cells=cells, metadata=metadata), path)


def command(project: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(project / "tiny.py"), *arguments]


def environment(**extra: str) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **extra}


def run(project: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess:
    """Run the project's command to its end."""
    return subprocess.run(
        command(project, *arguments),
        capture_output=True,
        text=True,
        env=environment(**extra),
        cwd=project.parent,
        timeout=120,
    )
