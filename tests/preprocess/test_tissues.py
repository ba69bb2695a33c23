"""Brain mask, tissues and volumes against the simulator's truth in every voxel."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from adlib.imaging import atlas
from adlib.imaging.volume import resample, voxel_ml
from adlib.phantom.cohort import SCANNERS
from adlib.phantom.head import MEASURED, Subject, image_head
from adlib.preprocess.anatomy import HEAD, SIDE, Anatomy, side_volumes
from adlib.preprocess.pipeline import preprocess_image
from adlib.preprocess.tissues import segment
from adlib.preprocess.volumes import of_head_size, region_volumes, tissue_volumes
from adlib.study.params import PreprocessParams
from adlib.study.records import StudyError

EDGE_MM = 2.0


def imaged(severity, age, scanner, seed):
    pose = np.diag([1.08, 1.1, 1.12, 1.0])
    return image_head(Subject(severity, age, pose, seed, seed + 50), SCANNERS[scanner], EDGE_MM)


@pytest.fixture(scope="module", params=[(0.1, 62.0, 0), (1.0, 80.0, 3)], ids=["well", "ill"])
def measured(request):
    volume, affine, truth, fractions = imaged(*request.param, seed=11)
    result = preprocess_image(nib.Nifti1Image(volume, affine), PreprocessParams(resolution_mm=EDGE_MM), "made")
    to_scan, base = np.linalg.inv(result.scan_to_mni), atlas.template(EDGE_MM)
    true = np.stack([resample(part, affine, base.mask.shape, base.affine, to_scan) for part in fractions[:3]], axis=-1)
    return result, truth, true


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_mask_tissues_and_volumes_match_truth(measured):
    result, truth, true = measured
    inside = true.sum(-1) > 0.5
    assert dice(result.mask, inside) > 0.965
    assert result.features["icv_ml"] == pytest.approx(truth["icv_ml"], rel=0.04)
    assert result.features["nbv"] == pytest.approx(truth["nbv"], abs=0.03)
    labels, wanted = np.where(result.mask, result.tissues.argmax(-1), 3), np.where(inside, true.argmax(-1), 3)
    for k, least in enumerate((0.90, 0.89, 0.80)):
        assert dice(labels == k, wanted == k) > least
    assert result.features["gm_ml"] == pytest.approx(truth["gm_ml"], rel=0.05)
    assert result.features["wm_ml"] == pytest.approx(truth["wm_ml"], rel=0.05)


def test_simulated_fractions_sum_to_true_volumes():
    _, affine, truth, fractions = imaged(0.5, 70.0, 1, seed=3)
    for name, part in zip(MEASURED, fractions, strict=True):
        assert part.sum(dtype=np.float64) * voxel_ml(affine) == pytest.approx(truth[f"{name}_ml"], rel=1e-6)


def test_partial_volumes_follow_intensity():
    base = atlas.template(3.0)
    rng = np.random.default_rng(0)
    crisp = np.stack([base.gm, base.wm, base.csf], axis=-1).argmax(-1)[..., None] == np.arange(3)
    true = ndimage.gaussian_filter((crisp & base.mask[..., None]).astype(np.float32), (0.7, 0.7, 0.7, 0))
    true = np.where(base.mask[..., None], true / np.maximum(true.sum(-1, keepdims=True), 1e-6), 0)
    volume = (true @ [0.65, 1.0, 0.2] + 0.02 * rng.standard_normal(base.mask.shape)).astype(np.float32)
    expected = np.moveaxis(ndimage.gaussian_filter(true, (1, 1, 1, 0)), -1, 0)[:2].copy()
    found = segment(volume * base.mask, base.mask, expected)
    assert np.abs(found - true)[base.mask].mean() < 0.06
    assert np.abs(found.sum((0, 1, 2)) - true.sum((0, 1, 2))).max() < 0.03 * base.mask.sum()
    np.testing.assert_array_equal(found, segment(volume * base.mask, base.mask, expected))


def test_inverted_contrast_is_refused():
    base = atlas.template(3.0)
    inverted = (base.mask * (1.2 - base.wm - 0.6 * base.gm)).astype(np.float32)
    noise = 0.01 * np.random.default_rng(0).standard_normal(inverted.shape).astype(np.float32)
    with pytest.raises(StudyError, match="tissue intensities are CSF"):
        segment(inverted + noise, base.mask, np.stack([base.gm, base.wm]))


def test_volumes_are_those_of_the_scan():
    base = atlas.template(2.0)
    shares = np.zeros((4, *HEAD.shape), np.float32)
    shares[0] = 1
    shares[:, 40:50, 50:60, 40:50] = 0.25
    shares[:, :9] = np.array([0.7, 0.1, 0.1, 0.1]).reshape(4, 1, 1, 1)
    regions = {"hippocampus_left": 3.0, "hippocampus_right": 2.0, "ventricle_left": 8.0, "ventricle_right": 9.0}
    tissues = np.stack([base.gm, base.wm, base.csf], axis=-1)

    def measured(scan_to_mni):
        volumes = tissue_volumes(tissues, scan_to_mni, 2.0) | region_volumes(Anatomy(shares, regions), scan_to_mni)
        return volumes | of_head_size(volumes)

    sizes, half = measured(np.eye(4)), measured(np.diag([2.0, 1.0, 1.0, 1.0]))
    assert (sizes["hippocampus_ml"], sizes["ventricles_ml"], sizes["icv_ml"]) == pytest.approx((5.0, 17.0, 8.0))
    assert sizes["gm_ml"] == pytest.approx(float(base.gm.sum(dtype=np.float64)) * 8 / 1000)
    assert sizes["hippocampus_percent"] == pytest.approx(100 * 5 / 8)
    for name, value in sizes.items():
        assert half[name] == pytest.approx(value / 2 if name.endswith("_ml") else value)


def test_volumes_of_a_side_end_at_the_midline():
    parts = np.zeros((1, 4, *SIDE.shape), np.float32)
    parts[0, 1], parts[0, 3, :, 0, 0] = 1, 1
    hippocampus, amygdala, ventricle = side_volumes(parts, SIDE)[0]
    assert (hippocampus, amygdala) == pytest.approx((29.5 * 68 * 48 * 0.008, 0))
    assert ventricle == pytest.approx(29.5 * 0.008)
