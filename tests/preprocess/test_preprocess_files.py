"""What preprocessing leaves on disk: names, sums, reuse, and scans that fail."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from made_head import made_head

from adlib.parallel.threads import one_thread
from adlib.preprocess import cohort_run as cohort
from adlib.preprocess.cohort_run import preprocess_cohort, preprocess_scan
from adlib.preprocess.derivatives import load_preprocessed, load_t1w
from adlib.preprocess.pipeline import preprocess_image
from adlib.study.params import PreprocessParams, load_params, validate_params
from adlib.study.records import FEATURES, LOST, StudyError, TryAgain, file_digest, read_json, read_table

PARAMS = PreprocessParams(resolution_mm=3.0)
STEM = "sub-01_ses-01_space-MNI152NLin2009aSym"


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scans") / "sub-01_ses-01_T1w.nii.gz"
    nib.save(made_head(7, voxel_mm=(3.0, 3.0, 3.0)).image, path)
    return row(path, "01")


def row(path, who):
    who = {"participant_id": f"sub-{who}", "session_id": "ses-01", "scan_id": f"sub-{who}_ses-01_T1w"}
    return {**who, "path": str(path), "sha256": file_digest(path), "diagnosis": "CN", "space": None}


@pytest.fixture(scope="module")
def computed(scan):
    with one_thread():
        return preprocess_image(nib.load(scan["path"]), PARAMS, scan["scan_id"])


@pytest.fixture(scope="module")
def done(scan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("derivatives")
    with one_thread():
        return folder, preprocess_scan(scan, folder, PARAMS, "code")


def test_what_is_written_is_what_was_computed(scan, computed, done):
    folder, sidecar = done
    stored = load_preprocessed(scan, folder)
    assert np.abs(stored.t1w - computed.t1w).max() < 1e-3
    np.testing.assert_array_equal(stored.mask, computed.mask)
    assert np.abs(stored.tissues - computed.tissues).max() < 0.003
    np.testing.assert_allclose(stored.scan_to_mni, computed.scan_to_mni)
    assert stored.features == computed.features == sidecar["features"]
    assert sidecar["Sources"] == [scan["path"]] and sidecar["source_sha256"] == scan["sha256"]
    assert (folder / "sub-01" / "ses-01" / "anat" / f"{STEM}_desc-preproc_T1w.nii.gz").is_file()


def test_a_finished_scan_is_not_computed_again(scan, done, monkeypatch):
    folder, sidecar = done
    monkeypatch.setattr(cohort, "preprocess_image", lambda *_, **__: pytest.fail("computed again"))
    assert preprocess_scan(scan, folder, PARAMS, "code") == sidecar


@pytest.mark.parametrize(
    ("change", "params", "code"),
    [
        ({}, PARAMS, "other code"),
        ({"sha256": "other bytes"}, PARAMS, "code"),
        ({}, PARAMS.model_copy(update={"normalise": "white_matter_peak"}), "code"),
    ],
)
def test_another_key_computes_again(scan, computed, done, tmp_path, monkeypatch, change, params, code):
    folder, _ = done
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    calls = []
    monkeypatch.setattr(cohort, "preprocess_image", lambda *a, **_: calls.append(a) or computed)
    preprocess_scan(scan, tmp_path, PARAMS, "code")
    assert len(calls) == 0
    preprocess_scan(scan | change, tmp_path, params, code)
    assert len(calls) == 1


def test_two_runs_write_the_same_bytes_and_damage_is_noticed(scan, done, tmp_path):
    folder, sidecar = done
    with one_thread():
        again = preprocess_scan(scan, tmp_path, PARAMS, "code")
    assert again == sidecar
    first, second = ({p.name: file_digest(p) for p in f.rglob("*") if p.is_file()} for f in (folder, tmp_path))
    assert first == second and len(first) == 6
    mask = next(tmp_path.rglob("*_mask.nii.gz"))
    mask.write_bytes(mask.read_bytes()[:-20])
    with pytest.raises(StudyError, match=r"differs from its checksum"):
        load_preprocessed(scan, tmp_path)
    with one_thread():
        assert preprocess_scan(scan, tmp_path, PARAMS, "code") == sidecar
    assert {p.name: file_digest(p) for p in tmp_path.rglob("*") if p.is_file()} == first


def test_a_cohort_goes_on_without_its_bad_scans(scan, tmp_path):
    truncated = tmp_path / "truncated.nii.gz"
    truncated.write_bytes(Path(scan["path"]).read_bytes()[:30000])
    text = tmp_path / "text.nii.gz"
    text.write_text("not an image")
    manifest = pd.DataFrame([scan, row(truncated, "02"), row(text, "03"), row(text, "04") | {"path": "gone.nii.gz"}])
    study = {"study": "t", "source": {"kind": "phantom"}, "preprocess": {"resolution_mm": 3.0}}
    params = validate_params(study | {"exec": {"outputs": str(tmp_path / "out"), "workers": 1}}, "test")
    features = preprocess_cohort(manifest, params)
    assert features["qc_verdict"].tolist() == ["pass", "fail", "fail", "fail"]
    reasons = features["qc_reasons"].tolist()
    assert "damaged" in reasons[1] and "cannot be read as an image" in reasons[2] and "does not exist" in reasons[3]
    assert pd.isna(reasons[0])
    assert features.loc[0, "gm_ml"] > 400 and np.isnan(features.loc[1, "gm_ml"])
    pd.testing.assert_frame_equal(read_table(params.folder / "features.tsv", FEATURES), features, check_dtype=False)
    description = json.loads((params.folder / "derivatives" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    with pytest.raises(StudyError, match=r"sub-02_ses-01_T1w has no images: .*damaged"):
        load_preprocessed(manifest.iloc[1].to_dict(), params.folder / "derivatives")


def deadly_two(scan, **settings):
    if scan["participant_id"] == "sub-02":
        os.kill(os.getpid(), signal.SIGKILL)
    return preprocess_scan(scan, **settings)


def test_a_scan_that_its_worker_dies_of_fails_alone_and_is_tried_again(scan, tmp_path, monkeypatch):
    manifest = pd.DataFrame([scan, row(scan["path"], "02")])
    limits = {"outputs": str(tmp_path / "out"), "workers": 2, "retries": 0}
    study = {"study": "t", "source": {"kind": "phantom"}, "preprocess": {"resolution_mm": 3.0}, "exec": limits}
    params = validate_params(study, "test")
    monkeypatch.setattr(cohort, "preprocess_scan", deadly_two)
    features = preprocess_cohort(manifest, params)
    assert features["qc_verdict"].tolist() == ["pass", "fail"]
    assert "its worker process died; the next run tries again" in features.loc[1, "qc_reasons"]
    assert list(read_json(params.folder / LOST)) == ["sub-02_ses-01_T1w"]
    kept = {path: path.stat().st_mtime_ns for path in params.folder.rglob("*.*") if path.is_file()}
    monkeypatch.undo()
    assert preprocess_cohort(manifest, params)["qc_verdict"].tolist() == ["pass", "pass"]
    assert not (params.folder / LOST).exists()
    again = {path for path, when in kept.items() if path.exists() and path.stat().st_mtime_ns != when}
    assert again == {params.folder / "features.tsv"}


def test_an_unexpected_error_fails_one_scan_only(scan, tmp_path, monkeypatch):
    def explode(*_, **__):
        raise RuntimeError("ITK: out of range")

    monkeypatch.setattr(cohort, "preprocess_image", explode)
    sidecar = preprocess_scan(scan, tmp_path, PARAMS, "code")
    assert sidecar["verdict"] == "fail" and sidecar["reasons"] == ["unexpected RuntimeError: ITK: out of range"]


@pytest.mark.parametrize(
    "error", [MemoryError("no room for 300 MiB"), OSError(errno.EIO, "Input/output error"), TryAgain("killed")]
)
def test_what_is_not_the_scans_fault_is_not_stored_and_tried_again(scan, done, tmp_path, monkeypatch, error):
    def explode(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "preprocess_image", explode)
        found = preprocess_scan(scan, tmp_path, PARAMS, "code")
    assert found["verdict"] == "fail" and "the next run tries again" in found["reasons"][0]
    assert str(error) in found["lost"] and not list(tmp_path.rglob("*.json"))
    with one_thread():
        assert preprocess_scan(scan, tmp_path, PARAMS, "code") == done[1]


def test_a_disk_that_fails_in_the_middle_of_a_file_is_not_the_files_fault(scan, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(nib.Nifti1Image, "get_fdata", broken)
        assert "Input/output error" in preprocess_scan(scan, tmp_path, PARAMS, "code")["lost"]
    assert not list(tmp_path.rglob("*.json"))


def test_a_result_is_kept_while_its_file_is_away(scan, done, tmp_path, monkeypatch):
    folder = tmp_path / "derivatives"
    shutil.copytree(done[0], folder)
    path = Path(shutil.copy(scan["path"], tmp_path / "here.nii.gz"))
    here = scan | {"path": str(path)}
    monkeypatch.setattr(cohort, "preprocess_image", lambda *_, **__: pytest.fail("computed again"))
    path.rename(tmp_path / "away")
    assert "here.nii.gz does not exist" in preprocess_scan(here, folder, PARAMS, "code")["lost"]
    (tmp_path / "away").rename(path)
    assert preprocess_scan(here, folder, PARAMS, "code") == done[1]


def test_a_cohort_of_which_no_file_is_there_stops_and_loses_nothing(scan, tmp_path):
    path = Path(shutil.copy(scan["path"], tmp_path / "here.nii.gz"))
    study = {"study": "t", "source": {"kind": "phantom"}, "preprocess": {"resolution_mm": 3.0}}
    params = validate_params(study | {"exec": {"outputs": str(tmp_path / "out"), "workers": 1}}, "test")
    manifest = pd.DataFrame([row(path, "01")])
    preprocess_cohort(manifest, params)
    before = {file: file.read_bytes() for file in params.folder.rglob("*.*")}
    path.rename(tmp_path / "away")
    with pytest.raises(StudyError, match=r"none of the 1 scans .*here.nii.gz does not exist.*run again"):
        preprocess_cohort(manifest, params)
    assert {file: file.read_bytes() for file in params.folder.rglob("*.*")} == before


@pytest.mark.parametrize(
    "edit", [lambda text: text.replace('"gm_ml": ', '"gm_ml": 1'), lambda _: "null", lambda t: t[:99]]
)
def test_a_sidecar_that_was_changed_is_not_believed(scan, done, tmp_path, edit):
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    sidecar = next(tmp_path.rglob("*_T1w.json"))
    text = sidecar.read_text()
    sidecar.write_text(edit(text))
    assert sidecar.read_text() != text
    with pytest.raises(StudyError, match=r"_T1w.json (was changed since|is not readable JSON)"):
        load_preprocessed(scan, tmp_path)
    with one_thread():
        assert preprocess_scan(scan, tmp_path, PARAMS, "code") == done[1]
    assert sidecar.read_text() == text


def test_a_file_that_comes_back_is_tried_again(scan, tmp_path):
    path = tmp_path / "away.nii.gz"
    shutil.copy(scan["path"], path)
    one = row(path, "05")
    path.rename(tmp_path / "elsewhere")
    with one_thread():
        assert "does not exist" in preprocess_scan(one, tmp_path, PARAMS, "code")["reasons"][0]
        assert "does not exist" in preprocess_scan(one, tmp_path, PARAMS, "code")["reasons"][0]
        (tmp_path / "elsewhere").rename(path)
        assert preprocess_scan(one, tmp_path, PARAMS, "code")["verdict"] == "pass"


def test_what_was_made_of_other_bytes_is_not_used_though_the_manifest_names_the_right_ones(scan, tmp_path):
    path = tmp_path / "changing.nii.gz"
    shutil.copy(scan["path"], path)
    one = row(path, "06")
    nib.save(made_head(8, voxel_mm=(3.0, 3.0, 3.0)).image, path)
    with one_thread():
        wrong = preprocess_scan(one, tmp_path, PARAMS, "code")
        shutil.copy(scan["path"], path)
        right = preprocess_scan(one, tmp_path, PARAMS, "code")
    assert wrong["key"] == right["key"] and wrong["features"] != right["features"]


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_run(scan, tmp_path, monkeypatch):
    path = tmp_path / "changing.nii.gz"
    shutil.copy(scan["path"], path)

    def meanwhile(*arguments, **more):
        path.write_bytes(path.read_bytes() + b" ")
        return preprocess_image(*arguments, **more)

    one = row(path, "07")
    monkeypatch.setattr(cohort, "preprocess_image", meanwhile)
    with one_thread():
        found = preprocess_scan(one, tmp_path, PARAMS, "code")
    assert found["verdict"] == "fail" and "changed while it was read" in found["reasons"][0]
    assert not list(tmp_path.rglob("*_T1w.json"))


def test_only_the_kept_images_are_stored_and_fewer_need_no_new_computing(scan, tmp_path, monkeypatch):
    with one_thread():
        full = preprocess_scan(scan, tmp_path, PARAMS, "code")
    folder = tmp_path / "sub-01" / "ses-01" / "anat"
    head, tissues = folder / f"{STEM}_desc-head_T1w.nii.gz", folder / f"{STEM}_probseg.nii.gz"
    assert head.is_file() and tissues.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(cohort, "preprocess_image", lambda *_, **__: pytest.fail("computed again"))
        fewer = preprocess_scan(scan, tmp_path, PARAMS, "code", keep=("tissues",))
        assert preprocess_scan(scan, tmp_path, PARAMS, "code", keep=("tissues",)) == fewer
    assert not head.exists() and tissues.is_file()
    assert set(full["outputs"]) - set(fewer["outputs"]) == {head.name}
    stored = load_preprocessed(scan, tmp_path)
    assert stored.native is None and stored.tissues is not None and stored.features == full["features"]
    with one_thread():
        again = preprocess_scan(scan, tmp_path, PARAMS, "code")
    assert head.is_file() and again["outputs"] == full["outputs"]
    with one_thread():
        other = preprocess_scan(scan, tmp_path, PARAMS, "other code", keep=())
    assert not head.exists() and not tissues.exists() and len(other["outputs"]) == len(full["outputs"]) - 2


def test_what_was_not_kept_is_there_when_asked_for(scan, computed, tmp_path):
    sets = (f"exec.outputs={tmp_path}", "preprocess.resolution_mm=3.0", "derivatives.keep=[]", "train.controls=[]")
    params = load_params("params/smoke.yaml", sets)
    with one_thread():
        preprocess_cohort(pd.DataFrame([scan]), params)
        whole = cohort.load_complete(scan, params)
    np.testing.assert_array_equal(whole.tissues, computed.tissues)
    np.testing.assert_array_equal(whole.native, computed.native)
    assert load_preprocessed(scan, params.folder / "derivatives").native is None
    t1w, affine = load_t1w(scan, params.folder / "derivatives")
    np.testing.assert_array_equal(t1w, load_preprocessed(scan, params.folder / "derivatives").t1w)
    np.testing.assert_array_equal(affine, computed.affine)
    assert not list(tmp_path.rglob("*head*")) + list(tmp_path.rglob("*probseg*"))
