"""Cells as people write them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adlib.study.cells import read_cells, sex, tesla, years


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *[(cell, 71) for cell in ("71", "71.0", " 71 ", "071Y", "P71Y", "P071Y", "71 years", "71y", "71 yo", "71 y.")],
        *[("71,5", 71.5), ("852 months", 71), ("852M", 71), ("0", 0), ("3", 3)],
    ],
)
def test_clear_ages(cell, value):
    assert years(cell) == (value, "")


@pytest.mark.parametrize(
    "cell", ["89+", "> 89", ">89", ">=89", "≥89", "over 89", "89 and over", "89 or older", "89+ years", "89plus"]
)
def test_ages_cut_for_privacy(cell):
    assert years(cell) == (89, "is read as 89")


@pytest.mark.parametrize(
    "cell", ["35-40", "35–40", "adult", "999", "-4", "121", "70/71", "7o", "1948-05-01", "P71Y6M2D"]
)
def test_unclear_ages(cell):
    value, note = years(cell)
    assert value is None and "counts as unknown" in note


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("3", 3),
        ("3T", 3),
        ("3.0 T", 3),
        ("1.5 Tesla MRI", 1.5),
        ("2,89", 2.89),
        ("15000", 1.5),
        ("30000 G", 3),
        ("7T", 7),
    ],
)
def test_field_strengths(cell, value):
    assert tesla(cell).value == pytest.approx(value)


@pytest.mark.parametrize("cell", ["high", "", "0", "300", "-3", "T3x"])
def test_unclear_field_strengths(cell):
    assert tesla(cell).value is None and tesla(cell).note


def test_sex_in_words_and_codes():
    assert [sex(cell).value for cell in ("m", "Male", "F", "female", "weiblich", "w", "o")] == [
        "M", "M", "F", "F", "F", "F", None,
    ]  # fmt: skip
    assert sex("2", ["1", "2"]) == ("F", "is read as F, by ISO/IEC 5218")
    assert sex("1", ["0", "1"]).value is None and "write M or F" in sex("1", ["0", "1"]).note
    assert sex("0", ["0", "1"]).value is None and sex("0", ["0", "1"]).note


def test_notes_name_file_line_and_column():
    table = pd.DataFrame({"age": ["70", "89+", None], "cdr": ["0,5", "x", "1"]}, index=[2, 3, 5], dtype=object)
    read = read_cells(table, Path("there/people.tsv"), {"age": "Age at scan"}, "cdr")
    assert read["age"].tolist()[:2] == [70.0, 89.0] and np.isnan(read["age"].iloc[2])
    assert read["notes"].fillna("").tolist() == [
        "",
        "people.tsv, line 3, column 'Age at scan': '89+' is read as 89; "
        "people.tsv, line 3, column 'cdr': 'x' is no number such as 0.696 or 0,696; it counts as unknown",
        "",
    ]


def numbers(*cells):
    """Values and notes of a column of numbers."""
    table = pd.DataFrame({"a": cells}, index=range(2, 2 + len(cells)), dtype=object)
    read = read_cells(table, Path("t.csv"), {}, "a")
    return read["a"], read.get("notes", pd.Series([""] * len(cells)))


def test_numbers_with_decimal_commas_and_points():
    column, notes = numbers("0,696", ".5", "-4", "1e3", None)
    assert column.dtype == "float64" and not notes.any()
    assert np.array_equal(column, [0.696, 0.5, -4, 1000, np.nan], equal_nan=True)


@pytest.mark.parametrize("cell", ["1.234,5", "12 mm", "inf", "0x10", "--1", ",", "1e", "1_000", "٣"])
def test_invalid_numbers_are_unknown_with_their_place(cell):
    column, notes = numbers("1", cell)
    assert column.tolist()[0] == 1 and np.isnan(column.tolist()[1])
    assert notes.iloc[1].startswith(f"t.csv, line 3, column 'a': {cell!r} is no number")
