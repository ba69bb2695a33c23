"""DICOM of two people or cut short is refused by the names of its files; age, sex and times are read from headers."""

import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
from bad_uploads import packed
from dicom_writer import write_series

from adlib.sources.dicom import list_series
from adlib.sources.reading import list_source
from adlib.sources.scanfile import open_scan
from adlib.study.exec_params import HERE
from adlib.study.records import StudyError
from adlib.study.source_params import DicomSource

AFFINE = np.diag([3.0, 3.2, 3.4, 1.0])
VOLUME = np.random.default_rng(0).integers(0, 900, (44, 46, 42)).astype(np.int16)


def series(folder, description="T1 MPRAGE", number=1, **tags):
    write_series(VOLUME, AFFINE, folder, description, number=number)
    return changed(sorted(folder.iterdir()), **tags)


def changed(files, **tags):
    for file in files if tags else ():
        read = pydicom.dcmread(file)
        for name, value in tags.items():
            setattr(read, name, value)
        read.save_as(file)
    return files


def listed(root, people="participant_id,diagnosis,age\nP1,CN,\nP2,AD,80\n"):
    (root / "people.csv").write_text(people)
    source = DicomSource(kind="dicom", root=root, table=root / "people.csv", participant=r"^(?P<participant>P\d)")
    return list_source(source, root.parent / "made", pool=HERE)


@pytest.mark.parametrize("tags", [{"PatientID": "other"}, {"PatientName": "Other^Person"}])
@pytest.mark.parametrize("split", ["one series", "two folders"])
def test_two_people_are_refused(split, tags, tmp_path):
    if split == "one series":
        changed(series(tmp_path / "cd" / "s")[20:], **tags)
    else:
        series(tmp_path / "cd" / "a")
        series(tmp_path / "cd" / "b", **tags)
    with pytest.raises(StudyError, match=r"cd holds images of 2 people.*-0001\.dcm.*give a folder for each person"):
        open_scan(tmp_path / "cd")


def test_one_person_spelt_in_two_ways_is_one(tmp_path):
    series(tmp_path / "cd" / "a", PatientName="SIMULATED^HEAD ^")
    series(tmp_path / "cd" / "b", "T2", number=2)
    series(tmp_path / "cd" / "c", "T2 again", number=3, PatientID="", PatientName="")
    assert open_scan(tmp_path / "cd").image.shape == VOLUME.shape


@pytest.mark.parametrize("length", [None, 600, 200, 10, 0])
@pytest.mark.parametrize("zipped", [False, True])
def test_files_cut_short_cost_their_series(length, zipped, tmp_path):
    folder = tmp_path / "P1"
    for file in series(folder / "one", "T1 MPRAGE")[5:8]:
        content = file.read_bytes()
        file.write_bytes(content[:-1000] if length is None else content[:length])
    series(folder / "two", "T1 MPRAGE repeat", number=2)
    if zipped:
        files = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.dcm"))}
        folder = tmp_path / "cd.zip"
        folder.write_bytes(packed(files))
    whole, cut = sorted(list_series(folder), key=lambda one: len(one.fault))
    assert "repeat" in whole.title and whole.image.shape == VOLUME.shape and not whole.fault
    names = "one/01-0006.dcm, one/01-0007.dcm, one/01-0008.dcm"
    assert cut.fault == f"3 of its files are cut short or damaged ({names}); copy them again"
    assert "series 1" in cut.title


def test_a_lone_series_cut_short_is_named(tmp_path):
    file = series(tmp_path / "data" / "P1")[3]
    file.write_bytes(file.read_bytes()[:-2])
    series(tmp_path / "data" / "P2")
    rows = listed(tmp_path / "data").set_index("participant_id")
    assert "1 of its files are cut short or damaged (01-0004.dcm)" in rows.loc["sub-P1", "excluded"]
    assert rows.loc["sub-P2", "excluded"] is None


def test_files_of_a_session_are_taken_by_their_content(tmp_path):
    folder = tmp_path / "data" / "P1"
    files = series(folder / "s")
    for file, name in zip(files, ("1.img", "scan.nii (2).gz", "3.mnc", "IM4", "5.nii.gz"), strict=False):
        file.rename(file.with_name(name))
    others = ("6.img", "scan.nii (7).gz", "8.mnc", "9.nii.gz", "scan.nii.gz.part", "._10.dcm")
    for name in others:
        (folder / "s" / name).write_bytes(b"no DICOM")
    for number in range(3):
        (folder / f"loop{number}").symlink_to(folder)
    scan, *left = listed(tmp_path / "data").to_dict("records")
    assert scan["excluded"] is None and scan["shape"] == "44x46x42"
    assert sorted(row["path"] for row in left) == sorted(str(folder / "s" / name) for name in others)
    assert all(row["excluded"] for row in left)


def test_age_and_sex_are_those_of_the_table_else_of_the_header(tmp_path):
    series(tmp_path / "data" / "P1", PatientAge="071Y", PatientSex="F")
    series(tmp_path / "data" / "P2", PatientAge="003Y", PatientSex="O")
    rows = listed(tmp_path / "data")
    assert rows["age"].tolist() == [71, 80] and rows["sex"].tolist() == ["F", None]


@pytest.mark.parametrize("where", ["dicom", "description", "sidecar"])
def test_an_upload_is_refused_by_its_timing(where, tmp_path):
    if where == "dicom":
        path = tmp_path / "MPRAGE"
        series(path, EchoTime=90.0)
    else:
        path, image = tmp_path / "MPRAGE.nii.gz", nib.Nifti1Image(VOLUME, AFFINE)
        image.header["descrip"] = b"TE=90;Time=101500.000" if where == "description" else b"TE=3.1;Time=1"
        nib.save(image, path)
        if where == "sidecar":
            (tmp_path / "MPRAGE.json").write_text(json.dumps({"EchoTime": 0.09}))
    with pytest.raises(StudyError, match="echo time over 25 ms"):
        open_scan(path)
