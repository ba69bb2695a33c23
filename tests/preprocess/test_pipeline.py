"""Preprocessing of made heads with known pose, mask and volumes; refusal of unusable scans."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from bad_uploads import nifti
from made_head import made_head, pose_error, random_affine, reoriented, rotation
from scipy import ndimage

from adlib.imaging import atlas
from adlib.imaging.volume import orientation_notes, resample, voxel_ml, voxel_sizes
from adlib.preprocess import quality
from adlib.preprocess.cohort_run import preprocess_scan
from adlib.preprocess.derivatives import load_preprocessed
from adlib.preprocess.intensity import LANDMARKS
from adlib.preprocess.pipeline import checked_volume, preprocess_image, preprocess_maps
from adlib.study.params import PreprocessParams
from adlib.study.records import TISSUE_MAPS, StudyError

PARAMS = PreprocessParams(resolution_mm=3.0)
SCAN = {"participant_id": "sub-9", "session_id": "ses-1", "scan_id": "sub-9_ses-1_T1w", "sha256": "x", "space": None}
AFFINE = np.array([[-4.0, 0, 0, 100], [0, 4, 0, -120], [0, 0, 4, -100], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def head():
    return made_head(1)


@pytest.fixture(scope="module")
def result(head):
    return preprocess_image(head.image, PARAMS, "made")


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(2).integers(0, 900, (50, 60, 50)).astype(np.int16)


def test_mask_and_volumes_match_truth(head, result):
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


def test_unit_of_intensity_does_not_matter(head, result):
    scaled = nib.Nifti1Image(head.image.get_fdata(dtype=np.float32) * 100, head.image.affine)
    changed = preprocess_image(scaled, PARAMS, "scaled")
    assert np.abs(np.subtract(changed.scan_to_mni, result.scan_to_mni)).max() < 0.05
    for name in ("icv_ml", "gm_ml", "wm_ml", "hippocampus_ml"):
        assert changed.features[name] == pytest.approx(result.features[name], rel=5e-3)


@pytest.mark.parametrize("codes", ["LPS", "PSR"])
def test_storage_order_does_not_matter(head, result, codes):
    turned = preprocess_image(reoriented(head.image, codes), PARAMS, "turned")
    for name, value in result.features.items():
        assert turned.features[name] == pytest.approx(value, rel=1e-4)
    assert turned.steps[0].startswith(f"orientation: {codes}")


def test_left_stays_left(head):
    volume, affine = checked_volume(head.image, "made")
    world = atlas.coordinates(volume.shape, affine)
    mni = nib.affines.apply_affine(np.linalg.inv(head.mni_to_scan), np.moveaxis(world, 0, -1))
    marked = np.where((mni[..., 0] < -25) & (np.abs(mni[..., 2] - 20) < 15), 0.7 * volume, volume)
    result = preprocess_image(nib.Nifti1Image(marked.astype(np.float32), affine), PARAMS, "marked")
    x, _, z = atlas.coordinates(result.mask.shape, result.affine)
    band = (np.abs(z - 20) < 10) & (np.abs(x) > 30) & result.mask
    assert result.native[band & (x < 0)].mean() < 0.85 * result.native[band & (x > 0)].mean()


def test_white_matter_peak_becomes_one(head):
    result = preprocess_image(head.image, PARAMS.model_copy(update={"normalise": "white_matter_peak"}), "made")
    assert np.median(result.t1w[result.tissues[..., 1] > 0.95]) == pytest.approx(1, abs=0.01)


def test_half_heads_and_noise_are_refused(head):
    volume, affine = checked_volume(head.image, "made")
    half = volume.copy()
    half[: half.shape[0] // 2] = 0
    with pytest.raises(StudyError, match=r"^half: .*no grey and white matter"):
        preprocess_image(nib.Nifti1Image(half, affine), PARAMS, "half")
    noise = np.abs(np.random.default_rng(0).standard_normal(volume.shape)).astype(np.float32)
    with pytest.raises(StudyError, match="no brain was found"):
        preprocess_image(nib.Nifti1Image(noise, affine), PARAMS, "noise")


def test_registered_scan_is_not_moved():
    image = made_head(6, voxel_mm=(3.0, 3.0, 3.0), pose=np.eye(4)).image
    image.set_sform(image.affine, 1)
    image.set_qform(nib.affines.from_matvec(rotation((0, 0, 5)), [0, 0, 0]) @ image.affine, 1)
    result = preprocess_image(image, PARAMS, "made", registered=True)
    assert np.array_equal(result.scan_to_mni, np.eye(4)) and result.verdict != "fail"
    base = atlas.template(PARAMS.resolution_mm)
    assert 2 * (result.mask & base.mask).sum() / (result.mask.sum() + base.mask.sum()) > 0.95
    assert not set(quality.OF_SIZE) & set(result.qc)
    words = "; ".join(result.steps)
    assert "orientation: RAS to RAS; the header's sform (code 1)" in words
    assert "registration: skipped" in words and "head size not measured" in words


def test_tissue_maps_are_measured(tmp_path):
    base = atlas.template(2.0)
    maps = [nib.Nifti1Image(part, base.affine) for part in (base.gm, base.wm)]
    result = preprocess_maps(*maps, PARAMS, "maps")
    for name, part in (("gm_ml", base.gm), ("wm_ml", base.wm)):
        assert result.features[name] == pytest.approx(float(part.sum()) * 8 / 1000, rel=0.03)
    assert set(result.features) == {"gm_ml", "wm_ml", "temporal_ml"}
    assert set(result.qc) == {"qc_similarity", "qc_coverage"} and result.verdict == "pass"
    assert "registration, bias correction and segmentation skipped" in result.steps[0]
    for k, image in enumerate(maps):
        nib.save(image, tmp_path / f"{k}.nii.gz")
    scan = SCAN | {"path": f"{tmp_path / '0.nii.gz'}|{tmp_path / '1.nii.gz'}", "space": TISSUE_MAPS}
    sidecar = preprocess_scan(scan, tmp_path / "d", PARAMS)
    assert sidecar["verdict"] == "pass"
    np.testing.assert_allclose(load_preprocessed(scan, tmp_path / "d").t1w, result.t1w, atol=0.01)
    expected = np.percentile(result.t1w[result.mask], LANDMARKS)
    np.testing.assert_allclose(sidecar["brain_percentiles"], expected, atol=0.01)
    assert "expected 'MNI152'" in preprocess_scan(scan | {"space": "Talairach"}, tmp_path / "e", PARAMS)["reasons"][0]


def test_rigid_keeps_size():
    pose = random_affine(3, degrees=10, scale=0.0)
    pose[:3, :3] *= 0.9
    head = made_head(seed=3, pose=pose, voxel_mm=(2.0, 2.0, 2.0))
    affine, rigid = (
        preprocess_image(head.image, PreprocessParams(resolution_mm=3.0, registration=kind), "made")
        for kind in ("affine", "rigid")
    )
    turn = rigid.scan_to_mni[:3, :3]
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    true_ml = head.mask.sum() * abs(np.linalg.det(head.image.affine[:3, :3])) / 1000
    assert rigid.mask.sum() * 27 / 1000 == pytest.approx(true_ml, rel=0.12)
    assert rigid.mask.sum() == pytest.approx(affine.mask.sum() / np.linalg.det(affine.scan_to_mni[:3, :3]), rel=0.02)
    np.testing.assert_allclose(rigid.tissues[rigid.mask].sum(axis=-1), 1, atol=1e-3)
    assert rigid.features == affine.features and rigid.qc == affine.qc
    assert not rigid.t1w[~rigid.mask].any()
    assert "resampled a second time" in rigid.steps[-1]


def test_impossible_settings_are_refused():
    base = atlas.template(3.0)
    image = nib.Nifti1Image(base.t1, base.affine)
    with pytest.raises(StudyError, match="without its head's own size"):
        preprocess_image(image, PreprocessParams(resolution_mm=3.0, registration="rigid"), "made", registered=True)
    maps = [nib.Nifti1Image(part, base.affine) for part in (base.gm, base.wm)]
    for settings in ({"registration": "rigid"}, {"normalise": "landmarks"}):
        with pytest.raises(StudyError, match="not T1w"):
            preprocess_maps(*maps, PreprocessParams(resolution_mm=3.0, **settings), "maps")


def flattened(image):
    """The same image with a header in which its third axis has no length."""
    image.affine[:3, 2] = 0
    return image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (lambda v: nib.Nifti1Image(np.stack([v, v], -1), AFFINE), r"expected one 3-D volume, got shape .* 2\)"),
        (lambda v: nib.Nifti1Image(v[:, :, :1], AFFINE), r"expected one 3-D volume, got shape .* 1\)"),
        (lambda v: nib.Nifti1Image(v[:, :, :3], AFFINE), "field of view is .* expected 80 to 700 mm"),
        (lambda v: nib.Nifti1Image(np.tile(v[:30, :30], (1, 1, 30)), AFFINE), "field of view .*1500.*80 to 700"),
        (lambda v: nib.Nifti1Image(np.where(v > 890, np.nan, v).astype("f4"), AFFINE), "voxels are NaN or infinite"),
        (lambda v: nib.Nifti1Image(np.where(v > 890, np.inf, v).astype("f4"), AFFINE), "voxels are NaN or infinite"),
        (lambda v: nib.Nifti1Image(np.full_like(v, 3), AFFINE), "constant"),
        (lambda v: flattened(nib.Nifti1Image(v, AFFINE)), "singular"),
        (lambda v: nib.Nifti1Image(v, np.diag([0.002, 0.002, 0.002, 1.0])), "expected 0.2 to 8.0 mm; check"),
        (lambda v: nib.Nifti1Image(v.astype(np.complex64), AFFINE), "expected one real number each"),
    ],
)
def test_unusable_image_is_refused(volume, image, message):
    with pytest.raises(StudyError, match=rf"^the scan: .*{message}"):
        preprocess_image(image(volume), PARAMS, "the scan")


def test_trailing_singleton_axis_is_accepted(volume):
    checked, _ = checked_volume(nib.Nifti1Image(volume[..., None], AFFINE), "made")
    assert checked.shape == volume.shape


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.nii", lambda v: nifti(v, AFFINE, scl_slope=3e38), "NaN or infinite; repair the scan (also its scl_slope"),
        ("a.nii", lambda v: nifti(v, AFFINE, srow_z=(0, 0, 0, 0)), "the affine is singular"),
        ("a.nii", lambda v: nifti(v, AFFINE, srow_z=(0, 0, np.nan, 0)), "holds no finite affine"),
        ("a.nii.gz", lambda v: gzip.compress(nifti(v, AFFINE))[:90_000], "the voxels cannot be read"),
        ("a.nii", lambda v: nifti(v, AFFINE)[:90_000], "the voxels cannot be read"),
    ],
)
def test_broken_file_is_a_failed_scan(tmp_path, volume, name, content, message):
    (tmp_path / name).write_bytes(content(volume))
    sidecar = preprocess_scan(SCAN | {"path": str(tmp_path / name)}, tmp_path / "derivatives", PARAMS)
    assert sidecar["verdict"] == "fail" and len(sidecar["reasons"]) == 1
    assert "sub-9_ses-1_T1w" in sidecar["reasons"][0] and message in sidecar["reasons"][0]


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_undefined_slope_leaves_stored_numbers(volume, slope):
    image = nib.Nifti1Image.from_bytes(nifti(volume, AFFINE, scl_slope=slope, scl_inter=0.0))
    stored, _ = checked_volume(image, "a")
    assert np.array_equal(stored[::-1], volume)


def test_missing_or_conflicting_orientation(volume):
    def notes(qform):
        image = nib.Nifti1Image(volume, AFFINE)
        image.set_sform(AFFINE, 2)
        image.set_qform(qform, 1)
        return orientation_notes(nib.Nifti1Image.from_bytes(image.to_bytes()), "a")

    missing = nib.Nifti1Image.from_bytes(nifti(volume, AFFINE, sform_code=0))
    assert "states no orientation" in orientation_notes(missing, "a")[0]
    assert notes(AFFINE) == ()
    moved = nib.affines.from_matvec(np.eye(3), [0, 0, 14]) @ AFFINE
    assert "sform (code 2) and qform (code 1)" in notes(moved)[0] and "14 mm" in notes(moved)[0]
    with pytest.raises(StudyError, match=r"^a: .*sform \(LAS\) and qform \(RAS\)"):
        notes(np.diag([-1.0, 1, 1, 1]) @ AFFINE)
