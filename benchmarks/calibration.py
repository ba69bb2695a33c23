"""Do calibration and prediction sets keep their promise to people that nobody has seen?

    python benchmarks/calibration.py [--model models/phantom] [--people 30] [--seed 7] [--workers 2]

Simulates participants of another seed than the study's, classifies their scans with a released model through the whole
pipeline, and divides them 50 times into as many as the study has for validation, which set the calibration and the
bound of the sets, and others, who are scored. The last line holds the figures against the goals; the exit code is 1
where one is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from adlib.classify.prediction import predict_file
from adlib.evaluation import scores
from adlib.evaluation.prediction_sets import prediction_sets
from adlib.parallel.mapping import map_scans
from adlib.phantom.cohort import draw_cohort, write_cohort
from adlib.release import load_without_reference
from adlib.study.exec_params import Pool
from adlib.study.params import load_params
from adlib.training import model_file
from adlib.training.calibration import fit_calibration
from adlib.training.pooling import arrays, pool_level

SPLITS, VALIDATION, COVERAGE, TOLERANCE = 50, 34, 0.9, 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/phantom"))
    parser.add_argument("--people", type=int, default=30, help="of each class")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="file that receives, or already holds, the answers by slice")
    args = parser.parse_args()
    classes = model_file.load(args.model).card.classes
    if args.keep and args.keep.is_file():
        answers = pd.read_parquet(args.keep)
    else:
        answers = answers_of_others(args)
        if args.keep:
            answers.to_parquet(args.keep)
    rng = np.random.default_rng(args.seed)
    return report(pd.DataFrame([one_split(answers, classes, rng) for _ in range(SPLITS)]), answers)


def answers_of_others(args: argparse.Namespace) -> pd.DataFrame:
    """Uncalibrated probabilities of every slice of newly simulated people."""
    params = load_params(args.model / "params.yaml")
    source = params.source.model_copy(update={"participants_per_class": args.people})
    cohort = draw_cohort(source, params.classes, args.seed)
    with tempfile.TemporaryDirectory() as place:
        root = write_cohort(source, params.classes, args.seed, Path(place), pool=Pool(workers=args.workers))
        files = cohort["participant_id"] + "/" + cohort["session_id"] + "/anat/" + cohort["scan_id"] + ".nii.gz"
        scans = cohort.assign(path=[str(root / file) for file in files]).to_dict("records")
        work = partial(answer, model=str(args.model))
        return pd.concat(
            map_scans(work, scans, pool=Pool(workers=args.workers), label="classifying scans"), ignore_index=True
        )


def answer(scan: dict, model: str) -> pd.DataFrame:
    """Slices of one scan as the network itself sees them; the model's own calibration is taken off again."""
    classifier = load_without_reference(model)
    card = classifier.card
    prediction = predict_file(scan["path"], classifier)
    if prediction.predicted is None:
        return pd.DataFrame()
    logits = (np.log(prediction.slices) - np.array(card.bias)) * card.temperature
    p = np.exp(logits - logits.max(1, keepdims=True))
    table = pd.DataFrame(p / p.sum(1, keepdims=True), columns=[f"p_{name}" for name in card.classes])
    names = {name: scan[name] for name in ("participant_id", "session_id", "scan_id")}
    return table.assign(**names, truth=scan["diagnosis"], slice=range(len(table)), fold=0)


def one_split(answers: pd.DataFrame, classes: tuple[str, ...], rng: np.random.Generator) -> dict[str, float]:
    """Coverage and log loss of the others, with calibration and bound set by a few participants of each class."""
    columns = [f"p_{name}" for name in classes]
    people = answers.drop_duplicates("participant_id")[["participant_id", "truth"]].sample(frac=1, random_state=rng)
    turn = people.groupby("truth").cumcount() + rng.random(len(people))
    few = answers["participant_id"].isin(people.loc[turn.sort_values().index[:VALIDATION], "participant_id"])
    y = answers["truth"].map(classes.index).to_numpy()
    temperature, bias = fit_calibration(
        np.log(answers.loc[few, columns].to_numpy()), y[few], answers.loc[few, "participant_id"].to_numpy()
    )
    biases = {f"bias_{name}": value for name, value in zip(classes, bias, strict=True)}
    after = answers.assign(temperature=temperature, **biases)
    pooled = {"before": answers.assign(temperature=1.0), "after": after}
    known, others = (pool_level(after[part], "subject", classes) for part in (few, ~few))
    truth, _, _ = arrays(others, classes)
    sets = prediction_sets(known.assign(fold=0), others.assign(fold=0), classes, COVERAGE)
    row = {"coverage": sets[np.arange(len(truth)), truth].mean(), "set_size": sets.sum(1).mean()}
    for name, table in pooled.items():
        y, p, _ = arrays(pool_level(table[~few], "subject", classes), classes)
        row[f"log_loss_{name}"] = float(scores.log_loss(y, p, np.ones((1, len(y))))[0])
        row[f"accuracy_{name}"] = float((p.argmax(1) == y).mean())
    return row


def report(table: pd.DataFrame, answers: pd.DataFrame) -> int:
    print(table.agg(["mean", "std", "min", "max"]).T.round(3).to_string())
    people = answers["participant_id"].nunique()
    means = table.mean()
    fallen = means["log_loss_before"] - means["log_loss_after"]
    off = means["coverage"] - COVERAGE
    share = (table["log_loss_after"] < table["log_loss_before"]).mean()
    print(
        f"{people} unseen participants, {SPLITS} splits with {VALIDATION} for validation: coverage "
        f"{means['coverage']:.3f} (goal {COVERAGE} +- {TOLERANCE}), mean set {means['set_size']:.2f} classes; "
        f"calibration lowers log loss by {fallen:.3f} (goal above 0), in {share:.0%} of splits"
    )
    return int(not (abs(off) <= TOLERANCE and fallen > 0))


if __name__ == "__main__":
    sys.exit(main())
