import pandas as pd
import pytest

from adlib.study.records import (
    SPLITS,
    StudyError,
    atomic_path,
    check_table,
    digest,
    read_json,
    read_table,
    table_schemas,
    write_json,
    write_table,
)


def rows(**changes):
    return pd.DataFrame([{"participant_id": "sub-1", "fold": 0, "split": "train", "diagnosis": "CN", **changes}])


def test_schemas_of_tables_have_their_columns_and_types():
    definition = table_schemas()["$defs"]["splits.tsv"]
    assert definition["required"] == list(SPLITS.required)
    assert {name: kind["type"] for name, kind in definition["properties"].items()} == {
        "participant_id": "string", "fold": "integer", "split": "string", "diagnosis": "string",
        "member": ["string", "null"],
    }  # fmt: skip
    scan = table_schemas()["$defs"]["manifest.tsv"]["properties"]
    assert scan["age"]["type"] == ["number", "null"] and scan["scan_id"]["type"] == "string"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", ["t.tsv", "t.parquet"])
def test_tables_come_back_as_they_were_written(tmp_path, name):
    written = write_table(rows(participant_id="0001", note="x"), tmp_path / name, SPLITS)
    read = read_table(tmp_path / name, SPLITS)
    assert read.to_dict("records") == written.to_dict("records")
    assert read["participant_id"].tolist() == ["0001"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (rows().drop(columns="split"), "lacks"),
        (rows(split=None), "empty in 1 rows"),
        (rows(fold="first"), "where a number is expected"),
        (pd.concat([rows(), rows()]), "repeated rows"),
    ],
)
def test_a_table_that_breaks_its_schema_is_refused(table, words):
    with pytest.raises(StudyError, match=words):
        check_table(table, SPLITS, "here")


def test_missing_and_broken_files_say_what_to_do(tmp_path):
    with pytest.raises(StudyError, match="does not exist"):
        read_table(tmp_path / "none.tsv", SPLITS)
    with pytest.raises(StudyError, match="does not exist"):
        read_json(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(StudyError, match="run its step again"):
        read_json(tmp_path / "half.json")


def test_digest_ignores_key_order_and_json_refuses_nan(tmp_path):
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"a": float("nan")}, tmp_path / "n.json")
    assert not (tmp_path / "n.json").exists()
