"""Preprocessing to files: names, checksums, reuse, and scans that fail or are tried again."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from made_head import made_head

from adlib.preprocess import cohort_run
from adlib.preprocess.cohort_run import load_complete, preprocess_cohort, preprocess_scan
from adlib.preprocess.derivatives import load_preprocessed
from adlib.preprocess.pipeline import preprocess_image
from adlib.study.params import PreprocessParams, validate_params
from adlib.study.records import FEATURES, LOST, StudyError, TryAgain, file_digest, read_json, read_table

PARAMS = PreprocessParams(resolution_mm=3.0)
STEM = "sub-01_ses-01_space-MNI152NLin2009aSym"


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scans") / "sub-01_ses-01_T1w.nii.gz"
    nib.save(made_head(8, voxel_mm=(3.0, 3.0, 3.0)).image, path)
    return row(path, "01")


def row(path, subject):
    ids = {"participant_id": f"sub-{subject}", "session_id": "ses-01", "scan_id": f"sub-{subject}_ses-01_T1w"}
    return {**ids, "path": str(path), "sha256": file_digest(path), "diagnosis": "CN", "space": None}


@pytest.fixture(scope="module")
def computed(scan):
    return preprocess_image(nib.load(scan["path"]), PARAMS, scan["scan_id"])


@pytest.fixture(scope="module")
def done(scan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("derivatives")
    return folder, preprocess_scan(scan, folder, PARAMS, "code")


@pytest.fixture
def folder(done, tmp_path):
    """A copy of the derivatives of a finished scan."""
    return shutil.copytree(done[0], tmp_path / "derivatives")


@pytest.fixture
def study(tmp_path):
    def params(**sections):
        content = {"study": "t", "source": {"kind": "phantom"}, "preprocess": {"resolution_mm": 3.0}, "exec": {}}
        content |= sections
        content["exec"] = {"outputs": str(tmp_path / "out"), "workers": 1} | content["exec"]
        return validate_params(content, "test")

    return params


def refuse_computing(monkeypatch):
    monkeypatch.setattr(cohort_run, "preprocess_image", lambda *_, **__: pytest.fail("computed again"))


def test_files_hold_what_was_computed(scan, computed, done):
    folder, sidecar = done
    stored = load_preprocessed(scan, folder)
    assert np.abs(stored.t1w - computed.t1w).max() < 1e-3
    np.testing.assert_array_equal(stored.mask, computed.mask)
    assert np.abs(stored.tissues - computed.tissues).max() < 0.003
    np.testing.assert_allclose(stored.scan_to_mni, computed.scan_to_mni)
    assert stored.features == computed.features == sidecar["features"]
    assert sidecar["Sources"] == [scan["path"]] and sidecar["source_sha256"] == scan["sha256"]
    assert (folder / "sub-01" / "ses-01" / "anat" / f"{STEM}_desc-preproc_T1w.nii.gz").is_file()


@pytest.mark.parametrize(
    ("change", "params", "code", "expected"),
    [
        ({}, PARAMS, "code", 0),
        ({}, PARAMS, "other code", 1),
        ({"sha256": "other bytes"}, PARAMS, "code", 1),
        ({}, PARAMS.model_copy(update={"normalise": "white_matter_peak"}), "code", 1),
    ],
)
def test_only_another_key_computes_again(scan, computed, done, folder, monkeypatch, change, params, code, expected):
    calls = []
    monkeypatch.setattr(cohort_run, "preprocess_image", lambda *a, **_: calls.append(a) or computed)
    sidecar = preprocess_scan(scan | change, folder, params, code)
    assert len(calls) == expected
    assert (sidecar == done[1]) == (expected == 0)


def test_runs_write_same_bytes_and_damage_is_detected(scan, done, tmp_path):
    folder, sidecar = done
    assert preprocess_scan(scan, tmp_path, PARAMS, "code") == sidecar
    first, second = ({p.name: file_digest(p) for p in f.rglob("*") if p.is_file()} for f in (folder, tmp_path))
    assert first == second and len(first) == 6
    mask = next(tmp_path.rglob("*_mask.nii.gz"))
    mask.write_bytes(mask.read_bytes()[:-20])
    with pytest.raises(StudyError, match="differs from its checksum"):
        load_preprocessed(scan, tmp_path)
    assert preprocess_scan(scan, tmp_path, PARAMS, "code") == sidecar
    assert {p.name: file_digest(p) for p in tmp_path.rglob("*") if p.is_file()} == first


@pytest.mark.parametrize(
    "edit", [lambda text: text.replace('"gm_ml": ', '"gm_ml": 1'), lambda _: "null", lambda t: t[:99]]
)
def test_changed_sidecar_is_detected(scan, done, folder, edit):
    sidecar = next(folder.rglob("*_T1w.json"))
    text = sidecar.read_text()
    sidecar.write_text(edit(text))
    with pytest.raises(StudyError, match=r"_T1w.json (was changed since|is not readable JSON)"):
        load_preprocessed(scan, folder)
    assert preprocess_scan(scan, folder, PARAMS, "code") == done[1]
    assert sidecar.read_text() == text


def test_cohort_continues_after_bad_scans(scan, study, tmp_path):
    truncated, text = tmp_path / "truncated.nii.gz", tmp_path / "text.nii.gz"
    truncated.write_bytes(Path(scan["path"]).read_bytes()[:30000])
    text.write_text("not an image")
    manifest = pd.DataFrame([scan, row(truncated, "02"), row(text, "03"), row(text, "04") | {"path": "gone.nii.gz"}])
    params = study()
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


@pytest.mark.studies
def test_scan_of_a_killed_worker_is_tried_again(scan, study, monkeypatch):
    manifest = pd.DataFrame([scan, row(scan["path"], "02")])
    params = study(exec={"workers": 2, "retries": 0})
    monkeypatch.setattr(cohort_run, "preprocess_scan", deadly_two)
    features = preprocess_cohort(manifest, params)
    assert features["qc_verdict"].tolist() == ["pass", "fail"]
    assert "the next run tries again" in features.loc[1, "qc_reasons"]
    assert list(read_json(params.folder / LOST)) == ["sub-02_ses-01_T1w"]
    before = {path: path.stat().st_mtime_ns for path in params.folder.rglob("*.*") if path.is_file()}
    monkeypatch.undo()
    assert preprocess_cohort(manifest, params)["qc_verdict"].tolist() == ["pass", "pass"]
    assert not (params.folder / LOST).exists()
    changed = {path for path, when in before.items() if path.exists() and path.stat().st_mtime_ns != when}
    assert changed == {params.folder / "features.tsv"}


def test_unexpected_error_fails_one_scan(scan, tmp_path, monkeypatch):
    monkeypatch.setattr(cohort_run, "preprocess_image", Mock(side_effect=RuntimeError("ITK: out of range")))
    sidecar = preprocess_scan(scan, tmp_path, PARAMS, "code")
    assert sidecar["verdict"] == "fail" and sidecar["reasons"] == ["unexpected RuntimeError: ITK: out of range"]


DISK = OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("target", "name", "error"),
    [
        (cohort_run, "preprocess_image", MemoryError("no room for 300 MiB")),
        (cohort_run, "preprocess_image", DISK),
        (cohort_run, "preprocess_image", TryAgain("killed")),
        (nib.Nifti1Image, "get_fdata", DISK),
    ],
)
def test_passing_failure_is_not_stored_and_tried_again(scan, done, tmp_path, monkeypatch, target, name, error):
    with monkeypatch.context() as patch:
        patch.setattr(target, name, Mock(side_effect=error))
        sidecar = preprocess_scan(scan, tmp_path, PARAMS, "code")
    assert sidecar["verdict"] == "fail" and "the next run tries again" in sidecar["reasons"][0]
    assert str(error) in sidecar["lost"] and not list(tmp_path.rglob("*.json"))
    assert preprocess_scan(scan, tmp_path, PARAMS, "code") == done[1]


def test_missing_file_loses_no_result(scan, done, folder, tmp_path, monkeypatch):
    path = Path(shutil.copy(scan["path"], tmp_path / "here.nii.gz"))
    refuse_computing(monkeypatch)
    path.rename(tmp_path / "away")
    sidecar = preprocess_scan(scan | {"path": str(path)}, folder, PARAMS, "code")
    assert "here.nii.gz does not exist" in sidecar["lost"]
    (tmp_path / "away").rename(path)
    assert preprocess_scan(scan | {"path": str(path)}, folder, PARAMS, "code") == done[1]


def test_cohort_without_any_file_stops_and_keeps_results(scan, study, tmp_path):
    path = Path(shutil.copy(scan["path"], tmp_path / "here.nii.gz"))
    params, manifest = study(), pd.DataFrame([row(path, "01")])
    preprocess_cohort(manifest, params)
    before = {file: file.read_bytes() for file in params.folder.rglob("*.*")}
    path.rename(tmp_path / "away")
    with pytest.raises(StudyError, match=r"none of the 1 scans .*here.nii.gz does not exist.*run again"):
        preprocess_cohort(manifest, params)
    assert {file: file.read_bytes() for file in params.folder.rglob("*.*")} == before


def test_changed_file_is_computed_again(scan, tmp_path):
    path = Path(shutil.copy(scan["path"], tmp_path / "changing.nii.gz"))
    manifest_row = row(path, "06")
    nib.save(made_head(9, voxel_mm=(3.0, 3.0, 3.0)).image, path)
    wrong = preprocess_scan(manifest_row, tmp_path, PARAMS, "code")
    shutil.copy(scan["path"], path)
    right = preprocess_scan(manifest_row, tmp_path, PARAMS, "code")
    assert wrong["key"] == right["key"] and wrong["features"] != right["features"]


def test_file_that_changes_while_read_is_tried_again(scan, computed, tmp_path, monkeypatch):
    path = Path(shutil.copy(scan["path"], tmp_path / "changing.nii.gz"))

    def change(*_, **__):
        path.write_bytes(path.read_bytes() + b" ")
        return computed

    monkeypatch.setattr(cohort_run, "preprocess_image", change)
    sidecar = preprocess_scan(row(path, "07"), tmp_path, PARAMS, "code")
    assert sidecar["verdict"] == "fail" and "changed while it was read" in sidecar["reasons"][0]
    assert not list(tmp_path.rglob("*_T1w.json"))


def test_fewer_kept_images_need_no_computing(scan, done, folder, computed, monkeypatch):
    full, images = done[1], folder / "sub-01" / "ses-01" / "anat"
    head, tissues = images / f"{STEM}_desc-head_T1w.nii.gz", images / f"{STEM}_probseg.nii.gz"
    with monkeypatch.context() as patch:
        refuse_computing(patch)
        fewer = preprocess_scan(scan, folder, PARAMS, "code", keep=("tissues",))
        assert preprocess_scan(scan, folder, PARAMS, "code", keep=("tissues",)) == fewer
    assert not head.exists() and tissues.is_file()
    assert set(full["outputs"]) - set(fewer["outputs"]) == {head.name}
    stored = load_preprocessed(scan, folder)
    assert stored.native is None and stored.tissues is not None and stored.features == full["features"]
    monkeypatch.setattr(cohort_run, "preprocess_image", lambda *_, **__: computed)
    assert preprocess_scan(scan, folder, PARAMS, "code")["outputs"] == full["outputs"] and head.is_file()
    bare = preprocess_scan(scan, folder, PARAMS, "other code", keep=())
    assert not head.exists() and not tissues.exists() and len(bare["outputs"]) == len(full["outputs"]) - 2


def test_images_not_kept_are_computed_on_demand(scan, computed, study):
    params = study(derivatives={"keep": []}, train={"controls": []})
    preprocess_cohort(pd.DataFrame([scan]), params)
    complete, derivatives = load_complete(scan, params), params.folder / "derivatives"
    np.testing.assert_array_equal(complete.tissues, computed.tissues)
    np.testing.assert_array_equal(complete.native, computed.native)
    assert load_preprocessed(scan, derivatives).native is None
    assert not [*params.folder.rglob("*head*"), *params.folder.rglob("*probseg*")]
