"""Brain extraction: recognition of extracted brains, and external programs, replaced by small scripts."""

import sys

import nibabel as nib
import numpy as np
import pytest
from made_head import made_head, random_affine

from adlib.imaging.atlas import template
from adlib.imaging.volume import resample
from adlib.preprocess.brain import background_to_lowest, external_mask, is_extracted
from adlib.preprocess.pipeline import checked_volume, preprocess_image
from adlib.study.params import PreprocessParams
from adlib.study.records import StudyError, TryAgain

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SYNTHSTRIP = """#!{python}
import sys
import nibabel as nib
assert sys.argv[1] == "-i" and sys.argv[3] == "-m", sys.argv
image = nib.load(sys.argv[2])
nib.save(nib.Nifti1Image((image.get_fdata() > 0.5).astype("uint8"), image.affine), sys.argv[4])
"""
HD_BET = """#!{python}
import sys
import nibabel as nib
options = dict(zip(sys.argv[1:7:2], sys.argv[2:7:2]))
assert set(options) == {"-i", "-o", "-device"} and sys.argv[7:] == ["--disable_tta", "--save_bet_mask"], sys.argv
image = nib.load(options["-i"])
mask = nib.Nifti1Image((image.get_fdata() > 0.5).astype("uint8"), image.affine)
nib.save(mask, options["-o"].removesuffix(".nii.gz") + "_bet.nii.gz")
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a program of a given name on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(name, code):
        path = tmp_path / name
        path.write_text(code.replace("{python}", sys.executable))
        path.chmod(0o755)

    return write


@pytest.fixture
def volume():
    return np.random.default_rng(0).random((7, 8, 9), dtype=np.float32)


@pytest.mark.parametrize(
    ("tool", "name", "code"), [("synthstrip", "mri_synthstrip", SYNTHSTRIP), ("hd-bet", "hd-bet", HD_BET)]
)
def test_mask_of_external_program_is_used(install, volume, tool, name, code):
    install(name, code)
    np.testing.assert_array_equal(external_mask(volume, AFFINE, tool, "a scan"), volume > 0.5)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("#!{python}\nimport sys; sys.exit('no GPU')", r"a scan: .* failed with exit code 1: no GPU"),
        ("#!{python}", "wrote no mask that can be read"),
        (SYNTHSTRIP.replace("> 0.5", "> 2"), "wrote an empty mask"),
        (SYNTHSTRIP.replace("get_fdata()", "get_fdata()[1:]"), r"shape, \(6, 8, 9\) for \(7, 8, 9\)"),
        ("#!{python}\nimport sys; open(sys.argv[4], 'w').write('x')", "wrote no mask that can be read"),
        ("#!/nowhere", "cannot be run"),
        ("#!{python}\nimport os; os.kill(os.getpid(), 9)", "a scan: mri_synthstrip was killed by signal 9"),
    ],
)
def test_failure_of_external_program_is_reported(install, volume, code, words):
    install("mri_synthstrip", code)
    with pytest.raises(StudyError, match=words) as caught:
        external_mask(volume, AFFINE, "synthstrip", "a scan")
    assert isinstance(caught.value, TryAgain) == ("cannot be run" in words or "killed" in words)


def test_missing_external_program_is_reported(install, volume):
    with pytest.raises(TryAgain, match="'hd-bet' is not on the PATH; install it"):
        external_mask(volume, AFFINE, "hd-bet", "a scan")


def test_pipeline_uses_mask_of_external_program(install, tmp_path):
    head = made_head(7, voxel_mm=(3.0, 3.0, 3.0))
    nib.save(nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine), tmp_path / "truth.nii.gz")
    install(
        "mri_synthstrip",
        f"#!{{python}}\nimport shutil, sys; shutil.copy({str(tmp_path / 'truth.nii.gz')!r}, sys.argv[4])",
    )
    params = PreprocessParams(resolution_mm=3.0, brain_extraction="synthstrip")
    result = preprocess_image(head.image, params, "made")
    assert "brain extraction: synthstrip" in result.steps
    volume_ml = result.mask.sum() * 27 / 1000 / abs(np.linalg.det(result.scan_to_mni[:3, :3]))
    assert volume_ml == pytest.approx(head.mask.sum() * 27 / 1000, rel=0.03)


def test_extracted_brains_are_recognised_and_heads_are_not():
    base = template(3.0)
    head = made_head(5, voxel_mm=(3.0, 3.0, 3.0), pose=np.eye(4))
    volume, affine = checked_volume(head.image, "made")
    onto = (base.mask.shape, base.affine)
    whole, mask = (resample(part.astype(np.float32), affine, *onto) for part in (volume, head.mask))
    mask = mask > 0.5
    assert is_extracted(np.where(mask, whole, 0), mask, base)
    cleaned = np.where(whole > 150, whole, 0)
    assert not is_extracted(cleaned, mask, base)
    cleaned[:, :, : cleaned.shape[2] // 2] = 0
    assert not is_extracted(cleaned, mask, base)


def test_background_of_a_standardised_brain_becomes_lowest(volume):
    brain = np.zeros((14, 16, 18), np.float32)
    brain[3:10, 3:11, 3:12] = volume - 0.5
    moved = background_to_lowest(brain)
    assert moved[0, 0, 0] == brain.min() < 0
    np.testing.assert_array_equal(moved[3:10, 3:11, 3:12], volume - 0.5)
    for same in (volume, brain - brain.min() * (brain != 0)):
        assert background_to_lowest(same) is same


def test_extracted_brain_is_not_extracted_again():
    head = made_head(5, pose=random_affine(5, degrees=5, scale=0.0), extracted=True)
    result = preprocess_image(head.image, PreprocessParams(resolution_mm=3.0), "brain")
    assert "brain extraction skipped: input is already brain-extracted" in result.steps
    assert any(step.startswith("air quality not measured") for step in result.steps)
    assert not {"qc_air", "qc_ghost"} & set(result.qc)
    assert {"qc_edge", "qc_dark", "qc_jump", "qc_symmetry"} <= set(result.qc)
