"""What a study will write is known before it begins, and a disk without room for it is refused."""

import shutil
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest

from adlib.preprocess.cohort_run import preprocess_cohort
from adlib.sources.reading import read_source
from adlib.study.params import load_params
from adlib.study.records import FEATURES, MANIFEST, StudyError, write_table
from adlib.study.steps import SPARE, STEPS, StepState, expected_bytes
from adlib.training import slices as dataset
from adlib.training.slices import build_slices, load_slices

SMALL = ("source.participants_per_class=1", "source.followup_fraction=0", "exec.workers=1")
Usage = namedtuple("Usage", "total used free")


def params_in(folder, *sets):
    return load_params("params/smoke.yaml", (*SMALL, f"exec.outputs={folder}", *sets))


def write_scans(params, names):
    table = pd.DataFrame({"participant_id": names, "session_id": "ses-1", "scan_id": names, "path": names})
    write_table(table.assign(sha256="0", diagnosis="CN"), params.folder / "manifest.tsv", MANIFEST)
    write_table(table.assign(qc_verdict="pass"), params.folder / "features.tsv", FEATURES)


def written_bytes(folder):
    return sum(path.stat().st_size for path in [folder, *folder.rglob("*")] if path.is_file())


@pytest.mark.studies
def test_predicted_size_is_near_the_written_size(tmp_path):
    params = params_in(tmp_path)
    manifest = write_table(read_source(params), params.folder / "manifest.tsv", MANIFEST)
    preprocess_cohort(manifest, params)
    build_slices(params)
    for name in ("source", "derivatives", "slices.npy"):
        written = written_bytes(params.folder / name)
        assert 0.7 * written < expected_bytes(params)[name] < 1.6 * written, name
    fewer = params_in(tmp_path, "derivatives.keep=[]", "train.controls=[]")
    preprocess_cohort(manifest, fewer)
    written = written_bytes(params.folder / "derivatives")
    assert 0.7 * written < expected_bytes(fewer)["derivatives"] < 1.6 * written


def test_slices_in_parts_equal_slices_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_slices_of", lambda scan, **_: np.full((2, 3, 64, 64), int(scan["scan_id"][-2:])))
    params = params_in(tmp_path, "input.positions_mm=[-20.0, 0.0]", "input.size=64")
    write_scans(params, [f"sub-{k:02d}" for k in range(11)])
    stored = []
    for together in (100, 4):
        monkeypatch.setattr(dataset, "TOGETHER", together)
        build_slices(params)
        stored.append((params.folder / "slices.npy").read_bytes())
    slices, rows = load_slices(params)
    assert stored[0] == stored[1] and slices.dtype == np.float16
    assert [int(values[0, 0, 0]) for values in slices] == [int(name[-2:]) for name in rows["scan_id"]]


def test_full_disk_is_refused_and_existing_files_count(tmp_path, monkeypatch):
    params = params_in(tmp_path, "source.participants_per_class=100")
    params.folder.mkdir(parents=True)
    size = expected_bytes(params)["source"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0.9 * SPARE * size))
    with pytest.raises(StudyError, match=r"source of this study need about .* GiB more.*exec.outputs"):
        StepState(STEPS[0], params).require_room()
    (params.folder / "source").mkdir()
    (params.folder / "source" / "some.nii").write_bytes(bytes(int(0.2 * size)))
    StepState(STEPS[0], params).require_room()


def test_expected_scans_come_from_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    state = StepState(STEPS[1], load_params("params/bids.yaml", ("source.root=.", f"exec.outputs={tmp_path}")))
    state.require_room()
    write_scans(state.params, [f"sub-{k}" for k in range(3)])
    with pytest.raises(StudyError, match=r"derivatives, slices\.npy of this study need .* 0\.00 GiB left"):
        state.require_room()


def test_each_predicted_part_is_written_by_one_step(tmp_path):
    params = load_params("params/phantom.yaml", (f"exec.outputs={tmp_path}",))
    written = [name for step in STEPS for name in (*step.writes, *step.may_write)]
    assert all(written.count(name) == 1 for name in expected_bytes(params))
    fewer = load_params("params/phantom.yaml", (f"exec.outputs={tmp_path}", "derivatives.keep=[]", "train.controls=[]"))
    assert expected_bytes(fewer)["derivatives"] < 0.4 * expected_bytes(params)["derivatives"]
