"""Accuracy of preprocessing on made heads, whose truth is known. Real ones are measured by ``real_heads.py``.

    python benchmarks/preprocessing.py robustness [--heads 200] [--workers 2]   # poses, fields of view, sampling
    python benchmarks/preprocessing.py segmentation [--heads 8] [--more-heads 24]  # masks, tissues, volumes
    python benchmarks/preprocessing.py quality [--scans 100] [--workers 2]      # faults that quality control detects
    python benchmarks/preprocessing.py quality --learn --scans 50               # its limits, into preprocess/quality.py

The last lines of each have the figures and their goals; the exit code is 1 where one is missed.
"""

import argparse
import dataclasses
import re
import sys
import time
from functools import partial
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from goals import count_missed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from made_head import CENTRE, FAULTS, MadeHead, add_noise, made_head, pose_error, rotation, spoil

from adlib.imaging import atlas
from adlib.imaging.volume import resample
from adlib.parallel.mapping import map_scans
from adlib.parallel.threads import one_thread
from adlib.phantom.cohort import SCANNERS, draw_cohort
from adlib.phantom.head import MEASURED, Subject, image_head
from adlib.preprocess import quality as qc
from adlib.preprocess.pipeline import preprocess_image
from adlib.study.exec_params import Pool
from adlib.study.params import PreprocessParams
from adlib.study.records import StudyError
from adlib.study.source_params import PhantomSource

CLASSES = ("CN", "MCI", "LMCI", "AD")
WITHIN_MM = 2.0  # a pose is right below this mean error
DICE = {"GM": 0.90, "WM": 0.92, "CSF": 0.85, "brain": 0.97}
SIZES = {"GM": "gm_ml", "WM": "wm_ml", "CSF": "csf_ml", "ICV": "icv_ml"}
REGIONS = ("hippocampus_ml", "ventricles_ml", "nbv")
CLEAN = "clean"
SEEDS = {"learn": 7001, "report": 9001}
LEARNT_STRENGTHS = (0.25, 0.5, 0.75)  # the reported heads have any from 0 to 1
RIGHT_HANDED = tuple(
    codes
    for order in permutations(("RL", "AP", "SI"))
    for codes in ("".join(letters) for letters in product(*order))
    if np.linalg.det(nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (2, 2, 2))[:3, :3]) > 0
)
LOW, HIGH = -1, 1
LEARNT = {  # the fault that a value detects, the side on which it then lies, and whether it is a ratio
    "qc_snr": ("wrap", LOW, True),
    "qc_edge": ("motion", LOW, True),
    "qc_ghost": ("motion", HIGH, True),
    "qc_air": ("wrap", HIGH, False),
    "qc_wrap": ("wrap", HIGH, False),
    "qc_jump": ("missing slices", HIGH, True),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    options = {
        "robustness": {"heads": 200, "first": 1000, "workers": 2},
        "segmentation": {"heads": 8, "more-heads": 24, "seed": 7},
        "quality": {"scans": 100, "workers": 2},
    }
    for name, numbers in options.items():
        command = commands.add_parser(name)
        for option, default in numbers.items():
            command.add_argument(f"--{option}", type=int, default=default)
    commands.choices["quality"].add_argument("--learn", action="store_true", help="learn the limits")
    args = parser.parse_args()
    return int({"robustness": robustness, "segmentation": segmentation, "quality": quality}[args.command](args) > 0)


def drawn_setting(seed: int) -> dict[str, Any]:
    """Setting of a head for `head_of` from the whole range that registration must cover.

    Seeds in a row take all orientations. ``degrees`` and ``tilt`` (of the field of view) are about x, y, z; ``cut_mm``
    is the part of the brain's top outside the field of view (negative: room above), ``neck_mm`` the room below.
    """
    rng = np.random.default_rng([seed, 4])
    edge = float(rng.uniform(0.7, 3.0))
    edges = [edge] * 3
    if rng.random() < 0.4:
        edges[rng.integers(3)] = float(rng.uniform(edge, 5.0))
    return {
        "seed": seed,
        "codes": RIGHT_HANDED[seed % len(RIGHT_HANDED)],
        "voxel_mm": edges,
        "degrees": rng.uniform(-30, 30, 3),
        "shift_mm": rng.uniform(-60, 60, 3),
        "tilt": rng.uniform(-15, 15, 3) if rng.random() < 0.3 else np.zeros(3),
        "scale": rng.uniform(0.85, 1.15),
        "stretch": rng.uniform(0.96, 1.04, 3),
        "skew": rng.uniform(-0.03, 0.03, 3),
        "cut_mm": rng.uniform(0, 20) if rng.random() < 0.25 else -rng.uniform(15, 40),
        "neck_mm": rng.uniform(60, 150) if rng.random() < 0.4 else rng.uniform(5, 60),
        "bias": rng.uniform(0, 0.4),
        "noise": rng.uniform(0.01, 0.09),
        "contrast": (rng.uniform(0.55, 0.72), 1.0, rng.uniform(0.15, 0.3)),
    }


def head_of(setting: dict[str, Any], resolution_mm: float = 2.0) -> MadeHead:
    """The scan of a `drawn_setting`, from shells on a grid of the given voxel edge."""
    skew = np.eye(3)
    skew[np.triu_indices(3, 1)] = setting["skew"]
    turn = rotation(setting["degrees"]) @ (setting["scale"] * np.diag(setting["stretch"])) @ skew
    pose = nib.affines.from_matvec(turn, CENTRE + setting["shift_mm"] - turn @ CENTRE)
    tilt, base = rotation(setting["tilt"]), atlas.template(4.0)
    brain = nib.affines.apply_affine(pose @ base.affine, np.argwhere(base.mask))
    along = (brain - nib.affines.apply_affine(pose, CENTRE)) @ tilt
    low, high = along.min(axis=0), along.max(axis=0)
    view = (low - np.array([25, 35, setting["neck_mm"]]), high + np.array([25, 30, -setting["cut_mm"]]))
    same = {name: setting[name] for name in ("seed", "codes", "voxel_mm", "bias", "noise", "contrast")}
    shells = {"resolution_mm": resolution_mm, "neck_mm": 140.0, "exact_bias": True}
    return made_head(**same, **shells, pose=pose, view=view, tilt=tilt)


# --- robustness: the whole pipeline at 2 mm; seeds below 1000 are for tuning ---


def robustness(args: argparse.Namespace) -> int:
    """Share of made heads that register, and of the others that quality control detects; goals missed."""
    settings = [drawn_setting(seed) for seed in range(args.first, args.first + args.heads)]
    table = pd.DataFrame(map_scans(registered, settings, pool=Pool(workers=args.workers), label="made heads"))
    missed = table["error"] > WITHIN_MM
    for row, setting in zip(table.itertuples(), settings, strict=True):
        if row.error > WITHIN_MM:
            print(f"{row.error:.1f} mm, verdict {row.verdict} ({row.reasons})\n    {setting}")
    reasons = table.loc[~missed, "reasons"].str.findall(r"qc_\w+(?= =)").explode().value_counts()
    print(f"registered heads: {table.loc[~missed, 'verdict'].value_counts().to_dict()}; out of limits: {dict(reasons)}")
    print(f"error: median {table['error'].median():.2f} mm, largest {table['error'].max():.2f} mm")
    silent = float((missed & (table["verdict"] == "pass")).sum())
    return count_missed(
        (f"share within {WITHIN_MM:g} mm", float((~missed).mean()), ">=", 0.995),
        ("missed with verdict pass", silent, "<=", 0),
    )


def registered(setting: dict) -> dict[str, Any]:
    """Registration error of a made head, mm (infinite where it is refused), verdict and reasons."""
    head = head_of(setting)
    row = verdict_on(head.image, f"seed {setting['seed']}")
    error = np.inf if row["scan_to_mni"] is None else pose_error(row["scan_to_mni"], head.mni_to_scan)
    return {"error": error, "verdict": row["verdict"], "reasons": row["reasons"]}


def verdict_on(image: nib.Nifti1Image, name: str) -> dict[str, Any]:
    """Preprocess at 2 mm: verdict (``refused`` where it stops), reasons, pose and QC values."""
    try:
        result = preprocess_image(image, PreprocessParams(resolution_mm=2.0), name)
    except StudyError as error:
        return {"verdict": "refused", "reasons": str(error), "scan_to_mni": None}
    reasons = "; ".join(result.reasons)
    return {"verdict": result.verdict, "reasons": reasons, "scan_to_mni": result.scan_to_mni, **result.qc}


# --- segmentation: simulated heads with a truth for every voxel, compared at the pose that the pipeline finds ---


def segmentation(args: argparse.Namespace) -> int:
    """Dice of masks and tissues and errors of volumes at 1 mm; correlation of regional volumes at 2 mm."""
    with one_thread():
        fine, coarse = segmented(args.heads, args.seed, 1.0), segmented(args.more_heads, args.seed + 1, 2.0)
    r = {name: float(coarse[name].corr(coarse[f"true {name}"])) for name in REGIONS}
    print(f"ventricles r {r['ventricles_ml']:.3f}, nbv r {r['nbv']:.3f}")
    medians = fine.median(numeric_only=True)
    figures = [(f"Dice {name}", medians[name], ">=", goal) for name, goal in DICE.items()]
    figures += [(f"volume error of {name} in percent", abs(medians[f"{name} %"]), "<=", 3.0) for name in SIZES]
    return count_missed(*figures, ("hippocampus r", r["hippocampus_ml"], ">=", 0.9))


def segmented(heads: int, seed: int, edge_mm: float) -> pd.DataFrame:
    """Measure and print one row for each head."""
    source = PhantomSource(kind="phantom", participants_per_class=-(-heads // len(CLASSES)), followup_fraction=0.0)
    cohort = draw_cohort(source, CLASSES, seed).head(heads)
    table = pd.DataFrame([segmented_head(row, edge_mm) for row in cohort.to_dict("records")])
    print(f"{edge_mm:g} mm\n{table.round(3).to_string(index=False)}", flush=True)
    return table


def segmented_head(row: dict, edge_mm: float) -> dict[str, Any]:
    """Image one head, process it, and compare labels (the largest fraction) and volumes with the truth."""
    scanner = next(scanner for scanner in SCANNERS if scanner.site == row["site"])
    volume, affine, truth, fractions = image_head(subject(row, np.array(row["to_mni"])), scanner, edge_mm)
    start = time.process_time()
    result = preprocess_image(nib.Nifti1Image(volume, affine), PreprocessParams(resolution_mm=edge_mm), "made")
    seconds, base, to_scan = time.process_time() - start, atlas.template(edge_mm), np.linalg.inv(result.scan_to_mni)
    parts = [fractions[MEASURED.index(name)] for name in ("gm", "wm", "csf")]
    true = np.stack([resample(part, affine, base.mask.shape, base.affine, to_scan) for part in parts], axis=-1)
    inside = true.sum(axis=-1) > 0.5
    labels, wanted = (np.where(m, t.argmax(-1), 3) for m, t in ((result.mask, result.tissues), (inside, true)))
    scores = {name: dice(labels == k, wanted == k) for k, name in enumerate(("GM", "WM", "CSF"))}
    errors = {f"{name} %": 100 * (result.features[size] / truth[size] - 1) for name, size in SIZES.items()}
    regions = {name: result.features[name] for name in REGIONS} | {f"true {name}": truth[name] for name in REGIONS}
    return {"site": row["site"], **scores, "brain": dice(result.mask, inside), **errors, **regions, "s": seconds}


def subject(row: dict, to_mni: np.ndarray) -> Subject:
    return Subject(row["severity"], row["brain_age"], to_mni, row["shape_seed"], row["scan_seed"])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


# --- quality: clean heads and as many with faults; heads for the limits differ from those for the report ---


def quality(args: argparse.Namespace) -> int:
    """Sensitivity and specificity of the verdicts, or new limits."""
    kind, each = "learn" if args.learn else "report", args.scans // len(FAULTS)
    heads = [(CLEAN, k) for k in range(args.scans)] + [(fault, k) for fault in FAULTS for k in range(each)]
    work = partial(spoilt_verdict, kind=kind)
    table = pd.DataFrame(map_scans(work, heads, pool=Pool(workers=args.workers), label=f"heads to {kind}"))
    if args.learn:
        write_limits(table)
        return 0
    flagged, clean = table["verdict"] != "pass", table["fault"] == CLEAN
    for fault, rows in table.groupby("fault", sort=False):
        reasons = rows["reasons"].str.findall(r"qc_\w+(?= =)").explode().value_counts().head(4)
        print(f"{fault:15} {len(rows):4d} heads, {rows['verdict'].value_counts().to_dict()}; {dict(reasons)}")
    for row in table[clean == flagged].itertuples():
        print(f"wrong: {row.fault} {row.index}: {row.verdict} {row.reasons}")
    return count_missed(
        ("sensitivity", float(flagged[~clean].mean()), ">=", 0.95),
        ("specificity", float(1 - flagged[clean].mean()), ">=", 0.95),
    )


def spoilt_verdict(item: tuple[str, int], kind: str) -> dict[str, Any]:
    """Verdict on a head of the simulated cohort, by one of the four scanners, turned and shifted, perhaps faulty."""
    fault, index = item
    source = PhantomSource(kind="phantom", participants_per_class=1, followup_fraction=0.0)
    seed = SEEDS[kind] + 1000 * (1 + list(FAULTS).index(fault) if fault in FAULTS else 0) + index
    rng = np.random.default_rng([seed, 3])
    row = draw_cohort(source, CLASSES, seed).iloc[index % len(CLASSES)]
    scanner = SCANNERS[int(rng.integers(len(SCANNERS)))]
    turn = nib.eulerangles.euler2mat(*np.radians(rng.uniform(-8, 8, 3)))
    to_mni = np.array(row["to_mni"]) @ nib.affines.from_matvec(turn, rng.uniform(-15, 15, 3))
    volume, affine, *_ = image_head(subject(row, to_mni), dataclasses.replace(scanner, noise=0.0), 2.0)
    if fault in FAULTS:
        strength = float(rng.choice(LEARNT_STRENGTHS)) if kind == "learn" else float(rng.random())
        volume = spoil(volume, affine, fault, strength, rng)
    volume = add_noise(volume, scanner.noise * rng.uniform(0.7, 1.4), rng).astype(np.int16)
    image, wanted = nib.Nifti1Image(volume, affine), nib.orientations.axcodes2ornt(tuple(scanner.orientation))
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), wanted))
    return {"fault": fault, "index": index, **verdict_on(image, f"{fault} {index}")}


def write_limits(table: pd.DataFrame) -> None:
    """Write `LEARNT` into `adlib.preprocess.quality`.

    A limit is midway (ratios: in their logarithm) from the outermost clean head to the milder heads with the fault:
    the quartile next to the clean ones, of those that lie beyond all clean.
    """
    lines, clean = [], table[table["fault"] == CLEAN]
    for name, (fault, side, ratio) in LEARNT.items():
        outermost, spoilt = (side * clean[name]).max(), side * table.loc[table["fault"] == fault, name]
        ends = side * np.array([outermost, spoilt[spoilt > outermost].quantile(0.25)])
        limit = float(np.sqrt(ends.prod()) if ratio else ends.mean())
        lines.append(f'    "{name}": ({f"-INFINITE, {limit:.3g}" if side == HIGH else f"{limit:.3g}, INFINITE"}),')
    limits = "\n".join(["LEARNT = {", *lines, "}"])
    path = Path(qc.__file__)
    path.write_text(re.sub(r"LEARNT = \{.*?\n\}", limits, path.read_text(), flags=re.DOTALL))
    print(limits)


if __name__ == "__main__":
    sys.exit(main())
