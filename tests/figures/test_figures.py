"""Figures show the numbers that they were given."""

import numpy as np
import pandas as pd
import pytest

from adlib.evaluation.explain.attribution import AttributionMaps
from adlib.figures import plot_cohort as cohort
from adlib.figures import plot_explanation as explanations
from adlib.figures import plot_results as results
from adlib.figures import theme
from adlib.imaging import atlas
from adlib.study.metrics import metrics_table
from adlib.training.network import ResNet50

CLASSES = ("CN", "MCI", "AD")
pytestmark = pytest.mark.usefixtures("look")


def texts(figure):
    return " | ".join(t.get_text() for axis in figure.axes for t in [*axis.texts, axis.title, axis.xaxis.label])


def people(n=30):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "participant_id": [f"sub-{k}" for k in range(n)],
            "session_id": "ses-1",
            "scan_id": [f"s{k}" for k in range(n)],
            "diagnosis": [CLASSES[k % 3] for k in range(n)],
            "age": rng.normal(70, 5, n),
        }
    )


def entry(run, point, metric="balanced_accuracy"):
    return {"run": run, "level": "subject", "metric": metric, "class": None, "n": 9, "point": point, "ci95": [0.2, 0.8]}


def test_class_colours_are_distinct_and_ordered_from_light_to_dark():
    palette = theme.class_palette(("CN", "MCI", "LMCI", "AD"))
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in palette.values()]
    assert lightness == sorted(lightness, reverse=True)
    assert min(-np.diff(lightness)) > 0.05


def test_the_flow_names_what_was_left_out():
    flow = pd.DataFrame({"step": ["listed", "with a diagnosis"], "scans": [12, 9], "participants": [6, 5]})
    shown = texts(cohort.plot_flow(flow))
    assert "12 scans of 6 participants" in shown
    assert "3 scans left out" in shown


def test_the_cohort_figure_counts_people_and_scans():
    twice = pd.concat([people(), people().head(3).assign(session_id="ses-2")])
    shown = texts(cohort.plot_cohort(twice, CLASSES))
    assert shown.count("10") == 3
    assert shown.count("11") == 3


def test_the_confusion_figure_writes_the_counts():
    counts = {"resnet50": [[7, 1, 0], [2, 5, 1], [0, 0, 8]], "volumes": [[8, 0, 0], [0, 8, 0], [0, 0, 8]]}
    shown = texts(results.plot_confusion(counts, CLASSES)).split(" | ")
    assert [int(t) for t in shown if t.isdigit()] == [v for run in counts.values() for row in run for v in row]


def test_the_forest_shows_every_run_with_its_interval_and_skips_undefined_ones():
    metrics = metrics_table({"entries": [entry("resnet50", 0.6), entry("majority", 0.25), entry("volumes", None)]})
    figure = results.plot_forest(metrics, "balanced_accuracy", "Title", 0.25)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["Majority", "ResNet50"]
    assert "0.60 [0.20, 0.80]" in texts(figure)


def test_input_slices_have_a_row_per_class_and_a_column_per_channel():
    table = people(6).assign(row=range(6), slice=0, position_mm=-20.0)
    figure = cohort.plot_input_slices(np.random.default_rng(0).random((6, 3, 8, 8)), table, CLASSES)
    assert len(figure.axes) == 9
    assert "slice at -20 mm" in texts(figure)


def test_attribution_panels_follow_classes_and_slices():
    maps = AttributionMaps(np.ones((3, 2, 8, 8)), np.zeros((3, 2, 8, 8)), np.array([5, 5, 4]))
    figure = explanations.plot_attribution(maps, CLASSES)
    assert len(figure.axes) == 3 * 2 + 1
    assert [figure.axes[k].get_ylabel() for k in (0, 4)] == ["CN\n(mean of 5)", "AD\n(mean of 4)"]


@pytest.mark.parametrize(("mode", "where", "cuts"), [("y", (-20.0, 0.0), 2), ("ortho", (-27.0, -20.0, -18.0), 3)])
def test_maps_in_mni_space_have_a_panel_for_each_class_and_cut(mode, where, cuts):
    base = atlas.template(3.0)
    volume = np.where(atlas.region("hippocampus_left", 3.0), 1e-3, 0)
    images = {name: atlas.mni_image(volume * sign, base.affine) for name, sign in zip(CLASSES, (0, -1, 1), strict=True)}
    figure = explanations.plot_attribution_mni(images, atlas.mni_image(base.t1, base.affine), mode, where)
    names = [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]
    assert names == list(CLASSES)
    drawn = [axis for axis in figure.axes if axis.images]
    assert len(drawn) >= cuts * len(CLASSES)
    assert "evidence for AD ($10^{-3}$ logit" in texts(figure)


def test_maps_without_any_evidence_are_drawn():
    base = atlas.template(3.0)
    images = {"CN": atlas.mni_image(0 * base.t1, base.affine)}
    assert explanations.plot_attribution_mni(images, atlas.mni_image(base.t1, base.affine), "y", (-20.0,)).axes


def checks(known):
    entries = [
        {"check": "randomisation", "of": stage, "metric": metric, "point": 0.5 - 0.1 * k, "ci95": [0.0, 0.6]}
        for k, stage in enumerate(reversed(ResNet50.stages))
        for metric in explanations.METRICS
    ]
    entries += [
        {"check": "perturbation", "of": of, "metric": "area_gained_over_random", "point": 0.4, "ci95": [0.3, 0.5]}
        for of in ("deletion", "insertion")
    ]
    names = [(f"overlap_{change}", of) for change in explanations.CHANGES for of in explanations.OVERLAPS]
    overlap = {"metric": "ratio_to_chance", "point": 3.5, "ci95": [3.0, 4.0]}
    entries += [{"check": check, "of": of, **overlap} for check, of in names] if known else []
    curve = {"point": np.linspace(2, 0, 11).tolist(), "low": [-1.0] * 11, "high": [3.0] * 11}
    curves = dict.fromkeys(("deletion", "insertion", "random_deletion", "random_insertion"), curve)
    region = {"share_of_brain": 0.1}
    changed = {"changed": dict.fromkeys(explanations.CHANGES, region)} if known else {}
    return {"class": "AD", "entries": entries, "curves": curves, **changed}


def test_randomisation_shows_each_stage_and_the_overlap_only_where_the_truth_is_known():
    figure = explanations.plot_randomisation(checks(known=True))
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), [1, 0.5, 0.4, 0.3, 0.2, 0.1, 0])
    shown = texts(figure)
    assert shown.count("3.5 [3.0, 4.0]") == 6 and "at most 10" in shown
    assert len(explanations.plot_randomisation(checks(known=False)).axes) == 1


def test_deletion_shows_the_stored_curves_and_what_they_gain():
    figure = explanations.plot_deletion(checks(known=False))
    assert [len(axis.lines) for axis in figure.axes] == [2, 2]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), np.linspace(2, 0, 11))
    assert texts(figure).count("0.40 [0.30, 0.50]") == 2


def test_calibration_marks_published_means():
    truth = people().assign(nbv=0.75, hippocampus_ml=5.0, ventricles_ml=30.0)
    figure = cohort.plot_calibration(truth, CLASSES)
    marks = figure.axes[0].lines[-3:] or figure.axes[0].lines
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in marks])
    assert any(np.isclose(drawn, 0.769))


def test_live_curves_are_drawn_once_and_then_updated(monkeypatch):
    shown = []

    class Handle:
        def update(self, item):
            shown.append(item)

    def display(item, display_id):
        shown.append(item)
        return Handle()

    monkeypatch.setattr(results, "display", display)
    live = results.LiveCurves(every_seconds=0.0)
    row = {"train_loss": 1.0, "validation_loss": 1.2, "validation_balanced_accuracy": 0.3}
    for run in ("resnet50, fold 0", "shuffled_labels, fold 0"):
        for epoch in (1, 2):
            live(run, [{"epoch": k + 1, **row} for k in range(epoch)])
    live.close()
    assert len(shown) == 5
    assert len(shown[0].legends[0].get_texts()) == 1
    assert len(shown[3].legends[0].get_texts()) == 2
    slow = results.LiveCurves(every_seconds=1000.0)
    for _ in range(5):
        slow("resnet50, fold 0", [{"epoch": 1, **row}])
    assert len(shown) == 6
