"""What a study will write is known before it begins, and a disk without room for it is refused."""

from collections import namedtuple

import numpy as np
import pandas as pd
import pytest

from adlib.preprocess import disk_space as disk
from adlib.preprocess.cohort_run import preprocess_cohort
from adlib.sources.reading import read_source
from adlib.study.params import load_params
from adlib.study.records import FEATURES, MANIFEST, StudyError, write_table
from adlib.study.steps import STEPS
from adlib.training import slices as dataset
from adlib.training.slices import build_slices, load_slices

SMALL = ("source.participants_per_class=1", "source.followup_fraction=0", "exec.workers=1")
Usage = namedtuple("Usage", "total used free")


def params_in(folder, *sets):
    return load_params("params/smoke.yaml", (*SMALL, f"exec.outputs={folder}", *sets))


@pytest.mark.studies
def test_predicted_size_is_near_the_written_size(tmp_path):
    params = params_in(tmp_path)
    manifest = write_table(read_source(params), params.folder / "manifest.tsv", MANIFEST)
    preprocess_cohort(manifest, params)
    build_slices(params)
    predicted = disk.predicted_bytes(params, disk.expected_scans(params))
    for name in ("source", "derivatives", "slices.npy"):
        written = disk._size(params.folder / name)
        assert 0.7 * written < predicted[name] < 1.6 * written, name
    fewer = params_in(tmp_path, "derivatives.keep=[]", "train.controls=[]")
    preprocess_cohort(manifest, fewer)
    written, predicted = disk._size(params.folder / "derivatives"), disk.predicted_bytes(fewer, len(manifest))
    assert 0.7 * written < predicted["derivatives"] < 1.6 * written


def test_slices_in_parts_equal_slices_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_slices_of", lambda scan, **_: np.full((2, 3, 64, 64), int(scan["scan_id"][-2:])))
    params = params_in(tmp_path, "input.positions_mm=[-20.0, 0.0]", "input.size=64")
    names = [f"sub-{k:02d}" for k in range(11)]
    table = pd.DataFrame({"participant_id": names, "session_id": "ses-1", "scan_id": names, "path": names})
    write_table(table.assign(sha256="0", diagnosis="CN"), params.folder / "manifest.tsv", MANIFEST)
    write_table(table.assign(qc_verdict="pass"), params.folder / "features.tsv", FEATURES)
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
    predicted = disk.predicted_bytes(params, 400)
    free = disk.SPARE * predicted["source"]
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(0, 0, free * 0.9))
    with pytest.raises(StudyError, match=r"source of 400 scans will take about .* GiB more.*exec.outputs"):
        disk.require_room(params, ["listing.tsv", "source"])
    (params.folder / "source").mkdir()
    (params.folder / "source" / "some.nii").write_bytes(bytes(int(0.2 * predicted["source"])))
    disk.require_room(params, ["listing.tsv", "source"])


def test_expected_scans_come_from_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    params = load_params("params/bids.yaml", ("source.root=.", f"exec.outputs={tmp_path}"))
    assert disk.expected_scans(params) is None
    disk.require_room(params, ["derivatives"])
    names = [f"sub-{k}" for k in range(3)]
    table = pd.DataFrame({"participant_id": names, "session_id": "ses-1", "scan_id": names, "path": names})
    write_table(table.assign(sha256="0", diagnosis="CN"), params.folder / "manifest.tsv", MANIFEST)
    assert disk.expected_scans(params) == 3
    with pytest.raises(StudyError, match=r"derivatives of 3 scans .* 0\.00 GiB left"):
        disk.require_room(params, ["derivatives"])


def test_each_predicted_part_is_written_by_one_step():
    params = load_params("params/phantom.yaml")
    written = [name for step in STEPS for name in (*step.writes, *step.may_write)]
    assert all(written.count(name) == 1 for name in disk.predicted_bytes(params, 10))
    sizes = [disk.predicted_bytes(params, scans)["derivatives"] for scans in (10, 100_000)]
    assert np.isclose(sizes[1], 1e4 * sizes[0])
    fewer = load_params("params/phantom.yaml", ("derivatives.keep=[]", "train.controls=[]"))
    assert disk.predicted_bytes(fewer, 10)["derivatives"] < 0.4 * sizes[0]
