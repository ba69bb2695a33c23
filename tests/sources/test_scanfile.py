"""Reading scans: the values and the geometry survive, and every broken input is refused in words."""

import re
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bad_uploads import archives, arrays, damaged, packed
from dicom_writer import PATIENT, write_series

from adlib.sources import dicom
from adlib.sources.scanfile import open_scan, scan_name
from adlib.study.records import StudyError

SHAPE = (44, 48, 42)
AFFINE = np.array([[0, 0, 3.0, -60], [-2.0, 0, 0, 50], [0, -2.5, 0, 40], [0, 0, 0, 1]])


@pytest.fixture
def volume():
    return np.random.default_rng(7).integers(0, 900, SHAPE).astype(np.int16)


def at_same_points(image: nib.Nifti1Image, data: np.ndarray, affine: np.ndarray) -> bool:
    """Whether each voxel of `data` lies, in scanner millimetres, where the image holds the same value."""
    voxels = np.indices(data.shape).reshape(3, -1)
    world = affine[:3, :3] @ voxels + affine[:3, 3:]
    found = np.linalg.inv(image.affine)[:3] @ np.vstack([world, np.ones(world.shape[1])])
    assert np.abs(found - found.round()).max() < 1e-2
    return np.array_equal(np.asarray(image.dataobj)[tuple(found.round().astype(int))], data.ravel())


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.NII.GZ", "scan.mgz", "scan.mgh"])
def test_values_and_affine_survive(tmp_path, volume, name):
    kind = nib.MGHImage if "mg" in name else nib.Nifti1Image
    written = tmp_path / name.lower()
    kind(volume, AFFINE).to_filename(written)
    written.rename(tmp_path / name)
    scan = open_scan(tmp_path / name)
    assert scan.name == "scan"
    assert scan.image.get_data_dtype() == np.float32
    assert np.array_equal(scan.image.get_fdata(), volume)
    assert np.allclose(scan.image.affine, AFFINE, atol=1e-4)


def test_nifti2_and_unpacked_gz_name(tmp_path, volume):
    nib.Nifti2Image(volume, AFFINE).to_filename(tmp_path / "two.nii")
    (tmp_path / "two.nii").rename(tmp_path / "two.nii.gz")
    assert np.array_equal(open_scan(tmp_path / "two.nii.gz").image.get_fdata(), volume)


def test_single_4d_volume_is_read(tmp_path, volume):
    nib.Nifti1Image(volume[..., None], AFFINE).to_filename(tmp_path / "a.nii")
    assert open_scan(tmp_path / "a.nii").image.shape == SHAPE


def test_header_without_orientation_is_noted(tmp_path, volume):
    image = nib.Nifti1Image(volume, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    image.to_filename(tmp_path / "a.nii")
    assert "no orientation" in open_scan(tmp_path / "a.nii").notes[0]


def test_bad_uploads_are_refused_with_their_message(tmp_path):
    by_classifier = ("expected a T1-weighted", "a whole head is needed", "check the units")
    uploads = damaged() | archives(tmp_path) | arrays()
    refused = {kind: upload for kind, upload in uploads.items() if upload[2] not in by_classifier}
    assert len(refused) > 35
    for kind, (name, content, expected) in refused.items():
        path = tmp_path / kind / name
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(StudyError, match=re.escape(expected)) as caught:
            open_scan(path)
        assert name in str(caught.value), kind


def test_missing_and_empty_folder(tmp_path):
    with pytest.raises(StudyError, match="does not exist"):
        open_scan(tmp_path / "nowhere.nii")
    with pytest.raises(StudyError, match="no DICOM image series"):
        open_scan(tmp_path)


def test_nan_becomes_zero(tmp_path, volume):
    data = volume.astype(np.float32)
    data[0, 0, 0] = np.nan
    nib.Nifti1Image(data, AFFINE).to_filename(tmp_path / "a.nii")
    assert open_scan(tmp_path / "a.nii").image.get_fdata()[0, 0, 0] == 0


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_dicom_keeps_values_geometry_and_no_names(tmp_path, volume, form):
    source = write_series(volume, AFFINE, tmp_path / "visit", "sag T1 MPRAGE", number=3)
    if form == "zip":
        source = shutil.make_archive(str(source), "zip", source)
    scan = open_scan(source)
    assert scan.name == "visit"
    assert at_same_points(scan.image, volume, AFFINE)
    assert PATIENT.encode() not in scan.image.to_bytes()
    assert scan.notes == ("series 3 'sag T1 MPRAGE' taken",)


def test_t1w_series_is_chosen_and_others_have_reasons(tmp_path, volume):
    folder = tmp_path / "study"
    write_series(volume, AFFINE, folder / "a", "Ax T2 FLAIR", number=2)
    write_series(volume[::-1].copy(), AFFINE, folder / "b", "3D T1 MPRAGE +C", number=4)
    write_series(volume, AFFINE, folder / "c", "3D T1 MPRAGE", number=5)
    write_series(volume[:, :, :12], AFFINE, folder / "d", "T1 thick", number=6)
    write_series(volume, AFFINE, folder / "e", "3D MPRAGE", number=7, echo_ms=90.0)
    scan = open_scan(shutil.make_archive(str(folder), "zip", folder))
    assert at_same_points(scan.image, volume, AFFINE)
    notes = "\n".join(scan.notes)
    assert "series 5 '3D T1 MPRAGE' taken" in notes
    for words in (
        "named 't2', not T1w",
        "echo time over 25 ms, not T1w",
        "12 slices",
        "'3D T1 MPRAGE +C' left out: less likely",
    ):
        assert words in notes


def test_several_unnamed_series_are_refused(tmp_path, volume):
    folder = write_series(volume, AFFINE, tmp_path / "s", "anat", number=1)
    assert "although its name does not say so" in open_scan(folder).notes[0]
    write_series(volume, AFFINE, folder, "brain", number=2)
    with pytest.raises(StudyError, match="named as T1w"):
        open_scan(folder)


def test_folder_of_nifti_is_refused(tmp_path, volume):
    nib.Nifti1Image(volume, AFFINE).to_filename(tmp_path / "sub-1_T1w.nii.gz")
    with pytest.raises(StudyError, match=r"give the file sub-1_T1w\.nii\.gz itself"):
        open_scan(tmp_path)


def zip_of(path: Path, name: str, content: bytes = b"x") -> Path:
    path.write_bytes(packed({name: content}))
    return path


def test_zip_larger_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "MAX_BYTES", 1_000)
    with pytest.raises(StudyError, match="unpacks to"):
        open_scan(zip_of(tmp_path / "a.zip", "a.dcm", bytes(2_000)))


def test_damaged_zip_is_refused(tmp_path):
    archive = zip_of(tmp_path / "a.zip", "a.dcm", np.random.default_rng(0).bytes(5000))
    content = bytearray(archive.read_bytes())
    content[35] = 0x07  # a block of a type that deflate does not have, after 30 bytes of header and 5 of name
    archive.write_bytes(content)
    with pytest.raises(StudyError, match="not a readable zip"):
        open_scan(archive)


def test_zip_member_without_name_is_refused(tmp_path):
    archive = zip_of(tmp_path / "a.zip", "a")
    with zipfile.ZipFile(archive, "a") as contents:
        contents.infolist()[0].filename = ""
        contents._didModify = True
    with pytest.raises(StudyError, match="not a readable zip"):
        open_scan(archive)


def test_zip_with_undecodable_names_is_refused(tmp_path):
    path, name = tmp_path / "names.zip", "é1.dcm"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"DICM")
    path.write_bytes(path.read_bytes().replace(name.encode(), b"\xff" + name.encode()[1:], 1))
    with pytest.raises(StudyError, match=r"names.zip is not a readable zip \(.*0xff"):
        open_scan(path)


@pytest.mark.parametrize(("path", "name"), [("a/sub-1_T1w.nii.gz", "sub-1_T1w"), ("b.x/scan.zip", "scan"), ("f", "f")])
def test_scan_name(path, name):
    assert scan_name(path) == name


@pytest.mark.realdata
def test_real_dicom_zip(realdata):
    scan = open_scan(realdata / "dicom_t1" / "t1w_dicom.zip")
    assert sorted(scan.image.shape) == [274, 384, 384]
    assert np.allclose(sorted(nib.affines.voxel_sizes(scan.image.affine)), [0.6667, 0.6667, 0.7], atol=1e-3)
    assert scan.notes == ("series 401 'anat-T1w' taken",)
