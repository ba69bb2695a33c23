"""The figures that matter most look as they did when someone last looked at them."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.testing.compare import compare_images
from PIL import Image, ImageDraw

from adlib.figures import plot_cohort as cohort
from adlib.figures import plot_results as results
from adlib.figures import plot_scrutiny as scrutiny
from adlib.study.metrics import metrics_table

BASELINE = Path(__file__).parent / "baseline"
CLASSES = ("CN", "MCI", "LMCI", "AD")
RUNS = {"resnet50": 0.48, "shuffled_labels": 0.25, "slice_split": 0.62, "volumes": 0.46, "bayes_ceiling": 0.53}
TOLERANCE = 2.0  # root mean square of grey levels, of 255
pytestmark = pytest.mark.usefixtures("look")


def people(n=160):
    """Participants whose probabilities rise towards their own class."""
    rng = np.random.default_rng(4)
    y = np.arange(n) % len(CLASSES)
    logits = -0.5 * (y[:, None] + rng.normal(0, 1, (n, 1)) - np.arange(len(CLASSES))) ** 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    table = pd.DataFrame({"fold": 0, "participant_id": [f"sub-{k:03d}" for k in range(n)]})
    table["session_id"], table["scan_id"] = "ses-1", table["participant_id"]
    table["diagnosis"] = table["truth"] = np.array(CLASSES)[y]
    table["age"] = 68 + 2 * y + rng.normal(0, 6, n)
    return pd.concat([table, pd.DataFrame(p, columns=[f"p_{name}" for name in CLASSES])], axis=1)


def metrics():
    entries = [
        entry(run, metric, level, point + (0.3 if "auc" in metric else 0))
        for run, point in RUNS.items()
        for metric in ("balanced_accuracy", "roc_auc_binary")
        for level in ("slice", "subject", "shared_slice", "shared_subject")
    ]
    entries += [
        entry("resnet50 - slice_split", f"{metric}_difference", level, -0.14)
        for metric in ("balanced_accuracy", "roc_auc_binary")
        for level in ("shared_slice", "shared_subject")
    ]
    entries += [
        entry("resnet50", m, "subject", 0.8, name)
        for m in ("roc_auc", "average_precision", "calibration_slope")
        for name in CLASSES
    ]
    return metrics_table({"entries": entries})


def entry(run, metric, level, point, label=None):
    interval = [point - 0.06, point + 0.08]
    return {"run": run, "level": level, "metric": metric, "class": label, "n": 40, "point": point, "ci95": interval}


def confusion():
    return {"resnet50": [[30, 8, 2, 0], [10, 9, 14, 7], [4, 10, 15, 11], [0, 3, 8, 29]], "volumes": [[40, 0, 0, 0]] * 4}


FIGURES = {
    "calibration": lambda: results.plot_calibration(people(), people(120), metrics(), CLASSES, 1),
    "cohort": lambda: cohort.plot_cohort(people(), CLASSES),
    "confusion": lambda: results.plot_confusion(confusion(), CLASSES),
    "forest": lambda: results.plot_forest(metrics(), "balanced_accuracy", "Balanced accuracy", 0.25),
    "leak": lambda: scrutiny.plot_leak(metrics(), CLASSES, "AD against CN"),
    "precision_recall": lambda: results.plot_precision_recall(people(), metrics(), CLASSES, 1),
    "roc": lambda: results.plot_roc(people(), metrics(), CLASSES, 1),
}


def draw(name, folder):
    figure = FIGURES[name]()
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)
    return path


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_looks_as_it_did(name, tmp_path):
    drawn, expected = draw(name, tmp_path), BASELINE / f"{name}.png"
    assert expected.is_file(), f"no picture to compare with: look at {drawn}, and copy it to {expected}"
    fault = compare_images(str(expected), str(drawn), TOLERANCE)
    assert fault is None, f"{fault}\nIf the new look is meant, look at {drawn} and copy it to {expected}"


def test_every_baseline_is_compared():
    assert {path.stem for path in BASELINE.glob("*.png")} == set(FIGURES)


def test_a_small_change_is_noticed(tmp_path):
    """A dot the size of a marker in another place."""
    drawn = draw("forest", tmp_path)
    with Image.open(drawn) as picture:
        ImageDraw.Draw(picture).ellipse((150, 60, 159, 69), fill="black")
        picture.save(drawn)
    assert compare_images(str(BASELINE / "forest.png"), str(drawn), TOLERANCE) is not None


def test_counts_of_the_confusion_are_legible_on_every_blue():
    """Contrast of at least 4.5 between text and cell, as WCAG 2.2 defines it, 1.4.3."""
    axis = results.plot_confusion({"resnet50": np.diag([9, 5, 2, 1]).tolist()}, CLASSES).axes[0]
    mesh = axis.collections[0]
    mesh.update_scalarmappable()
    cells, text = (
        luminance(mesh.get_facecolors()),
        luminance(plt.matplotlib.colors.to_rgba_array(axis.texts[0].get_color())),
    )
    lightest, darkest = np.maximum(cells, text), np.minimum(cells, text)
    assert ((lightest + 0.05) / (darkest + 0.05)).min() >= 4.5


def luminance(colours):
    rgb = np.asarray(colours)[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]
