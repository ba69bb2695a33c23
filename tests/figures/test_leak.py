"""The leak figure: heights, intervals and what is hatched are those of the metrics."""

import pytest
from matplotlib.colors import same_color

from adlib.figures.plot_scrutiny import ACCENT, BEST, WARNING, plot_leak
from adlib.study.metrics import metrics_table

CLASSES = ("CN", "MCI", "AD")
METRICS = ("balanced_accuracy", "roc_auc_binary")
pytestmark = pytest.mark.usefixtures("look")


def metrics(honest=0.5, leaking=0.75, ceiling=0.6):
    """Scores by slice and participant; the latter are lower by 0.1."""
    entries = []
    gap = None if leaking is None else honest - leaking
    for run, point in (("resnet50", honest), ("slice_split", leaking), ("resnet50 - slice_split", gap)):
        for metric in METRICS:
            metric = f"{metric}_difference" if " - " in run else metric
            for level, lower in (("shared_slice", 0.0), ("shared_subject", 0.0 if " - " in run else 0.1)):
                value = None if point is None else point - lower
                interval = None if value is None else [value - 0.05, value + 0.1]
                entries.append(entry(run, metric, level, value, interval))
    if ceiling:
        entries += [entry("bayes_ceiling", metric, "subject", ceiling, [0.5, 0.7]) for metric in METRICS]
    return metrics_table({"entries": entries})


def entry(run, metric, level, point, interval):
    return {"run": run, "level": level, "metric": metric, "class": None, "n": 9, "point": point, "ci95": interval}


def bars(axis, hatched=False):
    return [bar for bar in axis.patches if bool(bar.get_hatch()) == hatched]


def heights(axis):
    return [bar.get_height() for bar in bars(axis)]


def test_bars_stand_side_by_side_by_slice_and_by_participant():
    for axis in plot_leak(metrics(), CLASSES, "AD against CN").axes:
        assert heights(axis) == pytest.approx([0.5, 0.75, 0.4, 0.65])
        places = [bar.get_x() + bar.get_width() / 2 for bar in bars(axis)]
        assert places == sorted(places) and [round(place) for place in places] == [0, 0, 1, 1]
        assert all(
            same_color(bar.get_edgecolor()[:3], colour)
            for bar, colour in zip(bars(axis), 2 * (ACCENT, WARNING), strict=True)
        )
        assert [label.get_text() for label in axis.get_xticklabels()] == [
            f"{words} (9)\nleak adds 0.25\n[0.15, 0.30]" for words in ("each slice", "each participant")
        ]


def test_what_the_leak_adds_is_hatched_on_top_of_the_honest_score_and_written():
    for axis in plot_leak(metrics(), CLASSES, "AD against CN").axes:
        assert [(bar.get_y(), bar.get_height()) for bar in bars(axis, hatched=True)] == [
            pytest.approx((0.5, 0.25)),
            pytest.approx((0.4, 0.25)),
        ]
        assert [text.get_text() for text in axis.texts].count("+0.25") == 2


def test_nothing_is_hatched_where_the_leak_adds_nothing():
    for axis in plot_leak(metrics(leaking=0.4), CLASSES, "AD against CN").axes:
        assert not bars(axis, hatched=True)
        assert [text.get_text() for text in axis.texts].count("-0.10") == 2


def test_intervals_are_those_of_the_metrics():
    axis = plot_leak(metrics(), CLASSES, "AD against CN").axes[0]
    drawn = [line.get_ydata() for line in axis.lines if line.get_linewidth() == 2]
    assert [list(ends) for ends in drawn] == [
        pytest.approx(ends) for ends in ([0.45, 0.6], [0.7, 0.85], [0.35, 0.5], [0.6, 0.75])
    ]


@pytest.mark.parametrize(("ceiling", "drawn"), [(0.6, [0.6]), (None, [])])
def test_the_best_possible_is_marked_for_phantoms_alone_and_chance_always(ceiling, drawn):
    figure = plot_leak(metrics(ceiling=ceiling), CLASSES, "AD against CN")
    for axis, chance in zip(figure.axes, (1 / 3, 0.5), strict=True):
        assert [line.get_ydata()[0] for line in axis.lines if same_color(line.get_color(), BEST)] == drawn
        assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == ":"] == [chance]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("best possible" in named) == bool(drawn)


def test_an_undefined_score_is_said_to_be():
    figure = plot_leak(metrics(leaking=None), CLASSES, "AD against CN")
    for axis in figure.axes:
        assert heights(axis) == pytest.approx([0.5, 0.4])
        assert [text.get_text() for text in axis.texts].count("undefined") == 2
