"""Forty made participants whose label is a bright square, and a small network that stands in for ResNet50."""

import numpy as np
import pandas as pd
import pytest
import torch

from adlib.study.metrics import NETWORK
from adlib.study.params import load_params
from adlib.study.records import FEATURES, MANIFEST, SLICES, SPLITS, read_table, write_table
from adlib.training import model_file, runs
from adlib.training.controls import control_fold
from adlib.training.folds import make_fold
from adlib.training.network import ResNet50
from adlib.training.recipe import Recipe
from adlib.training.slices import load_slices

CLASSES = ("CN", "AD")


class Tiny(torch.nn.Module):
    """The named parts of ResNet50, each as small as can be."""

    explained_layer, stages = ResNet50.explained_layer, ResNet50.stages

    def __init__(self, outputs, covariates=0, dropout=0.0):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 8, 5, 2, bias=False), torch.nn.BatchNorm2d(8)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU()) for _ in range(4)
        )
        self.avgpool = torch.nn.AdaptiveAvgPool2d(4)
        self.covariates = covariates
        self.dropout = torch.nn.Dropout(dropout)
        self.fc = torch.nn.Linear(128 + covariates, outputs)

    def features(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.avgpool(x + self.layer1(x) + self.layer2(x) + self.layer3(x) + self.layer4(x)).flatten(1)

    def forward(self, x, covariates=None):
        x = self.dropout(self.features(x))
        if self.covariates:
            x = torch.cat([x, x.new_zeros(len(x), self.covariates) if covariates is None else covariates], 1)
        return self.fc(x)


TINY = Recipe(build_network=Tiny)


def train_study(study, **parts):
    """Train a study with the small network."""
    return runs.train_study(study, **{"build_network": Tiny, **parts})


def load(path):
    """A classifier with the small network."""
    return model_file.load(path, Tiny)


SETS = (
    "study=tiny", "classes=[CN, AD]", "source.severity_mean=[0.1, 1.0]",
    "train.epochs=6", "train.batch_size=8", "train.weights=random", "train.learning_rate=0.003",
    "train.controls=[shuffled_labels]", "input.size=32", "input.positions_mm=[0.0]", "train.augment=none",
    "train.members=1", "exec.device=cpu", "evaluate.binary={negative: [CN], positive: [AD]}",
)  # fmt: skip


def make_study(folder, *sets, scans=1):
    """Write the tables and slices of the made cohort; participants are told apart by noise alone."""
    params = load_params("params/phantom.yaml", (*SETS, f"exec.outputs={folder}", *sets))
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.3, (40, 3, 32, 32))
    noise[1::2, :, 8:24, 8:24] += 1.5
    slices = np.concatenate([noise + rng.normal(0, 0.05, noise.shape) for _ in range(scans)]).astype(np.float16)
    params.folder.mkdir(parents=True)
    np.save(params.folder / "slices.npy", slices)
    people = pd.DataFrame({"participant_id": [f"sub-{k:02d}" for k in range(40)], "diagnosis": CLASSES * 20})
    parts = ["train"] * 24 + ["validation"] * 6 + ["test"] * 10
    write_table(people.assign(fold=0, split=parts), params.folder / "splits.tsv", SPLITS)
    base = pd.concat([people.assign(session_id=f"ses-{k + 1:02d}") for k in range(scans)], ignore_index=True)
    base["scan_id"] = base["participant_id"] + ("_" + base["session_id"] if scans > 1 else "")
    write_table(base.assign(row=range(len(base)), slice=0), params.folder / "slices.tsv", SLICES)
    write_table(base.assign(path="p", sha256="s", age=70.0, sex="F"), params.folder / "manifest.tsv", MANIFEST)
    features = base.drop(columns="diagnosis").assign(qc_verdict="pass", gm_ml=600.0, nbv=0.75)
    write_table(features, params.folder / "features.tsv", FEATURES)
    return params


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path)


def fold_of(study, run=NETWORK, table=None):
    """The first fold of a study, or that of a control; `table` may name its slices otherwise."""
    slices, stored = load_slices(study)
    splits = read_table(study.folder / "splits.tsv", SPLITS)
    fold = make_fold(0, slices, stored if table is None else table, splits, study)
    return fold if run == NETWORK else control_fold(run, fold, study)


def accuracy(predictions, run):
    tested = predictions[(predictions["run"] == run) & (predictions["split"] == "test")]
    return (tested[["p_CN", "p_AD"]].to_numpy().argmax(1) == tested["truth"].map({"CN": 0, "AD": 1})).mean()
