"""Headers with slips: the image is read as it was meant, with a note; other bytes stay as they are."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from bad_uploads import nifti

from adlib.imaging.nifti import load, mended, without_padding
from adlib.sources.scanfile import open_scan

AFFINE = np.array([[0, 0, 2.4, -60], [-2.0, 0, 0, 50], [0, -2.2, 0, 40], [0, 0, 0, 1]])


def volume():
    return np.random.default_rng(0).integers(0, 900, (50, 52, 54)).astype(np.int16)


def written(path, version=1, affine=AFFINE, form="sform", **changed):
    codes = {f"{name}_code": int(name == form) for name in ("sform", "qform")}
    raw = nifti(volume(), affine, {1: nib.Nifti1Image, 2: nib.Nifti2Image}[version], **codes, **changed)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


SLIPS = {
    "no volume": {"dim": [4, 50, 52, 54, 0, 1, 1, 1]},
    "one volume": {"dim": [4, 50, 52, 54, 1, 1, 1, 1]},
    "NaN intercept": {"scl_slope": 1.0, "scl_inter": np.nan},
    "voxels at 0": {"vox_offset": 0},
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("slip", list(SLIPS))
def test_slips_leave_values_and_affine(slip, suffix, version, tmp_path):
    path = written(tmp_path / f"a{suffix}", version, **SLIPS[slip])
    image, notes = load(path)
    scan = open_scan(path)
    for one in (image, scan.image):
        assert np.array_equal(np.squeeze(one.get_fdata()), volume())
        assert np.allclose(one.affine, AFFINE)
    assert len(notes) == (slip != "one volume") and scan.notes == notes


@pytest.mark.parametrize(("code", "scale", "word"), [(1, 1e-3, "metres"), (3, 1e3, "microns")])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_units_are_read_as_mm(form, code, scale, word, tmp_path):
    scaled = np.diag([scale, scale, scale, 1]) @ AFFINE
    path = written(tmp_path / "a.nii", affine=scaled, form=form, xyzt_units=code | 8)
    image, notes = load(path)
    assert np.allclose(image.affine, AFFINE, rtol=1e-4) and np.allclose(image.header.get_zooms(), [2, 2.2, 2.4])
    assert notes == (f"the header is in {word}: read as mm",) == open_scan(path).notes
    assert np.allclose(open_scan(path).image.affine, AFFINE, rtol=1e-4)


def test_wrong_unit_of_millimetres_is_not_believed(tmp_path):
    image, notes = load(written(tmp_path / "a.nii", xyzt_units=1))
    assert np.allclose(image.affine, AFFINE) and not notes


def test_quaternion_a_rounding_error_too_long(tmp_path):
    path = written(tmp_path / "a.nii", affine=np.diag([2, 2.2, 2.4, 1]), form="qform")
    raw = bytearray(path.read_bytes())
    raw[256:268] = struct.pack("<3f", 0, 0.7071072, 0.7071072)  # 180 degrees about (0, 1, 1), 6e-7 too long
    path.write_bytes(raw)
    for image in (load(path)[0], open_scan(path).image):
        assert nib.aff2axcodes(image.affine) == ("L", "S", "A")


def test_sound_headers_stay(tmp_path):
    for version in (1, 2):
        raw = written(tmp_path / "a.nii", version).read_bytes()
        assert mended(raw[:544]) == (raw[:544], ())
    for other in (b"", b"\x00" * 600, b"PK\x03\x04" * 200, raw[:100]):
        assert mended(other) == (other, ())


def test_mgh_without_orientation_is_noted(tmp_path):
    nib.MGHImage(volume(), AFFINE).to_filename(tmp_path / "a.mgh")
    assert open_scan(tmp_path / "a.mgh").notes == ()
    raw = bytearray((tmp_path / "a.mgh").read_bytes())
    raw[28:30] = b"\0\0"
    (tmp_path / "a.mgh").write_bytes(raw)
    assert "states no orientation" in load(tmp_path / "a.mgh")[1][0]
    assert "states no orientation" in open_scan(tmp_path / "a.mgh").notes[0]


@pytest.mark.parametrize("padding", [-2000, -32768])
@pytest.mark.parametrize("unit", [1, 127])
def test_padding_outside_a_cylinder_is_replaced(padding, unit):
    image = volume().astype(np.float32) * unit
    x, y = np.indices((50, 52)) - np.array([25, 26])[:, None, None]
    outside = np.broadcast_to((x**2 + y**2 > 24**2)[..., None], image.shape)
    repaired = without_padding(np.where(outside, np.float32(padding), image))
    assert np.array_equal(repaired[~outside], image[~outside])
    assert set(np.unique(repaired[outside])) == {image[~outside].min()}


def test_negative_values_that_are_no_padding_stay():
    centred = volume().astype(np.float32) - 400
    centred[:5] = -401  # background just below
    assert without_padding(centred) is centred
    assert without_padding(volume().astype(np.float32)).min() == 0
