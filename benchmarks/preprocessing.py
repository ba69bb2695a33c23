"""Speed and accuracy of preprocessing on heads whose truth is known.

    python benchmarks/preprocessing.py speed [--heads 3] [--workers 2]          # seconds, memory, pose error at 1 mm
    python benchmarks/preprocessing.py peers [--heads 3] [--without NAME ...]   # the same beside other tools
    python benchmarks/preprocessing.py robustness [--heads 200] [--workers 2]   # poses, fields of view, sampling
    python benchmarks/preprocessing.py segmentation [--heads 8] [--more-heads 24]  # masks, tissues, volumes
    python benchmarks/preprocessing.py quality [--scans 100] [--workers 2]      # faults that quality control detects
    python benchmarks/preprocessing.py quality --learn --scans 50               # its limits, into preprocess/quality.py

The last line of each has the figures and their goals; the exit code is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import permutations, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from made_head import CENTRE, FAULTS, MadeHead, add_noise, made_head, pose_error, rotation, spoil

from adlib.imaging import atlas
from adlib.imaging.volume import resample
from adlib.parallel.mapping import map_scans
from adlib.parallel.threads import THREAD_VARIABLES, one_thread
from adlib.phantom.cohort import SCANNERS, draw_cohort
from adlib.phantom.head import MEASURED, Subject, image_head
from adlib.preprocess import quality as qc
from adlib.preprocess.cohort_run import preprocess_scan
from adlib.preprocess.pipeline import preprocess_image
from adlib.sources.scanfile import open_scan
from adlib.study.exec_params import Pool
from adlib.study.params import PreprocessParams
from adlib.study.records import StudyError
from adlib.study.source_params import PhantomSource

CLASSES = ("CN", "MCI", "LMCI", "AD")
WITHIN_MM, OVERLAP = 2.0, 0.9  # a pose is right below this mean error or, on real scans, from this Dice with adlib
REAL = ("t1w_head/t1_crop.nii.gz", "dicom_t1/t1w_dicom.zip", "t1w_cc0/sub-01/anat/sub-01_T1w.nii.gz")
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
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
        "speed": {"heads": 3, "first": 2000, "workers": 2},
        "peers": {"heads": 3, "first": 2000, "workers": 2},
        "robustness": {"heads": 200, "first": 1000, "workers": 2},
        "segmentation": {"heads": 8, "more-heads": 24, "seed": 7},
        "quality": {"scans": 100, "workers": 2},
    }
    for name, numbers in options.items():
        command = commands.add_parser(name)
        for option, default in numbers.items():
            command.add_argument(f"--{option}", type=int, default=default)
    commands.choices["peers"].add_argument("--without", nargs="*", default=[], choices=list(PEERS))
    commands.choices["quality"].add_argument("--learn", action="store_true", help="learn the limits")
    args = parser.parse_args()
    functions = {"speed": speed, "peers": speed, "robustness": robustness, "segmentation": segmentation}
    return functions.get(args.command, quality)(args)


def against_goals(*figures: tuple[str, float, str, float]) -> int:
    """Print figures (name, value, comparison, goal); return 0 where all goals are met, else 1."""
    met = [value >= goal if sign == ">=" else value <= goal for _, value, sign, goal in figures]
    words = [
        f"{n} {v:.3f} (goal {sign} {goal:g}{'' if ok else ', MISSED'})"
        for (n, v, sign, goal), ok in zip(figures, met, strict=True)
    ]
    print(", ".join(words))
    return 0 if all(met) else 1


def drawn_setting(seed: int, *, easy: bool = False) -> dict[str, Any]:
    """Setting of a head for `head_of` from the whole range that registration must cover, or as a clinic delivers it.

    Seeds in a row take all orientations. ``degrees`` and ``tilt`` (of the field of view) are about x, y, z; ``cut_mm``
    is the part of the brain's top outside the field of view (negative: room above), ``neck_mm`` the room below.
    """
    rng = np.random.default_rng([seed, 4])
    edge = float(rng.uniform(0.7, 3.0))
    edges = [edge] * 3
    if rng.random() < 0.4:
        edges[rng.integers(3)] = float(rng.uniform(edge, 5.0))
    setting = {
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
    if easy:
        halved = {name: setting[name] / 2 for name in ("degrees", "shift_mm", "bias", "noise")}
        setting |= halved | {"voxel_mm": [1.0] * 3, "tilt": np.zeros(3), "cut_mm": -abs(setting["cut_mm"])}
    return setting


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


# --- speed and peers: each method in a process of its own with one thread, after a scan to warm up ---


@dataclasses.dataclass
class Measured:
    """One method: seconds by the clock and of the processor for each scan, peak memory, MNI152-to-scan by scan."""

    clock: list[float]
    processor: list[float]
    peak_mb: float
    poses: dict[str, np.ndarray | None]


def speed(args: argparse.Namespace) -> int:
    """The whole pipeline to files and, for `peers`, the registration alone of other tools on the same scans."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    settings = {f"made-{seed}": drawn_setting(seed, easy=True) for seed in range(args.first, args.first + args.heads)}
    methods = {"adlib": adlib_pose}
    if args.command == "peers":
        methods |= {name: method for name, (method, _) in PEERS.items() if name not in args.without}
    with tempfile.TemporaryDirectory(prefix="adlib-preprocessing-") as name:
        folder, results = Path(name), {}
        scans, truths = apart(write_scans, folder, settings)
        print(f"{'':16} s a scan  CPU s  peak MB  median mm  made ok  real ok")
        for method, function in methods.items():
            package = PEERS[method][1] if method in PEERS else "adlib"
            if importlib.util.find_spec(package) is None:
                print(f"{method:16} not installed (python -m pip install '.[benchmarks]')")
                continue
            found = results[method] = apart(measure, function, scans, folder)
            errors = pose_errors(found, truths)
            dice = [overlap(name, found, results["adlib"], folder) for name in found.poses if name not in truths]
            print(
                f"{method:16} {np.median(found.clock):8.1f} {np.median(found.processor):6.1f} {found.peak_mb:8.0f} "
                f"{np.median(errors):10.2f} {sum(errors <= WITHIN_MM):6d}/{len(errors)} "
                f"{sum(value >= OVERLAP for value in dice):6d}/{len(dice)}",
                flush=True,
            )
        print(f"adlib with {args.workers} workers: {per_hour(scans, folder, args.workers):.0f} scans an hour")
    error = float(np.median(pose_errors(results["adlib"], truths)))
    figures = [("median error mm", error, "<=", 0.5), ("peak MB", results["adlib"].peak_mb, "<=", 1000.0)]
    if "ANTsPy" in results:
        ratio = np.array(results["ANTsPy"].processor) / np.array(results["adlib"].processor)
        figures.append(("times as fast as ANTsPy", float(np.median(ratio)), ">=", 5.0))
    return against_goals(*figures)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a fresh process, so that memory and warm-up are the function's own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def write_scans(folder: Path, settings: dict[str, dict]) -> tuple[list[Path], dict[str, np.ndarray]]:
    """Made heads and the real scans of ADLIB_REALDATA as files, the template for other tools, and the true poses."""
    base = atlas.template(1.0)
    near = ndimage.binary_dilation(base.mask, iterations=6).astype(np.uint8)
    nib.save(nib.Nifti1Image(base.t1, base.affine), folder / "template.nii.gz")
    nib.save(nib.Nifti1Image(near, base.affine), folder / "near.nii.gz")
    heads = {name: head_of(setting, 1.0) for name, setting in settings.items()}
    images = {name: head.image for name, head in heads.items()}
    root = Path(os.environ.get("ADLIB_REALDATA") or "/nonexistent")
    images |= {
        f"real-{path.name.split('.')[0]}": open_scan(path).image for path in (root / n for n in REAL) if path.exists()
    }
    for name, image in images.items():
        nib.save(image, folder / f"{name}.nii.gz")
    return [folder / f"{name}.nii.gz" for name in images], {name: head.mni_to_scan for name, head in heads.items()}


def measure(method: Callable[[Path, Path], np.ndarray], scans: list[Path], folder: Path) -> Measured:
    """Time each scan with one thread in this process; its peak memory."""
    result = Measured([], [], 0.0, {})
    with one_thread():
        with contextlib.suppress(Exception):
            method(scans[0], folder)
        for path in scans:
            clock, processor = time.perf_counter(), time.process_time()
            try:
                pose = method(path, folder)
            except Exception as error:
                print(f"    {path.name}: {error}")
                pose = None
            result.poses[path.name.removesuffix(".nii.gz")] = pose
            result.clock.append(time.perf_counter() - clock)
            result.processor.append(time.process_time() - processor)
    result.peak_mb = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    return result


def adlib_pose(path: Path, folder: Path) -> np.ndarray:
    """Preprocess one scan to files, as a cohort run does."""
    name = path.name.removesuffix(".nii.gz")
    scan = {"participant_id": f"sub-{name}", "session_id": "ses-01", "scan_id": f"sub-{name}_ses-01_T1w"}
    scan |= {"path": str(path), "sha256": str(time.perf_counter_ns()), "space": None}  # no result of an earlier call
    sidecar = preprocess_scan(scan, folder, PreprocessParams())
    if sidecar["scan_to_mni"] is None:
        raise RuntimeError("; ".join(sidecar["reasons"]))
    return np.linalg.inv(sidecar["scan_to_mni"])


def per_hour(scans: list[Path], folder: Path, workers: int) -> float:
    """Scans an hour of one-thread workers side by side, each on all the scans."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        folders = [folder / f"worker-{k}" for k in range(workers)]
        slowest = max(sum(done.clock) for done in pool.map(partial(measure, adlib_pose, scans), folders))
    return 3600 * workers * len(scans) / slowest


def overlap(name: str, found: Measured, reference: Measured, folder: Path) -> float:
    """Dice of adlib's brain mask with the template's brain at the pose of a method: agreement, not accuracy."""
    mask, base = next(folder.glob(f"sub-{name}/ses-01/anat/*_mask.nii.gz"), None), atlas.template(2.0)
    if mask is None or found.poses[name] is None or reference.poses[name] is None:
        return 0.0
    image, world = nib.load(mask), np.linalg.inv(reference.poses[name]) @ found.poses[name]
    moved = resample(np.asarray(image.dataobj) > 0, image.affine, base.mask.shape, base.affine, world, "nearest")
    return dice(moved, base.mask)


def pose_errors(found: Measured, truths: dict[str, np.ndarray]) -> np.ndarray:
    """Mean error over the brain, mm, of each made head; infinite where the method failed."""
    pairs = [(found.poses[name], truth) for name, truth in truths.items()]
    return np.array([np.inf if pose is None else pose_error(np.linalg.inv(pose), truth) for pose, truth in pairs])


def ants_pose(scan: Path, folder: Path) -> np.ndarray:
    """Clinica's t1-linear recipe (Wen et al. 2020, doi:10.1016/j.media.2020.101694): N4, then ANTs' quick affine."""
    import ants

    corrected = ants.n4_bias_field_correction(ants.image_read(str(scan)), spline_param=600)
    fixed = ants.image_read(str(folder / "template.nii.gz"))
    found = ants.registration(fixed, corrected, type_of_transform="antsRegistrationSyNQuick[a]", random_seed=1)
    return from_itk(sitk.ReadTransform(found["fwdtransforms"][-1]))


def mattes_pose(scan: Path, folder: Path) -> np.ndarray:
    """SimpleITK: Mattes mutual information by regular-step descent from 8 to 2 mm, from the centres of the grids."""
    fixed, moving = sitk_image(folder / "template.nii.gz"), sitk.ReadImage(str(scan), sitk.sitkFloat32)
    centres = sitk.CenteredTransformInitializerFilter.GEOMETRY
    start = sitk.CenteredTransformInitializer(fixed, moving, sitk.AffineTransform(3), centres)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([8, 4, 2])
    method.SetSmoothingSigmasPerLevel([4, 2, 1])
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return from_itk(start)


def greedy_pose(scan: Path, folder: Path) -> np.ndarray:
    """greedy: normalised mutual information around the template's brain, from the centres of the grids."""
    from picsl_greedy import Greedy3D

    images = {name: sitk_image(folder / f"{name}.nii.gz") for name in ("template", "near")}
    images["moving"] = sitk.ReadImage(str(scan), sitk.sitkFloat32)
    tool = Greedy3D()
    command = "-a -dof 12 -m NMI -n 100x50x10 -ia-image-centers -gm near -i template moving -o affine"
    tool.execute(f"-V 0 -threads 1 {command}", **images, affine=None)
    return np.asarray(tool["affine"], dtype=float)


PEERS = {  # and the package that each needs
    "ANTsPy": (ants_pose, "ants"),
    "greedy": (greedy_pose, "picsl_greedy"),
    "SimpleITK": (mattes_pose, "SimpleITK"),
}


@cache
def sitk_image(path: Path) -> sitk.Image:
    return sitk.ReadImage(str(path), sitk.sitkFloat32)


def from_itk(transform: sitk.Transform) -> np.ndarray:
    """The RAS matrix (4, 4) of an ITK affine between LPS worlds."""
    points = np.vstack([np.zeros(3), np.eye(3)])
    moved = np.array([transform.TransformPoint(point.tolist()) for point in points])
    return LPS @ nib.affines.from_matvec((moved[1:] - moved[0]).T, moved[0]) @ LPS


# --- robustness: the whole pipeline at 2 mm; seeds below 1000 are for tuning ---


def robustness(args: argparse.Namespace) -> int:
    """Share of made heads that register, and of the others that quality control detects."""
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
    return against_goals(
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
    return against_goals(*figures, ("hippocampus r", r["hippocampus_ml"], ">=", 0.9))


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
    return against_goals(
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
    """Write `LEARNT` and `SIMILARITY` into `adlib.preprocess.quality`.

    A limit is midway (ratios: in their logarithm) from the outermost clean head to the milder heads with the fault:
    the quartile next to the clean ones, of those that lie beyond all clean.
    """
    lines, clean = [], table[table["fault"] == CLEAN]
    for name, (fault, side, ratio) in LEARNT.items():
        outermost, spoilt = (side * clean[name]).max(), side * table.loc[table["fault"] == fault, name]
        ends = side * np.array([outermost, spoilt[spoilt > outermost].quantile(0.25)])
        limit = float(np.sqrt(ends.prod()) if ratio else ends.mean())
        lines.append(f'    "{name}": ({f"-INFINITE, {limit:.3g}" if side == HIGH else f"{limit:.3g}, INFINITE"}),')
    points = ", ".join(f"{value:.3g}" for value in np.percentile(clean["qc_similarity"], np.arange(0, 101, 20)))
    limits = "\n".join(["LEARNT = {", *lines, "}", f"SIMILARITY = ({points})"])
    path = Path(qc.__file__)
    path.write_text(re.sub(r"LEARNT = \{.*?\n\}\nSIMILARITY = \(.*?\)", limits, path.read_text(), flags=re.DOTALL))
    print(limits)


if __name__ == "__main__":
    sys.exit(main())
