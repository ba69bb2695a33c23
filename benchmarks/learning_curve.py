"""How the network and the baselines of a finished study grow with the number of training participants.

    python benchmarks/learning_curve.py [--params params/phantom.yaml] [--shares 0.25 0.5 1] [--set key=value ...]

The study's steps 01 and 02 must have run. For each share, training and validation participants of the first fold are
thinned alike in every class; the test participants stay. Prints the balanced accuracy of unseen participants with its
95 % interval, and beside it the ceiling of a simulated cohort. Nothing is judged: this is to be looked at.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from adlib.evaluation.baselines import predict_baselines
from adlib.evaluation.evaluate import best_possible, score_run
from adlib.study.metrics import format_score, get_score, metrics_table
from adlib.study.params import StudyParams, load_params
from adlib.study.records import FEATURES, MANIFEST, read_table
from adlib.training.device import make_fabric
from adlib.training.folds import make_fold
from adlib.training.loop import fit
from adlib.training.pooling import pool_level
from adlib.training.runs import predict_fold
from adlib.training.slices import load_slices
from adlib.training.splits import make_splits

SHOWN = ("resnet50", "volumes", "age_sex_volumes", "grey_matter_svm", "bayes_ceiling")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params/phantom.yaml")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--set", nargs="*", default=[])
    args = parser.parse_args()
    params = load_params(args.params, tuple(args.set))
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST)
    features = read_table(params.folder / "features.tsv", FEATURES)
    usable = features.loc[features["qc_verdict"] != "fail", "scan_id"]
    splits = make_splits(manifest[manifest["scan_id"].isin(usable)], params.splits, params.seed)
    splits = splits[splits["fold"] == 0]
    print(f"{'participants':>12}", *(f"{name:>18}" for name in SHOWN), flush=True)
    for share in args.shares:
        thin = thinned(splits, share, params.seed)
        scores = [scored(table, params) for table in predicted(thin, manifest, features, params)]
        by_name = dict(scores)
        count = int((thin["split"] == "train").sum())
        print(f"{count:>12}", *(f"{by_name.get(name, '-'):>18}" for name in SHOWN), flush=True)
    return 0


def thinned(splits: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """The split with a share of the participants of each class and part, all of the tested ones."""
    rng = np.random.default_rng(seed)
    kept = []
    for (part, _), rows in splits.groupby(["split", "diagnosis"]):
        count = len(rows) if part == "test" else max(round(share * len(rows)), 1)
        kept.append(splits.loc[rng.permutation(rows.index)[:count]])
    return pd.concat(kept).sort_index()


def predicted(
    splits: pd.DataFrame, manifest: pd.DataFrame, features: pd.DataFrame, params: StudyParams
) -> list[pd.DataFrame]:
    """Predictions of the network, each baseline and the best possible classifier."""
    slices, table = load_slices(params)
    rows = np.flatnonzero(table["participant_id"].isin(splits["participant_id"]))
    fold = make_fold(0, slices[rows], table.iloc[rows].reset_index(drop=True), splits, params)
    with tempfile.TemporaryDirectory() as folder:
        network, _ = fit(fold, params, Path(folder), "learning curve", make_fabric(params))
    own = predict_fold(fold, [network], params)
    kept = manifest[manifest["participant_id"].isin(splits["participant_id"])]
    others = predict_baselines(kept, features[features["scan_id"].isin(kept["scan_id"])], splits, params)
    return [own, *(table for _, table in others.groupby("run")), *best_possible(own, params)]


def scored(table: pd.DataFrame, params: StudyParams) -> tuple[str, str]:
    tested = table[table["split"] == "test"]
    name = str(tested["run"].iloc[0])
    pooled = pool_level(tested, "subject", params.classes, params.input.pooling)
    entries = {"entries": score_run(pooled, name, "subject", params)}
    return name, format_score(get_score(metrics_table(entries), name, "balanced_accuracy"))


if __name__ == "__main__":
    sys.exit(main())
