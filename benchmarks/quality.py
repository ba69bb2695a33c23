"""Quality control of made heads, clean and spoilt on purpose: how many faults are noticed, how many false alarms.

    python benchmarks/quality.py [--scans 100] [--workers 2] [--keep values.tsv]
    python benchmarks/quality.py --learn [--scans 50]      # writes the learnt limits into adlib/preprocess/quality.py

There are as many spoilt heads as clean ones, equally many of each fault. A scan counts as flagged where its verdict is
not pass or preprocessing refuses it. Prints a table by fault; its last line holds the figures against the goals, and
the exit code is 1 where one is missed. Heads, poses, noise and strengths of the faults differ between the heads that
the limits are learnt from and those that are reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from phantom_faults import FAULTS, add_noise, spoil

from adlib.parallel.mapping import map_scans
from adlib.phantom.cohort import SCANNERS, draw_cohort
from adlib.phantom.head import Subject, image_head
from adlib.preprocess import quality as qc
from adlib.preprocess.pipeline import preprocess_image
from adlib.study.exec_params import Pool
from adlib.study.params import PreprocessParams
from adlib.study.records import StudyError
from adlib.study.source_params import PhantomSource

SENSITIVITY, SPECIFICITY = 0.95, 0.95
CLASSES = ("CN", "MCI", "LMCI", "AD")
CLEAN = "clean"
SEEDS = {"learn": 7001, "report": 9001}
LEARNT_STRENGTHS = (0.25, 0.5, 0.75)  # the reported heads have any from 0 to 1
VOXEL_MM = 2.0
LOW, HIGH = -1, 1
LEARNT = {  # the fault that a value is there to notice, the side on which it then lies, and whether it is a ratio
    "qc_snr": ("wrap", LOW, True),
    "qc_edge": ("motion", LOW, True),
    "qc_ghost": ("motion", HIGH, True),
    "qc_air": ("wrap", HIGH, False),
    "qc_wrap": ("wrap", HIGH, False),
    "qc_jump": ("missing slices", HIGH, True),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=100, help="clean heads, and as many spoilt ones")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="file that receives the table of values")
    parser.add_argument("--learn", action="store_true", help="learn the limits instead of reporting")
    args = parser.parse_args()
    kind = "learn" if args.learn else "report"
    work = partial(measured, kind=kind)
    table = pd.DataFrame(map_scans(work, plan(args.scans), pool=Pool(workers=args.workers), label=f"heads to {kind}"))
    if args.keep:
        table.to_csv(args.keep, sep="\t", index=False)
    if args.learn:
        write_limits(table)
        return 0
    return report(table)


def plan(scans: int) -> list[tuple[str, int]]:
    """(fault or clean, index) of every head."""
    each = scans // len(FAULTS)
    return [(CLEAN, k) for k in range(scans)] + [(fault, k) for fault in FAULTS for k in range(each)]


def measured(item: tuple[str, int], kind: str) -> dict:
    """Make one head, preprocess it at 2 mm, and return its verdict, reasons and values."""
    fault, index = item
    row = {"fault": fault, "index": index}
    try:
        result = preprocess_image(made(index, kind, fault), PreprocessParams(resolution_mm=2.0), f"{fault} {index}")
    except StudyError as error:
        return row | {"verdict": "refused", "reasons": str(error)}
    return row | {"verdict": result.verdict, "reasons": "; ".join(result.reasons)} | result.qc


def made(index: int, kind: str, fault: str) -> nib.Nifti1Image:
    """One head of the simulated cohort by one of the four scanners, turned and shifted, with a fault or none."""
    source = PhantomSource(kind="phantom", participants_per_class=1, followup_fraction=0.0)
    seed = SEEDS[kind] + 1000 * (1 + list(FAULTS).index(fault) if fault in FAULTS else 0) + index
    rng = np.random.default_rng([seed, 3])
    row = draw_cohort(source, CLASSES, seed).iloc[index % len(CLASSES)]
    scanner = SCANNERS[int(rng.integers(len(SCANNERS)))]
    turn = nib.eulerangles.euler2mat(*np.radians(rng.uniform(-8, 8, 3)))
    to_mni = np.array(row["to_mni"]) @ nib.affines.from_matvec(turn, rng.uniform(-15, 15, 3))
    subject = Subject(row["severity"], row["brain_age"], to_mni, row["shape_seed"], row["scan_seed"])
    volume, affine, _ = image_head(subject, dataclasses.replace(scanner, noise=0.0), VOXEL_MM)
    if fault in FAULTS:
        strength = float(rng.choice(LEARNT_STRENGTHS)) if kind == "learn" else float(rng.random())
        volume = spoil(volume, affine, fault, strength, rng)
    volume = add_noise(volume, scanner.noise * rng.uniform(0.7, 1.4), rng).astype(np.int16)
    image = nib.Nifti1Image(volume, affine)
    wanted = nib.orientations.axcodes2ornt(tuple(scanner.orientation))
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), wanted))


def report(table: pd.DataFrame) -> int:
    """Print what was flagged, by fault, and hold it against the goals."""
    table = table.assign(flagged=table["verdict"] != "pass", left_out=table["verdict"].isin(["fail", "refused"]))
    print(f"{'head':15s} {'heads':>6} {'flagged':>8} {'left out':>9}  most frequent reasons")
    for fault, rows in table.groupby("fault", sort=False):
        why = rows["reasons"].str.findall(r"qc_\w+(?= is )").explode().value_counts().head(4)
        said = ", ".join(f"{name.removeprefix('qc_')} {count}" for name, count in why.items())
        print(f"{fault:15s} {len(rows):6d} {rows['flagged'].sum():8d} {rows['left_out'].sum():9d}  {said}")
    for row in table[(table["fault"] == CLEAN) == table["flagged"]].to_dict("records"):
        print(f"wrong: {row['fault']} {row['index']}: {row['verdict']} {row['reasons']}")
    clean = table["fault"] == CLEAN
    sensitivity, specificity = table.loc[~clean, "flagged"].mean(), 1 - table.loc[clean, "flagged"].mean()
    met = sensitivity >= SENSITIVITY and specificity >= SPECIFICITY
    print(
        f"{clean.sum()} clean and {(~clean).sum()} spoilt heads: sensitivity {sensitivity:.3f} (goal {SENSITIVITY}), "
        f"specificity {specificity:.3f} (goal {SPECIFICITY}): {'met' if met else 'MISSED'}"
    )
    return 0 if met else 1


def learnt(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Limits midway (ratios: in their logarithm) from the outermost clean head to the milder of its fault's heads.

    The milder heads stand for themselves by the quartile next to the clean ones, of those that lie beyond all clean.
    """
    limits = {}
    for name, (fault, side, ratio) in LEARNT.items():
        clean = (side * table.loc[table["fault"] == CLEAN, name]).max()
        spoilt = side * table.loc[table["fault"] == fault, name]
        ends = side * np.array([clean, spoilt[spoilt > clean].quantile(0.25)])
        limit = float(np.sqrt(ends.prod()) if ratio else ends.mean())
        limits[name] = (-qc.INFINITE, limit) if side == HIGH else (limit, qc.INFINITE)
    return limits


def write_limits(table: pd.DataFrame) -> None:
    """Write `LEARNT` and `SIMILARITY` into `adlib.preprocess.quality`."""
    lines = []
    for name, bounds in learnt(table).items():
        low, high = ({-qc.INFINITE: "-INFINITE", qc.INFINITE: "INFINITE"}.get(b, f"{b:.3g}") for b in bounds)
        lines.append(f'    "{name}": ({low}, {high}),')
    clean = table.loc[table["fault"] == CLEAN, "qc_similarity"]
    points = ", ".join(f"{value:.3g}" for value in np.percentile(clean, np.arange(0, 101, 20)))
    new = "\n".join(["LEARNT = {", *lines, "}", f"SIMILARITY = ({points})"])
    path = Path(qc.__file__)
    path.write_text(re.sub(r"LEARNT = \{.*?\n\}\nSIMILARITY = \(.*?\)", new, path.read_text(), flags=re.DOTALL))
    print(new)


if __name__ == "__main__":
    sys.exit(main())
