"""A small project in a temporary folder: the real run_all.py, three tiny notebooks, a tiny adlib of its own."""

import os
import shutil
import subprocess
import sys
import time
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
import run_all, sys
sys.exit(run_all.start())
"""
CELLS = {
    "01_data_audit": ["write(params, 'manifest.tsv', params.seed)", "figure(params, '01_cohort')"],
    "02_preprocessing": [
        "slow(params, 'derivatives')",
        "write(params, 'features.tsv', read(params, 'manifest.tsv') * 2)",
    ],
    "03_evaluation": ["figure(params, '03_scores')", "metrics(params, read(params, 'features.tsv'))"],
}
SCIENCE = r'''
"""Tiny science."""
import os, time
from pathlib import Path

import pandas as pd

from adlib.deep import scale
from adlib.study.records import FIGURES, StudyError, file_digest, write_json, write_table, write_text


class AuditStop(StudyError):
    """The audit says no."""


def write(params, name, value):
    """Write a number."""
    write_text(f"diagnosis\tscan_id\nCN\t{value}\n", params.folder / name)


def read(params, name):
    return scale(int((params.folder / name).read_text().split()[-1]))


def slow(params, name):
    for index in range(5):
        path = params.folder / name / f"{index}.txt"
        if not path.exists():
            time.sleep(float(os.environ.get("SLOW", "0")))
            write_text(str(index), path)


def figure(params, name):
    folder = params.folder / "figures"
    write_text(f"{name} {params.evaluate.bootstrap}", folder / f"{name}.png")
    rows = pd.DataFrame({"name": path.stem, "sha256": file_digest(path)} for path in sorted(folder.glob("*.png")))
    write_table(rows.assign(notebook="n", sources="s", caption="c"), folder / "figures.tsv", FIGURES)


def metrics(params, value):
    entry = {"run": "tiny", "level": "subject", "metric": "accuracy", "class": None, "n": 4}
    point = scale(value) / 1000 + params.evaluate.bootstrap / 1e6
    write_json({"study": params.study, "entries": [{**entry, "point": point, "ci95": [0.01, 0.09]}]},
               params.folder / "metrics.json")
    write_text("participant_id\tfold\tsplit\na\t0\ttrain\n", params.folder / "splits.tsv")
    row = {"run": "tiny", "fold": 0, "split": "test", "participant_id": "a", "scan_id": "a", "truth": "CN"}
    pd.DataFrame([row]).to_parquet(params.folder / "predictions.parquet")
'''
FILES = {
    "tiny.py": STEPS,
    "params/phantom.yaml": "study: tiny\nsource: {kind: phantom}\nexec: {publish: true, device: cpu}\n",
    "adlib/__init__.py": "",
    "adlib/deep.py": "def scale(value):\n    return value\n",
    "adlib/science.py": SCIENCE,
    "adlib/training/recipe.py": "def training_record(*_):\n    return {}\n\nrecord_differences = training_record\n",
    "adlib/report/__init__.py": "",
    "adlib/report/pages.py": """
from adlib.study.records import write_text

def write_report(params):
    return write_text("made", params.folder / "report" / "index.html")
""",
}
SETUP = """from adlib.science import AuditStop, StudyError, figure, metrics, read, slow, write
from adlib.study.params import open_study

params = open_study(params_file)"""


def make_project(folder: Path) -> Path:
    """Lay out the project; the study is called tiny."""
    shutil.copytree(ROOT / "adlib" / "study", folder / "adlib" / "study", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run_all.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "notebooks").mkdir()
    for name, lines in CELLS.items():
        write_notebook(folder / "notebooks" / f"{name}.ipynb", lines)
    return folder


def write_notebook(path: Path, lines: list[str]) -> None:
    """A notebook with one code cell for each line."""
    code = ['params_file = "params/phantom.yaml"', SETUP, *lines]
    cells = [new_markdown_cell(f"# {path.stem}"), *map(new_code_cell, code)]
    cells[1].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), path)


def start(project: Path, *arguments: str, **extra: str) -> subprocess.Popen:
    """Start the project's command, with more environment variables."""
    command = [sys.executable, str(project / "tiny.py"), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | extra
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=project.parent)


def run(project: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess:
    """Run the project's command to its end."""
    process = start(project, *arguments, **extra)
    output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state != "Z"
    except FileNotFoundError:
        return False


def soon(condition, *, seconds: float) -> bool:
    """Wait until a condition holds, and return whether it does."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()
