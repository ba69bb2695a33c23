"""Preprocessing measured on real heads with real truth, in the folder that ADLIB_REALDATA names.

    python benchmarks/real_heads.py [--quick] [--resolution 1.0 2.0] [--workers 2] [--table rows.tsv]

Heads of people aged 69 to 96 with regions by DLMUSE (``t1w_elderly``) and extracted brains with manual regions
(``oasis1_manual``) are compared with their labels. All heads are processed again in another unit of intensity,
orientation and place, and with another gain, bias field and noise. In labelled heads one hippocampus is shrunk, and
other contrasts and maps are made of them, which must be refused. The last lines have the figures and their goals; the
exit code is 1 where one is missed. The network of the package has seen ``t1w_elderly``; with ``--folds`` each of these
heads is measured by the network that has not.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import pandas as pd
from goals import Figure, count_missed, is_met
from scipy import fft, ndimage

from adlib.imaging.volume import resample, voxel_ml, voxel_sizes
from adlib.parallel.threads import one_thread
from adlib.preprocess import anatomy
from adlib.preprocess.anatomy import load_networks
from adlib.preprocess.pipeline import preprocess_image
from adlib.sources.scanfile import open_scan
from adlib.study.params import PreprocessParams
from adlib.study.records import StudyError

ELDERLY, MANUAL, OTHER = "elderly", "manual", "other"
HIPPOCAMPUS = {"left": (48,), "right": (47,)}  # labels of Neuromorphometrics' protocol, which DLMUSE shares
VENTRICLES = (49, 50, 51, 52)
FLUID = (1, 4, 11, 46, *VENTRICLES)
FOLDS = 3
MARK = "<!-- real heads -->"
WHITE = (35, 40, 41, 44, 45, 61, 62, 69, *range(81, 96))
RESCAN = ("1003", "1023")  # of one man
VOLUMES = ("gm_ml", "wm_ml", "icv_ml", "hippocampus_ml", "ventricles_ml")
UNITS = (100.0, 0.01)
SHRUNK = (0.85, 0.70)
CONTRASTS = {  # intensities of grey matter, white matter and fluid, and words of the refusal
    "FLAIR": ((1.0, 0.85, 0.2), "FLAIR"),
    "FLAIR of low contrast": ((0.9, 0.9, 0.15), "FLAIR"),
    "T2w": ((0.6, 0.45, 1.0), "T2-"),
    "PDw": ((1.0, 0.8, 0.9), "proton-density"),
    "GM map": ((1.0, 0.0, 0.0), "map"),
    "WM map": ((0.0, 1.0, 0.0), "map"),
}

Head = tuple[str, str, Path, Path | None]  # group, name, image and labels


def heads(root: Path) -> list[Head]:
    """Group, name, image and labels of each head."""
    elderly = sorted((root / "t1w_elderly").glob("*_T1.nii.gz"))
    manual = sorted((root / "oasis1_manual").glob("*_SS.nii.gz"))
    found: list[Head] = [
        *((ELDERLY, path.name.split("_")[0], path, Path(str(path).replace("_T1.", "_T1_DLMUSE."))) for path in elderly),
        *((MANUAL, path.name.split("_")[0], path, Path(str(path).replace("_SS.", "_glm."))) for path in manual),
    ]
    others = [*sorted((root / "t1w_cc0").rglob("*T1w.nii.gz")), *sorted((root / "t1w_head").glob("*.nii.gz"))]
    others += sorted((root / "dicom_t1").glob("*.zip"))
    return [*found, *((OTHER, path.name.split(".")[0], path, None) for path in others)]


def unseen(found: list[Head], folds: Path | None, weights: Path) -> list[Path]:
    """Weights for each head: of the fold that left it out, or those for all."""
    elderly = sorted(name for group, name, *_ in found if group == ELDERLY)
    return [
        folds / f"fold-{elderly.index(name) % FOLDS}.safetensors" if folds and group == ELDERLY else weights
        for group, name, *_ in found
    ]


def variants(image: nib.Nifti1Image, seed: int) -> dict[str, nib.Nifti1Image]:
    """The same head in other units of intensity, and in another orientation and place."""
    values, rng = np.asarray(image.dataobj, dtype=np.float32), np.random.default_rng(seed)
    changed = {f"× {unit:g}": nib.Nifti1Image(values * np.float32(unit), image.affine) for unit in UNITS}
    codes = [rng.choice(list(pair)) for pair in rng.permutation(["RL", "AP", "SI"])]
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(["".join(code) for code in codes])
    )
    turned = nib.Nifti1Image(values, image.affine).as_reoriented(turn)
    affine = turned.affine.copy()
    affine[:3, 3] += rng.choice([-60.0, 60.0], 3)
    return changed | {"turned": nib.Nifti1Image(np.asarray(turned.dataobj), affine)}


def rescans(image: nib.Nifti1Image, seed: int, count: int = 3) -> list[nib.Nifti1Image]:
    """The same head with another gain, smooth bias field and Gaussian noise."""
    values, rng = np.asarray(image.dataobj, dtype=np.float32), np.random.default_rng(seed)
    made = []
    for _ in range(count):
        coarse = rng.normal(0, 0.1, (3, 3, 3))
        field = np.exp(ndimage.zoom(coarse, np.array(values.shape) / 3, order=1, grid_mode=True, mode="nearest"))
        noise = 0.01 * np.percentile(values, 99) * rng.standard_normal(values.shape) * (values > 0)
        made.append(nib.Nifti1Image((rng.uniform(0.5, 2) * values * field + noise).astype(np.float32), image.affine))
    return made


def shrunk(image: nib.Nifti1Image, part: np.ndarray, factor: float, steps: int = 4) -> tuple[nib.Nifti1Image, float]:
    """A head with one part shrunk by a flow whose divergence is even in the part; and the size that the part then has.

    The flow is the gradient of a potential (as in Karaçali & Davatzikos 2006, doi:10.1109/TMI.2006.882141).
    """
    values, inside = np.asarray(image.dataobj, dtype=np.float32), part.astype(np.float32)
    edges = voxel_sizes(image.affine)
    waves = np.meshgrid(
        *(2 * np.pi * fft.fftfreq(n, edge) for n, edge in zip(part.shape, edges, strict=True)), indexing="ij"
    )
    square = sum(wave**2 for wave in waves)
    square[0, 0, 0] = np.inf
    places = np.indices(part.shape, dtype=np.float32)
    shift = np.zeros_like(places)
    for _ in range(steps):
        potential = -fft.fftn(inside * np.log(factor) / steps) / square
        flow = np.stack(
            [np.real(fft.ifftn(1j * wave * potential)) / edge for wave, edge in zip(waves, edges, strict=True)]
        )
        shift = (
            np.stack([ndimage.map_coordinates(axis, places - flow, order=1, mode="nearest") for axis in shift]) - flow
        )
        inside = ndimage.map_coordinates(part.astype(np.float32), places + shift, order=1, mode="nearest")
    values = ndimage.map_coordinates(values, places + shift, order=3, mode="nearest")
    return nib.Nifti1Image(values, image.affine), float(inside.sum() / part.sum())


def of_contrast(image: nib.Nifti1Image, labels: np.ndarray, means: tuple[float, ...]) -> nib.Nifti1Image:
    """The head with other intensities of its tissues; texture and surroundings stay, half and 0.8 as strong."""
    values = np.asarray(image.dataobj, dtype=np.float32)
    parts = tissues_of(labels)
    level = float(values[parts["wm"]].mean())
    result = values * np.float32(0.0 if 0.0 in means else 0.8)
    for where, mean in zip((parts["gm"], parts["wm"], parts["fluid"]), means, strict=True):
        texture = values[where] - values[where].mean()
        result[where] = np.maximum(mean * level + 0.5 * texture * (mean > 0), 0)
    return nib.Nifti1Image(result, image.affine)


def tissues_of(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Masks of the intracranial space, white matter, fluid and grey matter."""
    true = {"icv": labels > 0, "wm": np.isin(labels, WHITE), "fluid": np.isin(labels, FLUID)}
    return true | {"gm": true["icv"] & ~true["wm"] & ~true["fluid"]}


def measure(head: Head, network: Path, seed: int, resolution_mm: float, quick: bool) -> dict[str, Any]:
    """One row: what was measured, what is true and, unless quick, how it stands changes of the scan."""
    group, name, path, labels = head
    row: dict[str, Any] = {"group": group, "name": name, "refused": ""}
    params = PreprocessParams(resolution_mm=resolution_mm)
    trained = load_networks(network)
    with one_thread(), mock.patch.object(anatomy, "packaged_networks", lambda: trained):
        try:
            image = open_scan(path).image
            begun = time.process_time()
            done = preprocess_image(image, params, name)
            row |= {"verdict": done.verdict, "cpu_s": time.process_time() - begun, **done.features}
            row["peak_gb"] = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
            if labels:
                row |= against_labels(done, nib.load(labels), group)
            if not quick:
                row |= stability(image, done.features, params, name, seed)
            if labels and not quick:
                row |= recovery(image, nib.load(labels), done.features, params, name)
        except StudyError as error:
            return row | {"refused": str(error)}
        if group == ELDERLY and not quick:
            row["taken"] = ", ".join(wrongly_taken(image, nib.load(labels), params, name))
    return row


def stability(
    image: nib.Nifti1Image, features: dict[str, float], params: PreprocessParams, name: str, seed: int
) -> dict[str, Any]:
    """Largest change of a volume among `variants`, and its largest coefficient of variation among `rescans`."""
    again = {kind: preprocess_image(one, params, name).features for kind, one in variants(image, seed).items()}
    changes = {(kind, v): abs(again[kind][v] / features[v] - 1) for kind in again for v in VOLUMES}
    worst = max(changes, key=lambda key: changes[key])
    others = [preprocess_image(one, params, name).features for one in rescans(image, seed)]
    series = pd.DataFrame([features, *others])[list(VOLUMES)]
    return {"change": changes[worst], "changed": " ".join(worst), "cv": float((series.std() / series.mean()).max())}


def recovery(
    image: nib.Nifti1Image, labelled: nib.Nifti1Image, features: dict[str, float], params: PreprocessParams, name: str
) -> dict[str, float]:
    """Share of a shrinkage of the left hippocampus that is measured, and the change of the right one."""
    labels, row = np.asarray(labelled.dataobj).astype(int), {}
    for factor in SHRUNK:
        smaller, true = shrunk(image, np.isin(labels, HIPPOCAMPUS["left"]), factor)
        found = preprocess_image(smaller, params, name).features
        lost = 1 - found["hippocampus_left_ml"] / features["hippocampus_left_ml"]
        row[f"recovered_{factor:g}"] = lost / (1 - true)
        row[f"other_{factor:g}"] = abs(found["hippocampus_right_ml"] / features["hippocampus_right_ml"] - 1)
    return row


def wrongly_taken(image: nib.Nifti1Image, labelled: nib.Nifti1Image, params: PreprocessParams, name: str) -> list[str]:
    """Kinds of image that are no T1-weighted scan and are taken, or refused for another reason."""
    labels, taken = np.asarray(labelled.dataobj).astype(int), []
    made = {kind: (of_contrast(image, labels, means), words) for kind, (means, words) in CONTRASTS.items()}
    made["label map"] = nib.Nifti1Image(labels.astype(np.float32), image.affine), "map of labels"
    for kind, (one, words) in made.items():
        try:
            preprocess_image(one, params, name)
            taken.append(kind)
        except StudyError as error:
            if words not in str(error):
                taken.append(f"{kind} ({error})")
    return taken


def against_labels(done: Any, labelled: nib.Nifti1Image, group: str) -> dict[str, float]:
    """Overlaps in the head's own space, and the true volumes, ml."""
    labels, unit = np.asarray(labelled.dataobj).astype(int), voxel_ml(labelled.affine)
    grid = (labels.shape, labelled.affine, done.scan_to_mni)
    parts = (done.mask, done.tissues[..., 0], done.tissues[..., 1])
    mask, grey, white = (resample(part.astype(np.float32), done.affine, *grid) for part in parts)
    true = tissues_of(labels)
    row = {f"true_{name}_ml": float(where.sum() * unit) for name, where in true.items()}
    row["true_ventricles_ml"] = float(np.isin(labels, VENTRICLES).sum() * unit)
    for side, numbers in HIPPOCAMPUS.items():
        row[f"true_hippocampus_{side}_ml"] = float(np.isin(labels, numbers).sum() * unit)
    row |= {"dice_gm": dice(grey > 0.5, true["gm"]), "dice_wm": dice(white > 0.5, true["wm"])}
    return row | ({"dice_icv": dice(mask > 0.5, true["icv"])} if group == ELDERLY else {})


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two masks (Dice 1945, doi:10.2307/1932409)."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def figures(table: pd.DataFrame) -> list[Figure]:
    """Name, value, comparison and goal of each figure."""
    good = table[table["refused"] == ""]
    elderly, manual = (good[good["group"] == group] for group in (ELDERLY, MANUAL))
    bias = elderly["icv_ml"].sum() / elderly["true_icv_ml"].sum() - 1
    rows = [
        ("processor seconds a head, median", good["cpu_s"].median(), "<=", np.inf),
        ("peak memory of a process, GB", good["peak_gb"].max(), "<=", 1.5),
        ("heads refused", float((table["refused"] != "").sum()), "<=", 0.0),
        ("intracranial mask, median Dice", elderly["dice_icv"].median(), ">=", 0.965),
        ("intracranial mask, lowest Dice", elderly["dice_icv"].min(), ">=", 0.95),
        ("intracranial volume, absolute bias", abs(bias), "<=", 0.03),
    ]
    for title, group, scaled, r_goal, error_goal in (
        ("DLMUSE", elderly, False, 0.85, 0.06), ("manual", manual, True, 0.75, 0.05),
    ):  # fmt: skip
        rows += hippocampus(title, group, scaled=scaled, r_goal=r_goal, error_goal=error_goal)
        found, true = group["ventricles_ml"], group["true_ventricles_ml"]
        rows.append((f"ventricles, {title}, r", np.corrcoef(found, true)[0, 1], ">=", 0.98))
        rows.append((f"ventricles, {title}, absolute bias", abs(found.sum() / true.sum() - 1), "<=", 0.08))
    found, true = elderly["csf_ml"].sum(), elderly["true_fluid_ml"].sum()
    rows.append(("CSF, DLMUSE, absolute bias", abs(found / true - 1), "<=", 0.10))
    found, true = manual["brain_ml"].sum(), (manual["true_gm_ml"] + manual["true_wm_ml"]).sum()
    rows.append(("GM + WM, manual, absolute bias", abs(found / true - 1), "<=", 0.03))
    rows.append(("GM, manual, median Dice", manual["dice_gm"].median(), ">=", 0.90))
    rows.append(("WM, manual, median Dice", manual["dice_wm"].median(), ">=", 0.91))
    pair = manual.set_index("name").loc[list(RESCAN), list(VOLUMES)]
    rows.append(("rescan, largest change", float((pair.iloc[0] / pair.iloc[1] - 1).abs().max()), "<=", 0.03))
    return [*rows, *figures_of_changes(good)] if "change" in good else rows


def figures_of_changes(table: pd.DataFrame) -> list[Figure]:
    """Figures of `stability`, `recovery` and `wrongly_taken`."""
    taken = table.loc[table["group"] == ELDERLY, "taken"]
    wrong = sum(len(kinds.split(", ")) for kinds in taken if kinds) / (len(taken) * (len(CONTRASTS) + 1))
    rows = [
        ("change of a volume with unit, orientation, place", table["change"].max(), "<=", 0.01),
        ("variation of a volume with gain, bias and noise", table["cv"].max(), "<=", 0.01),
        ("share of images of other kinds that are taken", wrong, "<=", 0.05),
    ]
    for factor in SHRUNK:
        rows.append((f"hippocampus × {factor:g}, recovered", table[f"recovered_{factor:g}"].mean(), ">=", 0.8))
        rows.append(("other hippocampus then, mean change", table[f"other_{factor:g}"].mean(), "<=", 0.02))
    return rows


def hippocampus(title: str, group: pd.DataFrame, *, scaled: bool, r_goal: float, error_goal: float) -> list[Figure]:
    """Agreement of each side; between two protocols after one common scale."""
    found, true = (
        group[[f"{prefix}hippocampus_{side}_ml" for side in HIPPOCAMPUS]].to_numpy() for prefix in ("", "true_")
    )
    found = found * (true.mean() / found.mean() if scaled else 1.0)
    lowest = min(np.corrcoef(found[:, k], true[:, k])[0, 1] for k in range(2))
    rows = [(f"hippocampus, {title}, lower r of the sides", float(lowest), ">=", r_goal)]
    rows.append((f"hippocampus, {title}, mean error", float(np.abs(found / true - 1).mean()), "<=", error_goal))
    if scaled:
        asymmetry = np.corrcoef(found[:, 0] / found[:, 1], true[:, 0] / true[:, 1])[0, 1]
        rows.append((f"hippocampus, {title}, asymmetry r", float(asymmetry), ">=", 0.4))
    return rows


def _cell(value: float | None, sign: str, goal: float) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3g}" if is_met(value, sign, goal) else f"**{value:.3g}**"


def main() -> int:
    """Measure all heads, print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=float, nargs="+", default=[1.0, 2.0], help="voxel edges, mm")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="process each head once")
    parser.add_argument("--folds", type=Path, help="folder of networks that have not seen the heads that they measure")
    parser.add_argument("--weights", type=Path, default=anatomy.WEIGHTS, help="of the networks; those of the package")
    parser.add_argument("--table", type=Path, help="write the rows here")
    parser.add_argument("--page", type=Path, help="write the figures into this page, between its comments 'real heads'")
    options = parser.parse_args()
    root = os.environ.get("ADLIB_REALDATA")
    if not root:
        print("error: ADLIB_REALDATA names no folder of real heads", file=sys.stderr)
        return 1
    found = heads(Path(root))
    tables = {edge: measured(found, options, edge) for edge in options.resolution}
    if options.table:
        pd.concat(tables, names=["resolution_mm"]).to_csv(options.table, sep="\t")
    page = {edge: figures(table) for edge, table in tables.items()}
    if options.page:
        before, _, after = options.page.read_text().split(MARK)
        options.page.write_text(MARK.join([before, f"\n\n{as_page(page)}\n\n", after]))
    return int(sum(report(table, page[edge], edge) for edge, table in tables.items()) > 0)


def measured(found: list[Head], options: argparse.Namespace, resolution_mm: float) -> pd.DataFrame:
    """Rows of all heads at one resolution."""
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        function = partial(measure, resolution_mm=resolution_mm, quick=options.quick)
        return pd.DataFrame(pool.map(function, found, unseen(found, options.folds, options.weights), range(len(found))))


def report(table: pd.DataFrame, rows: list[Figure], resolution_mm: float) -> int:
    """Print rows and figures; return the number of goals missed."""
    shown = table.columns.intersection(
        ["group", "name", "verdict", "cpu_s", "dice_icv", "dice_gm", "dice_wm", "changed", "taken"]
    )
    print(f"at {resolution_mm:g} mm", table[[*shown, "refused"]].round(3).to_string(index=False), sep="\n")
    return count_missed(*rows)


def as_page(page: dict[float, list[Figure]]) -> str:
    """A table of all figures with a goal, those that miss it in bold."""
    values = {edge: {name: value for name, value, *_ in rows} for edge, rows in page.items()}
    lines = [f"| figure | goal | {' | '.join(f'{edge:g} mm' for edge in page)} |", "|---|---|" + "---|" * len(page)]
    for name, _, sign, goal in max(page.values(), key=len):
        if np.isfinite(goal):
            cells = [_cell(values[edge].get(name), sign, goal) for edge in page]
            lines.append(f"| {name} | {'at least' if sign == '>=' else 'at most'} {goal:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
