"""What a report may show of people."""

import re
from pathlib import Path

import nbformat
import pytest

from adlib.report.privacy import COHORT, NOT_STATED, POINTS, SCANS, SHOWS, Ids, may_show, shows
from adlib.study.records import StudyError

ROOT = Path(__file__).parents[2]


def test_every_figure_of_the_notebooks_has_a_rule():
    drawn = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            drawn |= set(re.findall(r'figures\.save\(.*, f?"(0\d_\w+)', cell.source))
    listed = set().union(*SHOWS.values())
    assert drawn - listed == {"05_example_", "05_nearest_"} and listed <= drawn


@pytest.mark.parametrize(
    ("name", "statement", "expected"),
    [
        ("04_confusion", "", COHORT),
        ("05_example_7", "", NOT_STATED),
        ("09_new", "", NOT_STATED),
        ("09_new", "anything", NOT_STATED),
        ("09_new", COHORT, COHORT),
        ("04_confusion", POINTS, POINTS),
        ("04_failures", COHORT, SCANS),
    ],
)
def test_only_figures_stated_as_cohort_are_shown_of_people(name, statement, expected):
    assert shows(name, statement) == expected
    assert may_show(name, simulated=False, statement=statement) == (expected == COHORT)
    assert may_show(name, simulated=True, statement=statement)


def test_text_with_an_id_is_redacted_or_refused():
    ids = Ids(("sub-0001_ses-1", "sub-0001"))
    assert ids.redact("sub-0001_ses-1 and sub-0001 but sub-00011") == "one scan and one scan but sub-00011"
    with pytest.raises(StudyError, match="contains a participant") as caught:
        ids.check("see sub-0001.", "report/index.html")
    assert "sub-0001" not in str(caught.value)
    ids.check("see sub-00011", "report/index.html")
