"""Classify one scan with a study's model, through the very code that prepared the study's own scans."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from adlib.classify.input_checks import judge
from adlib.classify.model_store import find_model
from adlib.classify.nearest import Examples, nearest, read_examples
from adlib.classify.picture import plot_prediction
from adlib.classify.result import COVERAGE, Prediction, as_record
from adlib.figures.theme import apply_theme
from adlib.parallel.mapping import map_scans
from adlib.parallel.threads import one_thread
from adlib.preprocess.derivatives import Preprocessed, as_stored
from adlib.preprocess.intensity import brain_percentiles, standard_slices
from adlib.preprocess.pipeline import preprocess_image
from adlib.sources.scanfile import open_scan, scan_name
from adlib.study.exec_params import HERE
from adlib.study.params import load_params
from adlib.study.records import StudyError, atomic_path
from adlib.training import model_file
from adlib.training.network import image_features
from adlib.training.pooling import pool_slices
from adlib.training.slices import scan_slices

OUTSIDE_SD = 4.0  # a volume farther than this from the mean of every class is called outside the training cohort

STAGES = (
    "reading the file",
    "aligning, extracting the brain, measuring tissues",
    "comparing with the training cohort",
    "classifying slices",
)

Stage = Callable[[str], None]


def predict_image(
    image: nib.Nifti1Image,
    name: str,
    classifier: model_file.Classifier,
    notes: tuple[str, ...] = (),
    stage: Stage = lambda words: None,
    person: dict[str, float] | None = None,
    coverage: float = COVERAGE,
    examples: Examples | None = None,
) -> Prediction:
    """Preprocess a scan as the model's study did, see whether it may be answered, and classify its slices.

    Parameters
    ----------
    image : nibabel.Nifti1Image
        (X, Y, Z), any orientation, whole head or brain only.
    name : str
        What the scan is called in messages and pictures.
    classifier : Classifier
        From `adlib.training.model_file.load`.
    notes : tuple of str
        Remarks to carry along, such as how the file was read.
    stage : callable
        Told each stage in words when it begins.
    person : dict of str to float, optional
        ``age`` in years and ``sex``, 1 for female and 0 for male: for percentiles of volumes, and for a model that is
        told them.
    coverage : float
        How often the set of classes is to hold the truth.
    examples : Examples, optional
        Training scans to look for the nearest in.

    Returns
    -------
    Prediction
        Without class and probabilities where the scan is refused, see `adlib.classify.input_checks`.

    Raises
    ------
    StudyError
        If the scan cannot be preprocessed, or the model takes no heads, see
        `adlib.training.model_file.ModelCard.refusal`.
    """
    card = classifier.card
    if card.refusal:
        raise StudyError(f"the model of {card.study!r} {card.refusal}")
    with one_thread():
        stage(STAGES[1])
        prepared = preprocess_image(image, card.preprocess, name)
        cut = _slices(prepared, card)
        stage(STAGES[2])
        features = image_features(classifier.network, cut).mean(0)
        gate = judge(prepared, features, classifier)
        stage(STAGES[3])
        slices, weights = model_file.classify_slices(classifier, cut, person)
    pooled = pool_slices(slices, weights, np.zeros(len(slices), int), card.input.pooling)[0]
    missing = [name for name in card.covariates if name not in (person or {})]
    told = [f"{name} was not given; the mean of the training cohort stands for it" for name in missing]
    remarks = (*notes, *told, *outside_cohort(prepared.features, card.cohort))
    about = {"gate": gate, "person": person or {}, "seen": cut, "coverage": coverage}
    if prepared.verdict == "fail" or not gate.accepted:
        return Prediction(name, None, {}, slices[:0], prepared, card, remarks, **about)
    about["nearest"] = nearest(features, classifier, examples)
    probabilities = dict(zip(card.classes, pooled.tolist(), strict=True))
    return Prediction(name, card.classes[int(pooled.argmax())], probabilities, slices, prepared, card, remarks, **about)


def _slices(prepared: Preprocessed, card: model_file.ModelCard) -> np.ndarray:
    """The scan's slices (n, 3, size, size) float16 to the very bits that a study stores of it."""
    cut = scan_slices(as_stored(prepared.t1w, prepared.affine), prepared.affine, card.input).astype(np.float16)
    if not card.landmarks:
        return cut
    return standard_slices(cut, brain_percentiles(prepared.t1w, prepared.mask), card.landmarks).astype(np.float16)


def predict_file(
    path: Path | str,
    classifier: model_file.Classifier,
    stage: Stage = lambda words: None,
    person: dict[str, float] | None = None,
    coverage: float = COVERAGE,
    examples: Examples | None = None,
) -> Prediction:
    """Read a scan file or DICOM folder and classify it; see `predict_image` and `adlib.sources.scanfile`."""
    stage(STAGES[0])
    scan = open_scan(path)
    return predict_image(scan.image, scan.name, classifier, scan.notes, stage, person, coverage, examples)


def outside_cohort(features: dict[str, float], cohort: dict[str, Any]) -> tuple[str, ...]:
    """Say which volumes lie over four standard deviations from the mean of every class of the training cohort."""
    remarks = []
    for feature in sorted(set(cohort.get("volumes", {})) & set(features)):
        value, classes = features[feature], cohort["volumes"][feature]
        distances = [abs(value - mean) / max(sd, 1e-9) for mean, sd in classes.values()]
        if min(distances) > OUTSIDE_SD:
            means = ", ".join(f"{label} {mean:.4g} ± {sd:.3g}" for label, (mean, sd) in classes.items())
            remarks.append(f"{feature} {value:.4g} lies outside the training cohort ({means})")
    return tuple(remarks)


def draw(prediction: Prediction) -> Figure:
    """The summary picture of a prediction."""
    return plot_prediction(prediction)


def write_summary(prediction: Prediction, path: Path) -> Path:
    """Write the summary picture as PNG."""
    apply_theme()
    figure = draw(prediction)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, metadata={"Software": None})
    plt.close(figure)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Classify the files of a command line; 1 if any could not be read, the others are classified all the same."""
    options = _parser().parse_args(arguments)
    try:
        params = load_params(options.study)
        weights = str(model_file.weights_path(options.model or find_model(params)))
        own = options.model is None
        _loaded(weights, own)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    given = {"age": options.age, "sex": {"F": 1.0, "M": 0.0}.get(options.sex)}
    person = {name: value for name, value in given.items() if value is not None}
    folder = options.out or params.exec.outputs / "predictions"
    settings = {"person": person, "coverage": params.evaluate.coverage}
    taken: set[str] = set()
    scans = [(path, folder / f"{_free_name(scan_name(path), taken)}_summary.png") for path in options.files]
    classify = partial(_classified, weights=weights, own=own, **settings)
    pool = params.pool if len(scans) > 1 else HERE
    records = map_scans(classify, scans, pool=pool, label="classifying", lost=_unclassified)
    for (path, _), record in zip(scans, records, strict=True):
        if "error" in record:
            print(f"error: {path}: {record['error']}", file=sys.stderr)
        else:
            print(json.dumps(record, indent=2, allow_nan=False))
    return int(any("error" in record for record in records))


@cache
def _loaded(weights: str, own: bool) -> tuple[model_file.Classifier, Examples | None]:
    return model_file.load(weights, trusted=own), read_examples(weights)


def _classified(scan: tuple[Path, Path], weights: str, own: bool, **settings: Any) -> dict[str, Any]:
    path, picture = scan
    classifier, examples = _loaded(weights, own)
    try:
        prediction = predict_file(path, classifier, examples=examples, **settings)
    except StudyError as error:
        return {"error": str(error)}
    return as_record(prediction) | {"summary": str(write_summary(prediction, picture))}


def _unclassified(_scan: tuple[Path, Path], reason: str) -> dict[str, Any]:
    return {"error": reason}


def _free_name(name: str, taken: set[str]) -> str:
    """A name not yet used in this run: two files of one name must not share a picture."""
    free = next(one for n in range(1, len(taken) + 2) if (one := name if n == 1 else f"{name}_{n}") not in taken)
    taken.add(free)
    return free


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m adlib.predict", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".nii[.gz], .mgz, folder or zip of DICOM")
    parser.add_argument(
        "--study", type=Path, default=Path("params/phantom.yaml"), help="params file of the model's study"
    )
    parser.add_argument("--model", type=Path, help="weights file; default: the study's own")
    parser.add_argument("--age", type=float, help="in years, for percentiles of volumes")
    parser.add_argument("--sex", choices=("F", "M"), help="for percentiles of volumes")
    parser.add_argument("--out", type=Path, help="folder of the summary pictures; default: outputs/predictions")
    return parser


if __name__ == "__main__":
    sys.exit(main())
