"""Brain extraction by another program, with small programs that stand in for it."""

import sys

import nibabel as nib
import numpy as np
import pytest
from made_head import made_head

from adlib.parallel.threads import one_thread
from adlib.preprocess.brain import external_mask
from adlib.preprocess.pipeline import preprocess_image
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
import argparse
import nibabel as nib
parser = argparse.ArgumentParser()
for name in ("-i", "-o", "-device"):
    parser.add_argument(name, required=True)
parser.add_argument("--disable_tta", action="store_true", required=True)
parser.add_argument("--save_bet_mask", action="store_true", required=True)
options = parser.parse_args()
image = nib.load(options.i)
mask = nib.Nifti1Image((image.get_fdata() > 0.5).astype("uint8"), image.affine)
nib.save(mask, options.o.removesuffix(".nii.gz") + "_bet.nii.gz")
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
def test_the_mask_is_the_programs(install, volume, tool, name, code):
    install(name, code)
    np.testing.assert_array_equal(external_mask(volume, AFFINE, tool, "a scan"), volume > 0.5)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("#!{python}\nimport sys; sys.exit('no GPU')", r"a scan: .* failed with exit code 1: no GPU"),
        ("#!{python}", "exited with 0 but wrote no mask"),
        (SYNTHSTRIP.replace("> 0.5", "> 2"), "found no brain"),
        (
            SYNTHSTRIP.replace("image.get_fdata()", "image.get_fdata()[1:]"),
            r"has shape \(6, 8, 9\), the scan \(7, 8, 9\)",
        ),
        ("#!{python}\nimport sys; open(sys.argv[4], 'w').write('x')", "cannot be read"),
        ("#!/nowhere", "cannot be run"),
    ],
)
def test_a_program_that_does_not_do_its_work_is_named(install, volume, code, words):
    install("mri_synthstrip", code)
    with pytest.raises(StudyError, match=words):
        external_mask(volume, AFFINE, "synthstrip", "a scan")


def test_a_program_that_was_killed_is_to_be_tried_again(install, volume):
    install("mri_synthstrip", "#!{python}\nimport os; os.kill(os.getpid(), 9)")
    with pytest.raises(TryAgain, match="a scan: mri_synthstrip was killed by signal 9"):
        external_mask(volume, AFFINE, "synthstrip", "a scan")


def test_a_program_that_is_not_installed_is_named(install, volume):
    with pytest.raises(TryAgain, match="'hd-bet' is not on the PATH; install it"):
        external_mask(volume, AFFINE, "hd-bet", "a scan")


def test_the_pipeline_takes_the_programs_brain(install, tmp_path):
    head = made_head(7, voxel_mm=(3.0, 3.0, 3.0))
    nib.save(nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine), tmp_path / "truth.nii.gz")
    install(
        "mri_synthstrip",
        f"#!{{python}}\nimport shutil, sys; shutil.copy({str(tmp_path / 'truth.nii.gz')!r}, sys.argv[4])",
    )
    with one_thread():
        found = preprocess_image(head.image, PreprocessParams(resolution_mm=3.0, brain_extraction="synthstrip"), "made")
    assert "brain extraction: synthstrip" in found.steps
    volume_ml = found.mask.sum() * 27 / 1000 / abs(np.linalg.det(found.scan_to_mni[:3, :3]))
    assert volume_ml == pytest.approx(head.mask.sum() * 27 / 1000, rel=0.03)
