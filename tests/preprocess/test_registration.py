"""Registration of made heads in hard poses, refusal of what is no brain, and broken scans called by name."""

import gzip
import re
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made_head import CENTRE, made_head, pose_error, random_affine, rotation

from adlib.imaging.atlas import template
from adlib.imaging.header import orientation_notes
from adlib.imaging.volume import resample
from adlib.parallel.threads import one_thread
from adlib.preprocess import registration
from adlib.preprocess.cohort_run import preprocess_scan
from adlib.preprocess.pipeline import checked_volume, preprocess_image, preprocess_maps
from adlib.preprocess.registration import register
from adlib.study.params import PreprocessParams
from adlib.study.records import StudyError

PARAMS = PreprocessParams(resolution_mm=3.0)
SHAPE, EDGE = (60, 70, 60), 3.0


@pytest.fixture(autouse=True, scope="module")
def _single_thread():
    with one_thread():
        yield


def posed(degrees, shift, scale):
    """MNI mm to scan mm, turned about the head's centre."""
    turn = scale * rotation(degrees)
    return nib.affines.from_matvec(turn, CENTRE + np.array(shift) - turn @ CENTRE)


def found(head, name="made"):
    return register(*checked_volume(head.image, name), name)


HARD = {
    "cut top, long neck": {
        "pose": posed((25, -20, 28), (60, -60, 40), 1.1),
        "view": (np.array([-105, -125, -230]), np.array([105, 125, 62])),
        "neck_mm": 140.0,
        "noise": 0.09,
    },
    "thick slices, tilted": {
        "pose": posed((-30, 12, -10), (-60, 50, -20), 0.86),
        "voxel_mm": (5.0, 1.4, 1.4),
        "tilt": rotation((10, -12, 8)),
        "codes": "PIR",
        "exact_bias": True,
        "bias": 0.4,
    },
}


@pytest.mark.parametrize("case", HARD, ids=str)
def test_hard_heads_are_found(case):
    head = made_head(3, **HARD[case])
    assert pose_error(found(head).scan_to_mni, head.mni_to_scan) < 1.0


def test_a_head_beyond_the_usual_poses_is_found_by_the_wider_search(monkeypatch):
    head = made_head(4, voxel_mm=(3.0, 3.0, 3.0), pose=posed((85, 0, 0), (0, 0, 0), 0.95))
    assert pose_error(found(head).scan_to_mni, head.mni_to_scan) < 1.0
    monkeypatch.setattr(registration, "WIDE", registration.USUAL)
    with pytest.raises(StudyError, match=r"^made: .*shows no grey and white matter"):
        found(head)


def objects():
    """What is no brain, (X, Y, Z) float32 each, on a grid of `EDGE` mm."""
    x, y, z = EDGE * (np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2)
    from_axis = np.hypot(x, y)
    bones = (np.hypot(x - 12, y) < 18) | (np.hypot(x + 25, y + 10) < 10)
    return {
        "box": 500.0 * ((abs(x) < 60) & (abs(y) < 70) & (abs(z) < 60)),
        "ball": 500.0 * (np.sqrt(x**2 + y**2 + z**2) < 75),
        "limb": (250.0 * (from_axis < 65) + 300.0 * bones) * (1 + 0.1 * np.sin(z / 10)),
    }


@pytest.mark.parametrize("kind", ["box", "ball", "limb"])
def test_what_is_no_brain_is_refused_by_name(kind):
    noise = 15 * np.random.default_rng(1).standard_normal(SHAPE)
    image = nib.Nifti1Image(np.abs(objects()[kind] + noise).astype(np.float32), np.diag([EDGE, EDGE, EDGE, 1]))
    with pytest.raises(StudyError, match=r"^knee-7: .*expected a T1-weighted scan of a whole head or brain"):
        register(*checked_volume(image, "knee-7"), "knee-7")


def test_a_crop_of_the_volume_does_not_change_what_is_sampled():
    volume = np.random.default_rng(0).standard_normal((40, 50, 60)).astype(np.float32)
    affine = nib.affines.from_matvec(rotation((10, 20, 30)) * 1.7, [5, -9, 30])
    onto = nib.affines.from_matvec(np.diag([2.0, 2.5, 1.5]), nib.affines.apply_affine(affine, [12, 20, 22]))
    sampled = resample(volume, affine, (8, 7, 9), onto, outside=-7)
    voxels = nib.affines.apply_affine(np.linalg.inv(affine) @ onto, np.moveaxis(np.indices((8, 7, 9)), 0, -1))
    base = np.floor(voxels).astype(int)
    expected = np.zeros((8, 7, 9))
    for corner in np.ndindex(2, 2, 2):
        share = np.prod(np.where(corner, voxels - base, 1 - (voxels - base)), axis=-1)
        expected += share * volume[tuple(np.moveaxis(base + corner, -1, 0))]
    np.testing.assert_allclose(sampled, expected, atol=1e-4)
    away = nib.affines.from_matvec(np.eye(3), [500, 500, 500])
    assert (resample(volume, affine, (3, 3, 3), away, outside=-7) == -7).all()


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(2).integers(0, 900, (50, 60, 50)).astype(np.int16)


AFFINE = np.array([[-4.0, 0, 0, 100], [0, 4, 0, -120], [0, 0, 4, -100], [0, 0, 0, 1]])


def patched(path: Path, volume, affine=AFFINE, **fields):
    """Write a plain NIfTI file, then overwrite header fields as a faulty program would."""
    places = {"scl_slope": (112, "<f"), "scl_inter": (116, "<f"), "qform": (252, "<h"), "sform": (254, "<h")}
    image = nib.Nifti1Image(volume, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    content = bytearray(image.to_bytes())
    for name, value in fields.items():
        place, kind = places[name]
        content[place : place + struct.calcsize(kind)] = struct.pack(kind, value)
    path.write_bytes(content)
    return path


def reasons(path, folder):
    """Why the pipeline refused a file; a refusal is a row of the cohort, not a crash."""
    scan = {"participant_id": "sub-9", "session_id": "ses-1", "scan_id": "sub-9_ses-1_T1w", "sha256": "x"}
    sidecar = preprocess_scan(scan | {"path": str(path), "space": None}, folder / "derivatives", PARAMS)
    assert sidecar["verdict"] == "fail" and len(sidecar["reasons"]) == 1
    return sidecar["reasons"][0]


BROKEN = {
    "several volumes": (lambda v: np.stack([v, v], -1), {}, r"expected one 3-D volume, got shape \(50, 60, 50, 2\)"),
    "one slice": (lambda v: v[:, :, 0], {}, "expected a 3-D volume, got the 2-D shape"),
    "three slices": (lambda v: v[:, :, :3], {}, "field of view is .*expected 80 to 700 mm"),
    "1500 slices": (
        lambda v: np.tile(v[:30, :30], (1, 1, 30)),
        {},
        r"field of view .*30, 30, 1500.*expected 80 to 700",
    ),
    "NaN": (lambda v: np.where(v > 890, np.nan, v).astype(np.float32), {}, "voxels are NaN or infinite"),
    "infinite": (lambda v: np.where(v > 890, np.inf, v).astype(np.float32), {}, "voxels are NaN or infinite"),
    "constant": (lambda v: np.full_like(v, 7), {}, "constant"),
    "overflow": (lambda v: v, {"scl_slope": 3e38}, "NaN or infinite; repair the scan .also its scl_slope"),
    "intercept": (lambda v: v, {"scl_slope": 2.0, "scl_inter": float("nan")}, "invalid intercept"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_scan_is_refused_by_name(tmp_path, volume, case):
    change, fields, words = BROKEN[case]
    path = patched(tmp_path / "sub-9_ses-1_T1w.nii", change(volume), **fields)
    reason = reasons(path, tmp_path)
    assert "sub-9_ses-1_T1w" in reason
    assert re.search(words, reason)


def test_a_truncated_file_is_refused_by_name(tmp_path, volume):
    plain = patched(tmp_path / "plain.nii", volume).read_bytes()
    for name, content in (("a.nii.gz", gzip.compress(plain)[:90_000]), ("b.nii", plain[:90_000])):
        (tmp_path / name).write_bytes(content)
        assert "sub-9_ses-1_T1w: the voxels cannot be read" in reasons(tmp_path / name, tmp_path)


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_a_slope_that_is_none_leaves_the_numbers_as_stored(tmp_path, volume, slope):
    stored, _ = checked_volume(nib.load(patched(tmp_path / "a.nii", volume, scl_slope=slope, scl_inter=0.0)), "a")
    assert np.array_equal(stored[::-1], volume)


def test_a_singular_or_missing_affine(tmp_path, volume):
    flat = bytearray(patched(tmp_path / "flat.nii", volume).read_bytes())
    flat[312:328] = struct.pack("<4f", 0, 0, 0, 0)  # third row of the sform
    (tmp_path / "flat.nii").write_bytes(flat)
    assert "sub-9_ses-1_T1w: the affine is singular" in reasons(tmp_path / "flat.nii", tmp_path)
    flat[312:328] = struct.pack("<4f", 0, 0, float("nan"), 0)
    (tmp_path / "flat.nii").write_bytes(flat)
    assert "holds no finite affine" in reasons(tmp_path / "flat.nii", tmp_path / "again")
    none = nib.load(patched(tmp_path / "none.nii", volume, qform=0, sform=0))
    assert "states no orientation" in orientation_notes(none, "none")[0]


def two_forms(volume, sform, qform):
    image = nib.Nifti1Image(volume, sform)
    image.set_sform(sform, 2)
    image.set_qform(qform, 1)
    return nib.Nifti1Image.from_bytes(image.to_bytes())


def test_conflicting_affines_are_told_and_mirrored_ones_refused(volume):
    moved = nib.affines.from_matvec(np.eye(3), [0, 0, 14]) @ AFFINE
    assert orientation_notes(two_forms(volume, AFFINE, AFFINE), "a") == ()
    image = two_forms(volume, AFFINE, moved)
    assert orientation_notes(image, "a") == (
        "the header's sform (code 2) and qform (code 1) lie up to 14 mm apart: the sform is used",
    )
    np.testing.assert_allclose(image.affine, AFFINE)
    mirrored = np.diag([-1.0, 1, 1, 1]) @ AFFINE
    with pytest.raises(StudyError, match=r"^a: the header's sform \(LAS\) and qform \(RAS\) are mirror images"):
        orientation_notes(two_forms(volume, AFFINE, mirrored), "a")


def test_a_conflict_stands_among_the_steps():
    head = made_head(6, voxel_mm=(3.0, 3.0, 3.0), pose=np.eye(4))
    image, turned = head.image, nib.affines.from_matvec(rotation((0, 0, 5)), [0, 0, 0]) @ head.image.affine
    image.set_sform(image.affine, 1)
    image.set_qform(turned, 1)
    result = preprocess_image(image, PARAMS, "a", registered=True)
    assert result.steps[0].startswith(
        "orientation: RAS to RAS; the header's sform (code 1) and qform (code 1) lie up to"
    )


def test_rigid_keeps_a_head_s_size_and_deformable_gives_it_the_template_s_shape():
    pose = random_affine(3, degrees=10, scale=0.0)
    pose[:3, :3] *= 0.9
    made = made_head(seed=3, pose=pose, voxel_mm=(2.0, 2.0, 2.0))
    base = template(3.0)
    found = {
        kind: preprocess_image(made.image, PreprocessParams(resolution_mm=3.0, registration=kind), "made")
        for kind in ("affine", "rigid", "deformable")
    }
    affine, rigid, deformed = found.values()
    turn = rigid.scan_to_mni[:3, :3]
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    own_ml = made.mask.sum() * abs(np.linalg.det(made.image.affine[:3, :3])) / 1000
    assert rigid.mask.sum() * 27 / 1000 == pytest.approx(own_ml, rel=0.12)
    assert rigid.mask.sum() == pytest.approx(affine.mask.sum() / np.linalg.det(affine.scan_to_mni[:3, :3]), rel=0.02)
    alike = {
        kind: np.corrcoef(one.tissues[base.mask][:, :2].ravel(), np.stack([base.gm, base.wm], -1)[base.mask].ravel())
        for kind, one in found.items()
    }
    assert alike["deformable"][0, 1] > alike["affine"][0, 1] + 0.01 > alike["rigid"][0, 1] + 0.01
    for other in (rigid, deformed):
        np.testing.assert_allclose(other.tissues[other.mask].sum(axis=-1), 1, atol=1e-3)
        assert other.features == affine.features
        assert other.qc == affine.qc
        assert other.t1w[~other.mask].max() == other.t1w[~other.mask].min() == 0
        assert "resampled a second time" in other.steps[-1]


def test_what_a_registered_scan_or_a_tissue_map_cannot_have_is_refused():
    base = template(3.0)
    image = nib.Nifti1Image(base.t1, base.affine)
    with pytest.raises(StudyError, match="without its head's own size"):
        preprocess_image(image, PreprocessParams(resolution_mm=3.0, registration="rigid"), "made", registered=True)
    maps = [nib.Nifti1Image(part, base.affine) for part in (base.gm, base.wm)]
    for settings in ({"registration": "deformable"}, {"normalise": "landmarks"}):
        with pytest.raises(StudyError, match="not T1w"):
            preprocess_maps(*maps, PreprocessParams(resolution_mm=3.0, **settings), "maps")
