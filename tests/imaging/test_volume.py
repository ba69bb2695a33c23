"""Geometry against coordinates worked out by hand."""

import nibabel as nib
import numpy as np
import pytest
from made_head import reoriented

from adlib.imaging.volume import block_mean, extract_slice, fit_square, resample, to_canonical, voxel_ml, voxel_sizes
from adlib.study.records import StudyError


def ramp(shape=(20, 24, 22), edges=(2.0, 2.0, 2.0), origin=(-19.0, -23.0, -21.0)):
    """A volume that holds 10000 x + 100 y + z of its own world coordinates, and its affine."""
    affine = nib.affines.from_matvec(np.diag(edges), origin)
    world = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return (world @ [10000.0, 100.0, 1.0]).astype(np.float64), affine


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "ILA", "SAL"])
def test_canonical_orientation_keeps_every_world_coordinate(codes):
    volume, affine = ramp()
    turned = reoriented(nib.Nifti1Image(volume, affine), codes)
    back, back_affine = to_canonical(np.asarray(turned.dataobj), turned.affine)
    assert nib.aff2axcodes(turned.affine) == tuple(codes)
    np.testing.assert_array_equal(back, volume)
    np.testing.assert_allclose(back_affine, affine)


def test_voxel_sizes_of_an_oblique_grid():
    turn = nib.eulerangles.euler2mat(0.3, 0.2, 0.1)
    affine = nib.affines.from_matvec(turn @ np.diag([0.7, 1.2, 3.0]), [1, 2, 3])
    np.testing.assert_allclose(voxel_sizes(affine), [0.7, 1.2, 3.0])
    assert voxel_ml(affine) == pytest.approx(0.7 * 1.2 * 3.0 / 1000)


def test_block_mean_keeps_world_coordinates():
    volume, affine = ramp(edges=(1.0, 1.0, 2.0))
    small, grid = block_mean(volume, affine, 2.0)
    assert small.shape == (10, 12, 22)
    expected = nib.affines.apply_affine(grid, [3, 4, 5]) @ [10000.0, 100.0, 1.0]
    assert small[3, 4, 5] == pytest.approx(expected, rel=1e-6)


def test_resample_follows_a_world_affine():
    volume, affine = ramp()
    world = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, -0.05, 0.02), [1.0, -2.0, 0.5])
    onto = nib.affines.from_matvec(np.eye(3) * 1.5, [-6, -6, -6])
    moved = resample(volume, affine, (8, 8, 8), onto, world)
    points = nib.affines.apply_affine(world @ onto, np.moveaxis(np.indices((8, 8, 8)), 0, -1))
    np.testing.assert_allclose(moved, points @ [10000.0, 100.0, 1.0], rtol=1e-6, atol=0.05)


@pytest.mark.parametrize(("plane", "up", "right"), [("coronal", 2, 0), ("axial", 1, 0), ("sagittal", 2, 1)])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_slices_are_upright_in_any_orientation(plane, up, right, codes):
    volume, affine = ramp()
    turned = reoriented(nib.Nifti1Image(volume, affine), codes)
    picture = extract_slice(np.asarray(turned.dataobj), turned.affine, plane, 5.0)
    weights = np.array([10000.0, 100.0, 1.0])
    np.testing.assert_allclose(picture[0, 0] - picture[1, 0], 2 * weights[up])
    np.testing.assert_allclose(picture[0, 1] - picture[0, 0], 2 * weights[right])
    normal = 3 - up - right
    corner = np.array([-19.0, -23.0, -21.0])
    corner[normal] = 5.0
    assert picture[-1, 0] == pytest.approx(corner @ weights)


def test_slice_outside_the_volume_is_refused():
    volume, affine = ramp()
    with pytest.raises(StudyError, match=r"coronal slice at 90 mm lies outside.*-23 to 23 mm"):
        extract_slice(volume, affine, "coronal", 90)
    with pytest.raises(StudyError, match="unknown plane 'oblique'"):
        extract_slice(volume, affine, "oblique", 0)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (8, 8), (12, 3)])
def test_fit_square_keeps_the_centre(shape):
    image = np.zeros(shape)
    image[shape[0] // 2, shape[1] // 2] = 7
    square = fit_square(image, 8)
    assert square.shape == (8, 8)
    row, column = np.argwhere(square == 7)[0]
    assert abs(row - 4) <= 1 and abs(column - 4) <= 1
    assert square.sum() == 7


def test_fit_square_zooms_only_when_asked():
    image = np.zeros((10, 20), np.float32)
    image[2:8, 4:16] = 1
    assert fit_square(image, 40).sum() == image.sum()
    assert fit_square(image, 40, zoom=(2, 1)).sum() == pytest.approx(2 * image.sum(), rel=0.01)
    with pytest.raises(StudyError, match="2-D"):
        fit_square(np.zeros((2, 2, 2)), 8)
