"""Tables as long as those of the largest cohorts; benchmarks/rows.py measures them."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("rows", BENCHMARKS / "rows.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rows", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.studies
def test_a_hundred_thousand_scans_are_audited_split_and_evaluated(rows, tmp_path):
    assert min(rows.handled(100_000, 100, tmp_path)) > 0


def test_the_checks_of_a_thousand_scans_can_fail(rows, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(rows, "planted", lambda listed: listed)
        with pytest.raises(AssertionError, match="planted were"):
            rows.handled(1000, 100, tmp_path / "unplanted")
    monkeypatch.setattr(rows, "balanced_accuracy_score", lambda *_: 0.5)
    with pytest.raises(AssertionError, match=r"scikit-learn says 0\.5"):
        rows.handled(1000, 100, tmp_path / "other")
