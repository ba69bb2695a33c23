"""Accuracy of brain extraction, tissue segmentation and volumes on simulated heads whose voxels are known.

    python benchmarks/segmentation.py [--heads 8] [--more-heads 24] [--seed 7]

Two tables: heads imaged at about 1 mm and processed at 1 mm, and more heads at 2 mm for the correlation of regional
volumes with the truth. Labels are compared in MNI152 space, to which the true fractions are taken by the pose that the
pipeline found: errors of registration are left out, those of everything after it count. A voxel's label is its largest
fraction. "brain" is the mask against the true intracranial compartment (GM, WM and fluid up to the inner skull).
Volume errors are those of the features, in the person's own millilitres.

The last line holds the figures against the goals, and the exit code is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import sys
import time

import nibabel as nib
import numpy as np
import torch

from adlib.imaging import atlas
from adlib.imaging.volume import resample
from adlib.parallel.threads import one_thread
from adlib.phantom.cohort import SCANNERS, draw_cohort
from adlib.phantom.head import MEASURED, Subject, image_head_with_maps
from adlib.preprocess.pipeline import preprocess_image
from adlib.study.params import PreprocessParams
from adlib.study.source_params import PhantomSource

CLASSES = ("CN", "MCI", "LMCI", "AD")
DICE = {"GM": 0.90, "WM": 0.92, "CSF": 0.85, "brain": 0.97}
ERROR_PERCENT, CORRELATION = 3.0, 0.9
SIZES = {"GM": "gm_ml", "WM": "wm_ml", "CSF": "csf_ml", "ICV": "icv_ml"}
REGIONS = ("hippocampus_ml", "ventricles_ml", "nbv")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=8, help="at 1 mm")
    parser.add_argument("--more-heads", type=int, default=24, help="at 2 mm")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with one_thread():
        fine = table(args.heads, args.seed, 1.0)
        coarse = table(args.more_heads, args.seed + 1, 2.0)
    dice = {name: float(np.median([one[name] for one in fine])) for name in DICE}
    errors = {name: float(np.median([one[f"{name} %"] for one in fine])) for name in SIZES}
    r = {name: correlation(coarse, name) for name in REGIONS}
    met = {f"Dice {name}": (value, f">= {DICE[name]}", value >= DICE[name]) for name, value in dice.items()}
    met |= {f"volume {n} %": (v, f"within {ERROR_PERCENT:g}", abs(v) <= ERROR_PERCENT) for n, v in errors.items()}
    met["hippocampus r"] = (r["hippocampus_ml"], f">= {CORRELATION}", r["hippocampus_ml"] >= CORRELATION)
    figures = ", ".join(f"{n} {v:.3f} ({goal}{'' if ok else ', MISSED'})" for n, (v, goal, ok) in met.items())
    print(f"medians: {figures}, ventricles r {r['ventricles_ml']:.3f}, nbv r {r['nbv']:.3f}")
    return 0 if all(ok for _, _, ok in met.values()) else 1


def table(heads: int, seed: int, edge_mm: float) -> list[dict]:
    """Measure and print one row per head, then the medians and the worst."""
    source = PhantomSource(kind="phantom", participants_per_class=-(-heads // len(CLASSES)), followup_fraction=0.0)
    cohort = draw_cohort(source, CLASSES, seed).head(heads)
    columns = [*DICE, *(f"{name} %" for name in SIZES)]
    print(f"{edge_mm:g} mm: Dice of GM, WM, CSF, brain; error of volumes in percent; found / true regions in ml")
    print(f"{'site':>6} {'severity':>8} {'age':>4}" + "".join(f"{name:>8}" for name in columns) + f"{'s':>7}  regions")
    rows = []
    for row in cohort.to_dict("records"):
        rows.append(measure(row, edge_mm))
        regions = ", ".join(f"{n} {rows[-1][n][0]:.3g} / {rows[-1][n][1]:.3g}" for n in REGIONS)
        start = f"{row['site']:>6} {row['severity']:8.2f} {row['brain_age']:4.0f}"
        print(start + line(rows[-1], columns) + f"{rows[-1]['seconds']:7.1f}  {regions}", flush=True)
    print(f"{'median':>20}" + line({n: float(np.median([one[n] for one in rows])) for n in columns}, columns))
    worst = {n: min(one[n] for one in rows) if n in DICE else max((one[n] for one in rows), key=abs) for n in columns}
    print(f"{'worst':>20}" + line(worst, columns))
    return rows


def line(values: dict, columns: list[str]) -> str:
    return "".join(f"{values[name]:8.3f}" if name in DICE else f"{values[name]:8.1f}" for name in columns)


def measure(row: dict, edge_mm: float) -> dict:
    """Image one head, process it, and hold labels and volumes against the truth."""
    scanner = next(one for one in SCANNERS if one.site == row["site"])
    pose = np.array(row["to_mni"])
    subject = Subject(row["severity"], row["brain_age"], pose, row["shape_seed"], row["scan_seed"])
    volume, affine, truth, fractions = image_head_with_maps(subject, scanner, edge_mm)
    start = time.process_time()
    found = preprocess_image(nib.Nifti1Image(volume, affine), PreprocessParams(resolution_mm=edge_mm), "made")
    seconds = time.process_time() - start
    base = atlas.template(edge_mm)
    to_scan = np.linalg.inv(found.scan_to_mni)
    parts = [MEASURED.index(name) for name in ("gm", "wm", "csf")]
    true = np.stack([resample(fractions[k], affine, base.mask.shape, base.affine, to_scan) for k in parts], axis=-1)
    inside = true.sum(axis=-1) > 0.5
    labels, wanted = (np.where(m, t.argmax(-1), 3) for m, t in ((found.mask, found.tissues), (inside, true)))
    scores = {name: dice(labels == k, wanted == k) for k, name in enumerate(("GM", "WM", "CSF"))}
    errors = {f"{name} %": 100 * (found.features[size] / truth[size] - 1) for name, size in SIZES.items()}
    regions = {name: (found.features[name], truth[name]) for name in REGIONS}
    return scores | {"brain": dice(found.mask, inside), "seconds": seconds} | errors | regions


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


def correlation(rows: list[dict], name: str) -> float:
    return float(np.corrcoef(np.array([one[name] for one in rows]).T)[0, 1])


if __name__ == "__main__":
    sys.exit(main())
