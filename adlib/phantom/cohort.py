"""The simulated cohort: participants with known severity and volumes, written as a BIDS dataset."""

import json
import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from adlib.parallel.mapping import map_scans
from adlib.phantom.head import Scanner, Subject, image_head
from adlib.study.code_digest import code_digest
from adlib.study.conversion import converted
from adlib.study.exec_params import EVERY_CORE, Pool
from adlib.study.records import Schema, atomic_path, digest, write_json, write_table, write_text
from adlib.study.source_params import PhantomSource

TRUTH = Schema(
    "truth",
    {
        "participant_id": str,
        "session_id": str,
        "scan_id": str,
        "diagnosis": str,
        "age": float,
        "severity": float,
        "brain_age": float,
        "scan_to_mni": str,
    },
    key=("scan_id",),
)

_NORTH = {"gm": 0.66, "wm": 1.0, "csf": 0.2, "bone": 0.06, "marrow": 0.45, "scalp": 1.0, "muscle": 0.42, "fluid": 0.2}
_EAST = _NORTH | {"gm": 0.72, "csf": 0.26}
_SOUTH = _NORTH | {"gm": 0.60, "scalp": 1.25}
_WEST = _NORTH | {"gm": 0.69, "wm": 1.05}
SCANNERS = (
    Scanner("north", "SimScan", "Alpha", 3.0, (1.0, 1.0, 1.0), "RAS", _NORTH, 0.22, 0.025),
    Scanner("east", "SimScan", "Beta", 1.5, (0.94, 0.94, 1.2), "LPS", _EAST, 0.12, 0.040),
    Scanner("south", "PhantoMed", "One", 3.0, (1.2, 1.0, 1.0), "PSR", _SOUTH, 0.28, 0.025),
    Scanner("west", "PhantoMed", "Two", 1.5, (0.9, 1.25, 0.9), "LIA", _WEST, 0.16, 0.035),
)

_DATASET = Path(__file__).parent / "dataset"  # files of the BIDS dataset that are the same in every cohort

# Age (mean, sd, years) and Mini-Mental State (mean, sd) at Clinical Dementia Rating 0, 0.5 and >= 1 in OASIS-1
# (Marcus et al. 2007, doi:10.1162/jocn.2007.19.9.1498), at relative position 0, 0.5 and 1 along the ordered classes.
_AGES = ((69, 14), (76, 7), (78, 7))
_MMSE = ((29.1, 1.1), (25.6, 3.5), (21.7, 3.8))
_AGE_LIMITS = (45.0, 95.0)
_PIVOT_AGE = 74.0
_SEVERITY_PER_DECADE = 0.04  # rise with age above the pivot


def draw_cohort(source: PhantomSource, classes: tuple[str, ...], seed: int) -> pd.DataFrame:
    """Draw every session of every participant: age, sex, severity, pose and scanner.

    Parameters
    ----------
    source : PhantomSource
    classes : tuple of str
        In order of severity.
    seed : int

    Returns
    -------
    DataFrame
        One row per session, in order; depends on the params and the seed alone.
    """
    rows = []
    for index in range(source.participants_per_class * len(classes)):
        rank, within = index % len(classes), index // len(classes)
        rng = np.random.default_rng([seed, 1, index])
        rows.extend(_sessions(rng, index, rank, within, source, classes))
    return pd.DataFrame(rows)


def _sessions(
    rng: np.random.Generator, index: int, rank: int, within: int, source: PhantomSource, classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    stage = rank / (len(classes) - 1)
    age = _age(rng, stage)
    severity = _severity(rng, age, rank, source)
    brain_age_gap = rng.normal(0, 3)
    sex = "F" if rng.random() < 0.55 else "M"
    size = np.cbrt(rng.normal(1.0, 0.09) * (1.06 if sex == "M" else 0.95))
    stretch = np.diag(size * rng.normal(1.0, 0.02, 3))
    mmse = float(np.clip(round(rng.normal(*_between(_MMSE, stage))), 0, 30))
    sessions = 1 if rng.random() >= source.followup_fraction else int(rng.integers(2, 4))
    site = SCANNERS[(within + rank) % len(SCANNERS)].site
    start = pd.Timestamp("2015-01-05") + pd.Timedelta(days=int(rng.integers(0, 1500)))
    shape_seed = int(rng.integers(2**31))
    rows = []
    for number in range(sessions):
        years = number * (1.0 + 0.2 * rng.random())
        rows.append(
            {
                "participant_id": f"sub-{index + 1:04d}",
                "session_id": f"ses-{number + 1:02d}",
                "scan_id": f"sub-{index + 1:04d}_ses-{number + 1:02d}_T1w",
                "diagnosis": classes[rank],
                "age": round(age + years, 1),
                "sex": sex,
                "site": site,
                "mmse": mmse,
                "acq_time": (start + pd.Timedelta(days=round(365.25 * years))).strftime("%Y-%m-%dT00:00:00"),
                "severity": severity + 0.04 * years,
                "brain_age": age + years + brain_age_gap,
                "to_mni": _pose(rng, stretch).tolist(),
                "shape_seed": shape_seed,
                "scan_seed": int(rng.integers(2**31)),
            }
        )
    return rows


def _between(anchors: tuple[tuple[float, float], ...], stage: float) -> tuple[float, float]:
    positions = np.linspace(0, 1, len(anchors))
    mean, sd = (float(np.interp(stage, positions, values)) for values in zip(*anchors, strict=True))
    return mean, sd


def _age(rng: np.random.Generator, stage: float, size: int | None = None) -> Any:
    mean, sd = _between(_AGES, stage)
    return np.clip(rng.normal(mean, sd, size), *_AGE_LIMITS)


def _severity(rng: np.random.Generator, age: Any, rank: int, source: PhantomSource) -> Any:
    expected = source.severity_mean[rank] + _SEVERITY_PER_DECADE * (age - _PIVOT_AGE) / 10
    return rng.normal(expected, source.severity_sd)


def _pose(rng: np.random.Generator, stretch: np.ndarray) -> np.ndarray:
    """Scanner mm to MNI152 mm: a turned, shifted and scaled head."""
    angles = np.clip(rng.normal(0, np.radians(5), 3), -np.radians(15), np.radians(15))
    turn = nib.eulerangles.euler2mat(*angles)
    to_scanner = np.eye(4)
    to_scanner[:3, :3] = turn @ stretch * 0.91
    to_scanner[:3, 3] = rng.normal(0, 8, 3)
    return np.linalg.inv(to_scanner)


def bayes_probabilities(truth: pd.DataFrame, source: PhantomSource, classes: tuple[str, ...]) -> np.ndarray:
    """Posterior of each class given true severity and age, with equal prior chances: the best possible classifier.

    Parameters
    ----------
    truth : DataFrame
        Columns severity and age.
    source : PhantomSource
    classes : tuple of str

    Returns
    -------
    (n, K) float64
        Rows sum to 1.
    """
    severity, age = (truth[name].to_numpy(float)[:, None] for name in ("severity", "age"))
    stages = np.linspace(0, 1, len(classes))
    means, spreads = np.array([_between(_AGES, stage) for stage in stages]).T
    expected = np.array(source.severity_mean) + _SEVERITY_PER_DECADE * (age - _PIVOT_AGE) / 10
    log_p = -0.5 * ((severity - expected) / source.severity_sd) ** 2
    log_p = log_p - 0.5 * ((age - means) / spreads) ** 2 - np.log(spreads)
    weights = np.exp(log_p - log_p.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def bayes_ceiling(source: PhantomSource, classes: tuple[str, ...], draws: int = 100_000) -> dict[str, float]:
    """Balanced accuracy that no classifier of this cohort can exceed on average.

    Parameters
    ----------
    source : PhantomSource
    classes : tuple of str
        In order of severity.
    draws : int
        Simulated participants per class.

    Returns
    -------
    dict
        ``severity_and_age``: from true severity and age. ``severity``: from true severity alone.
    """
    rng = np.random.default_rng(0)
    ages = np.stack([_age(rng, stage, draws) for stage in np.linspace(0, 1, len(classes))])
    severities = np.stack([_severity(rng, ages[k], k, source) for k in range(len(classes))])
    table = pd.DataFrame({"severity": severities.ravel(), "age": ages.ravel()})
    truth = np.repeat(np.arange(len(classes)), draws)
    full = (bayes_probabilities(table, source, classes).argmax(1) == truth).mean()
    edges = np.linspace(severities.min(), severities.max(), 400)
    counts = np.stack([np.histogram(s, edges)[0] for s in severities])
    return {"severity_and_age": float(full), "severity": float(counts.max(0).sum() / counts.sum())}


def write_cohort(
    source: PhantomSource,
    classes: tuple[str, ...],
    seed: int,
    folder: Path,
    *,
    pool: Pool = EVERY_CORE,
    only: Collection[str] | None = None,
) -> Path:
    """Write the cohort as BIDS under ``<folder>/bids`` with its truth under ``<folder>/truth``.

    Unchanged scans of the same params, seed and code are not written again, so an interrupted call resumes.

    Parameters
    ----------
    source : PhantomSource
    classes : tuple of str
    seed : int
    folder : path
    pool : Pool
        Processes that simulate.
    only : collection of str, optional
        Participants to write, each the same as in the whole cohort; all if left out.

    Returns
    -------
    path
        The BIDS root.
    """
    folder = Path(folder)
    cohort = draw_cohort(source, classes, seed)
    cohort = cohort if only is None else cohort[cohort["participant_id"].isin(only)]
    key = digest([source.model_dump(), classes, seed, code_digest(__name__), sorted(only or ())])
    stored = folder / "key.txt"
    if not stored.is_file() or stored.read_bytes() != key.encode():
        shutil.rmtree(folder, ignore_errors=True)
        write_text(key, stored)
    write = partial(_write_scan, folder=folder, voxel_mm=source.voxel_mm)
    truths = map_scans(write, cohort.to_dict("records"), pool=pool, label="simulating heads")
    _write_tables(cohort, classes, folder / "bids")
    write_table(pd.DataFrame(truths), folder / "truth" / "truth.tsv", TRUTH)
    write_json(bayes_ceiling(source, classes), folder / "truth" / "ceiling.json")
    return folder / "bids"


def _write_scan(row: dict[str, Any], folder: Path, voxel_mm: float) -> dict[str, Any]:
    """Write one head with its sidecar, unless it is already there unchanged, and return its truth."""
    scanner = next(s for s in SCANNERS if s.site == row["site"])
    anat = folder / "bids" / row["participant_id"] / row["session_id"] / "anat"
    sidecar = {
        "Modality": "MR",
        "Manufacturer": scanner.manufacturer,
        "ManufacturersModelName": scanner.model,
        "MagneticFieldStrength": scanner.field_strength_T,
        "SeriesDescription": "T1w MPRAGE (simulated)",
        "InstitutionName": scanner.site,
    }
    write_json(sidecar, anat / f"{row['scan_id']}.json")
    image, record = anat / f"{row['scan_id']}.nii.gz", folder / "truth" / "scans" / f"{row['scan_id']}.json"
    return converted(image, record, digest([row, voxel_mm]), partial(_simulate, row, scanner, voxel_mm, image))


def _simulate(row: dict[str, Any], scanner: Scanner, voxel_mm: float, image: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    subject = Subject(row["severity"], row["brain_age"], np.array(row["to_mni"]), row["shape_seed"], row["scan_seed"])
    volume, affine, truth, _ = image_head(subject, scanner, voxel_mm)
    head = nib.Nifti1Image(volume, affine)
    wanted = nib.orientations.axcodes2ornt(tuple(scanner.orientation))
    head = head.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), wanted))
    head.set_qform(head.affine, 1)
    head.set_sform(head.affine, 1)
    head.header.set_xyzt_units("mm", "sec")
    with atomic_path(image) as temporary:
        nib.save(head, temporary)
    kept = ("participant_id", "session_id", "scan_id", "diagnosis", "age", "sex", "site", "severity", "brain_age")
    return {name: row[name] for name in kept} | truth | {"scan_to_mni": json.dumps(truth["scan_to_mni"])}


def _write_tables(cohort: pd.DataFrame, classes: tuple[str, ...], root: Path) -> None:
    for name in ("README", "dataset_description.json"):
        write_text((_DATASET / name).read_text(encoding="utf-8"), root / name)
    people = cohort.drop_duplicates("participant_id")
    _write_tsv(people[["participant_id", "age", "sex", "diagnosis", "site", "mmse"]], root / "participants.tsv")
    described: dict[str, dict[str, Any]] = {
        "age": {"Description": "Age at the first session", "Units": "year"},
        "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
        "diagnosis": {"Description": "Simulated diagnosis", "Levels": {name: name for name in classes}},
        "site": {"Description": "Simulated scanner site"},
        "mmse": {"Description": "Simulated Mini-Mental State Examination score, 0 to 30"},
    }
    write_json(described, root / "participants.json")
    of_session = {"age": described["age"] | {"Description": "Age at the session"}, "diagnosis": described["diagnosis"]}
    for participant, sessions in cohort.groupby("participant_id"):
        table = root / str(participant) / f"{participant}_sessions.tsv"
        _write_tsv(sessions[["session_id", "age", "diagnosis", "acq_time"]], table)
        write_json(of_session, table.with_suffix(".json"))


def _write_tsv(table: pd.DataFrame, path: Path) -> None:
    write_text(table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"), path)
