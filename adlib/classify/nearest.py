"""Training scans nearest to a new one in the network's features: for comparison by eye, not part of the decision."""

from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from adlib.study.params import StudyParams
from adlib.study.records import MANIFEST, SPLITS, StudyError, atomic_path, file_digest, read_table
from adlib.training.cohort_reference import IMAGE, coordinates
from adlib.training.model_file import Classifier, load
from adlib.training.network import image_features
from adlib.training.slices import load_slices, scan_percentiles, to_landmarks
from adlib.training.splits import member_parts

FILE = "examples.npz"
NEAREST = 3  # training scans shown with a result
DARKEST, BRIGHTEST = -2.0, 3.0  # standard deviations of the brain's intensities


@dataclass(frozen=True, eq=False)
class Examples:
    """Training scans, one of each participant.

    Attributes
    ----------
    model : str
        SHA-256 of the weights file that the features come from.
    places : (n, k) float32
        See `adlib.training.cohort_reference.coordinates`.
    pictures : (n, H, W) uint8
        Middle slice of each, as input to the network.
    scan_id, diagnosis, sex : (n,) array of str
    age : (n,) float64
        Years; NaN if unknown.
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
    """A training scan near to a new one.

    Attributes
    ----------
    scan_id, diagnosis : str
    age : float or None
        Years.
    sex : str
    distance : float
        Root mean square over the axes, in standard deviations of the training scans; about 1.4 between two random ones.
    picture : (H, W) uint8
        Middle slice.
    """

    scan_id: str
    diagnosis: str
    age: float | None
    sex: str
    distance: float
    picture: np.ndarray = field(repr=False)


def write_examples(params: StudyParams, model: Path) -> Path | None:
    """Store training scans of the first fold in ``examples.npz`` next to its model, unless they are there.

    Parameters
    ----------
    params : StudyParams
    model : path
        Weights file.

    Returns
    -------
    path or None
        None, and no file, unless the cohort is simulated or `classify.show_training` is set.
    """
    path, classifier = model.with_name(FILE), load(model, trusted=True)
    shown = params.simulated or params.classify.show_training
    if not shown or params.input.flat or classifier.card.refusal or IMAGE not in classifier.distributions:
        path.unlink(missing_ok=True)
        return None
    if read_examples(model) is None:
        examples = _examples(params, classifier, file_digest(model))
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **vars(examples))
    return path


def read_examples(model: Path) -> Examples | None:
    """The examples stored next to a weights file; None if there are none or they belong to another model.

    Parameters
    ----------
    model : path
        Weights file.

    Returns
    -------
    Examples or None

    Raises
    ------
    StudyError
        If the file is damaged.
    """
    path = Path(model).with_name(FILE)
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            examples = Examples(**{name: stored[name] for name in Examples.__dataclass_fields__})
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        raise StudyError(f"{path} cannot be read ({error}); delete it, notebook 05 writes it anew") from None
    return examples if str(examples.model) == file_digest(model) else None


def nearest(features: np.ndarray, classifier: Classifier, examples: Examples | None) -> list[Neighbour]:
    """The `NEAREST` training scans with the smallest distance to a scan in the network's features.

    Parameters
    ----------
    features : (p,) float
        Mean over the slices of the scan.
    classifier : Classifier
    examples : Examples or None

    Returns
    -------
    list of Neighbour
        Nearest first; empty without examples.
    """
    if examples is None:
        return []
    place = coordinates(features[None], classifier.distributions[IMAGE])
    distances = np.sqrt(((examples.places - place) ** 2).mean(1))
    return [
        Neighbour(
            str(examples.scan_id[k]), str(examples.diagnosis[k]),
            float(examples.age[k]) if np.isfinite(examples.age[k]) else None,
            str(examples.sex[k]), float(distances[k]), examples.pictures[k],
        )
        for k in np.argsort(distances, kind="stable")[:NEAREST]
    ]  # fmt: skip


def middle_slice(slices: np.ndarray) -> np.ndarray:
    """The middle slice as an 8-bit image.

    Parameters
    ----------
    slices : (n, 3, H, W) float
        Standardised input of the network.

    Returns
    -------
    (H, W) uint8
    """
    seen = (slices[len(slices) // 2, 1].astype(np.float32) - DARKEST) / (BRIGHTEST - DARKEST)
    return np.rint(seen.clip(0, 1) * 255).astype(np.uint8)


def _examples(params: StudyParams, classifier: Classifier, model: str) -> Examples:
    slices, table = load_slices(params)
    splits = read_table(params.folder / "splits.tsv", SPLITS)
    parts = member_parts(splits, 0)
    table = table[table["participant_id"].isin(parts.index[parts == "train"])].sort_values(["scan_id", "slice"])
    first = table.drop_duplicates("participant_id")["scan_id"]
    features, pictures = [], []
    for _, rows in table[table["scan_id"].isin(first)].groupby("scan_id"):
        x = np.asarray(slices[rows["row"].to_numpy()])
        if landmarks := classifier.card.landmarks:
            x = to_landmarks(x, rows["scan_id"], scan_percentiles(params), np.array(landmarks))
        features.append(image_features(classifier.network, x).mean(0))
        pictures.append(middle_slice(x))
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST).set_index("scan_id", drop=False).loc[first]
    facts = manifest.reindex(columns=["scan_id", "diagnosis", "sex", "age"])
    texts = {name: facts[name].fillna("").astype(str).to_numpy(str) for name in ("scan_id", "diagnosis", "sex")}
    age = pd.to_numeric(facts["age"], errors="coerce").to_numpy(np.float64)
    places = coordinates(np.array(features), classifier.distributions[IMAGE])
    return Examples(model, places, np.array(pictures), age=age, **texts)
