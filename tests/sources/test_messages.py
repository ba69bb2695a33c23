"""Messages end the search: each names what is there, what is expected, and what to write or do."""

import gzip
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_writer import write_series
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage
from test_field_inputs import image, read

from adlib.audit.run import run_audit
from adlib.sources.scanfile import open_scan
from adlib.study.params import AuditParams
from adlib.study.records import StudyError
from adlib.study.source_params import BidsSource, check_source

AFFINE = np.diag([3.0, 3.2, 3.4, 1.0])


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(0, 900, (44, 46, 42)).astype(np.int16)


@pytest.mark.parametrize(
    "name",
    [
        "T1w.nii (1).gz",
        "T1w.nii(2).gz",
        "T1w.nii.gz.1",
        "T1w.nii.gz.crdownload",
        "T1w.nii copy",
        "T1w.nii.gz~",
        "T1w.nii.bak",
    ],
)
def test_second_downloads_are_to_be_renamed(name, volume, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(nib.Nifti1Image(volume, AFFINE).to_bytes()))
    with pytest.raises(StudyError, match="rename it to end in"):
        open_scan(tmp_path / name)


def test_archives_of_a_viewer_are_left_packed(volume, tmp_path):
    series = write_series(volume, AFFINE, tmp_path / "s", "T1 MPRAGE")
    with zipfile.ZipFile(tmp_path / "cd.zip", "w") as archive:
        for number, file in enumerate(sorted(series.iterdir())):
            archive.write(file, f"DICOM/PA0/ST0/SE0/IM{number}")
        archive.writestr("VIEWER/help.zip", b"PK\x05\x06" + bytes(18))
    assert open_scan(tmp_path / "cd.zip").image.shape == volume.shape


def test_one_slice_asks_for_its_folder(volume, tmp_path):
    series = write_series(volume, AFFINE, tmp_path / "s", "T1 MPRAGE")
    shutil.copy(next(series.iterdir()), tmp_path / "enhanced.dcm")
    with pytest.raises(StudyError, match="give the folder that holds it and its other slices"):
        open_scan(tmp_path / "enhanced.dcm")


def group(**values):
    """A functional group of one item (DICOM PS3.3, C.7.6.16)."""
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return [made]


@pytest.mark.parametrize("name", ["enhanced.dcm", "IM0001"])
def test_one_enhanced_file_is_a_volume(name, volume, tmp_path):
    series = write_series(volume, AFFINE, tmp_path / "s", "T1 MPRAGE")
    files = [pydicom.dcmread(file) for file in sorted(series.iterdir())]
    one, frames = pydicom.dcmread(sorted(series.iterdir())[0]), []
    for number, file in enumerate(files, 1):
        content = group(StackID="1", InStackPositionNumber=number, DimensionIndexValues=[1, number])
        place = group(ImagePositionPatient=file.ImagePositionPatient)
        frames += group(PlanePositionSequence=place, FrameContentSequence=content)
    one.SharedFunctionalGroupsSequence = group(
        PlaneOrientationSequence=group(ImageOrientationPatient=one.ImageOrientationPatient),
        PixelMeasuresSequence=group(PixelSpacing=one.PixelSpacing, SliceThickness=one.SliceThickness),
    )
    one.PerFrameFunctionalGroupsSequence, one.NumberOfFrames = frames, len(frames)
    one.PixelData = b"".join(file.PixelData for file in files)
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(one, tag)
    one.save_as(tmp_path / name, enforce_file_format=True)
    read = np.asarray(open_scan(tmp_path / name).image.dataobj)
    assert np.array_equal(np.sort(read, axis=None), np.sort(volume, axis=None))


@pytest.mark.parametrize(
    ("name", "words"), [("01-0003", "give the folder that holds it"), ("DICOMDIR", "give the folder")]
)
def test_dicom_is_known_without_its_suffix(name, words, volume, tmp_path):
    series = write_series(volume, AFFINE, tmp_path / "cd", "T1 MPRAGE")
    for file in series.iterdir():
        file.rename(file.with_suffix(""))
    (series / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(60))
    assert open_scan(series).image.shape == volume.shape
    with pytest.raises(StudyError, match=words):
        open_scan(series / name)


def test_files_without_content_say_what_to_fetch(tmp_path):
    (tmp_path / "._T1w.nii.gz").write_bytes(bytes(99))
    (tmp_path / "pointer.nii.gz").write_text("/annex/objects/MD5E-s9--0.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to("nowhere")
    for name, words in (
        ("._T1w", "shadow file .* give T1w.nii.gz"),
        ("pointer", "datalad get"),
        ("link", "datalad get"),
    ):
        with pytest.raises(StudyError, match=words):
            open_scan(tmp_path / f"{name}.nii.gz")


def test_roots_that_are_not_there_are_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    check_source(BidsSource(kind="bids", root=Path("~/data")))
    with pytest.raises(StudyError, match=r"root is \$\{MY_DATA\}/x, but MY_DATA is not set; write MY_DATA=/path"):
        check_source(BidsSource(kind="bids", root=Path("${MY_DATA}/x")))
    with pytest.raises(StudyError, match="is not a folder; expected: Dataset folder"):
        check_source(BidsSource(kind="bids", root=Path("~/other")))


def test_class_folders_of_other_names_get_their_line(tmp_path):
    for seed, name in enumerate(("Normal", "Dementia", "Group3")):
        image(tmp_path / "data" / name / f"sub-0{seed}_T1w.nii.gz", seed)
    listed = read("folders", tmp_path / "data", participant="(?P<participant>sub-0.)")
    with pytest.raises(StudyError) as caught:
        run_audit(listed, ("CN", "MCI", "AD"), AuditParams(), 0)
    assert str(caught.value).endswith("add to the params source.labels: {Dementia: AD, Group3: ..., Normal: CN}")
