"""The tidy table of metrics."""

import pytest

from adlib.study.metrics import format_score, get_score, metrics_table, read_metrics, run_of, subgroup_table
from adlib.study.records import StudyError, write_json

ENTRY = {"run": "resnet50", "level": "subject", "metric": "accuracy", "class": None, "n": 9}
CONTENT = {
    "entries": [
        ENTRY | {"point": 0.614, "ci95": [0.5, 0.7]},
        ENTRY | {"metric": "recall", "class": "AD", "point": None, "ci95": None},
        ENTRY | {"metric": "mcnemar_p", "point": 0.0213, "ci95": None},
        ENTRY | {"metric": "permutation_p", "point": 0.00001, "ci95": None},
    ],
    "subgroups": [ENTRY | {"group": "sex F", "metric": "balanced_accuracy", "point": 0.5, "ci95": [0.4, 0.6]}],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (("accuracy",), "0.61 [0.50, 0.70]"),
        (("recall", "AD"), "undefined"),
        (("mcnemar_p",), "0.021"),
        (("permutation_p",), "< 0.0001"),
        (("recall", "CN"), "not measured"),
    ],
)
def test_score_is_found_and_formatted(name, text):
    assert format_score(get_score(metrics_table(CONTENT), "resnet50", *name)) == text


def test_table_is_read_by_a_query(tmp_path):
    write_json(CONTENT, tmp_path / "metrics.json")
    metrics = read_metrics(tmp_path)
    assert list(metrics) == ["run", "level", "group", "metric", "class", "point", "low", "high", "n"]
    row = metrics.query("group == 'sex F' and metric == 'balanced_accuracy'").iloc[0]
    assert (row.point, row.low, row.high, row.n) == (0.5, 0.4, 0.6, 9)
    assert subgroup_table(metrics).loc["sex F", ["participants", "balanced_accuracy"]].tolist() == [
        9, "0.50 [0.40, 0.60]",
    ]  # fmt: skip


def test_file_without_scores_is_refused(tmp_path):
    write_json({"study": "x"}, tmp_path / "metrics.json")
    with pytest.raises(StudyError, match="holds no scores"):
        read_metrics(tmp_path)


def test_controls_are_labelled_and_unknown_runs_keep_their_name():
    assert run_of("shuffled_labels").label == "Permuted labels (control)"
    assert (run_of("my_net").label, run_of("my_net").group) == ("My net", "other")
