"""Damaged files of every kind are read or refused in words; benchmarks/fuzz.py goes on for as long as one likes."""

import importlib.util
import sys
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "benchmarks" / "fuzz.py")
fuzz = sys.modules.setdefault("fuzz", importlib.util.module_from_spec(SPEC))
SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_good_file_is_read_and_a_damaged_one_or_refused(name, tmp_path):
    target = fuzz.TARGETS[name]
    good = tmp_path / f"good{target.suffix}"
    good.write_bytes(target.good())
    assert target.read(good) is not None
    done, findings = fuzz.fuzz(name, tmp_path, seed=3, trials=40 if name == "dicom_zip" else 150)
    assert done > 30 and findings == {}


def test_a_reader_that_breaks_is_found(tmp_path, monkeypatch):
    broken = fuzz.Target(".bin", lambda: bytes(100), lambda path: 1 // (path.stat().st_size % 2))
    monkeypatch.setitem(fuzz.TARGETS, "broken", broken)
    _, findings = fuzz.fuzz("broken", tmp_path, seed=1, trials=200)
    assert list(findings) == ["ZeroDivisionError: integer division or modulo by zero"]
    assert all(path.is_file() for path in findings.values())
