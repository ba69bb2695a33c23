"""The preprocessing of made heads against their known pose, mask and volumes."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from made_head import made_head, pose_error, random_affine
from scipy import ndimage

from adlib.imaging import atlas
from adlib.imaging.volume import resample, voxel_ml, voxel_sizes
from adlib.parallel.threads import one_thread
from adlib.preprocess import brain
from adlib.preprocess import quality as qc
from adlib.preprocess.cohort_run import preprocess_scan
from adlib.preprocess.derivatives import load_preprocessed
from adlib.preprocess.intensity import bias_field, brain_zscore, normalise
from adlib.preprocess.pipeline import checked_volume, preprocess_image, preprocess_maps
from adlib.preprocess.registration import register
from adlib.study.params import PreprocessParams
from adlib.study.records import TISSUE_MAPS, StudyError

PARAMS = PreprocessParams(resolution_mm=3.0)


@pytest.fixture(autouse=True, scope="module")
def _single_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def head():
    return made_head(1)


@pytest.fixture(scope="module")
def result(head):
    return preprocess_image(head.image, PARAMS, "made")


@pytest.mark.parametrize(
    ("seed", "how"),
    [
        (2, {"degrees": 25, "shift": 50, "scale": 0.12}),
        (3, {"degrees": 25, "shift": 50, "scale": 0.12}),
        (4, {"degrees": 10, "shift": 10}),
    ],
)
def test_registration_finds_a_known_pose(seed, how):
    head = made_head(seed, voxel_mm=(1.5, 2.0, 2.5), pose=random_affine(seed, **how), noise=0.05, bias=0.3)
    volume, affine = checked_volume(head.image, "made")
    assert pose_error(register(volume, affine, "made").scan_to_mni, head.mni_to_scan) < 1.0


def test_mask_and_volumes_meet_the_truth(head, result):
    assert pose_error(result.scan_to_mni, head.mni_to_scan) < 0.5
    base = atlas.template(3.0)
    _, affine = checked_volume(head.image, "made")
    true = resample(head.mask.astype(np.float32), affine, base.mask.shape, base.affine, head.mni_to_scan) > 0.5
    assert 2 * (true & result.mask).sum() / (true.sum() + result.mask.sum()) > 0.93
    within_skull = ndimage.distance_transform_edt(~head.mask, sampling=voxel_sizes(affine)) <= 2.0
    brain_ml, skull_ml = (inside.sum() * voxel_ml(affine) for inside in (head.mask, within_skull))
    assert 0.97 * brain_ml < result.features["icv_ml"] < 1.03 * skull_ml
    for name in ("gm_ml", "wm_ml"):
        assert result.features[name] == pytest.approx(head.tissue_ml[name], rel=0.15)


def test_result_is_normalised_and_complete(result):
    inside = result.t1w[result.mask]
    assert inside.mean() == pytest.approx(0, abs=1e-3) and inside.std() == pytest.approx(1, abs=1e-3)
    assert not result.t1w[~result.mask].any()
    np.testing.assert_allclose(result.tissues.sum(-1)[result.mask], 1, atol=1e-5)
    assert not result.tissues[~result.mask].any()
    assert result.verdict == "pass" and result.reasons == ()
    assert all(np.isfinite(list(result.features.values())))
    base = atlas.template(3.0)
    for k, tissue in enumerate((base.gm, base.wm, base.csf)):
        assert np.corrcoef(result.tissues[..., k][base.mask], tissue[base.mask])[0, 1] > 0.7


@pytest.mark.parametrize("codes", ["LPS", "PSR"])
def test_storage_order_does_not_matter(head, result, codes):
    turn = nib.orientations.ornt_transform(nib.io_orientation(head.image.affine), nib.orientations.axcodes2ornt(codes))
    turned = preprocess_image(head.image.as_reoriented(turn), PARAMS, "turned")
    for name, value in result.features.items():
        assert turned.features[name] == pytest.approx(value, rel=1e-4)
    assert turned.steps[0].startswith(f"orientation: {codes}")


def test_left_stays_left(head):
    volume, affine = checked_volume(head.image, "made")
    world = atlas.coordinates(volume.shape, affine)
    mni = nib.affines.apply_affine(np.linalg.inv(head.mni_to_scan), np.moveaxis(world, 0, -1))
    marked = np.where((mni[..., 0] < -25) & (np.abs(mni[..., 2] - 20) < 15), 0.7 * volume, volume)
    found = preprocess_image(nib.Nifti1Image(marked.astype(np.float32), affine), PARAMS, "marked")
    x, _, z = atlas.coordinates(found.mask.shape, found.affine)
    band = (np.abs(z - 20) < 10) & (np.abs(x) > 30) & found.mask
    assert found.native[band & (x < 0)].mean() < 0.85 * found.native[band & (x > 0)].mean()


def test_extracted_brains_are_recognised_and_heads_are_not(head):
    extracted = preprocess_image(made_head(5, pose=random_affine(5, scale=0.0), extracted=True).image, PARAMS, "brain")
    assert "brain extraction skipped: input is already brain-extracted" in extracted.steps
    volume, affine = checked_volume(head.image, "made")
    scan_to_mni = np.linalg.inv(head.mni_to_scan)
    cleaned = np.where(volume > 150, volume, 0)
    assert not brain.is_extracted(cleaned, affine, scan_to_mni)
    cropped = cleaned.copy()
    cropped[:, :, : cropped.shape[2] // 2] = 0
    assert not brain.is_extracted(cropped, affine, scan_to_mni)
    assert brain.is_extracted(np.where(head.mask, volume, 0), affine, scan_to_mni)


def test_bias_field_is_found():
    base = atlas.template(3.0)
    x, y, _ = atlas.coordinates(base.mask.shape, base.affine) / 80
    true = np.exp(0.3 * x - 0.2 * y)
    rng = np.random.default_rng(0)
    tissue = 0.65 * base.gm + base.wm + 0.2 * base.csf
    volume = (1000 * true * tissue + 15 * rng.standard_normal(tissue.shape)).clip(0).astype(np.float32)
    found = bias_field(volume, base.mask, base.affine)
    assert np.corrcoef(np.log(found[base.mask]), np.log(true[base.mask]))[0, 1] > 0.93


def test_normalisation_states_what_is_wrong():
    volume, mask = np.ones((4, 4, 4), np.float32), np.ones((4, 4, 4), bool)
    with pytest.raises(StudyError, match="constant"):
        normalise(volume, mask, *brain_zscore(volume, mask))
    with pytest.raises(StudyError, match=r"\(4, 4, 4\) but its mask is \(2, 2, 2\)"):
        normalise(volume, mask[:2, :2, :2], 0, 1)


def test_white_matter_peak_puts_white_matter_at_one(head):
    params = PARAMS.model_copy(update={"normalise": "white_matter_peak"})
    found = preprocess_image(head.image, params, "made")
    assert np.median(found.t1w[found.tissues[..., 1] > 0.95]) == pytest.approx(1, abs=0.01)


def test_wrong_scans_do_not_pass(head):
    volume, affine = checked_volume(head.image, "made")
    half = volume.copy()
    half[: half.shape[0] // 2] = 0
    with pytest.raises(StudyError, match=r"^half: .*no grey and white matter"):
        preprocess_image(nib.Nifti1Image(half, affine), PARAMS, "half")
    noise = np.abs(np.random.default_rng(0).standard_normal(volume.shape)).astype(np.float32)
    with pytest.raises(StudyError, match="no brain was found"):
        preprocess_image(nib.Nifti1Image(noise, affine), PARAMS, "noise")


def test_verdicts_follow_the_limits(result):
    assert qc.verdict(result.qc) == ("pass", ())
    verdict, reasons = qc.verdict(result.qc | {"qc_similarity": 0.45})
    assert verdict == "check" and reasons[0].startswith("qc_similarity = 0.45 (expected 0.5 to 1)")
    verdict, reasons = qc.verdict(result.qc | {"qc_similarity": 0.45, "qc_coverage": 0.5})
    assert verdict == "fail" and len(reasons) == 2


def flattened(image):
    """The same image with a header that gives its third axis no length."""
    image.affine[:3, 2] = 0
    return image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (lambda d, a: nib.Nifti1Image(np.stack([d, d], -1), a), r"expected one 3-D volume, got shape .* 2\)"),
        (lambda d, a: nib.Nifti1Image(d[:, :, :1], a), "expected a 3-D volume, got the 2-D"),
        (lambda d, a: nib.Nifti1Image(d[:, :, :3], a), "field of view is .* expected 80 to 700 mm"),
        (lambda d, a: nib.Nifti1Image(np.where(d > 500, np.nan, d), a), "voxels are NaN or infinite"),
        (lambda d, a: nib.Nifti1Image(np.full_like(d, 3), a), "constant"),
        (lambda d, a: flattened(nib.Nifti1Image(d, a)), "singular"),
        (lambda d, a: nib.Nifti1Image(d, np.diag([0.002, 0.002, 0.002, 1.0])), "expected 0.2 to 8.0 mm; check"),
        (lambda d, a: nib.Nifti1Image(d.astype(np.complex64), a), "expected one real number each"),
    ],
)
def test_bad_input_is_named(head, image, message):
    broken = image(np.asarray(head.image.dataobj).astype(np.float32), head.image.affine)
    with pytest.raises(StudyError, match=message) as caught:
        preprocess_image(broken, PARAMS, "the scan")
    assert str(caught.value).startswith("the scan: ")


def test_a_trailing_singleton_axis_is_accepted(head):
    data = np.asarray(head.image.dataobj)[..., None]
    volume, _ = checked_volume(nib.Nifti1Image(data, head.image.affine), "made")
    assert volume.ndim == 3


def test_two_runs_are_equal(head, result):
    again = preprocess_image(head.image, PARAMS, "made")
    for field in dataclasses.fields(result):
        np.testing.assert_equal(getattr(again, field.name), getattr(result, field.name))


@pytest.mark.realdata
def test_real_scans_have_plausible_brains(realdata):
    paths = [realdata / "t1w_head" / "t1_crop.nii.gz", *sorted((realdata / "t1w_cc0").glob("sub-*/anat/*.nii.gz"))]
    assert len(paths) == 7
    for path in paths:
        found = preprocess_image(nib.load(path), PreprocessParams(resolution_mm=2.0), path.name)
        assert found.verdict == "pass", found.reasons
        assert 900 < found.features["brain_ml"] < 1600
        assert 1100 < found.features["icv_ml"] < 2000
        skipped = "brain extraction skipped: input is already brain-extracted" in found.steps
        assert skipped == ("t1w_cc0" in str(path))


def test_a_registered_scan_is_not_moved():
    still = made_head(pose=np.eye(4))
    result = preprocess_image(still.image, PARAMS, "made", registered=True)
    assert np.array_equal(result.scan_to_mni, np.eye(4))
    assert any(step.startswith("registration skipped") for step in result.steps)
    assert result.verdict != "fail"
    base = atlas.template(PARAMS.resolution_mm)
    assert 2 * (result.mask & base.mask).sum() / (result.mask.sum() + base.mask.sum()) > 0.95


def test_tissue_maps_are_measured_as_they_come(tmp_path):
    base = atlas.template(2.0)
    maps = [nib.Nifti1Image(part, base.affine) for part in (base.gm, base.wm)]
    result = preprocess_maps(*maps, PARAMS, "maps")
    unit = 8 / 1000
    assert result.features["gm_ml"] == pytest.approx(float(base.gm.sum()) * unit, rel=0.03)
    assert result.features["wm_ml"] == pytest.approx(float(base.wm.sum()) * unit, rel=0.03)
    assert set(result.features) == {"gm_ml", "wm_ml", "temporal_ml"}
    assert result.verdict == "pass"
    paths = [tmp_path / f"{k}.nii.gz" for k in range(2)]
    for image, path in zip(maps, paths, strict=True):
        nib.save(image, path)
    scan = {"participant_id": "sub-1", "session_id": "ses-1", "scan_id": "sub-1_T1w", "sha256": "x"}
    scan |= {"path": "|".join(map(str, paths)), "space": TISSUE_MAPS}
    sidecar = preprocess_scan(scan, tmp_path / "d", PARAMS)
    assert sidecar["verdict"] == "pass"
    np.testing.assert_allclose(load_preprocessed(scan, tmp_path / "d").t1w, result.t1w, atol=0.01)
    assert "expected 'MNI152'" in preprocess_scan(scan | {"space": "Talairach"}, tmp_path / "e", PARAMS)["reasons"][0]
