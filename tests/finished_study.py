"""A finished study of made records: small, quick to write, with an id in every place where one can stand."""

import json
from io import BytesIO

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


def make_finished(folder, params_file="params/phantom.yaml", *sets):
    """Write all that a report reads; return the study's params."""
    classes = ("classes=[CN, MCI, AD]", "source.severity_mean=[0.1, 0.5, 1.0]")
    settings = classes if "phantom" in params_file else classes[:1]
    params = load_params(params_file, (f"exec.outputs={folder}", *settings, *sets))
    params.folder.mkdir(parents=True)
    _people(params)
    _findings(params)
    _figures(params)
    write_json(_metrics(params), params.folder / "metrics.json")
    write_json(_sanity(), params.folder / "attribution" / "sanity.json")
    write_json(_history(params), params.folder / "provenance.json")
    write_text(dump_params(params), params.folder / "params.yaml")
    _weights(params)
    _record(params)
    return params


def _people(params):
    rng = np.random.default_rng(1)
    rows = [
        {
            "participant_id": f"sub-{k:04d}",
            "session_id": f"ses-{session}",
            "scan_id": f"sub-{k:04d}_ses-{session}_T1w",
            "path": f"/secret/place/sub-{k:04d}/scan.nii.gz",
            "diagnosis": params.classes[k % 3],
            "age": rng.normal(72, 6) if k else None,
            "sex": "FM"[k % 2],
        }
        for k in range(60)
        for session in range(1 + (k % 10 == 0))
    ]
    scans = pd.DataFrame(rows)
    write_table(scans.assign(sha256="s"), params.folder / "manifest.tsv", MANIFEST)
    dropped = pd.DataFrame([{"scan_id": "OAS9_0042_left-out", "path": "x/OAS9_0042", "participant_id": "sub-OAS9"}])
    write_table(pd.concat([scans, dropped]), params.folder / "listing.tsv", LISTING)
    features = scans[["participant_id", "session_id", "scan_id"]].assign(qc_verdict="pass")
    features.loc[3, ["qc_verdict", "qc_reasons"]] = ["fail", "snr is 2, expected at least 5 (noise)"]
    features.loc[4, ["qc_verdict", "qc_reasons"]] = ["fail", f"{rows[4]['path']} cannot be read"]
    write_table(features, params.folder / "features.tsv", FEATURES)
    people = scans.drop_duplicates("participant_id")[["participant_id", "diagnosis"]]
    parts = np.array(["train", "train", "validation", "test"])[np.arange(60) // 3 % 4]
    write_table(people.assign(fold=0, split=parts), params.folder / "splits.tsv", SPLITS)


def _findings(params):
    rows = [
        ("given-split-leaks", "stop", "sub-0001, sub-0002", "2 people, sub-0001 too", "accepted by params", "Leaks."),
        ("label-missing", "warn", "OAS9_0042_left-out", "1 scans | OAS9_0042_left-out", "go on", "No label."),
    ]
    names = ("check", "severity", "subject", "value", "decision", "meaning")
    write_table(pd.DataFrame(rows, columns=names).assign(limit="0"), params.folder / "audit.tsv", AUDIT)
    write_text("step\tscans\tparticipants\nlisted\t67\t61\nwith a diagnosis\t66\t60\n", params.folder / "flow.tsv")


def _figures(params):
    picture = BytesIO()
    Image.new("RGB", (40, 30), "navy").save(picture, "png")
    rows = []
    for name in FIGURE_NAMES:
        (params.folder / "figures").mkdir(exist_ok=True)
        (params.folder / "figures" / f"{name}.png").write_bytes(picture.getvalue())
        caption = "sub-0007_ses-1_T1w: <head> & answer." if "example" in name else f"What {name} shows."
        row = {"name": name, "notebook": f"{name[:2]}_step", "sources": "a.tsv", "sha256": "s", "caption": caption}
        rows.append(row | {"shows": STATED.get(name)})
    write_table(pd.DataFrame(rows), params.folder / "figures" / "figures.tsv", FIGURES)


def _metrics(params):
    entries = []
    for run, point in RUNS.items():
        for metric, label in (("balanced_accuracy", None), ("roc_auc", "macro"), ("roc_auc_binary", None)):
            entries.append(_entry(run, metric, label, point, 0.05))
    entries.append(_entry("resnet50 - volumes", "balanced_accuracy_difference", None, 0.1, 0.04))
    entries.append({**_entry("resnet50 - volumes", "mcnemar_p", None, 0.0123, 0), "ci95": None})
    entries += [_entry("resnet50", "recall", name, 0.6, 0.1) for name in params.classes]
    left_out = [{"scan_id": "sub-0003_ses-1_T1w", "qc_reasons": "snr"}]
    group = _entry("resnet50", "balanced_accuracy", None, 0.55, 0.1) | {"group": "sex F"}
    confusion = {"resnet50": [[4, 1, 0], [1, 3, 1], [0, 2, 3]]}
    return {
        "study": params.study,
        "entries": entries,
        "confusion": confusion,
        "left_out": left_out,
        "subgroups": [group],
    }


def _entry(run, metric, label, point, half):
    entry = {"run": run, "level": "subject", "metric": metric, "class": label, "n": 15, "point": point}
    return entry | {"ci95": [point - half, point + half]}


def _sanity():
    names = [("randomisation", "stem", "rank_correlation", 0.02), ("perturbation", "deletion", GAIN, 0.71)]
    made = [dict(zip(("check", "of", "metric", "point"), name, strict=True)) for name in names]
    return {"entries": [entry | {"n": 30, "ci95": [entry["point"] - 0.1, entry["point"] + 0.1]} for entry in made]}


def _history(params):
    return {
        "study": params.study,
        "started": "2026-01-01T10:00:00+00:00",
        "finished": "2026-01-01T11:00:00+00:00",
        "git_sha": "0123abc",
        "git_dirty": True,
        "python": "3.11.7",
        "platform": "Linux x86_64, 2 cores",
        "device": "cpu",
        "packages": {"numpy": "2.0.0", "torch": "2.9.0"},
        "seed": params.seed,
        "seconds": {"01_data_audit": 61.5, "02_preprocessing": None},
        "params": params.model_dump(mode="json"),
    }


def _weights(params):
    card = {
        "simulated": params.source.kind == "phantom",
        "weights_origin": "the model of 'x' in /secret/place/weights.pt",
        "cohort": {"participants": {"CN": 10, "MCI": 10, "AD": 10}},
        "covariates": [["age", 72.0, 6.0]],
        "splits_sha256": "5d",
        "code": "c0",
    }
    save_file(
        {"x": np.zeros(1, np.float32)}, params.folder / "model.safetensors", {"adlib-resnet50-3": json.dumps(card)}
    )


def _record(params):
    record = describe(Recipe(), nn.Identity(), "random initialisation", params)
    record["network"]["title"] = "ResNet50"
    runs = {name: {"0": params.train.epochs} for name in ("resnet50", *params.train.controls)}
    write_json(record | {"runs": runs}, params.folder / RECORD)
