"""A finished study of made records: small, quick to write, with an id in every place where one can stand."""

import json

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.numpy import save_file
from torch import nn

from adlib.study.params import dump_params, load_params
from adlib.study.records import AUDIT, FEATURES, FIGURES, LISTING, MANIFEST, SPLITS, write_json, write_table, write_text
from adlib.training.recipe import RECORD, Recipe, describe

FIGURE_NAMES = (
    "01_cohort", "02_mosaic", "02_volumes", "04_attribution", "04_forest", "04_stated", "05_example_1", "06_unheard_of",
)  # fmt: skip
STATED = {"04_stated": "cohort", "02_mosaic": "cohort"}  # the second against the rule of the report
GAIN = "area_gained_over_random"
RUNS = {"resnet50": 0.6, "shuffled_labels": 0.34, "background": 0.5, "majority": 0.33, "volumes": 0.5}


CHECKS = [
    {"check": "randomisation", "of": "stem", "metric": "rank_correlation", "point": 0.02, "ci95": [-0.08, 0.12]},
    {"check": "perturbation", "of": "deletion", "metric": GAIN, "point": 0.71, "ci95": [0.61, 0.81]},
]


def make_finished(folder, params_file="params/phantom.yaml", *sets):
    """Write all that a report reads; return the study's params."""
    severity = ("source.severity_mean=[0.1, 0.5, 1.0]",) if "phantom" in params_file else ()
    params = load_params(params_file, (f"exec.outputs={folder}", "classes=[CN, MCI, AD]", *severity, *sets))
    (params.folder / "figures").mkdir(parents=True)
    _people(params)
    _findings(params)
    _figures(params)
    write_json(_metrics(params), params.folder / "metrics.json")
    write_json({"entries": [check | {"n": 30} for check in CHECKS]}, params.folder / "attribution" / "sanity.json")
    write_json(_history(params), params.folder / "provenance.json")
    write_text(dump_params(params), params.folder / "params.yaml")
    _weights(params)
    _record(params)
    return params


def _people(params):
    numbers = np.arange(60)
    people = pd.DataFrame({"participant_id": [f"sub-{k:04d}" for k in numbers]})
    people = people.assign(diagnosis=np.take(params.classes, numbers % 3), sex=np.take(["F", "M"], numbers % 2))
    parts = np.take(["train", "train", "validation", "test"], numbers // 3 % 4)
    write_table(people.assign(fold=0, split=parts), params.folder / "splits.tsv", SPLITS)
    ages = np.where(numbers, np.random.default_rng(1).normal(72, 6, 60), np.nan)
    first, again = people.assign(age=ages, session_id="ses-0"), people[::10].assign(session_id="ses-1")
    scans = pd.concat([first, again], ignore_index=True)
    scans["scan_id"] = scans["participant_id"] + "_" + scans["session_id"] + "_T1w"
    scans["path"] = "/secret/place/" + scans["participant_id"] + "/scan.nii.gz"
    write_table(scans.assign(sha256="s"), params.folder / "manifest.tsv", MANIFEST)
    dropped = pd.DataFrame([{"scan_id": "OAS9_0042_left-out", "path": "x/OAS9_0042", "participant_id": "sub-OAS9"}])
    write_table(pd.concat([scans, dropped]), params.folder / "listing.tsv", LISTING)
    features = scans[["participant_id", "session_id", "scan_id"]].assign(qc_verdict="pass")
    features.loc[3, ["qc_verdict", "qc_reasons"]] = ["fail", "snr is 2, expected at least 5 (noise)"]
    features.loc[4, ["qc_verdict", "qc_reasons"]] = ["fail", f"{scans['path'][4]} cannot be read"]
    write_table(features, params.folder / "features.tsv", FEATURES)


def _findings(params):
    rows = [
        ("given-split-leaks", "stop", "sub-0001, sub-0002", "2 people, sub-0001 too", "accepted by params", "Leaks."),
        ("label-missing", "warn", "OAS9_0042_left-out", "1 scans | OAS9_0042_left-out", "go on", "No label."),
    ]
    names = ("check", "severity", "subject", "value", "decision", "meaning")
    write_table(pd.DataFrame(rows, columns=names).assign(limit="0"), params.folder / "audit.tsv", AUDIT)
    write_text("step\tscans\tparticipants\nlisted\t67\t61\nwith a diagnosis\t66\t60\n", params.folder / "flow.tsv")


def _figures(params):
    table = pd.DataFrame({"name": FIGURE_NAMES, "caption": [f"What {name} shows." for name in FIGURE_NAMES]})
    table.loc[table["name"].str.contains("example"), "caption"] = "sub-0007_ses-1_T1w: <head> & answer."
    table = table.assign(notebook=table["name"].str[:2] + "_step", shows=table["name"].map(STATED))
    write_table(table.assign(sources="a.tsv", sha256="s"), params.folder / "figures" / "figures.tsv", FIGURES)
    for name in FIGURE_NAMES:
        Image.new("RGB", (40, 30), "navy").save(params.folder / "figures" / f"{name}.png")


def _metrics(params):
    metrics = (("balanced_accuracy", None), ("roc_auc", "macro"), ("roc_auc_binary", None))
    entries = [_entry(run, *metric, point, 0.05) for run, point in RUNS.items() for metric in metrics]
    entries.append(_entry("resnet50 - volumes", "balanced_accuracy_difference", None, 0.1, 0.04))
    entries.append({**_entry("resnet50 - volumes", "mcnemar_p", None, 0.0123, 0), "ci95": None})
    entries += [_entry("resnet50", "recall", name, 0.6, 0.1) for name in params.classes]
    confusion = {"resnet50": [[4, 1, 0], [1, 3, 1], [0, 2, 3]]}
    left_out = [{"scan_id": "sub-0003_ses-1_T1w", "qc_reasons": "snr"}]
    group = _entry("resnet50", "balanced_accuracy", None, 0.55, 0.1) | {"group": "sex F"}
    metrics = {"study": params.study, "entries": entries, "confusion": confusion}
    return metrics | {"left_out": left_out, "subgroups": [group]}


def _entry(run, metric, label, point, half):
    entry = {"run": run, "level": "subject", "metric": metric, "class": label, "n": 15, "point": point}
    return entry | {"ci95": [point - half, point + half]}


def _history(params):
    times = {"started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T11:00:00+00:00"}
    code = {"git_sha": "0123abc", "git_dirty": True, "packages": {"numpy": "2.0.0", "torch": "2.9.0"}}
    machine = {"python": "3.11.7", "platform": "Linux x86_64, 2 cores", "device": "cpu"}
    seconds = {"01_data_audit": 61.5, "02_preprocessing": None}
    study = {"study": params.study, "seed": params.seed, "params": params.model_dump(mode="json")}
    return study | times | code | machine | {"seconds": seconds}


def _weights(params):
    card = {
        "simulated": params.source.kind == "phantom",
        "weights_origin": "the model of 'x' in /secret/place/weights.pt",
        "cohort": {"participants": {"CN": 10, "MCI": 10, "AD": 10}},
        "covariates": [["age", 72.0, 6.0]],
        "splits_sha256": "5d",
        "code": "c0",
    }
    header = {"adlib-resnet50-3": json.dumps(card)}
    save_file({"x": np.zeros(1, np.float32)}, params.folder / "model.safetensors", header)


def _record(params):
    record = describe(Recipe(), nn.Identity(), "random initialisation", params)
    record["network"]["title"] = "ResNet50"
    runs = {name: {"0": params.train.epochs} for name in ("resnet50", *params.train.controls)}
    write_json(record | {"runs": runs}, params.folder / RECORD)
