"""Fit and score models/oasis1 on the coronal slabs of OASIS-1, in the folder that ADLIB_REALDATA names.

    python benchmarks/oasis1.py          scores the model, its baselines and its controls
    python benchmarks/oasis1.py write    scores them and writes models/oasis1
    python benchmarks/oasis1.py verify   scores them and compares the table with that of models/oasis1

People of 60 years or more with a Clinical Dementia Rating, one scan of each; 0, 0.5, and 1 or more are CN, MCI and AD.
The body is ResNet50 with ImageNet weights up to its third stage and stays as it is. The output layer is a logistic
regression with an L2 penalty on standardised features, averaged over three triples of neighbouring slices, of each slab
and of `COPIES` copies of it as other scanners and registrations would give them; directions in which copies of one
person differ are penalised by this variance on top. Penalty, calibration and prediction sets come from five folds of
the training people alone.

Scores are of people whom the model of a fold has not seen: five folds, stratified by class, five repetitions. ``AUC``
is the mean over the repetitions for a rating above 0 against 0; the interval resamples people, alike for all variants.
"""

import inspect
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.model_selection import RepeatedStratifiedKFold

from adlib.classify.model_store import REAL
from adlib.preprocess.intensity import white_matter_mode
from adlib.release import TOLERANCE
from adlib.sources.oasis import ACKNOWLEDGEMENT
from adlib.sources.reading import list_source
from adlib.study.exec_params import HERE
from adlib.study.params import load_params
from adlib.study.records import atomic_path, digest, file_digest, write_text
from adlib.training.calibration import fit_calibration
from adlib.training.cohort_reference import COVERAGES, IMAGE, fit_distribution, gate_bounds, mahalanobis_distances
from adlib.training.conformal import lowest_probabilities, sets_of
from adlib.training.model_file import Classifier, ModelCard, save
from adlib.training.network import ResNet50Stage3, image_features, load_initial_weights, softmax
from adlib.training.slabs import MASK, read_slab
from adlib.training.slices import slab_slices

PARAMS = load_params("params/oasis1_coronal.yaml")
WEIGHTS, LICENCE = "imagenet_resnet50/resnet50_imagenet.safetensors", "cc-by-nc-4.0"
STRENGTHS = (1e-3, 3e-3, 1e-2)  # inverse of the penalty
COPIES = 3
FOLDS, REPETITIONS, RESAMPLES = 5, 5, 2000
RIVAL = "age, sex, nWBV and eTIV"
TEMPLATE = Path(__file__).with_name("oasis1-card.md")

Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows of training and of test people to logits of the latter


def read_people(root: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """First scans of rated people of 60 years or more, and their slabs (n, 176, 10, 176) float32."""
    with tempfile.TemporaryDirectory() as folder:
        source = PARAMS.source.model_copy(update={"root": root / "oasis1_coronal"})
        listed = list_source(source, Path(folder), pool=HERE)
        rated = listed["diagnosis"].isin(PARAMS.classes) & (listed["age"] >= PARAMS.audit.min_age)
        people = listed[rated & (listed["session_id"] == "ses-01")].reset_index(drop=True)
        return people, np.stack([read_slab(path) for path in people["path"]])


def as_elsewhere(slab: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A slab as another scanner and registration would give it: pose, blur, gain, gamma, noise, edge of the brain."""
    turn, scale = rng.normal(0, [0.03, 0.03, 0.03]), 1 + rng.normal(0, 0.025, 3)
    matrix = (np.eye(3) + np.array([[0, 0, turn[0]], [turn[1], 0, turn[2]], [-turn[0], 0, 0]])) * scale
    centre, edge = (np.array(slab.shape) - 1) / 2, np.array([0, 4, 0])
    padded = np.pad(slab, [(0, 0), (edge[1],) * 2, (0, 0)], mode="edge")
    offset = centre - matrix @ centre + rng.normal(0, 1.0, 3) + edge
    moved = ndimage.affine_transform(padded, matrix, offset, slab.shape, order=1)
    sigma = rng.uniform(0, 1.5) * np.array([1, 0.5, 1])
    inside = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    moved = ndimage.gaussian_filter(moved, sigma) / np.maximum(inside, 0.3)
    x, _, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in slab.shape), indexing="ij", sparse=True)
    gain = np.exp(sum(k * part for k, part in zip(rng.normal(0, 0.06, 5), (x, z, x**2, z**2, x * z), strict=True)))
    varied = np.clip(moved * gain, 0, None) ** np.exp(rng.normal(0, 0.15)) + rng.normal(
        0, rng.uniform(0, 0.03), slab.shape
    )
    lost = int(rng.integers(0, 3))  # voxels at the edge of the brain
    kept = ndimage.binary_erosion(mask, np.ones((3, 1, 3)), iterations=lost) if lost else mask
    varied = np.clip(varied, 0.001, None) * kept
    return (varied / white_matter_mode(varied[kept])).astype(np.float32)


def features(slabs: np.ndarray, weights: Path | None, copies: int) -> np.ndarray:
    """Features (1 + copies, n, 1024) of slabs and their copies, means over slices; without weights of a random body."""
    return np.stack([copy_features(slabs, weights, k) for k in range(1 + copies)])


def copy_features(slabs: np.ndarray, weights: Path | None, k: int) -> np.ndarray:
    """Features (n, 1024) of the slabs, k = 0, or of their k-th copies; stored, so that they are computed once."""
    made_by = [inspect.getsource(as_elsewhere) if k else "", str(weights), k, zlib.crc32(slabs.tobytes())]
    path = PARAMS.exec.outputs / "oasis1" / f"{digest(made_by)}.npy"
    if path.is_file():
        return np.load(path)
    mask, network, rows = np.load(MASK)["mask"], make_network(weights), []
    for i, slab in enumerate(slabs):
        varied = as_elsewhere(slab, mask, np.random.default_rng([PARAMS.seed, k, i])) if k else slab
        with torch.autocast("cpu", torch.bfloat16):
            rows.append(image_features(network, slab_slices(varied, PARAMS.input)).mean(0))
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.array(rows))
    return np.array(rows)


def make_network(weights: Path | None) -> ResNet50Stage3:
    """The body with ImageNet weights, or with random ones."""
    torch.manual_seed(PARAMS.seed)
    network = ResNet50Stage3(len(PARAMS.classes))
    load_initial_weights(network, f"path:{weights}" if weights else "random")
    return network.eval()


def fit_layer(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (F, K) and biases (K,) of a regression on features (copies, n, F); a person counts once."""
    flat = x.reshape(-1, x.shape[-1])
    centre, scale = flat.mean(0), np.maximum(flat.std(0), 1e-9)
    apart = (x - x.mean(0)).reshape(flat.shape) / scale / np.sqrt(max(len(flat) - len(y), 1))
    _, sd, axes = np.linalg.svd(apart, full_matrices=False)
    steady = np.eye(len(scale)) + (axes.T * (1 / np.sqrt(1 + sd**2) - 1)) @ axes  # the penalty is that of I + scatter
    regression = LogisticRegression(C=strength / len(x), max_iter=500)
    regression.fit((flat - centre) / scale @ steady, np.tile(y, len(x)))
    weights = steady @ regression.coef_.T / scale[:, None]
    return weights, regression.intercept_ - centre @ weights


def of_layer(x: np.ndarray, y: np.ndarray, strength: float, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Logits of the output layer."""
    weights, bias = fit_layer(x[:, train], y[train], strength)
    return x[0, test] @ weights + bias


def choose(x: np.ndarray, y: np.ndarray, repetitions: int = 1) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Strength of least log loss in folds of these people, its temperature and biases, and the calibrated logits."""
    people, found = np.tile(np.arange(len(y)), repetitions), []
    for strength in STRENGTHS:
        logits = crossfitted(partial(of_layer, x, y, strength), y, repetitions)[0].reshape(-1, len(PARAMS.classes))
        temperature, bias = fit_calibration(logits, y[people], people)
        calibrated = logits / temperature + bias
        found.append((log_loss(y[people], softmax(calibrated)), strength, temperature, bias, calibrated))
    return min(found, key=lambda each: each[0])[1:]


def of_image(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, covered: list[float] | None = None
) -> np.ndarray:
    """Calibrated logits of the output layer; to `covered` comes the share of prediction sets of 90 % with the class."""
    strength, temperature, bias, inner = choose(x[:, train], y[train])
    logits = of_layer(x, y, strength, train, test) / temperature + bias
    if covered is not None:
        bounds = lowest_probabilities(y[train], softmax(inner), 0.9)
        covered.append(float(sets_of(softmax(logits), bounds)[np.arange(len(test)), y[test]].mean()))
    return logits


def of_few(values: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Logits by a few facts."""
    return of_layer(values[None], y, 0.3, train, test)


def of_pixels(slabs: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Logits by 60 principal components of a coarse slab."""
    axes = PCA(60, whiten=True, svd_solver="full").fit(slabs[train])
    model = LogisticRegression(C=0.1, max_iter=500).fit(axes.transform(slabs[train]), y[train])
    return model.decision_function(axes.transform(slabs[test]))


def crossfitted(fit: Fit, y: np.ndarray, repetitions: int = REPETITIONS) -> tuple[np.ndarray, np.ndarray]:
    """Logits (repetitions, n, K) of people by models of the other folds, and the fold of each (repetitions, n)."""
    logits = np.zeros((repetitions, len(y), len(PARAMS.classes)))
    folds = np.zeros((repetitions, len(y)), int)
    cutter = RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=repetitions, random_state=PARAMS.seed)
    for k, (train, test) in enumerate(cutter.split(y, y)):
        logits[k // FOLDS, test], folds[k // FOLDS, test] = fit(train, test), k % FOLDS
    return logits, folds


def impairment(logits: np.ndarray) -> np.ndarray:
    """Logit of any class but the first."""
    p = softmax(logits.reshape(-1, logits.shape[-1]))[:, 0].reshape(logits.shape[:-1]).clip(1e-9, 1 - 1e-9)
    return np.log((1 - p) / p)


def mean_auc(values: np.ndarray, y: np.ndarray) -> float:
    """ROC AUC of values (repetitions, n), the mean over the repetitions."""
    return float(np.mean(rankdata(values, axis=1)[:, y > 0].mean(1) - ((y > 0).sum() + 1) / 2) / (y == 0).sum())


def scores(found: dict[str, np.ndarray], y: np.ndarray) -> pd.DataFrame:
    """A row for each variant: AUC with its interval, range over repetitions, difference from the rival, accuracy."""
    rng, people = np.random.default_rng(PARAMS.seed), np.arange(len(y))
    draws = [people, *(rng.choice(people, len(people)) for _ in range(RESAMPLES))]
    draws = [draw for draw in draws if 0 < (y[draw] > 0).mean() < 1]
    ranked = {name: impairment(logits) for name, logits in found.items()}
    aucs = {n: np.array([mean_auc(v[:, d], y[d]) for d in draws]) for n, v in ranked.items()}
    share = np.log(np.bincount(y) / len(y))
    rows = []
    for name, values in aucs.items():
        single = [mean_auc(each[None], y) for each in ranked[name]]
        right = [balanced_accuracy_score(y, (each - share).argmax(1)) for each in found[name]]
        rows.append(
            {
                "variant": name,
                "AUC": written(values),
                "repetitions": f"{min(single):.3f} to {max(single):.3f}",
                "minus rival": written(values - aucs[RIVAL]) if name != RIVAL else "",
                "balanced accuracy of three classes": f"{np.mean(right):.3f}",
            }
        )
    return pd.DataFrame(rows)


def written(values: np.ndarray) -> str:
    """Value and interval."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return f"{values[0]:.3f} [{low:.3f}, {high:.3f}]"


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def slope(logits: np.ndarray, y: np.ndarray) -> float:
    """Of the calibrated logit of any class but the first; 1 is right. Mean over the repetitions."""
    fits = [LogisticRegression(C=np.inf).fit(each[:, None], y > 0) for each in impairment(logits)]
    return float(np.mean([fit.coef_[0, 0] for fit in fits]))


def gate(x: np.ndarray, folds: np.ndarray, people: pd.Series) -> dict[str, Any]:
    """Bounds of the distance of features, each person with its copies measured by the other folds."""
    off = np.zeros(x.shape[:2])
    for k in range(FOLDS):
        fitted = fit_distribution(x[:, folds != k].reshape(-1, x.shape[-1]))
        off[:, folds == k] = [mahalanobis_distances(part, fitted) for part in x[:, folds == k]]
    return gate_bounds(pd.DataFrame({IMAGE: off.ravel()}), np.tile(people, len(x)))


def make_classifier(x: np.ndarray, y: np.ndarray, people: pd.DataFrame, folds: np.ndarray, weights: Path) -> Classifier:
    """The model that is fitted on all people, calibrated and bounded by its cross-validation."""
    network = make_network(weights)
    strength, temperature, shift, logits = choose(x, y, REPETITIONS)
    layer, offset = fit_layer(x, y, strength)
    with torch.no_grad():
        network.fc.bias.copy_(torch.from_numpy(offset))
        network.fc.weight.copy_(torch.from_numpy(layer.T))
    p = softmax(logits[: len(y)])
    counts = people["diagnosis"].value_counts()
    name, parameters = type(network), sum(value.numel() for value in network.parameters())
    card = ModelCard(
        study="oasis1",
        classes=PARAMS.classes,
        simulated=False,
        input=PARAMS.input,
        preprocess=PARAMS.preprocess,
        temperature=temperature,
        bias=tuple(shift.tolist()),
        cohort={
            "participants": {label: int(counts[label]) for label in PARAMS.classes},
            "min_age": PARAMS.audit.min_age,
            "volumes": {},
        },
        weights_origin=f"weights of {weights.name} ({LICENCE})",
        splits_sha256="",
        code=file_digest(Path(__file__)),
        seed=PARAMS.seed,
        reference={
            "sets": {f"{level:g}": lowest_probabilities(y, p, level).tolist() for level in COVERAGES},
            "norms": {},
            "gate": gate(x, folds, people["participant_id"]),
            "names": {IMAGE: []},
        },
        training={
            "network": {
                "name": f"{name.__module__}:{name.__name__}",
                "title": name.__name__,
                "parameters": parameters,
            },
            "strength": strength,
            "copies": COPIES,
        },
    )
    return Classifier(network, card, {IMAGE: fit_distribution(x.reshape(-1, x.shape[-1]))})


def main() -> None:
    """Print the table; write the model if asked to."""
    root = Path(os.environ["ADLIB_REALDATA"])
    people, slabs = read_people(root)
    y = people["diagnosis"].map(PARAMS.classes.index).to_numpy()
    x, untrained = features(slabs, root / WEIGHTS, COPIES), features(slabs, None, 0)
    coarse = ndimage.zoom(slabs[:, :, ::3], (1, 0.25, 1, 0.25), order=1).reshape(len(y), -1)
    facts = people.assign(female=people["sex"].eq("F"))
    covered: list[float] = []
    fit = {
        "image": partial(of_image, x, y, covered=covered),
        "image without copies": partial(of_image, x[:1], y),
        "untrained body": partial(of_image, untrained, y),
        "pixels, 60 components": partial(of_pixels, coarse, y),
        "age and sex": partial(of_few, facts[["age", "female"]].to_numpy(float), y),
        "nWBV": partial(of_few, facts[["nbv"]].to_numpy(float), y),
        RIVAL: partial(of_few, facts[["age", "female", "nbv", "icv_ml"]].to_numpy(float), y),
        "permuted labels": partial(of_image, x[:1], np.random.default_rng(PARAMS.seed).permutation(y)),
    }
    found = {name: crossfitted(each, y) for name, each in fit.items()}
    table = scores({name: logits for name, (logits, _) in found.items()}, y)
    logits, folds = found["image"]
    checked = {"slope": slope(logits, y), "coverage": float(np.mean(covered))}
    counts = ", ".join(f"{n} {label}" for label, n in zip(PARAMS.classes, np.bincount(y), strict=True))
    shown = markdown(table)
    print(f"{len(y)} people ({counts})\n{shown}\n{checked}")
    if sys.argv[1:] == ["verify"]:
        stored = REAL.with_name("README.md").read_text(encoding="utf-8").partition("| variant")[2].partition("\n\n")[0]
        values = [np.array(re.findall(r"-?[0-9]+\.[0-9]{3}", text), float) for text in (shown, stored)]
        worst = np.abs(np.subtract(*values)).max() if len(values[0]) == len(values[1]) else np.inf
        print(f"largest difference {worst:.4f} (limit {TOLERANCE})")
        sys.exit(int(worst > TOLERANCE))
    if sys.argv[1:] == ["write"]:
        save(make_classifier(x, y, people, folds[0], root / WEIGHTS), REAL, half=True)
        text = TEMPLATE.read_text(encoding="utf-8").format(
            n=len(y),
            counts=counts,
            table=shown,
            licence=LICENCE,
            owed=ACKNOWLEDGEMENT,
            **checked,
        )
        write_text(text, REAL.with_name("README.md"))


if __name__ == "__main__":
    main()
