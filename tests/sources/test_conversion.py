"""A converted image is taken again only while source, code, image and record are what they were."""

import errno
import os
import re
import shutil
import zipfile
from pathlib import Path
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from dicom_writer import write_series

from adlib.sources import dicom, dicom_tree, oasis
from adlib.sources.inventory import Inventory
from adlib.study import conversion
from adlib.study.exec_params import HERE
from adlib.study.records import StudyError, file_digest
from adlib.study.source_params import OasisSlicesSource

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
VOLUME = np.random.default_rng(3).integers(1, 900, (44, 42, 41)).astype(np.int16)
SYSTEM = [OSError(errno.EIO, "Input/output error"), OSError(errno.ENOSPC, "No space left on device"), MemoryError()]


@pytest.fixture
def session(tmp_path):
    """One session of DICOM, and where it is converted to."""
    write_series(VOLUME, AFFINE, tmp_path / "dicom", "T1 MPRAGE")
    return {"path": str(tmp_path / "dicom"), "participant_id": "sub-1", "session_id": "ses-1"}


def converter(monkeypatch, path, line):
    """A converter that does this line of shell and nothing else."""
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o700)
    monkeypatch.setattr(dicom.dcm2niix, "bin", str(path))


def pixels(row):
    return np.sort(np.asarray(nib.load(row["path"]).dataobj), axis=None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("kill -9 $$", "signal 9"),
        (f'"{dicom.dcm2niix.bin}" "$@"; kill -9 $$', "signal 9"),
        ("exit 5", "code 5"),
        ("exit 6", "code 6"),
        ("exit 7", "code 7"),
    ],
)
def test_stopped_converter_stops_the_run(session, tmp_path, monkeypatch, line, words):
    with monkeypatch.context() as patched:
        converter(patched, tmp_path / "converter", line)
        with pytest.raises(StudyError, match=words):
            dicom_tree.convert_session(session, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (row,) = dicom_tree.convert_session(session, tmp_path / "out")
    assert "excluded" not in row and np.array_equal(pixels(row), np.sort(VOLUME, axis=None))


@pytest.mark.parametrize(
    ("line", "words"),
    [("kill -SEGV $$", "dcm2niix crashed .Segmentation fault.*export"), ("exec sleep 60", "took over")],
)
def test_crash_or_hang_excludes_the_session_until_next_run(session, tmp_path, monkeypatch, line, words):
    with monkeypatch.context() as patched:
        converter(patched, tmp_path / "converter", line)
        patched.setattr(dicom, "TIMEOUT_S", 0.5 if "sleep" in line else 30)
        (row,) = dicom_tree.convert_session(session, tmp_path / "out")
    assert re.search(words, row["excluded"]) and row["participant_id"] == "sub-1"
    (row,) = dicom_tree.convert_session(session, tmp_path / "out")
    assert "excluded" not in row


@pytest.mark.parametrize(("code", "lists"), [(2, False), (1, True), (4, True), (8, True)])
def test_other_exit_codes_concern_the_files(session, tmp_path, monkeypatch, code, lists):
    whole = dicom.dcm2niix.bin
    converter(monkeypatch, tmp_path / "converter", f'"{whole}" "$@"; exit {code}' if lists else f"exit {code}")
    (row,) = dicom_tree.convert_session(session, tmp_path / "out")
    assert ("excluded" in row) != lists
    assert lists or "holds no DICOM image series" in row["excluded"]


@pytest.mark.parametrize("error", SYSTEM, ids=["EIO", "ENOSPC", "memory"])
def test_system_error_while_unpacking_is_not_stored(session, tmp_path, monkeypatch, error):
    session["path"] = shutil.make_archive(str(tmp_path / "visit"), "zip", tmp_path / "dicom")
    with monkeypatch.context() as patched:
        patched.setattr(dicom.shutil, "copyfileobj", Mock(side_effect=error))
        with pytest.raises((StudyError, MemoryError)):
            dicom_tree.convert_session(session, tmp_path / "out")
    (row,) = dicom_tree.convert_session(session, tmp_path / "out")
    assert "excluded" not in row


def test_damaged_zip_stays_excluded(session, tmp_path, monkeypatch):
    session["path"] = str(tmp_path / "visit.zip")
    (tmp_path / "visit.zip").write_bytes(b"no zip")
    (row,) = dicom_tree.convert_session(session, tmp_path / "out")
    assert "not a readable zip" in row["excluded"]
    monkeypatch.setattr(dicom_tree, "list_series", Mock(side_effect=AssertionError("converted again")))
    assert dicom_tree.convert_session(session, tmp_path / "out") == [row]


def test_changed_code_or_converter_converts_again(session, tmp_path, monkeypatch):
    calls = []
    read = dicom_tree.list_series
    monkeypatch.setattr(dicom_tree, "list_series", lambda where: calls.append(where) or read(where))
    monkeypatch.setattr(conversion, "code_digest", lambda module: f"{module} as it is")
    monkeypatch.setattr(conversion, "package_versions", lambda names: dict.fromkeys(names, "1"))

    def conversions():
        conversion.code_of.cache_clear()
        dicom_tree.convert_session(session, tmp_path / "out")
        return len(calls)

    assert [conversions(), conversions()] == [1, 1]
    monkeypatch.setattr(conversion, "code_digest", lambda module: f"{module} changed")
    assert [conversions(), conversions()] == [2, 2]
    monkeypatch.setattr(conversion, "package_versions", lambda names: {name: "2" for name in names if "dcm" in name})
    assert [conversions(), conversions()] == [3, 3]
    conversion.code_of.cache_clear()


@pytest.mark.parametrize("damage", ["cut", "empty", "list", "bytes", "value", "image", "no image"])
def test_damaged_record_or_image_is_converted_again(session, tmp_path, damage):
    (row,) = dicom_tree.convert_session(session, tmp_path / "out")
    image, record = (tmp_path / "out" / f"sub-1_ses-1_T1w{end}" for end in (".nii.gz", ".json"))
    before, text = file_digest(image), record.read_text()
    if damage == "no image":
        image.unlink()
    elif damage == "image":
        image.write_bytes(image.read_bytes()[:-100])
    else:
        changed = {"cut": text[: len(text) // 2], "empty": "", "list": "[]", "value": text.replace("44x", "45x")}
        record.write_bytes(b"\xff\xfe{" if damage == "bytes" else changed[damage].encode())
        assert record.read_bytes() != text.encode()
    assert dicom_tree.convert_session(session, tmp_path / "out") == [row]
    assert file_digest(image) == before and record.read_text() == text


def oasis_row(folder, values=VOLUME):
    """One Analyze image as OASIS has it."""
    folder.mkdir(exist_ok=True)
    nib.save(nib.Spm99AnalyzeImage(values, AFFINE), folder / "image.img")
    (folder / "image.mat").unlink(missing_ok=True)
    return {"path": str(folder / "image.hdr"), "scan_id": "sub-1_ses-1_T1w"}


def test_replaced_oasis_image_is_converted_again(tmp_path):
    row = oasis_row(tmp_path / "in")
    times = (tmp_path / "in" / "image.img").stat()
    first = oasis._converted(row, tmp_path / "out")
    assert np.array_equal(pixels(first), np.sort(VOLUME, axis=None))
    stamp = Path(first["path"]).stat().st_mtime_ns
    assert oasis._converted(row, tmp_path / "out") == first
    assert Path(first["path"]).stat().st_mtime_ns == stamp
    oasis_row(tmp_path / "in", VOLUME + 5)
    os.utime(tmp_path / "in" / "image.img", ns=(times.st_atime_ns, times.st_mtime_ns))
    second = oasis._converted(row, tmp_path / "out")
    assert np.array_equal(pixels(second), np.sort(VOLUME, axis=None) + 5)


def test_unreadable_replacement_removes_the_old_image(tmp_path):
    row = oasis_row(tmp_path / "in")
    oasis._converted(row, tmp_path / "out")
    (tmp_path / "in" / "image.img").write_bytes(b"short")
    assert "cannot be read" in oasis._converted(row, tmp_path / "out")["excluded"]
    (tmp_path / "in" / "image.img").unlink()
    assert "half of a pair" in oasis._converted(row, tmp_path / "out")["excluded"]
    oasis_row(tmp_path / "in", np.stack([VOLUME, VOLUME], axis=3))
    assert "not one volume" in oasis._converted(row, tmp_path / "out")["excluded"]
    assert not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.mark.parametrize("part", ["load", "save"])
@pytest.mark.parametrize("error", SYSTEM, ids=["EIO", "ENOSPC", "memory"])
def test_system_error_excludes_no_oasis_image(tmp_path, monkeypatch, error, part):
    row = oasis_row(tmp_path / "in")
    with monkeypatch.context() as patched:
        patched.setattr(oasis.nib, part, Mock(side_effect=error))
        with pytest.raises(StudyError, match=r"image\.img could not be read or converted"):
            oasis._converted(row, tmp_path / "out")
    assert "excluded" not in oasis._converted(row, tmp_path / "out")


def test_zip_of_slices_is_unpacked_once_and_again_if_changed(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    header = "Subject ID,MRI ID,Group,Visit,MR Delay,M/F,Hand,Age,EDUC,SES,MMSE,CDR,eTIV,nWBV,ASF"
    line = "OAS2_0001,OAS2_0001_MR1,Nondemented,1,0,M,R,87,14,2,27,0,1987,0.696,0.883"
    (root / "oasis_longitudinal.csv").write_text(f"{header}\n{line}\n")

    def pack(value):
        with zipfile.ZipFile(root / "slices.zip", "w") as archive:
            for plane in ("axl", "cor", "sag"):
                nib.save(nib.Nifti1Image(np.full((8, 9), value, np.uint8), np.eye(4)), tmp_path / "plane.nii.gz")
                archive.write(tmp_path / "plane.nii.gz", f"{plane}/OAS2_0001_MR1_{plane}.nii.gz")

    def listed():
        source = OasisSlicesSource(kind="oasis_slices", root=root)
        paths = oasis.list_slices(source, Inventory(root), tmp_path / "out", HERE)[0]["path"].split("|")
        return paths, [int(np.asarray(nib.load(path).dataobj).mean()) for path in paths]

    pack(1)
    paths, values = listed()
    stamp = Path(paths[0]).stat().st_mtime_ns
    assert values == listed()[1] == [1, 1, 1] and Path(paths[0]).stat().st_mtime_ns == stamp
    Path(paths[2]).unlink()
    assert listed()[1] == [1, 1, 1]
    pack(2)
    assert listed()[1] == [2, 2, 2]
    (root / "slices.zip").write_bytes(b"no zip")
    with pytest.raises(StudyError, match=r"slices.zip is not a readable zip of slices \(.*fetch it again"):
        listed()
