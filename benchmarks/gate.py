"""Whether the classifier's gate refuses what its model was not trained on, and lets in what it was.

    python benchmarks/gate.py [--study params/phantom.yaml] [--model FILE] [--heads 40] [--workers 2]

New simulated heads, none of which is in the study, go through prediction as they are, with the contrast of a T2w scan,
as half a brain, and with strong motion. Prints how many of each were refused and by which question; the exit code is 1
where a goal is missed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from phantom_faults import add_noise, spoil

from adlib.classify.model_store import find_model
from adlib.classify.prediction import predict_image
from adlib.parallel.mapping import map_scans
from adlib.phantom.cohort import SCANNERS, draw_cohort
from adlib.phantom.head import Subject, image_head
from adlib.study.exec_params import Pool
from adlib.study.params import load_params
from adlib.study.records import StudyError
from adlib.training import model_file

OUTSIDE, INSIDE = 0.95, 0.05  # at least, at most
SEED = 1_000_003  # away from every study's own
IN_RANGE = "as in training"
T2W = {"gm": 0.70, "wm": 0.45, "csf": 1.0, "bone": 0.06, "marrow": 0.5, "scalp": 0.7, "muscle": 0.3, "fluid": 1.0}
FAULTS = {"half a brain": "half brain", "strong motion": "motion"}
KINDS = (IN_RANGE, "T2w contrast", *FAULTS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("params/phantom.yaml"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--heads", type=int, default=40, help="of each kind")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    params = load_params(args.study)
    each = -(-args.heads // len(params.classes))
    source = params.source.model_copy(update={"participants_per_class": each, "followup_fraction": 0.0})
    people = draw_cohort(source, params.classes, SEED).head(args.heads).to_dict("records")
    items = [(kind, person) for kind in KINDS for person in people]
    judge = partial(judged, model=str(args.model or find_model(params)), voxel_mm=params.source.voxel_mm)
    found = map_scans(judge, items, pool=Pool(workers=args.workers), label="simulated heads")
    table = pd.DataFrame(found, columns=["kind", "refused", "why"])
    return 0 if report(table) else 1


def judged(item: tuple[str, dict[str, Any]], model: str, voxel_mm: float) -> tuple[str, bool, tuple[str, ...]]:
    """Kind of a head, whether it was refused, and by which questions."""
    kind, person = item
    torch.set_num_threads(1)
    volume, affine = made(kind, person, voxel_mm)
    try:
        found = predict_image(nib.Nifti1Image(volume, affine), person["scan_id"], classifier(model))
    except StudyError as error:
        said = re.sub(r"\([^)]*\)|[\d.e+]*\d", "", str(error).removeprefix(f"{person['scan_id']}: "))
        return kind, True, (f"not prepared: {said.split(';')[0].strip()}",)
    return kind, found.predicted is None, tuple(c.question for c in found.gate.checks if c.verdict == "refused")


@cache
def classifier(model: str) -> model_file.Classifier:
    return model_file.load(model)


def made(kind: str, person: dict[str, Any], voxel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """One head and its affine."""
    scanner = next(one for one in SCANNERS if one.site == person["site"])
    subject = Subject(
        person["severity"], person["brain_age"], np.array(person["to_mni"]), person["shape_seed"], person["scan_seed"]
    )
    if kind in FAULTS:
        rng = np.random.default_rng(person["scan_seed"])
        volume, affine, _ = image_head(subject, replace(scanner, noise=0.0), voxel_mm)
        spoilt = spoil(volume, affine, FAULTS[kind], float(rng.uniform(0.5, 1)), rng)
        return add_noise(spoilt, scanner.noise, rng), affine
    scanner = scanner if kind == IN_RANGE else replace(scanner, contrast=T2W)
    volume, affine, _ = image_head(subject, scanner, voxel_mm)
    return volume, affine


def report(table: pd.DataFrame) -> bool:
    """Print the rates and say whether the goals are met."""
    met = True
    print(f"{'heads':16} {'n':>4} {'refused':>8}  95 % interval   goal      by")
    for kind in KINDS:
        own = table[table["kind"] == kind]
        count, n = int(own["refused"].sum()), len(own)
        low, high = stats.binomtest(count, n).proportion_ci(method="wilson")
        good = count / n <= INSIDE if kind == IN_RANGE else count / n >= OUTSIDE
        goal = f"at most {INSIDE:.0%}" if kind == IN_RANGE else f"at least {OUTSIDE:.0%}"
        why = Counter(reason for reasons in own["why"] for reason in reasons)
        named = ", ".join(f"{reason} {times}" for reason, times in why.most_common(4))
        interval, verdict = f"{low:5.1%} to {high:6.1%}", "met" if good else "MISSED"
        print(f"{kind:16} {n:4d} {count / n:8.1%}  {interval} {goal:13} {verdict}; {named}")
        met &= good
    return met


if __name__ == "__main__":
    sys.exit(main())
