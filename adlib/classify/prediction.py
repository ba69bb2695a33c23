"""Classify a scan with a study's model, through the code that processes the scans of a study."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

from adlib.classify.input_checks import check_input
from adlib.classify.model_store import find_model
from adlib.classify.nearest import Examples, nearest, read_examples
from adlib.classify.plot_prediction import plot_prediction
from adlib.classify.result import Prediction, as_record
from adlib.classify.scan_tables import COVERAGE, STAGES, Record, unique_name
from adlib.figures.theme import apply_theme
from adlib.parallel.mapping import map_scans
from adlib.parallel.threads import one_thread
from adlib.preprocess.derivatives import Preprocessed, as_stored
from adlib.preprocess.intensity import brain_percentiles, standard_slices
from adlib.preprocess.pipeline import preprocess_image
from adlib.sources.scanfile import open_scan, scan_name
from adlib.study.exec_params import HERE
from adlib.study.params import SLAB, StudyParams
from adlib.study.records import StudyError, atomic_path
from adlib.training import model_file
from adlib.training.network import image_features
from adlib.training.pooling import pool_slices
from adlib.training.slabs import cut_slab
from adlib.training.slices import scan_slices, slab_slices

OUTSIDE_SD = 4.0  # a volume farther than this from the mean of every class lies outside the training cohort

Stage = Callable[[str], None]


def predict_image(
    image: nib.Nifti1Image,
    name: str,
    classifier: model_file.Classifier,
    *,
    notes: tuple[str, ...] = (),
    stage: Stage = lambda title: None,
    person: dict[str, float] | None = None,
    coverage: float = COVERAGE,
    examples: Examples | None = None,
) -> Prediction:
    """Preprocess a scan as the model's study did, check it, and classify its slices.

    Parameters
    ----------
    image : nibabel.Nifti1Image
        (X, Y, Z), any orientation, whole head or brain only.
    name : str
        Name of the scan in messages and figures.
    classifier : Classifier
        From `adlib.training.model_file.load`.
    notes : tuple of str
        Remarks on how the file was read.
    stage : callable
        Called with the title of each stage when it begins.
    person : dict of str to float, optional
        ``age`` in years and ``sex``, 1 for female and 0 for male: for percentiles of volumes, and for a model with
        covariates.
    coverage : float
        Probability with which the prediction set contains the true class.
    examples : Examples, optional
        Training scans for comparison.

    Returns
    -------
    Prediction
        Without class and probabilities if the scan is refused, see `adlib.classify.input_checks`.

    Raises
    ------
    StudyError
        If the scan cannot be preprocessed, or the model takes no heads, see
        `adlib.training.model_file.ModelCard.refusal`.
    """
    card, person = classifier.card, person or {}
    if card.refusal:
        raise StudyError(f"the model of {card.study!r} {card.refusal}")
    with one_thread():
        stage(STAGES[1])
        prepared = preprocess_image(image, card.preprocess, name)
        seen = _slices(prepared, card)
        stage(STAGES[2])
        features = image_features(classifier.network, seen).mean(0)
        checks = check_input(prepared, features, classifier, person)
        stage(STAGES[3])
        slices, weights = model_file.classify_slices(classifier, seen, person)
    missing = [name for name in card.covariates if name not in person]
    imputed = [f"{name} is not given; the mean of the training cohort is used" for name in missing]
    notes = (*notes, *imputed, *outside_cohort(prepared.features, card.cohort))
    result = Prediction(
        name, None, {}, slices[:0], prepared, card, notes, checks, person, seen, coverage, sha256=classifier.sha256
    )
    if prepared.verdict == "fail" or any(check.refusal for check in checks):
        return result
    pooled = pool_slices(slices, weights, np.zeros(len(slices), int), card.input.pooling)[0]
    probabilities = dict(zip(card.classes, pooled.tolist(), strict=True))
    near, predicted = nearest(features, classifier, examples), card.classes[int(pooled.argmax())]
    return replace(result, predicted=predicted, probabilities=probabilities, slices=slices, nearest=near)


def _slices(prepared: Preprocessed, card: model_file.ModelCard) -> np.ndarray:
    """Slices (n, 3, size, size) float16 of a scan, bit for bit those that a study stores."""
    stored = as_stored(prepared.t1w, prepared.affine)
    if card.input.plane == SLAB:
        return slab_slices(cut_slab(stored, prepared.affine, prepared.name), card.input).astype(np.float16)
    cut = scan_slices(stored, prepared.affine, card.input).astype(np.float16)
    if not card.landmarks:
        return cut
    percentiles = np.array(brain_percentiles(prepared.t1w, prepared.mask))
    return standard_slices(cut, percentiles, np.array(card.landmarks)).astype(np.float16)


def predict_file(
    path: Path | str, classifier: model_file.Classifier, *, stage: Stage = lambda title: None, **options: Any
) -> Prediction:
    """Read a scan file or DICOM folder and classify it.

    Parameters
    ----------
    path : path
        See `adlib.sources.scanfile.open_scan`.
    classifier : Classifier
    stage : callable
    **options
        See `predict_image`.

    Returns
    -------
    Prediction

    Raises
    ------
    StudyError
        If the file cannot be read; see `predict_image`.
    """
    stage(STAGES[0])
    scan = open_scan(path)
    return predict_image(scan.image, scan.name, classifier, notes=scan.notes, stage=stage, **options)


def stated_person(path: Path | str) -> dict[str, float]:
    """Age and sex in the header of a scan file: to be proposed to the user, never taken without asking.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to float
        ``age`` and ``sex`` as in `predict_image`, if they are there.

    Raises
    ------
    StudyError
        If the file cannot be read.
    """
    facts = open_scan(path).facts
    stated = {"age": facts.get("age"), "sex": {"F": 1.0, "M": 0.0}.get(facts.get("sex", ""))}
    return {name: float(value) for name, value in stated.items() if value is not None}


def outside_cohort(features: dict[str, float], cohort: dict[str, Any]) -> tuple[str, ...]:
    """Volumes more than `OUTSIDE_SD` standard deviations from the mean of every class of the training cohort.

    Parameters
    ----------
    features : dict of str to float
        Volumes of the scan, ml, and nbv.
    cohort : dict
        From the model card; its ``volumes`` hold mean and standard deviation by class.

    Returns
    -------
    tuple of str
        A sentence per volume.
    """
    remarks = []
    for feature in sorted(set(cohort.get("volumes", {})) & set(features)):
        value, classes = features[feature], cohort["volumes"][feature]
        if min(abs(value - mean) / max(sd, 1e-9) for mean, sd in classes.values()) > OUTSIDE_SD:
            means = ", ".join(f"{label} {mean:.4g} ± {sd:.3g}" for label, (mean, sd) in classes.items())
            remarks.append(f"{feature} {value:.4g} lies outside the training cohort ({means})")
    return tuple(remarks)


def classify_scans(params: StudyParams, paths: Iterable[str]) -> list[Prediction]:
    """Classify scan files with the study's model, in the same way as uploaded scans.

    Parameters
    ----------
    params : StudyParams
    paths : iterable of str
        Scan files.

    Returns
    -------
    list of Prediction

    Raises
    ------
    StudyError
        If there is no model, or a file cannot be read or preprocessed.
    """
    weights = find_model(params)
    classifier, examples = model_file.load(weights, trusted=True), read_examples(weights)
    return [predict_file(path, classifier, examples=examples, coverage=params.evaluate.coverage) for path in paths]


def predict_files(
    paths: list[Path], params: StudyParams, model: Path | None, folder: Path, person: dict[str, float]
) -> list[Record]:
    """Classify scan files in parallel and write a summary figure of each.

    Parameters
    ----------
    paths : list of path
    params : StudyParams
        Of the model's study; workers are those of ``exec``. A single file is classified in this process.
    model : path or None
        File or folder of another model; None: that of the study.
    folder : path
        Receives ``<name>_summary.png``.
    person : dict of str to float
        See `predict_image`.

    Returns
    -------
    list of dict
        For each file the record of `as_record` with the path of its ``summary``, or the ``error``.

    Raises
    ------
    StudyError
        If the model file cannot be read.
    """
    weights = find_model(params) if model is None else model_file.weights_path(model)
    _load(weights, model is None)  # a file that cannot be read ends here
    names: list[str] = []
    for path in paths:
        names.append(unique_name(scan_name(path), names))
    items = [(path, folder / f"{name}_summary.png") for path, name in zip(paths, names, strict=True)]
    function = partial(_predict_record, (weights, model is None), person=person, coverage=params.evaluate.coverage)
    pool = params.pool if len(paths) > 1 else HERE
    return map_scans(function, items, pool=pool, label="classifying", lost=lambda _, reason: {"error": reason})


@cache
def _load(weights: Path, trusted: bool) -> tuple[model_file.Classifier, Examples | None]:
    return model_file.load(weights, trusted=trusted), read_examples(weights)


def _predict_record(model: tuple[Path, bool], item: tuple[Path, Path], **options: Any) -> Record:
    path, figure = item
    classifier, examples = _load(*model)
    try:
        prediction = predict_file(path, classifier, examples=examples, **options)
    except StudyError as error:
        return {"error": str(error)}
    apply_theme()
    with atomic_path(figure) as temporary:
        temporary.write_bytes(as_png(plot_prediction(prediction)))
    return as_record(prediction) | {"summary": str(figure)}


def as_png(figure: plt.Figure) -> bytes:
    """Content of a PNG file of a figure, which is closed.

    Parameters
    ----------
    figure : matplotlib Figure

    Returns
    -------
    bytes
    """
    content = BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    plt.close(figure)
    return content.getvalue()
