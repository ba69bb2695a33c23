"""Audit, splits and evaluation of tables as long as those of the largest cohorts, with made metadata and no image.

    python benchmarks/rows.py [--scans 1000 10000 100000] [--bootstrap 2000]

For each number of scans it audits a listing in which two contradictions are planted, writes and reads the manifest,
cuts every kind of split, and evaluates made predictions of a five-fold study, three slices a scan, beside the
baselines. It checks that the audit stops at what was planted and at nothing else, that no participant is in two parts,
and that the balanced accuracy is scikit-learn's. Prints seconds and peak memory; the exit code is 1 where a check fails
or memory exceeds its goal.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from apart import apart
from sklearn.metrics import balanced_accuracy_score

from adlib.audit.run import run_audit
from adlib.evaluation.evaluate import evaluate_study
from adlib.study.metrics import format_score, get_score, metrics_table
from adlib.study.params import AuditParams, SplitParams, StudyParams, load_params
from adlib.study.records import (
    AUDIT,
    FEATURES,
    LISTING,
    MANIFEST,
    PREDICTIONS,
    SPLITS,
    check_table,
    read_table,
    write_table,
)
from adlib.training.pooling import pool_level
from adlib.training.splits import check_disjoint, make_splits

ROOT = Path(__file__).resolve().parents[1]
MEGABYTES = 4000.0
SESSIONS = 5 / 3  # of a participant, on average
SLICES = 3
SITES, PLANTED = 40, ("image-two-labels", "same-image")
PROTOCOLS = ("holdout", "kfold", "leave_one_site_out")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--bootstrap", type=int, default=2000)
    args = parser.parse_args()
    print(f"{'scans':>8} {'audit s':>9} {'tables s':>9} {'splits s':>9} {'evaluation s':>13} {'peak MB':>9}")
    peaks = []
    for count in args.scans:
        with tempfile.TemporaryDirectory(prefix="adlib-rows-") as folder:
            seconds, peak = apart(handled, count, args.bootstrap, Path(folder))
        peaks.append(peak)
        row = " ".join(f"{value:>{width}.1f}" for value, width in zip(seconds, (9, 9, 9, 13), strict=True))
        print(f"{count:>8} {row} {peak:>9.0f}", flush=True)
    print(f"{args.scans[-1]} scans: {max(peaks):.0f} MB at most (goal {MEGABYTES:.0f}); every check held")
    return int(max(peaks) > MEGABYTES)


def handled(count: int, bootstrap: int, folder: Path) -> tuple[float, float, float, float]:
    """Seconds of audit, of writing and reading the manifest, of all splits, and of the evaluation; all are checked."""
    params = load_params(
        ROOT / "params" / "bids.yaml", (f"exec.outputs={folder}", f"evaluate.bootstrap={bootstrap}", "splits.folds=5")
    )
    params.folder.mkdir(parents=True)
    listed = made_listing(count, params)
    times = [time.perf_counter()]
    audit = run_audit(listed, params.classes, AuditParams(), params.seed)
    stops = tuple(sorted(audit.findings.query("severity == 'stop'")["check"]))
    if stops != PLANTED:
        raise AssertionError(f"the audit stops at {stops}, planted were {PLANTED}")
    times.append(time.perf_counter())
    write_table(audit.manifest, params.folder / "manifest.tsv", MANIFEST)
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST)
    times.append(time.perf_counter())
    splits = {name: make_splits(manifest, SplitParams(protocol=name), params.seed) for name in PROTOCOLS}
    for table in splits.values():
        check_disjoint(table)
    times.append(time.perf_counter())
    write_results(audit.findings, manifest, splits["kfold"], params)
    before = time.perf_counter()
    check_scores(evaluate_study(params), params)
    audited, stored, cut = np.diff(times)
    return audited, stored, cut, time.perf_counter() - before


def made_listing(count: int, params: StudyParams) -> pd.DataFrame:
    """Scans of people of every class; nothing about them tells the class, but two scans are planted."""
    rng = np.random.default_rng(1)
    people = int(count / SESSIONS)
    person = np.sort(np.r_[np.arange(people), rng.integers(people, size=count - people)])
    session = pd.Series(person).groupby(person).cumcount() + 1
    own = pd.DataFrame(
        {
            "participant_id": [f"sub-{k:06d}" for k in range(people)],
            "diagnosis": rng.choice(params.classes, people),
            "age": rng.normal(72, 8, people).round(1),
            "sex": rng.choice(["F", "M"], people),
            "site": [f"site-{k:02d}" for k in rng.integers(SITES, size=people)],
        }
    )
    listed = own.iloc[person].reset_index(drop=True)
    listed = listed.assign(
        session_id=[f"ses-{k:02d}" for k in session],
        manufacturer=rng.choice(["Alpha", "Beta", "Gamma"], count),
        model=rng.choice(["One", "Two", "Three", "Four"], count),
        field_strength_T=rng.choice([1.5, 3.0], count),
        series_description=rng.choice(["MPRAGE", "IR-FSPGR"], count),
        echo_time_ms=rng.normal(3, 0.1, count).round(2),
        repetition_time_ms=2300.0,
        inversion_time_ms=900.0,
        acquisition_date=rng.choice(pd.date_range("2010-01-01", "2020-12-31").strftime("%Y-%m-%d"), count),
        voxel_x_mm=1.0,
        voxel_y_mm=1.0,
        voxel_z_mm=rng.choice([1.0, 1.2], count),
        shape="256x256x170",
        dtype="int16",
        orientation="LAS",
        modality="MR",
        image_id=[f"I{k:07d}" for k in range(count)],
        sha256=[f"{k:064x}" for k in range(count)],
    )
    listed["scan_id"] = listed["participant_id"] + "_" + listed["session_id"] + "_T1w"
    listed["path"] = "/data/" + listed["scan_id"] + ".nii.gz"
    return check_table(planted(listed), LISTING, "listing")


def planted(listed: pd.DataFrame) -> pd.DataFrame:
    """One image id with two labels, and one file under the names of two people."""
    first = listed.drop_duplicates("participant_id").index
    labels = listed.loc[first, "diagnosis"]
    one, other = first[0], labels.index[labels != labels.iloc[0]][0]
    listed.loc[other, "image_id"] = listed.loc[one, "image_id"]
    listed.loc[first[-1], "sha256"] = listed.loc[first[-2], "sha256"]
    return listed


def write_results(findings: pd.DataFrame, manifest: pd.DataFrame, splits: pd.DataFrame, params: StudyParams) -> None:
    """What evaluation reads: volumes and predictions that tell a little of the stage."""
    rng = np.random.default_rng(2)
    write_table(findings, params.folder / "audit.tsv", AUDIT)
    write_table(splits, params.folder / "splits.tsv", SPLITS)
    stage = manifest["diagnosis"].map({name: k for k, name in enumerate(params.classes)}).to_numpy()
    volumes = {name: mean - step * stage + rng.normal(0, sd, len(stage)) for name, mean, step, sd in
               (("icv_ml", 1500, 0, 100), ("gm_ml", 600, 8, 40), ("hippocampus_ml", 7, 0.4, 0.8))}  # fmt: skip
    known = manifest[["participant_id", "session_id", "scan_id"]]
    write_table(known.assign(qc_verdict="pass", **volumes), params.folder / "features.tsv", FEATURES)
    told = splits[splits["split"] != "train"].merge(known, on="participant_id")
    told = told.loc[told.index.repeat(SLICES)].rename(columns={"diagnosis": "truth"})
    truth = told["truth"].map({name: k for k, name in enumerate(params.classes)}).to_numpy()
    logits = rng.normal(0, 1, (len(told), len(params.classes))) + 0.7 * np.eye(len(params.classes))[truth]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    told = told.assign(run="resnet50", slice=np.arange(len(told)) % SLICES, temperature=1.0)
    told = told.assign(**{f"p_{name}": p[:, k] for k, name in enumerate(params.classes)})
    write_table(told, params.folder / "predictions.parquet", PREDICTIONS)
    (params.folder / "model.safetensors").write_bytes(b"only its digest is asked for")


def check_scores(metrics: dict, params: StudyParams) -> None:
    """Compare with scikit-learn, and see that the interval holds the point and is narrow where people are many."""
    predictions = read_table(params.folder / "predictions.parquet", PREDICTIONS).query("split == 'test'")
    pooled = pool_level(predictions, "subject", params.classes)
    decided = np.array(params.classes)[pooled[[f"p_{name}" for name in params.classes]].to_numpy().argmax(1)]
    expected = balanced_accuracy_score(pooled["truth"], decided)
    score = get_score(metrics_table(metrics), "resnet50", "balanced_accuracy")
    if abs(score.point - expected) > 1e-12 or not score.low < expected < score.high:
        raise AssertionError(f"balanced accuracy {format_score(score)}, scikit-learn says {expected}")
    if not 0.5 < (score.high - score.low) / (2 * 1.96 * np.sqrt(expected * (1 - expected) / score.n)) < 1.5:
        raise AssertionError(f"the interval of {score.n} participants is {score.high - score.low:.4f} wide")


if __name__ == "__main__":
    sys.exit(main())
