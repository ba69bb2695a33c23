"""The table of people and visits that a user brings."""

import pytest

from adlib.sources.participant_table import ParticipantTable, bids_label, session_label
from adlib.study.records import StudyError


def table(tmp_path, text, **settings):
    (tmp_path / "people.csv").write_text(text)
    return ParticipantTable(tmp_path / "people.csv", **settings)


def test_session_row_goes_before_participant_row(tmp_path):
    found = table(tmp_path, "participant_id,session_id,age\n001,1,70\n001,2,71\n002,,80\n")
    assert found.about({"participant_id": "sub-001", "session_id": "ses-02"}) == {"age": 71.0}
    assert found.about({"participant_id": "sub-002", "session_id": "ses-07"}) == {"age": 80.0}
    assert found.about({"participant_id": "sub-003", "session_id": "ses-01"}) == {}


def test_columns_are_renamed_and_labels_optional(tmp_path):
    text = "who;M/F;Group;FamilyID\nA_1;F;AD;7\n"
    names, facts = {"who": "participant_id", "M/F": "sex", "FamilyID": "family"}, {"sex": "F", "family": "7"}
    about = {"participant_id": "sub-A1", "session_id": "ses-01"}
    assert table(tmp_path, text, columns=names).about(about) == facts
    labelled = table(tmp_path, text, columns=names, label_column="Group")
    expected = {**facts, "diagnosis": "AD", "label_source": "column Group of people.csv"}
    assert labelled.about(about) == expected


def test_picture_is_found_by_its_path(tmp_path):
    found = table(tmp_path, 'path,participant_id\n"train/AD/1 (2).jpg",7\ntrain\\AD\\3.jpg,8\n', root=tmp_path)
    expected = {"participant_id": "sub-7", "participant_source": "people.csv"}
    assert found.about({"path": "train/AD/1 (2).jpg"}) == expected
    assert found.about({"path": "train/AD/3.jpg"})["participant_id"] == "sub-8"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,age\nx,1\n", "lacks column 'path' or 'scan_id' or 'participant_id'; it has"),
        ("participant_id,age\n1,70\n1,71\n", "contradictory rows for one participant_id: lines 2, 3"),
        ("path,participant_id\n../../etc/passwd,1\n", "line 2: the path '../../etc/passwd'"),
        ("path,participant_id\n/etc/passwd,1\n", "lies outside"),
        ("path,participant_id\na.jpg,1\n,2\n", "line 3, column 'path' is empty"),
        ("participant_id\n---\n", "no letter or digit"),
        ("participant_id\nA-1\nA1\n", "'A-1' and 'A1' would both become sub-A1"),
    ],
)
def test_faulty_tables_are_refused(tmp_path, text, words):
    with pytest.raises(StudyError, match=words):
        table(tmp_path, text, root=tmp_path)


def test_missing_label_column_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"lacks column 'dx'; it has \['participant_id', 'age'\]"):
        table(tmp_path, "participant_id,age\n1,70\n", label_column="dx")


def test_names_become_bids_labels():
    assert bids_label("sub", "OAS2_0001") == bids_label("sub", "sub-OAS20001") == "sub-OAS20001"
    assert [session_label(text) for text in ("1", "ses-01", "2014-03-02", "M000")] == [
        "ses-01",
        "ses-01",
        "ses-20140302",
        "ses-M000",
    ]
