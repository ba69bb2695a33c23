import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_field_inputs import bids, image

from adlib.sources.reading import list_source
from adlib.study.exec_params import HERE
from adlib.study.records import MANIFEST, StudyError, check_table
from adlib.study.source_params import BidsSource, OasisSlicesSource


def read_bids(root, **settings):
    return list_source(BidsSource(kind="bids", root=root, **settings), root / "unused", pool=HERE)


@pytest.fixture
def dataset(tmp_path):
    people = "participant_id\tage\tsex\tgroup\nsub-01\t70\tF\tCN\nsub-02\t75\tM\tAD\nsub-03\t71\tF\tn/a\n"
    bids(tmp_path, people, ("sub-01_ses-a_T1w", "sub-01_ses-b_T1w", "sub-02_T1w", "sub-03_T1w"))
    (tmp_path / "T1w.json").write_text(json.dumps({"Manufacturer": "Maker", "MagneticFieldStrength": 3}))
    visits = "session_id\tage\tgroup\nses-a\t70\tCN\nses-b\t72\tMCI\n"
    (tmp_path / "sub-01" / "sub-01_sessions.tsv").write_text(visits)
    return tmp_path


def test_bids_visit_labels_headers_and_sidecars(dataset):
    listed = read_bids(dataset, label_column="group")
    rows = listed.set_index("scan_id")
    assert rows.loc["sub-01_ses-b_T1w", ["diagnosis", "age"]].tolist() == ["MCI", 72]
    assert rows.loc["sub-02_T1w", ["session_id", "shape", "voxel_z_mm"]].tolist() == ["ses-01", "10x11x12", 1.0]
    assert rows.loc["sub-02_T1w", ["manufacturer", "field_strength_T"]].tolist() == ["Maker", 3]
    assert pd.isna(rows.loc["sub-03_T1w", "diagnosis"])
    assert len(check_table(listed.dropna(subset=["diagnosis"]), MANIFEST, "test")) == 3


def test_labels_are_renamed_by_params(dataset):
    listed = read_bids(dataset, label_column="group", labels={"AD": "demented"})
    assert set(listed["diagnosis"].dropna()) == {"CN", "MCI", "demented"}


def test_corrupt_image_has_no_shape(dataset):
    (dataset / "sub-02" / "anat" / "sub-02_T1w.nii.gz").write_bytes(b"not gzip")
    listed = read_bids(dataset, label_column="group")
    assert listed.set_index("scan_id")["shape"].isna().tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "participants.tsv").unlink(), "participants.tsv does not exist"),
        (lambda d: [p.unlink() for p in d.rglob("*.nii.gz")], "no sub-"),
    ],
)
def test_broken_bids_datasets_are_refused(dataset, change, words):
    change(dataset)
    with pytest.raises(StudyError, match=words):
        read_bids(dataset, label_column="group")


def test_wrong_label_column_is_refused(dataset):
    (dataset / "sub-01" / "sub-01_sessions.tsv").unlink()
    with pytest.raises(StudyError, match=r"set source\.label_column"):
        read_bids(dataset, label_column="dx")
    with pytest.raises(StudyError, match="is not a folder"):
        read_bids(dataset / "none")


@pytest.fixture
def slices(tmp_path):
    header = "Subject ID;MRI ID;Group;Visit;MR Delay;M/F;Hand;Age;EDUC;SES;MMSE;CDR;eTIV;nWBV;ASF"
    lines = [
        "OAS2_0001;OAS2_0001_MR1;Nondemented;1;0;M;R;87;14;2;27;0;1987;0,696;0,883",
        "OAS2_0002;OAS2_0002_MR1;Demented;1;0;F;R;75;12;;23;0,5;1678;0,736;1,046",
        "OAS2_0003;OAS2_0003_MR1;Demented;1;0;F;R;80;12;;20;1;1500;0,700;1,046",
    ]
    (tmp_path / "oasis_longitudinal_demographic.csv").write_text("\n".join([header, *lines]))
    for name in ("OAS2_0001_MR1", "OAS2_0002_MR1"):
        for plane in ("axl", "cor", "sag"):
            image(tmp_path / plane / f"{name}_{plane}.nii.gz")
    return tmp_path


def read_slices(root, tmp_path):
    return list_source(OasisSlicesSource(kind="oasis_slices", root=root), tmp_path / "u", pool=HERE)


def test_oasis2_sessions_with_three_slices_are_scans(slices, tmp_path):
    listed = read_slices(slices, tmp_path)
    whole = listed[listed["excluded"].isna()]
    assert whole["diagnosis"].tolist() == ["CN", "MCI"]
    assert whole["nbv"].tolist() == [0.696, 0.736]
    assert whole["path"].str.count(r"\|").tolist() == [2, 2]
    left = listed[listed["excluded"].notna()]
    assert left["scan_id"].tolist() == ["OAS2_0003_MR1"]
    assert left["excluded"].tolist() == ["no slice in axl, cor, sag"]


def slabs(root):
    """Two rated people, a repeat scan and a session without its second slice, in a zip; the table has one more."""
    cells = ["1_MR1,F,74,0.0", "2_MR1,M,55,0.5", "3_MR1,M,28,", "4_MR1,F,61,1.0"]
    lines = [f"OAS1_000{cell},1343.75,0.743" for cell in cells]
    (root / "oasis_cross-sectional.csv").write_text("\n".join(["ID,M/F,Age,CDR,eTIV,nWBV", *lines]))
    Image.fromarray(np.full((8, 9), 7, np.uint8)).save(root / "slice.png")
    with zipfile.ZipFile(root / "slices.zip", "w") as archive:
        for name in ("OAS1_0001_MR1", "OAS1_0002_MR1", "OAS1_0001_MR2", "OAS1_0003_MR1"):
            for index in (90, 91)[: 1 if name == "OAS1_0003_MR1" else 2]:
                archive.write(root / "slice.png", f"{name}/{name}.{index}.png")
                archive.write(root / "slice.png", f"__MACOSX/{name}/._{name}.{index}.png")
    (root / "slice.png").unlink()
    return root


def test_oasis1_slices_of_a_session_are_one_scan(tmp_path):
    (tmp_path / "data").mkdir()
    source = OasisSlicesSource(kind="oasis_slices", root=slabs(tmp_path / "data"))
    listed = list_source(source, tmp_path / "out", pool=HERE).set_index("scan_id")
    whole = listed[listed["excluded"].isna()]
    assert whole["participant_id"].tolist() == ["sub-OAS10001", "sub-OAS10001", "sub-OAS10002"]
    assert whole["session_id"].tolist() == ["ses-01", "ses-02", "ses-01"]
    assert whole["diagnosis"].tolist() == ["CN", None, "MCI"]
    assert whole["shape"].tolist() == ["9x8x2"] * 3 and whole["site"].eq("OASIS-1").all()
    assert [Path(name).name for name in whole["path"].iloc[0].split("|")] == [
        "OAS1_0001_MR1.90.png",
        "OAS1_0001_MR1.91.png",
    ]
    assert listed["excluded"].dropna().to_dict() == {
        "OAS1_0003_MR1": "no slice in 91",
        "OAS1_0004_MR1": "no slice in 90, 91",
    }


def test_a_folder_without_slices_is_refused(tmp_path):
    source = OasisSlicesSource(kind="oasis_slices", root=tmp_path)
    with pytest.raises(StudyError, match=r"no slices such as OAS1_0001_MR1\.90\.png"):
        list_source(source, tmp_path / "out", pool=HERE)


@pytest.mark.parametrize("dialect", ["commas", "mangled", "utf16"])
def test_oasis_table_dialects_are_equivalent(slices, tmp_path, dialect):
    table = slices / "oasis_longitudinal_demographic.csv"
    before = read_slices(slices, tmp_path)
    text = table.read_text()
    if dialect == "commas":
        text = text.replace(",", ".").replace(";", ",")
    elif dialect == "mangled":
        text = text.replace("M/F", "M.F").replace("MRI ID", "MRI.ID")
    table.write_bytes(text.encode("utf-16") if dialect == "utf16" else text.encode())
    pd.testing.assert_frame_equal(read_slices(slices, tmp_path), before)


def test_oasis_without_table_or_column_is_refused(slices, tmp_path):
    table = slices / "oasis_longitudinal_demographic.csv"
    table.write_text(table.read_text().replace("CDR", "Rating"))
    with pytest.raises(StudyError, match=r"lacks columns \['cdr'\]"):
        read_slices(slices, tmp_path)
    table.unlink()
    with pytest.raises(StudyError, match="longitudinal"):
        read_slices(slices, tmp_path)
