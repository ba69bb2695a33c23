"""Brain mask, tissues and volumes against the simulator's truth in every voxel."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from adlib.imaging import atlas
from adlib.imaging.volume import resample, voxel_ml
from adlib.phantom.cohort import SCANNERS
from adlib.phantom.head import MEASURED, Subject, image_head
from adlib.preprocess.pipeline import preprocess_image
from adlib.preprocess.tissues import segment
from adlib.preprocess.volumes import measure_volumes
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
    found = segment(volume * base.mask, base.mask, base)
    assert np.abs(found - true)[base.mask].mean() < 0.06
    assert np.abs(found.sum((0, 1, 2)) - true.sum((0, 1, 2))).max() < 0.03 * base.mask.sum()
    np.testing.assert_array_equal(found, segment(volume * base.mask, base.mask, base))


def test_inverted_contrast_is_refused():
    base = atlas.template(3.0)
    inverted = (base.mask * (1.2 - base.wm - 0.6 * base.gm)).astype(np.float32)
    noise = 0.01 * np.random.default_rng(0).standard_normal(inverted.shape).astype(np.float32)
    with pytest.raises(StudyError, match="tissue intensities are CSF"):
        segment(inverted + noise, base.mask, base)


def test_template_has_volumes_of_its_regions():
    base = atlas.template(2.0)
    tissues = np.stack([base.gm, base.wm, base.csf], axis=-1)
    sizes = measure_volumes(tissues, base.mask, np.eye(4), 2.0)
    for side in ("left", "right"):
        expected = (base.gm + base.wm)[atlas.region(f"hippocampus_{side}", 2.0)].sum() * 8 / 1000
        assert sizes[f"hippocampus_{side}_ml"] == pytest.approx(expected, rel=1e-4)
    assert sizes["hippocampus_percent"] == pytest.approx(100 * sizes["hippocampus_ml"] / sizes["icv_ml"])
    half = measure_volumes(tissues, base.mask, np.diag([2.0, 1.0, 1.0, 1.0]), 2.0)
    assert half["hippocampus_ml"] == pytest.approx(sizes["hippocampus_ml"] / 2)
    assert half["hippocampus_percent"] == pytest.approx(sizes["hippocampus_percent"])


def real_heads(realdata):
    paths = [realdata / "t1w_head" / "t1_crop.nii.gz", *sorted((realdata / "t1w_cc0").glob("sub-*/anat/*.nii.gz"))]
    assert len(paths) == 7
    return paths


@pytest.mark.realdata
def test_real_scans_have_plausible_brains(realdata):
    for path in real_heads(realdata):
        result = preprocess_image(nib.load(path), PreprocessParams(resolution_mm=2.0), path.name)
        assert result.verdict == "pass", result.reasons
        assert 900 < result.features["brain_ml"] < 1600
        assert 1100 < result.features["icv_ml"] < 2000
        skipped = "brain extraction skipped: input is already brain-extracted" in result.steps
        assert skipped == ("t1w_cc0" in str(path))


@pytest.mark.realdata
def test_real_scans_have_adult_volumes(realdata):
    """Mean manual volumes of one hippocampus are 2.7 ml (61 to 90 years) to 4.4 ml (18 to 54 years), see the docs.

    The bounds for single people are a quarter wider: two standard deviations of an eighth.
    """
    for path in real_heads(realdata):
        sizes = preprocess_image(nib.load(path), PreprocessParams(), path.name).features
        assert 500 < sizes["gm_ml"] < 850, path
        assert 350 < sizes["wm_ml"] < 700, path
        assert 1.0 < sizes["gm_ml"] / sizes["wm_ml"] < 1.8, path
        assert 0.6 < sizes["nbv"] < 0.9, path
        for side in ("left", "right"):
            assert 2.7 * 0.75 < sizes[f"hippocampus_{side}_ml"] < 4.4 * 1.25, path
        assert 4 < sizes["ventricles_ml"] < 70, path
