"""Training scans that are nearest to a new one among the network's features: to be looked at, never to decide."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from adlib.study.params import StudyParams
from adlib.study.records import MANIFEST, SPLITS, StudyError, atomic_path, file_digest, read_table
from adlib.training.cohort_reference import IMAGE
from adlib.training.mahalanobis import coordinates
from adlib.training.model_file import Classifier, load
from adlib.training.network import image_features
from adlib.training.slices import load_slices, scan_percentiles, to_landmarks

FILE = "examples.npz"
NEAREST = 3  # training scans shown beside a result
DARKEST, BRIGHTEST = -2.0, 3.0  # standard deviations of the brain's intensities
FACTS = ("scan_id", "diagnosis", "age", "sex")


@dataclass(frozen=True, eq=False)
class Examples:
    """Training scans, one of each participant.

    Attributes
    ----------
    model : str
        SHA-256 of the weights file whose features they are placed by.
    places : (n, k) float32
        See `adlib.training.mahalanobis.coordinates`.
    pictures : (n, H, W) uint8
        The middle slice of each as the network saw it.
    scan_id, diagnosis, sex : (n,) array of str
    age : (n,) float64
        Years; not a number where unknown.
    """

    model: str
    places: np.ndarray
    pictures: np.ndarray
    scan_id: np.ndarray
    diagnosis: np.ndarray
    age: np.ndarray
    sex: np.ndarray


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A training scan near to the one asked about.

    Attributes
    ----------
    scan_id, diagnosis : str
    age : float or None
        Years.
    sex : str
    distance : float
        Per axis, in standard deviations of the training scans; about 1.4 between two of them drawn at random.
    picture : (H, W) uint8
        Its middle slice.
    """

    scan_id: str
    diagnosis: str
    age: float | None
    sex: str
    distance: float
    picture: np.ndarray = field(repr=False)


def shows_training(params: StudyParams) -> bool:
    """Whether training scans of the study may be shown beside an answer."""
    return not params.input.flat and (params.source.kind == "phantom" or params.classify.show_training)


def write_examples(params: StudyParams, model: Path, folder: Path) -> Path | None:
    """Store the training scans of a model's own fold beside it; what is there for this very file is kept.

    Parameters
    ----------
    params : StudyParams
    model : path
        Weights file.
    folder : path
        Receives ``examples.npz``.

    Returns
    -------
    path or None
        None, and no file, where the study does not show its training scans.
    """
    path = folder / FILE
    classifier = load(model, trusted=True)
    if not shows_training(params) or classifier.card.refusal or IMAGE not in classifier.spaces:
        path.unlink(missing_ok=True)
        return None
    if read_examples(model, path) is None:
        found = _examples(params, classifier, file_digest(model))
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **vars(found))
    return path


def read_examples(model: Path, path: Path | None = None) -> Examples | None:
    """The examples stored beside a weights file; None where there are none or they belong to another.

    Raises
    ------
    StudyError
        If the file is damaged.
    """
    path = path or Path(model).with_name(FILE)
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = Examples(**{name: stored[name] for name in Examples.__dataclass_fields__})
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        raise StudyError(f"{path} cannot be read ({error}); delete it, notebook 05 writes it anew") from None
    return found if str(found.model) == file_digest(model) else None


def nearest(features: np.ndarray, classifier: Classifier, examples: Examples | None) -> list[Neighbour]:
    """The training scans nearest to features (2048,) of a scan, nearest first; empty without examples."""
    if examples is None:
        return []
    own = coordinates(features[None], classifier.spaces[IMAGE])
    distances = np.sqrt(((examples.places - own) ** 2).mean(1))
    return [_neighbour(examples, k, float(distances[k])) for k in np.argsort(distances, kind="stable")[:NEAREST]]


def _neighbour(examples: Examples, k: int, distance: float) -> Neighbour:
    age = float(examples.age[k])
    texts = {name: str(getattr(examples, name)[k]) for name in ("scan_id", "diagnosis", "sex")}
    return Neighbour(**texts, age=age if np.isfinite(age) else None, distance=distance, picture=examples.pictures[k])


def as_picture(slices: np.ndarray) -> np.ndarray:
    """The middle one of slices (n, 3, H, W) as uint8 (H, W)."""
    seen = (slices[len(slices) // 2, 1].astype(np.float32) - DARKEST) / (BRIGHTEST - DARKEST)
    return np.rint(seen.clip(0, 1) * 255).astype(np.uint8)


def _examples(params: StudyParams, classifier: Classifier, model: str) -> Examples:
    slices, table = load_slices(params)
    splits = read_table(params.folder / "splits.tsv", SPLITS)
    trained = splits.loc[(splits["fold"] == 0) & (splits["split"] == "train"), "participant_id"]
    table = table[table["participant_id"].isin(trained)]
    first = table.sort_values("scan_id").drop_duplicates("participant_id")["scan_id"]
    places, pictures = [], []
    for scan in first:
        own = table[table["scan_id"] == scan].sort_values("slice")
        x = np.asarray(slices[own["row"].to_numpy()])
        if landmarks := classifier.card.landmarks:
            x = to_landmarks(x, own["scan_id"], scan_percentiles(params), np.array(landmarks))
        places.append(image_features(classifier.network, x).mean(0))
        pictures.append(as_picture(x))
    facts = _facts(params, first)
    return Examples(model, coordinates(np.array(places), classifier.spaces[IMAGE]), np.array(pictures), **facts)


def _facts(params: StudyParams, scans: pd.Series) -> dict[str, np.ndarray]:
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST).set_index("scan_id", drop=False).loc[scans]
    known = manifest.reindex(columns=list(FACTS))
    age = pd.to_numeric(known["age"], errors="coerce").to_numpy(np.float64)
    texts = {name: known[name].fillna("").astype(str).to_numpy(str) for name in ("scan_id", "diagnosis", "sex")}
    return texts | {"age": age}
