"""One simulated cohort in every layout in which real cohorts come: every source lists the same scans for an audit."""

import shutil
from pathlib import Path

import layouts
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from dicom_writer import write_series

from adlib.audit.run import enforce, run_audit
from adlib.imaging.volume import to_canonical
from adlib.phantom import cohort as phantom
from adlib.sources.reading import list_source, read_source
from adlib.study import source_params
from adlib.study.exec_params import HERE
from adlib.study.params import AuditParams, ExecParams, load_params
from adlib.study.records import MANIFEST

CLASSES, CDR = ("CN", "MCI", "LMCI", "AD"), ("CN", "MCI", "AD")
UNLIKE = {"path", "sha256", "label_source", "participant_source", "image_id"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Two participants of each class at 4 mm, some with follow-ups."""
    source = source_params.PhantomSource(kind="phantom", participants_per_class=2, voxel_mm=4.0, followup_fraction=0.5)
    return phantom.write_cohort(source, CLASSES, 3, tmp_path_factory.mktemp("cohort"), pool=HERE)


def read(kind, root, folder, **settings):
    source = source_params.KINDS[kind](kind=kind, root=root, **settings)
    return list_source(source, folder, pool=HERE)


def passes_the_audit(table, classes=CLASSES):
    audit = run_audit(table, classes, AuditParams(min_participants_per_class=2), 0)
    enforce(audit.findings)
    assert audit.manifest[["participant_id", "diagnosis"]].notna().all(axis=None)
    return audit.manifest["participant_id"].nunique() == 8


def in_layout(cohort, kind, tmp_path):
    return layouts.write_layout(cohort, kind, tmp_path / kind, pool=HERE)


@pytest.fixture
def listed(cohort):
    return read("bids", cohort, cohort)


def facts(table):
    """What every layout must agree on, in one order."""
    names = [name for name in MANIFEST.columns if name not in UNLIKE]
    table = table.reindex(columns=names).astype({"age": float}).sort_values("scan_id").reset_index(drop=True)
    return table.where(table.notna(), None).astype(object)


def pixels(path):
    image = nib.load(path)
    return to_canonical(np.asarray(image.dataobj, dtype=np.float32), image.affine)[0]


def same_pixels(table, listed):
    """Whether row by row the images of two tables, both by participant and session, hold the same head."""
    order = ["participant_id", "session_id"]
    pairs = zip(table.sort_values(order)["path"], listed.sort_values(order)["path"], strict=True)
    return all(np.array_equal(pixels(a), pixels(b)) for a, b in pairs)


def test_bids_adni_and_folders_list_the_same_scans(cohort, tmp_path):
    tables = {
        "bids": read("bids", in_layout(cohort, "bids", tmp_path), tmp_path / "s1"),
        "adni": read("adni", in_layout(cohort, "adni", tmp_path), tmp_path / "s2"),
        "adni_flat": read("adni", in_layout(cohort, "adni_flat", tmp_path), tmp_path / "s3"),
        "folders": read("folders", tmp_path / "adni_flat", tmp_path / "s4", table=people(tmp_path)),
    }
    assert len(tables["bids"]) > 8
    for name, table in tables.items():
        pd.testing.assert_frame_equal(facts(table), facts(tables["bids"]), obj=name)
        assert passes_the_audit(table)


def people(tmp_path):
    """The table that a user of class folders would write: who, how old, of what sex."""
    dataset = tmp_path / "bids"
    visits = [
        pd.read_csv(path, sep="\t").assign(participant_id=path.parent.name) for path in dataset.rglob("*_sessions.tsv")
    ]
    table = pd.concat(visits)[["participant_id", "session_id", "age", "sex"]]
    table.to_csv(tmp_path / "people.csv", index=False)
    return tmp_path / "people.csv"


def test_class_folders_of_named_volumes(cohort, listed, tmp_path):
    root = in_layout(cohort, "folders", tmp_path)
    pattern = r"(?P<participant>sub-\d+)_(?P<session>ses-\d+)"
    table = read("folders", root, tmp_path / "s", participant=pattern, table=root / "people.csv")
    order = ["participant_id", "session_id", "scan_id", "diagnosis", "sex"]
    left, right = (t[order].astype(object).sort_values("scan_id").reset_index(drop=True) for t in (table, listed))
    pd.testing.assert_frame_equal(left, right)
    assert same_pixels(table, listed) and passes_the_audit(table)


@pytest.mark.parametrize("kind", ["oasis1", "oasis2"])
def test_oasis_volumes_keep_pixels_and_orientation(cohort, listed, tmp_path, kind):
    table = read(kind, in_layout(cohort, kind, tmp_path), tmp_path / "s")
    assert same_pixels(table, listed)
    assert sorted(table["age"]) == sorted(listed["age"].astype(float))
    counts = listed["diagnosis"].replace({"LMCI": "MCI"}).value_counts().to_dict()
    assert table["diagnosis"].value_counts().to_dict() == counts
    assert passes_the_audit(table, CDR)


def test_oasis1_prefers_the_averaged_image(cohort, tmp_path):
    root = in_layout(cohort, "oasis1", tmp_path)
    average = next(root.rglob("OAS1_0001_MR1*.img"))
    raw = average.parents[3] / "RAW"
    raw.mkdir()
    for suffix in (".img", ".hdr"):
        (raw / f"OAS1_0001_MR1_mpr-1_anon{suffix}").write_bytes(average.with_suffix(suffix).read_bytes())
    table = read("oasis1", root, tmp_path / "s")
    repeats = table[table["excluded"].notna()]
    assert repeats["excluded"].tolist() == ["the averaged image of the session is used"]
    assert repeats["session_id"].tolist() == ["ses-MR1"]


def test_oasis3_matches_visits_by_days(cohort, listed, tmp_path):
    root = in_layout(cohort, "oasis3", tmp_path)
    table = read("oasis3", root, tmp_path / "s")
    assert same_pixels(table, listed)
    assert (table["age"].sort_values().to_numpy() - listed["age"].astype(float).sort_values().to_numpy() < 1.5).all()
    assert set(table["sex"]) == {"M", "F"} and passes_the_audit(table, CDR)
    narrow = read("oasis3", root, tmp_path / "s", window_days=10)
    assert narrow["diagnosis"].isna().all()


def test_caps_images_are_registered(cohort, tmp_path):
    root = in_layout(cohort, "caps", tmp_path)
    table = read("caps", root, tmp_path / "s", table=root / "people.csv")
    assert set(table["space"]) == {"MNI152"}
    assert set(table["shape"]) == {"193x229x193"}
    assert set(table["diagnosis"]) == set(CLASSES) and passes_the_audit(table)


def test_dicom_sessions_are_converted_without_names(cohort, listed, tmp_path):
    root = in_layout(cohort, "dicom", tmp_path)
    table = read("dicom", root, tmp_path / "s", table=root / "people.csv")
    assert same_pixels(table, listed) and passes_the_audit(table)
    assert set(table["echo_time_ms"]) == {3.0}
    for path in (tmp_path / "s").rglob("*.*"):
        assert b"Simulated^Head" not in path.read_bytes(), path
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*.nii.gz")}
    again = read("dicom", root, tmp_path / "s", table=root / "people.csv")
    pd.testing.assert_frame_equal(again, table)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*.nii.gz")}


def test_mixed_dicom_session_yields_the_t1w(cohort, listed, tmp_path):
    root = in_layout(cohort, "dicom", tmp_path)
    first, second, *_ = listed.itertuples()
    image = nib.load(first.path)
    volume, session = np.asanyarray(image.dataobj), root / first.participant_id / first.session_id
    write_series(volume[:, :, :3], image.affine, session / "loc", "localizer", number=1)
    write_series(volume, image.affine, session / "t2", "Ax T2 TSE", number=2, echo_ms=95.0)
    packed = root / second.participant_id / second.session_id
    shutil.make_archive(str(packed), "zip", packed)
    shutil.rmtree(packed)
    table = read("dicom", root, tmp_path / "s", table=root / "people.csv")
    left = table[table["excluded"].notna()]
    assert same_pixels(table[table["excluded"].isna()], listed)
    assert left["series_description"].tolist() == ["localizer", "Ax T2 TSE"]
    assert set(left["participant_id"]) == {first.participant_id}
    assert "echo time" in left["excluded"].iloc[1]


def test_adni_folders_of_dicom_are_converted(cohort, tmp_path):
    root = in_layout(cohort, "adni", tmp_path)
    files = sorted(root.rglob("*.nii"))
    for path in files:
        image = nib.load(path)
        write_series(np.asanyarray(image.dataobj), image.affine, path.parent, "MPRAGE")
        path.rename(tmp_path / path.name)
    params = load_params("params/smoke.yaml").model_copy(
        update={
            "source": source_params.AdniSource(kind="adni", root=root),
            "exec": ExecParams(outputs=tmp_path / "outputs", workers=1),
        }
    )
    table = read_source(params)
    assert len(table) == len(files)
    assert table["path"].str.endswith(".nii.gz").all()
    assert set(table["echo_time_ms"]) == {3.0}
    for path, original in zip(table.sort_values("image_id")["path"], sorted(files, key=_image_id), strict=True):
        assert np.array_equal(pixels(path), pixels(tmp_path / original.name))


def _image_id(path):
    return path.stem.rpartition("_")[2]


def test_pictures_have_a_split_but_no_participants(cohort, tmp_path):
    root = in_layout(cohort, "images", tmp_path)
    table = read("folders", root, tmp_path / "s", contents="images", parts=("train", "test"))
    assert set(table["given_split"]) == {"train", "test"}
    assert table["participant_id"].isna().all()
    assert table["scan_id"].is_unique
    assert set(table["diagnosis"]) == set(CLASSES)


@pytest.mark.parametrize("kind", sorted(source_params.KINDS))
def test_every_source_has_a_params_file_and_a_page(kind):
    root = Path(__file__).parents[2]
    files = [path for path in (root / "params").glob("*.yaml") if f"kind: {kind}\n" in path.read_text()]
    assert files
    if kind != "phantom":
        assert any(f"params/{path.name}" in page.read_text() for path in files
                   for page in (root / "docs" / "sources").glob("*.md"))  # fmt: skip
