"""Reading scans: the values and the geometry survive, and every broken input is refused in words."""

import gzip
import os
import stat
import struct
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from adlib.sources import dicom
from adlib.sources.scanfile import open_scan, read_scan, scan_name
from adlib.study.records import StudyError

SHAPE = (44, 48, 42)
AFFINE = np.array([[0, 0, 3.0, -60], [-2.0, 0, 0, 50], [0, -2.5, 0, 40], [0, 0, 0, 1]])


@pytest.fixture
def volume():
    return np.random.default_rng(7).integers(0, 900, SHAPE).astype(np.int16)


def element(group: int, number: int, kind: str, value: bytes | str | int) -> bytes:
    """One data element of explicit-VR little-endian DICOM (PS3.5, section 7.1.2)."""
    raw = struct.pack("<H", value) if isinstance(value, int) else value.encode() if isinstance(value, str) else value
    raw += b" " * (len(raw) % 2) if kind not in ("UI", "OW", "OB") else b"\0" * (len(raw) % 2)
    length = struct.pack("<xxI", len(raw)) if kind in ("OB", "OW") else struct.pack("<H", len(raw))
    return struct.pack("<HH", group, number) + kind.encode() + length + raw


def write_series(folder: Path, data: np.ndarray, affine: np.ndarray, description: str, number: int = 3) -> Path:
    """Write (X, Y, Z) int16 as one MR series whose slices run along Z; DICOM positions are LPS, the affine is RAS."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    edges = np.linalg.norm(lps[:3, :3], axis=0)
    cosines = "\\".join(f"{v:.6f}" for v in np.concatenate([lps[:3, 0] / edges[0], lps[:3, 1] / edges[1]]))
    for index in range(data.shape[2]):
        uid = f"1.2.826.0.1.3680043.2.1143.{number}.{index + 1}"
        position = "\\".join(f"{v:.4f}" for v in lps[:3] @ [0, 0, index, 1])
        meta = element(2, 2, "UI", "1.2.840.10008.5.1.4.1.1.4") + element(2, 3, "UI", uid)
        meta += element(2, 0x10, "UI", "1.2.840.10008.1.2.1")
        body = [
            element(8, 8, "CS", "ORIGINAL\\PRIMARY\\M"),
            element(8, 0x16, "UI", "1.2.840.10008.5.1.4.1.1.4"),
            element(8, 0x18, "UI", uid),
            element(8, 0x60, "CS", "MR"),
            element(8, 0x103E, "LO", description),
            element(0x10, 0x10, "PN", "Secret^Name"),
            element(0x18, 0x50, "DS", f"{edges[2]:.4f}"),
            element(0x20, 0xD, "UI", "1.2.826.0.1.3680043.2.1143"),
            element(0x20, 0xE, "UI", f"1.2.826.0.1.3680043.2.1143.{number}"),
            element(0x20, 0x11, "IS", str(number)),
            element(0x20, 0x13, "IS", str(index + 1)),
            element(0x20, 0x32, "DS", position),
            element(0x20, 0x37, "DS", cosines),
            element(0x28, 2, "US", 1),
            element(0x28, 4, "CS", "MONOCHROME2"),
            element(0x28, 0x10, "US", data.shape[1]),
            element(0x28, 0x11, "US", data.shape[0]),
            element(0x28, 0x30, "DS", f"{edges[1]:.4f}\\{edges[0]:.4f}"),
            element(0x28, 0x100, "US", 16),
            element(0x28, 0x101, "US", 16),
            element(0x28, 0x102, "US", 15),
            element(0x28, 0x103, "US", 1),
            element(0x7FE0, 0x10, "OW", np.ascontiguousarray(data[:, :, index].T).tobytes()),
        ]
        length = element(2, 0, "UL", struct.pack("<I", len(meta)))
        (folder / f"{number}_{index:03d}.dcm").write_bytes(bytes(128) + b"DICM" + length + meta + b"".join(body))
    return folder


def zip_folder(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as contents:
        for file in sorted(folder.rglob("*.dcm")):
            contents.write(file, file.relative_to(folder))
    return archive


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
    assert np.array_equal(read_scan(tmp_path / "two.nii.gz").get_fdata(), volume)


def test_single_volume_of_four_dimensions_is_taken(tmp_path, volume):
    nib.Nifti1Image(volume[..., None], AFFINE).to_filename(tmp_path / "a.nii")
    assert read_scan(tmp_path / "a.nii").shape == SHAPE


def test_header_without_orientation_is_noted(tmp_path, volume):
    image = nib.Nifti1Image(volume, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    image.to_filename(tmp_path / "a.nii")
    assert "no orientation" in open_scan(tmp_path / "a.nii").notes[0]


def broken(folder: Path, volume: np.ndarray) -> dict[str, Path]:
    """Broken inputs by the words that the message must hold."""
    good = folder / "good.nii.gz"
    nib.Nifti1Image(volume, AFFINE).to_filename(good)
    raw, plain = good.read_bytes(), gzip.decompress(good.read_bytes())
    flipped = bytearray(raw)
    flipped[len(raw) // 2] ^= 0xFF
    contents = {
        "cut short": ("cut.nii.gz", raw[: len(raw) // 2]),
        "damaged": ("flipped.nii.gz", bytes(flipped)),
        "not a readable Nifti1": ("text.nii", b"This is a letter, not a scan.\n" * 40),
        "not a readable MGH": ("text.mgz", gzip.compress(b"no scan either")),
        "0 bytes": ("empty.nii", b""),
        "unknown kind of file": ("scan.jpg", b"\xff\xd8\xff"),
        "copy it again": ("short.nii", plain[: len(plain) // 2]),
        "at most 1 are read": ("huge.nii", plain[:42] + b"\x7f\x7f\x7f\x7f" + plain[46:]),
        "readable zip": ("cut.zip", b"PK\x03\x04 and no more"),
    }
    for name, content in contents.values():
        (folder / name).write_bytes(content)
    return {words: folder / name for words, (name, _) in contents.items()}


def test_broken_files_are_refused_in_words(tmp_path, volume):
    for words, path in broken(tmp_path, volume).items():
        with pytest.raises(StudyError, match=words) as caught:
            read_scan(path)
        assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(SHAPE, np.float32), "one and the same value"),
        (np.full(SHAPE, np.nan, np.float32), "one and the same value"),
        (np.ones((9, 9), np.float32), "expected one volume"),
        (np.ones((9, 9, 9, 4), np.float32), "expected one volume"),
    ],
)
def test_arrays_that_are_no_scan_are_refused(tmp_path, array, words):
    nib.Nifti1Image(array, AFFINE).to_filename(tmp_path / "a.nii")
    with pytest.raises(StudyError, match=words):
        read_scan(tmp_path / "a.nii")


def test_missing_and_empty_folder(tmp_path):
    with pytest.raises(StudyError, match="does not exist"):
        read_scan(tmp_path / "nowhere.nii")
    with pytest.raises(StudyError, match="no DICOM image series"):
        read_scan(tmp_path)


def test_not_a_number_becomes_zero(tmp_path, volume):
    data = volume.astype(np.float32)
    data[0, 0, 0] = np.nan
    nib.Nifti1Image(data, AFFINE).to_filename(tmp_path / "a.nii")
    assert read_scan(tmp_path / "a.nii").get_fdata()[0, 0, 0] == 0


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_dicom_keeps_values_geometry_and_no_names(tmp_path, volume, form):
    source = write_series(tmp_path / "visit", volume, AFFINE, "sag T1 MPRAGE")
    if form == "zip":
        source = zip_folder(source, tmp_path / "visit.zip")
    scan = open_scan(source)
    assert scan.name == "visit"
    assert at_same_points(scan.image, volume, AFFINE)
    assert b"Secret" not in scan.image.to_bytes()
    assert scan.notes == ("series 3 'sag T1 MPRAGE' taken",)


def test_t1w_is_chosen_among_series_and_the_rest_is_explained(tmp_path, volume):
    folder = tmp_path / "study"
    write_series(folder / "a", volume, AFFINE, "Ax T2 FLAIR", 2)
    write_series(folder / "b", volume[::-1].copy(), AFFINE, "3D T1 MPRAGE +C", 4)
    write_series(folder / "c", volume, AFFINE, "3D T1 MPRAGE", 5)
    write_series(folder / "d", volume[:, :, :12], AFFINE, "T1 thick", 6)
    scan = open_scan(zip_folder(folder, tmp_path / "study.zip"))
    assert at_same_points(scan.image, volume, AFFINE)
    notes = "\n".join(scan.notes)
    assert "series 5 '3D T1 MPRAGE' taken" in notes
    for words in ("named 'T2', not T1w", "12 slices", "'3D T1 MPRAGE +C' left out: less likely"):
        assert words in notes


def test_unnamed_series_are_not_guessed_among(tmp_path, volume):
    folder = write_series(tmp_path / "s", volume, AFFINE, "anat", 1)
    assert "although its name does not say so" in open_scan(folder).notes[0]
    write_series(folder, volume, AFFINE, "brain", 2)
    with pytest.raises(StudyError, match="named as T1w"):
        read_scan(folder)


def test_missing_slices_are_refused(tmp_path, volume):
    folder = write_series(tmp_path / "s", np.concatenate([volume, volume], axis=2), AFFINE, "T1w")
    for index in range(30, 36):
        (folder / f"3_{index:03d}.dcm").unlink()
    with pytest.raises(StudyError, match="slices are missing"):
        read_scan(folder)


def test_folder_of_nifti_says_give_the_file(tmp_path, volume):
    nib.Nifti1Image(volume, AFFINE).to_filename(tmp_path / "sub-1_T1w.nii.gz")
    with pytest.raises(StudyError, match=r"give the file sub-1_T1w\.nii\.gz itself"):
        read_scan(tmp_path)


def zip_of(path: Path, name: str, content: bytes = b"x", mode: int = 0) -> Path:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    member.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


@pytest.mark.parametrize("name", ["../evil.dcm", "a/../../evil.dcm", "/etc/evil.dcm", "..\\evil.dcm", "C:\\evil.dcm"])
def test_traversal_names_are_refused(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = zip_of(inside / "a.zip", name)
    with pytest.raises(StudyError, match="leaves its folder"):
        read_scan(archive)
    assert not list(tmp_path.rglob("evil*"))


def test_links_are_refused(tmp_path):
    with pytest.raises(StudyError, match="link"):
        read_scan(zip_of(tmp_path / "a.zip", "a.dcm", b"/etc/passwd", stat.S_IFLNK | 0o777))


def test_bombs_are_refused(tmp_path, monkeypatch):
    bomb = zip_of(tmp_path / "bomb.zip", "a.dcm", bytes(50_000_000))
    with pytest.raises(StudyError, match="times its size"):
        read_scan(bomb)
    monkeypatch.setattr(dicom, "MAX_BYTES", 1_000_000)
    with pytest.raises(StudyError, match="unpacks to"):
        read_scan(bomb)


def test_too_many_files_are_refused(tmp_path, monkeypatch, volume):
    monkeypatch.setattr(dicom, "MAX_FILES", 40)
    archive = zip_folder(write_series(tmp_path / "s", volume, AFFINE, "T1w"), tmp_path / "s.zip")
    with pytest.raises(StudyError, match="holds 42 files, at most 40"):
        read_scan(archive)


def test_a_zip_whose_packed_bytes_are_damaged_is_refused(tmp_path):
    archive = zip_of(tmp_path / "a.zip", "a.dcm", np.random.default_rng(0).bytes(5000))
    content = bytearray(archive.read_bytes())
    content[35] = 0x07  # a block of a type that deflate does not have, after 30 bytes of header and 5 of name
    archive.write_bytes(content)
    with pytest.raises(StudyError, match="not a readable zip"):
        read_scan(archive)


def test_a_member_without_a_name_is_no_crash(tmp_path):
    archive = zip_of(tmp_path / "a.zip", "a")
    with zipfile.ZipFile(archive, "a") as contents:
        contents.infolist()[0].filename = ""
        contents._didModify = True
    with pytest.raises(StudyError, match="not a readable zip"):
        read_scan(archive)


def test_a_zip_whose_names_are_no_text_is_refused(tmp_path):
    path, name = tmp_path / "names.zip", "é1.dcm"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"DICM")
    path.write_bytes(path.read_bytes().replace(name.encode(), b"\xff" + name.encode()[1:], 1))
    with pytest.raises(StudyError, match=r"names.zip is not a readable zip \(.*0xff"):
        open_scan(path)


def test_empty_zip_is_refused(tmp_path):
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    with pytest.raises(StudyError, match="empty zip"):
        read_scan(tmp_path / "a.zip")


def test_private_folder_is_private_and_goes(tmp_path):
    with dicom.private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


@pytest.mark.parametrize(("path", "name"), [("a/sub-1_T1w.nii.gz", "sub-1_T1w"), ("b.x/scan.zip", "scan"), ("f", "f")])
def test_scan_name(path, name):
    assert scan_name(path) == name


@pytest.mark.realdata
def test_real_dicom_zip():
    scan = open_scan(Path(os.environ["ADLIB_REALDATA"]) / "dicom_t1" / "t1w_dicom.zip")
    assert sorted(scan.image.shape) == [274, 384, 384]
    assert np.allclose(sorted(nib.affines.voxel_sizes(scan.image.affine)), [0.6667, 0.6667, 0.7], atol=1e-3)
    assert scan.notes == ("series 401 'anat-T1w' taken",)
