"""What people bring: tables of every dialect are read as they were meant, and every fault is named by file and line."""

import codecs
import csv
import io
import re

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adlib.study import user_tables as tables
from adlib.study.records import StudyError
from adlib.study.user_tables import find_column, read_user_table, safe_path, table_columns

QUIET = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.lists(st.from_regex(r"[A-Za-z][A-Za-z0-9 _/.-]{0,8}[A-Za-z0-9]", fullmatch=True), min_size=2, max_size=5,
                 unique=True)  # fmt: skip
TEXT = st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], include_characters="\n\r\t,;|\"'")
LETTERS = st.characters(codec="latin-1", exclude_categories=["Cc"])
MARKS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
}


def write(path, names, rows, separator=",", end="\n", quoting=csv.QUOTE_MINIMAL, encoding="utf-8"):
    if any(re.search(r"[\r\n]", cell) for row in rows for cell in row):
        quoting = csv.QUOTE_ALL  # the csv module leaves line breaks other than its own without quotes
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([names, *rows])
    path.write_bytes(MARKS.get(encoding, b"") + stream.getvalue().encode(encoding))


def meant(cell):
    cell = cell.strip()
    return None if cell.lower() in tables.MISSING else cell


@st.composite
def made_tables(draw, letters=TEXT):
    names = draw(NAMES)
    cells = st.text(letters, max_size=12)
    rows = draw(st.lists(st.lists(cells, min_size=len(names), max_size=len(names)), min_size=1, max_size=6))
    return names, [["x", *row[1:]] for row in rows]


@QUIET
@given(
    table=made_tables(),
    separator=st.sampled_from(tables.SEPARATORS),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    encoding=st.sampled_from(sorted(MARKS)),
)
def test_any_dialect_is_read(tmp_path, table, separator, end, quoting, encoding):
    names, rows = table
    path = tmp_path / "t.csv"
    write(path, names, rows, separator, end, quoting, encoding)
    read = read_user_table(path)
    assert list(read.columns) == names == table_columns(path)
    assert read.to_numpy().tolist() == [[meant(cell) for cell in row] for row in rows]
    assert all(pd.api.types.is_object_dtype(kind) for kind in read.dtypes)


@QUIET
@given(table=made_tables(LETTERS), separator=st.sampled_from(tables.SEPARATORS))
def test_latin_1_is_read(tmp_path, table, separator):
    names, rows = table
    path = tmp_path / "t.csv"
    write(path, names, [*rows, ["é"] * len(names)], separator, encoding="latin-1")
    assert read_user_table(path).to_numpy().tolist()[-1] == ["é"] * len(names)


@QUIET
@given(content=st.binary(max_size=300) | st.text("ab,;\t\"'\n\r\0\ufeffé1", max_size=60).map(str.encode))
def test_arbitrary_bytes_raise_study_errors_naming_the_file(tmp_path, content):
    path = tmp_path / "t.tsv"
    path.write_bytes(content)
    try:
        read_user_table(path, required=("a",))
    except StudyError as error:
        assert str(path) in str(error)


def test_index_is_the_first_line_of_a_row(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\r\nid,note\r\n\r\na,"two\r\nlines"\r\n,\r\nb,x,\r\n')
    table = read_user_table(path)
    assert table.index.name == "line"
    assert table["id"].to_dict() == {4: "a", 7: "b"}


def test_missing_values_and_unnamed_columns(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("participant_id\tdiagnosis\t\nNA\tn/a\t1\nsub-1\tNaN\t\nsub-2\t.\t\nsub-3\tNA-1\t\n")
    table = read_user_table(path)
    assert table["participant_id"].tolist() == [None, "sub-1", "sub-2", "sub-3"]
    assert table["diagnosis"].tolist() == [None, None, None, "NA-1"]
    assert table["column 3"].tolist() == ["1", None, None, None]


def test_leading_zeros_stay_text(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id\n0001\n0002, second\n")
    assert read_user_table(path)["participant_id"].tolist() == ["0001", "0002, second"]


def test_required_columns_are_renamed(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Participant ID;Age\nsub-1;70\n")
    assert list(read_user_table(path, required=("participant_id",)).columns) == ["participant_id", "Age"]
    assert find_column(["M/F", "AGE"], "age", path) == "AGE"


FAULTS = [
    (b"", "is empty"),
    (b"\n\n ,\n", "is empty"),
    (b"a,b\n", "no rows"),
    (b"a,b\n1,2\n1;2\n", r"line 3: 1 cells where the header has 2 columns; is the separator"),
    (b"a,b\n1,2,3\n", r"line 2: 3 cells where the header has 2"),
    (b"a,b\n1,2\n3\n", r"line 3: 1 cells"),
    (b'a,b\n1,2\n3,"4\n5,6\n', r"line 3: a quote is opened and never closed"),
    (b'a,b\n1,2\n"3"x,4\n', r"line 3: .*expected after"),
    (b"a,b\n1,2\n3,\x004\n", r"line 3: the character '\\x00'"),
    (b"PK\x03\x04\n", r"line 1: the character"),
    ("a,b\n1,2\n".encode("utf-16-le"), r"line 1: .*UTF-16 without"),
    (codecs.BOM_UTF16_LE + b"a", "not text in UTF-16"),
    (b"a,b\n1,\x81\n", "not text in UTF-8"),
    (b"Age,b,Age\n1,2,3\n", r"line 1: columns 1 and 3 are both called 'Age'"),
    (b"a,b\n1,2\n3," + b"x" * 200_000 + b"\n", r"line 3: a quote is opened and never closed"),
]


@pytest.mark.parametrize(("content", "words"), FAULTS, ids=[words[:24] for _, words in FAULTS])
def test_fault_names_file_line_and_column(tmp_path, content, words):
    path = tmp_path / "brought.csv"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=words) as caught:
        read_user_table(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_missing_or_too_large_files_are_refused(tmp_path, monkeypatch):
    for path in (tmp_path / "none.csv", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(StudyError, match=re.escape(str(path))):
            read_user_table(path)
    monkeypatch.setattr(tables, "MAX_BYTES", 10)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(StudyError, match="has more than"):
        read_user_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("diagnoses,age", r"lacks column 'diagnosis'; did you mean \['diagnoses'\]"),
        ("x,y", r"lacks column 'diagnosis'; it has \['x', 'y'\]"),
        ("Diagnosis,DIAGNOSIS", r"could be any of \['Diagnosis', 'DIAGNOSIS'\]"),
    ],
)
def test_missing_column_suggests_similar_ones(tmp_path, header, words):
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n1,2\n")
    with pytest.raises(StudyError, match=words):
        read_user_table(path, required=("diagnosis",))


def test_paths_under_the_root_are_resolved(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for text in ("a/b.nii", "a\\b.nii", "./a/b.nii", str(root.resolve() / "a" / "b.nii")):
        assert safe_path(root, text, "t.csv", 2) == root.resolve() / "a" / "b.nii"


@pytest.mark.parametrize(
    "text",
    ["../x", "a/../../x", "a\\..\\..\\x", "..", "/etc/passwd", "C:\\x.nii", "c:x", "//host/share/x", "a\0b", "out/x"],
)
def test_path_outside_root_is_refused(tmp_path, text):
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(StudyError, match=r"t\.csv, line 7: the path"):
        safe_path(root, text, "t.csv", 7)
