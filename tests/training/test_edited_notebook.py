"""A network, a loss and an augmentation of one's own, written in notebook 03, run through the rest of the study."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from adlib.study.params import load_params
from adlib.training.model_file import load
from adlib.training.recipe import record_differences, training_record

ROOT = Path(__file__).parents[2]
EDITS = {
    "build_network = ResNet50": """from torch import nn
from adlib.training.network import ImageNetwork
def build_network(outputs, covariates, dropout):
    body = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
    return ImageNetwork(body, 128, "1", outputs, covariates, dropout)""",
    "loss = LOSSES[params.train.loss]": """def loss(logits, targets, weights, params):
    return nn.functional.multi_margin_loss(logits, targets)""",
    "augment = augment_slices": """def augment(slices, generator, params):
    return augment_slices(slices, generator, params) * 1.1""",
}
SETS = (
    "classes=[CN, AD]", "source.severity_mean=[0.1, 1.0]", "source.participants_per_class=10",
    "source.followup_fraction=0", "train.controls=[shuffled_labels]", "evaluate.bootstrap=100",
    "evaluate.attribution=grad_cam",
)  # fmt: skip


def edited(folder):
    """A copy of the project whose notebook 03 has other cells; returns the number of lines that differ."""
    for name in ("adlib", "notebooks", "params"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("run_all.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    path = folder / "notebooks" / "03_training_resnet50.ipynb"
    notebook, lines = nbformat.read(path, as_version=4), 0
    for old, new in EDITS.items():
        cell = next(cell for cell in notebook.cells if old in cell.source)
        line = next(line for line in cell.source.splitlines() if line.startswith(old))
        cell.source = cell.source.replace(line, new)
        lines += len(new.splitlines())
    nbformat.write(notebook, path)
    return lines


@pytest.mark.studies
@pytest.mark.timeout(1800)
def test_an_edited_notebook_runs_to_a_prediction(tmp_path):
    assert edited(tmp_path) <= 12
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    sets = [word for setting in SETS for word in ("--set", setting)]
    command = [sys.executable, "run_all.py", "--params", "params/smoke.yaml", *sets]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "outputs" / "smoke"
    record, params = training_record(folder), load_params(folder / "params.yaml")
    assert {"network", "loss", "augment"} == set(record_differences(record, params))
    assert load(folder / "model.safetensors", trusted=True).card.network == "ImageNetwork"
    stages = [entry["of"] for entry in json.loads((folder / "attribution" / "sanity.json").read_text())["entries"]]
    assert stages[0] == "output" and "body.0" in stages
    scan = next((folder / "source").rglob("*_T1w.nii.gz"))
    command = [sys.executable, "-m", "adlib.predict", str(scan), "--study", str(folder / "params.yaml")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["origin"].startswith("ImageNetwork of the study 'smoke'")
