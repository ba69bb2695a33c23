"""Faults of disks, locks, clocks and inputs while a study runs: the same results in the end, or a clear refusal."""

import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import pytest
from made_head import made_head
from test_run_all import RESULTS, children, gone, outputs, ran, wait_for
from throwaway import run, start

from adlib.audit.similarity import pixel_facts
from adlib.preprocess.cohort_run import preprocess_cohort
from adlib.sources.reading import read_source
from adlib.study.params import validate_params

ONE_MIB = 2**20


@contextmanager
def small_disk(folder, size=64 * ONE_MIB, *options):
    """A separate file system of so many bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    what = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "adlib-test", str(folder)]
    if subprocess.run(what, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.studies
def test_full_disk_stops_the_study_which_then_resumes(done, project):
    with small_disk(project / "outputs") as disk:
        ballast = disk / "ballast"
        process = start(project, SLOW="1")
        wait_for(disk / "tiny" / "derivatives" / "0.txt")
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=4k"], capture_output=True)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (1, 3) and "No space left on device" in errors
        assert len(errors.splitlines()) < 40
        ballast.unlink()
        again = run(project)
        assert again.returncode == 0 and ran(again)[-1] == "03_evaluation"
        assert outputs(project) == outputs(done)
        assert not [path for path in disk.rglob("*") if path.name.startswith(".part-")]


def test_a_folder_that_cannot_be_written_is_refused_at_once(project):
    with small_disk(project / "outputs", ONE_MIB, "ro"):
        refused = run(project)
    assert refused.returncode == 3 and "Read-only file system" in refused.stderr
    assert "exec.outputs" in refused.stderr and "Traceback" not in refused.stderr


def test_images_on_a_read_only_disk_are_read(tmp_path):
    with small_disk(tmp_path / "images", 32 * ONE_MIB) as images:
        anat = images / "sub-01" / "anat"
        anat.mkdir(parents=True)
        nib.save(made_head(8, voxel_mm=(3.0, 3.0, 3.0)).image, anat / "sub-01_T1w.nii.gz")
        (images / "participants.tsv").write_text("participant_id\tdiagnosis\nsub-01\tCN\n")
        (images / "dataset_description.json").write_text('{"Name": "made", "BIDSVersion": "1.10.0"}')
        subprocess.run(["mount", "-o", "remount,ro", str(images)], check=True)
        assert not os.access(images, os.W_OK)
        study = {"study": "t", "source": {"kind": "bids", "root": str(images)}, "preprocess": {"resolution_mm": 3.0}}
        params = validate_params(study | {"exec": {"outputs": str(tmp_path / "out"), "workers": 1}}, "test")
        listed = read_source(params)
        assert pixel_facts(listed, pool=params.pool).notna().any(axis=None)
        assert preprocess_cohort(listed, params)["qc_verdict"].tolist() == ["pass"]


def at_work(project):
    """The run of a project in the middle of a step that has read the manifest, and that manifest."""
    manifest = project / "outputs" / "tiny" / "manifest.tsv"
    shutil.rmtree(manifest.parent / "derivatives")
    process = start(project, SLOW="1")
    wait_for(manifest.parent / "derivatives" / "1.txt")
    return process, manifest


@pytest.mark.studies
@pytest.mark.parametrize("deleted", [False, True])
def test_input_that_changes_in_a_step_is_read_again(done, finished, deleted):
    process, manifest = at_work(finished)
    kept = manifest.read_text()
    if deleted:
        manifest.unlink()
    else:
        manifest.write_text("7")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "manifest.tsv" + ("" if deleted else " changed while 02_preprocessing was at work") in errors
    if not deleted:
        manifest.write_text(kept)
    again = run(finished)
    assert again.returncode == 0 and "02_preprocessing" in ran(again)
    assert outputs(finished) == outputs(done)


@pytest.mark.studies
@pytest.mark.parametrize("days", [-3650, 3650])
def test_a_clock_that_jumps_makes_nothing_run_and_hides_nothing(done, finished, days):
    folder = finished / "outputs" / "tiny"
    moment = time.time() + days * 86400
    for name in RESULTS:
        os.utime(folder / name, (moment, moment))
    assert ran(run(finished)) == []
    (folder / "features.tsv").write_text("17")
    os.utime(folder / "features.tsv", (moment, moment))
    again = run(finished)
    assert again.returncode == 0 and "02_preprocessing" in ran(again)
    assert outputs(finished) == outputs(done)


@pytest.fixture
def on(finished):
    """The environment of a computer whose locks do not reach others; the study that has run is to run again."""
    shutil.rmtree(finished / "outputs" / "tiny" / "derivatives")
    (finished / "sitecustomize.py").write_text(
        "import fcntl, os, socket\nfcntl.flock = lambda *_: None\nsocket.gethostname = lambda: os.environ['HOST']\n"
    )
    return lambda name: {"HOST": name, "PYTHONPATH": str(finished), "SLOW": "1.5"}


@pytest.mark.studies
def test_study_without_its_claim_stops_with_its_kernel(done, finished, on):
    process = start(finished, **on("first") | {"SLOW": "6"})
    claim = finished / "outputs" / "tiny" / ".running"
    wait_for(claim.parent / "derivatives" / "0.txt")
    kernels = children(process.pid)
    claim.unlink()
    claim.write_text("filelock/2\npid=7\nhost=second\nmode=lease\n")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3 and "another run (second, process 7) took over outputs/tiny" in errors
    assert kernels and gone(kernels) and not (claim.parent / "derivatives" / "4.txt").exists()
    assert "host=second" in claim.read_text()
    claim.unlink()
    again = run(finished)
    assert again.returncode == 0 and outputs(finished) == outputs(done)


def test_what_a_killed_writer_left_is_cleared_away(done, finished):
    folder = finished / "outputs" / "tiny"
    left = [folder / ".part-1a2b-features.tsv", folder / "derivatives" / ".part-3c4d-0.txt"]
    for path in left:
        path.write_text("half")
    assert ran(run(finished)) == []
    assert not any(path.exists() for path in left) and outputs(finished) == outputs(done)


def test_each_test_that_the_table_of_faults_names_exists():
    here = Path(__file__).parents[1]
    texts = {path.name: path.read_text() for path in here.rglob("test_*.py")}
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (here.parent / "docs" / "faults.md").read_text())
    assert len(named) > 20
    assert [one for one in named if f"def {one[1]}(" not in texts.get(one[0], "")] == []
