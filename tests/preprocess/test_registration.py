"""Affine registration of made heads with known pose; refusal of what is no brain."""

import nibabel as nib
import numpy as np
import pytest
from made_head import CENTRE, made_head, pose_error, random_affine, rotation

from adlib.preprocess import registration
from adlib.preprocess.pipeline import checked_volume
from adlib.preprocess.registration import register
from adlib.study.records import StudyError

SHAPE, EDGE = (60, 70, 60), 3.0


def posed(degrees, shift, scale):
    """MNI mm to scan mm, turned about the head's centre."""
    turn = scale * rotation(degrees)
    return nib.affines.from_matvec(turn, CENTRE + np.array(shift) - turn @ CENTRE)


def registered(head):
    return register(*checked_volume(head.image, "made"), "made")


ANISOTROPIC = {"voxel_mm": (1.5, 2.0, 2.5), "noise": 0.05, "bias": 0.3}
HEADS = {
    "far": ANISOTROPIC | {"pose": random_affine(2, degrees=25, shift=50, scale=0.12)},
    "near": ANISOTROPIC | {"pose": random_affine(4, degrees=10, shift=10)},
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


@pytest.mark.parametrize("case", HEADS)
def test_registration_recovers_known_pose(case):
    head = made_head(3, **HEADS[case])
    assert pose_error(registered(head).scan_to_mni, head.mni_to_scan) < 1.0


def test_pose_is_found_where_fluid_is_bright():
    head = made_head(3, contrast=(0.7, 0.5, 1.0), voxel_mm=(2.0, 2.0, 2.0), pose=posed((10, 5, -5), (20, 10, 0), 1.05))
    found = registered(head)
    assert max(found.contrast) < 0 and pose_error(found.scan_to_mni, head.mni_to_scan) < 2.0


def test_wide_search_finds_unusual_poses(monkeypatch):
    head = made_head(4, voxel_mm=(3.0, 3.0, 3.0), pose=posed((85, 0, 0), (0, 0, 0), 0.95))
    assert pose_error(registered(head).scan_to_mni, head.mni_to_scan) < 1.0
    monkeypatch.setattr(registration, "WIDE", registration.USUAL)
    with pytest.raises(StudyError, match=r"^made: .*shows no grey and white matter"):
        registered(head)


def objects():
    """Objects that are no brain, (X, Y, Z) float32 each, on a grid of `EDGE` mm."""
    x, y, z = EDGE * (np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2)
    from_axis = np.hypot(x, y)
    bones = (np.hypot(x - 12, y) < 18) | (np.hypot(x + 25, y + 10) < 10)
    return {
        "box": 500.0 * ((abs(x) < 60) & (abs(y) < 70) & (abs(z) < 60)),
        "ball": 500.0 * (np.sqrt(x**2 + y**2 + z**2) < 75),
        "limb": (250.0 * (from_axis < 65) + 300.0 * bones) * (1 + 0.1 * np.sin(z / 10)),
    }


@pytest.mark.parametrize("kind", ["box", "ball", "limb"])
def test_objects_without_brain_are_refused(kind):
    noise = 15 * np.random.default_rng(1).standard_normal(SHAPE)
    image = nib.Nifti1Image(np.abs(objects()[kind] + noise).astype(np.float32), np.diag([EDGE, EDGE, EDGE, 1]))
    with pytest.raises(StudyError, match=r"^knee-7: .*expected a T1-weighted scan of a whole head or brain"):
        register(*checked_volume(image, "knee-7"), "knee-7")
