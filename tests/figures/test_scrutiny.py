"""The worst errors, and figures that look closely: they show what they were given, and only what may be shown."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from adlib.evaluation.errors import may_show_participants, most_confident_errors, study_failures
from adlib.evaluation.prediction_sets import LEVELS
from adlib.figures import plot_results as results
from adlib.figures import plot_scrutiny as scrutiny
from adlib.study.metrics import metrics_table
from adlib.study.params import load_params
from adlib.study.records import FEATURES, SLICES, write_table

CLASSES = ("CN", "MCI", "AD")
pytestmark = pytest.mark.usefixtures("look")


def texts(figure):
    return " | ".join(t.get_text() for axis in figure.axes for t in [*axis.texts, axis.title])


def people(p, truth):
    table = pd.DataFrame({"fold": 0, "participant_id": [f"sub-{k}" for k in range(len(p))], "truth": truth})
    table[[f"p_{name}" for name in CLASSES]] = p
    return table


POOLED = people(
    [[0.6, 0.2, 0.2], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]],
    ["MCI", "CN", "AD", "CN", "CN"],
)


def metrics(*names, label=None, groups=()):
    entry = {"run": "resnet50", "level": "subject", "class": label, "n": 9, "point": 0.5, "ci95": [0.25, 0.75]}
    entries = [entry | {"metric": name, "class": k} for name in names for k in (label or [None])]
    return metrics_table({"entries": entries, "subgroups": [entry | {"metric": n, **g} for n in names for g in groups]})


def test_only_wrong_answers_are_failures_and_the_most_confident_come_first():
    found = most_confident_errors(POOLED, CLASSES, 3)
    assert found["participant_id"].tolist() == ["sub-2", "sub-4", "sub-0"]
    assert found["answer"].tolist() == ["MCI", "MCI", "CN"]
    assert found["probability"].tolist() == [0.8, 0.8, 0.6]


def test_a_failure_is_shown_with_its_own_middle_slice_and_quality(tmp_path):
    params = load_params("params/phantom.yaml", (f"exec.outputs={tmp_path}", "classes=[CN, MCI, AD]",
                                                 "source.severity_mean=[0.1, 0.4, 1.0]"))  # fmt: skip
    params.folder.mkdir(parents=True)
    rows = [(f"sub-{k}", f"ses-{s}", c) for s in (2, 1) for c in (2, 1, 0) for k in range(5)]
    table = pd.DataFrame(rows, columns=["participant_id", "session_id", "slice"])
    table["scan_id"] = table["participant_id"] + "_" + table["session_id"]
    write_table(table.assign(row=range(30), diagnosis="CN"), params.folder / "slices.tsv", SLICES)
    np.save(params.folder / "slices.npy", np.arange(90).reshape(30, 3, 1, 1) * np.ones((1, 1, 4, 4), np.float16))
    scans = table.drop_duplicates("scan_id")
    reasons = scans["session_id"].map({"ses-1": "blurred", "ses-2": "other scan"})
    quality = scans[["participant_id", "session_id", "scan_id"]].assign(qc_verdict="warn", qc_reasons=reasons)
    write_table(quality, params.folder / "features.tsv", FEATURES)
    table_of_errors, images = study_failures(params, POOLED, count=2)
    assert table_of_errors["scan_id"].tolist() == ["sub-2_ses-1", "sub-4_ses-1"]
    middle = [table.query("scan_id == @scan and slice == 1").index[0] for scan in table_of_errors["scan_id"]]
    assert images[:, 0, 0].tolist() == [3 * row + 1 for row in middle]
    shown = texts(scrutiny.plot_failures(table_of_errors, images))
    assert "sub-2\ntrue AD, predicted MCI (0.80)\nquality: warn (blurred)" in shown
    assert "sub-1" not in shown


def test_no_failure_is_said_to_be_none():
    nobody = pd.DataFrame(columns=["participant_id"])
    assert "no tested participant was misclassified" in texts(scrutiny.plot_failures(nobody, np.zeros((0, 4, 4))))


@pytest.mark.parametrize("study", ["adni", "bids", "oasis1", "oasis2_slices", "dicom"])
def test_participants_of_real_cohorts_are_shown_only_where_params_say_so(study, monkeypatch):
    for name in ("ADNI", "ADNI_ROOT", "BIDS_ROOT", "OASIS1_ROOT", "DICOM_ROOT"):
        monkeypatch.setenv(name, "/nowhere")
    assert not may_show_participants(load_params(f"params/{study}.yaml"))
    assert may_show_participants(load_params(f"params/{study}.yaml", ("evaluate.show_participants=true",)))
    assert may_show_participants(load_params("params/phantom.yaml"))


def test_precision_at_each_recall_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    positive, score = rng.random(60) < 0.4, np.round(rng.random(60), 1)
    found = results.precision_at(positive, score, np.ones((1, 60)))[0]
    for recall, value in zip(results.GRID[1:], found[1:], strict=True):
        cut = next(c for c in np.unique(score)[::-1] if positive[score >= c].sum() >= recall * positive.sum() - 1e-9)
        assert value == pytest.approx(positive[score >= cut].mean(), abs=1e-12)
    assert found.mean() == pytest.approx(average_precision_score(positive, score), abs=0.02)


def test_precision_recall_has_a_panel_for_each_class_with_its_share_of_participants():
    figure = results.plot_precision_recall(POOLED, metrics("average_precision", label=CLASSES), CLASSES, 1)
    assert [axis.get_title().split()[0] for axis in figure.axes] == list(CLASSES)
    assert [axis.lines[1].get_ydata()[0] for axis in figure.axes] == [0.6, 0.2, 0.2]


def test_a_class_that_nobody_tested_has_gets_a_panel_that_says_so():
    nobody = POOLED[POOLED["truth"] != "MCI"]
    drawn = results.plot_precision_recall(nobody, metrics("average_precision", label=("CN", "AD")), CLASSES, 1)
    for figure in (drawn, results.plot_roc(nobody, metrics("roc_auc", label=("CN", "AD")), CLASSES, 1)):
        assert [len(axis.collections) for axis in figure.axes] == [1, 0, 1]
        assert [text.get_text() for text in figure.axes[1].texts] == ["none tested\nare MCI"]
        assert all(len(axis.get_yticks()) > 1 for axis in figure.axes)


def test_the_conformal_figure_draws_the_curve_and_counts_set_sizes_by_class():
    curve = pd.DataFrame({"nominal": LEVELS, "coverage": np.array(LEVELS) - 0.01})
    for name, shift in (("low", -0.1), ("high", 0.02), ("expected_low", -0.2), ("expected_high", 0.05)):
        curve[name] = curve["nominal"] + shift
    sets = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1]], bool)
    figure = scrutiny.plot_conformal(curve, sets, np.array([0, 0, 1, 2]), metrics("coverage", "set_size"), CLASSES, 0.9)
    drawn = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_ydata()) == len(LEVELS)]
    assert np.allclose(drawn[0], curve["coverage"])
    bars = [[bar.get_width() for bar in group] for group in figure.axes[1].containers]
    assert bars == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert "nominal 90%: 0.50 [0.25, 0.75]" in texts(figure)


def test_the_forest_of_groups_has_a_row_for_each_and_says_where_there_is_no_score():
    groups = ({"group": "sex F", "n": 30}, {"group": "sex M", "n": 12, "point": None, "ci95": None})
    figure = scrutiny.plot_subgroups(
        metrics("balanced_accuracy", "roc_auc_binary", "coverage", groups=groups), CLASSES, "AD against CN", 0.9
    )
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["sex F (30)", "sex M (12)"]
    assert [[t.get_text() for t in axis.texts] for axis in figure.axes] == [["too few of a class"]] * 3
    assert "AD against CN" in texts(figure)
    nobody = metrics("balanced_accuracy", "roc_auc_binary", "coverage")
    nobody.loc[1, ["point", "low", "high"]] = None
    figure = scrutiny.plot_subgroups(nobody, CLASSES, "AD against CN", 0.9)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["no group is\nlarge enough"]
    assert "all: undefined" in texts(figure)


def test_a_group_without_an_interval_has_an_empty_dot():
    groups = ({"group": "sex F", "point": 1.0, "ci95": None}, {"group": "sex M"})
    drawn = metrics("balanced_accuracy", "roc_auc_binary", "coverage", groups=groups)
    for axis in scrutiny.plot_subgroups(drawn, CLASSES, "AD against CN", 0.9).axes:
        assert [line.get_fillstyle() for line in axis.lines if line.get_marker() == "o"] == ["none", "full"]


def many():
    rng = np.random.default_rng(2)
    p = rng.dirichlet(np.ones(3), 90)
    return people(p, [CLASSES[rng.choice(3, p=row)] for row in p]), people(p**2 / (p**2).sum(1, keepdims=True), "CN")


def test_calibration_has_a_panel_for_each_class_and_both_states():
    after, before = many()
    before["truth"] = after["truth"]
    figure = results.plot_calibration(after, before, metrics("calibration_slope", label=CLASSES), CLASSES, 1)
    upper, lower = figure.axes[:3], figure.axes[3:]
    assert [axis.get_title() for axis in upper] == [f"{n} against the rest\nslope 0.50 [0.25, 0.75]" for n in CLASSES]
    assert all([line.get_linestyle() for line in axis.lines] == ["-", ":", "--"] for axis in upper)
    for axis, name in zip(lower, CLASSES, strict=True):
        up, down = (patch.get_data().values.sum() for patch in axis.patches)
        assert (up, down) == ((after["truth"] == name).sum(), -(after["truth"] != name).sum())


def test_calibration_of_one_probability_has_no_curve():
    after, before = many()
    alike = [table.assign(p_CN=0.3334, p_MCI=0.3333, p_AD=0.3333) for table in (after, before)]
    figure = results.plot_calibration(*alike, metrics("calibration_slope", label=CLASSES), CLASSES, 1)
    assert not any(np.isfinite(axis.lines[0].get_ydata()).any() for axis in figure.axes[:3])


def test_decision_draws_the_stored_curve_and_risks_by_truth():
    curve = {"threshold": [0.1, 0.5], "network": [0.4, 0.2], "low": [0.3, 0.1], "high": [0.5, 0.3]}
    binary = {"negative": ("CN",), "positive": ("MCI", "AD")}
    table = many()[0]
    figure = results.plot_decision(table, curve | {"treat_all": [0.35, -0.2]}, CLASSES, binary)
    risks, decision = figure.axes
    assert [line.get_ydata()[-1] for line in decision.lines] == [0.2, -0.2, 0]
    sizes = [sum(bar.get_height() for bar in group) for group in risks.containers]
    assert sizes == [(table["truth"] == "CN").sum(), (table["truth"] != "CN").sum()]
    nobody = results.plot_decision(table, {}, CLASSES, binary)
    assert "nobody of the two classes was tested" in texts(nobody)
