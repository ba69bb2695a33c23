import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from adlib.imaging import atlas
from adlib.imaging.volume import extract_slice, fit_square
from adlib.study.params import InputParams
from adlib.study.records import StudyError
from adlib.training.slices import plane_slices, scan_slices


def test_slices_are_cut_where_the_params_say():
    base = atlas.template(3.0)
    y_mm = atlas.coordinates(base.t1.shape, base.affine)[1]
    params = InputParams(positions_mm=(-2.0, 2.0), channel_spacing_mm=3.0, size=40)
    items = scan_slices((y_mm / 100).astype(np.float32), base.affine, params)
    assert items.shape == (2, 3, 40, 40)
    centre = items[:, :, 20, 20] * 100
    expected = np.array([[-5, -2, 1], [-1, 2, 5]])
    assert np.abs(centre - expected).max() <= 1.5


def planes(tmp_path, **images):
    for name, image in images.items():
        nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / f"{name}.nii.gz")
    return "|".join(str(tmp_path / f"{name}.nii.gz") for name in images)


def brain(background=15, level=120):
    image = np.full((180, 200), background, np.uint8)
    image[60:120, 50:150] = level
    image[80:100, 80:120] = level // 2
    return image


def test_three_planes_are_channels_with_zero_background(tmp_path):
    item = plane_slices(planes(tmp_path, a=brain(), b=brain(18), c=brain(15, 200)), InputParams(size=128))
    assert item.shape == (1, 3, 128, 128)
    assert (item[0, :, 2, 2] == 0).all()
    assert (item[0, :, 64, 64] > 0.3).all()
    np.testing.assert_allclose(item[0, 0], item[0, 1], atol=0.2)


def test_unusable_planes_are_refused(tmp_path):
    good = brain()
    with pytest.raises(StudyError, match="is constant"):
        plane_slices(planes(tmp_path, a=good, b=good * 0, c=good), InputParams())
    with pytest.raises(StudyError, match="expected one 2-D slice"):
        plane_slices(planes(tmp_path, a=good, b=np.stack([good] * 4), c=good), InputParams())
    with pytest.raises(StudyError, match="three 2-D slices"):
        plane_slices(planes(tmp_path, a=good), InputParams())
    path = planes(tmp_path, a=good, b=good, c=good)
    (tmp_path / "b.nii.gz").write_bytes(b"broken")
    with pytest.raises(StudyError, match=r"b\.nii\.gz cannot be read"):
        plane_slices(path, InputParams())


def test_each_picture_is_an_upright_item(tmp_path):
    picture = np.full((208, 176), 0, np.uint8)
    picture[40:170, 30:150] = 90
    picture[40:60, 30:60] = 250
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture[:, ::-1].copy()).save(tmp_path / "b.png")
    items = plane_slices(f"{tmp_path / 'a.png'}|{tmp_path / 'b.png'}", InputParams(plane="images_2d", size=128))
    assert items.shape == (2, 3, 128, 128)
    assert (items[0, 0] == items[0, 2]).all()
    rows, columns = np.nonzero(items[0, 0] == items[0, 0].max())
    assert rows.mean() < 64
    assert columns.mean() < 64
    np.testing.assert_allclose(items[1, 0][:, ::-1], items[0, 0], atol=0.3)


def test_three_planes_are_the_channels_of_one_item():
    volume = np.random.default_rng(0).uniform(0, 1, (40, 44, 48)).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -40
    params = InputParams(plane="three_planes", positions_mm=(10.0, -6.0, 4.0), size=48)
    found = scan_slices(volume, affine, params)
    assert found.shape == (1, 3, 48, 48)
    for channel, (plane, mm) in enumerate((("axial", 10.0), ("coronal", -6.0), ("sagittal", 4.0))):
        np.testing.assert_array_equal(found[0, channel], fit_square(extract_slice(volume, affine, plane, mm), 48))
