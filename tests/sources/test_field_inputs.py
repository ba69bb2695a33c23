"""Inputs of kinds that users of such programs report, each with its right value."""

import gzip
import json
import zipfile

import nibabel as nib
import numpy as np
import pytest
from dicom_writer import write_series

from adlib.sources.reading import list_source
from adlib.study.exec_params import HERE
from adlib.study.records import StudyError
from adlib.study.source_params import KINDS
from adlib.study.tree import path_digest, walk

FORK = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(4000)
ADNI_NAME = "ADNI_002_S_0295_MR_MPR_Br_20081020102030123_S52648_I120562.nii"
OASIS1_NAME = "OAS1_0001_MR1/PROCESSED/MPRAGE/SUBJ_111/OAS1_0001_MR1_mpr_n4_anon_sbj_111.hdr"
CAPS_NAME = "sub-01_ses-M000{}_space-MNI152NLin2009cSym_res-1x1x1_T1w.nii.gz"


def image(path, seed=0, kind=nib.Nifti1Image):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).integers(0, 900, (10, 11, 12)).astype(np.int16)
    nib.save(kind(data, np.eye(4)), path)
    return path


def read(kind, root, **settings):
    return list_source(KINDS[kind](kind=kind, root=root, **settings), root.parent / "made", pool=HERE)


def used(listed):
    """Scans that go on, readable and each once."""
    rows = listed[listed["excluded"].isna()]
    assert rows["scan_id"].is_unique
    return rows[rows["shape"].notna()]


def bids(root, people="participant_id\tdiagnosis\nsub-01\tCN\nsub-02\tAD\n", scans=("sub-01_T1w", "sub-02_T1w")):
    root.mkdir(exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    (root / "participants.tsv").write_text(people)
    for seed, name in enumerate(scans):
        folder = "/".join(part for part in name.split("_") if part.startswith(("sub-", "ses-")))
        image(root / folder / "anat" / f"{name}.nii.gz", seed)
    return root


def one_of(kind, root):
    """A dataset of one scan in the layout of a kind of source, and settings for it."""
    settings = {}
    root.mkdir(exist_ok=True)
    if kind == "bids":
        bids(root, scans=["sub-01_T1w"])
    elif kind == "caps":
        image(root / "subjects/sub-01/ses-M000/t1_linear" / CAPS_NAME.format(""))
        (root / "t.tsv").write_text("participant_id\tdiagnosis\nsub-01\tCN\n")
        settings = {"table": root / "t.tsv"}
    elif kind == "folders":
        image(root / "CN/sub-01_T1w.nii.gz")
        settings = {"participant": "(?P<participant>sub-0.)"}
    elif kind == "adni":
        image(root / "CN" / ADNI_NAME)
    elif kind == "oasis1":
        image(root / "disc1" / OASIS1_NAME, kind=nib.AnalyzeImage)
        (root / "oasis_cross-sectional.csv").write_text("ID,M/F,Age,CDR,eTIV,nWBV\nOAS1_0001_MR1,F,74,0,1344,0.743\n")
    elif kind == "oasis3":
        image(root / "OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_T1w.nii.gz")
        (root / "cdr.csv").write_text("OASISID,days_to_visit,CDRTOT\nOAS30001,100,0\n")
    elif kind == "oasis2":
        image(root / "OAS2_RAW_PART1/OAS2_0001_MR1/RAW/mpr-1.nifti.hdr", kind=nib.Nifti1Pair)
        (root / "oasis_longitudinal.csv").write_text("MRI ID,M/F,Age,CDR,eTIV,nWBV\nOAS2_0001_MR1,M,87,0,1987,0.696\n")
    elif kind == "oasis_slices":
        for plane in ("axl", "cor", "sag"):
            image(root / plane / f"OAS2_0001_MR1_{plane}.nii.gz")
        (root / "oasis_longitudinal.csv").write_text("MRI ID,M/F,Age,CDR,eTIV,nWBV\nOAS2_0001_MR1,M,87,0,1987,0.696\n")
    elif kind == "dicom":
        write_series(np.arange(44 * 42 * 41).reshape(44, 42, 41) % 900, np.eye(4), root / "P1/S1/mprage", "T1 MPRAGE")
        (root / "people.csv").write_text("participant_id,diagnosis\nP1,CN\n")
        settings = {"table": root / "people.csv"}
    return settings


MADE = ("bids", "caps", "folders", "adni", "oasis1", "oasis3")
EVERY = (*MADE, "oasis2", "oasis_slices", "dicom")


@pytest.mark.parametrize("kind", MADE)
def test_shadow_files_are_rows_and_never_images(kind, tmp_path, capsys):
    settings = one_of(kind, tmp_path / "data")
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    for path in files:
        path.with_name(f"._{path.name}").write_bytes(FORK)
    listed = read(kind, tmp_path / "data", **settings)
    assert used(listed)["diagnosis"].tolist() == ["CN"]
    shadows = [path for path in files if path.suffix in (".gz", ".nii", ".hdr", ".img")]
    assert listed["excluded"].str.contains("shadow file").sum() == len(shadows)
    assert f"{kind}: 1 listed, {len(shadows)} left out: {len(shadows)} x shadow file" in capsys.readouterr().out


@pytest.mark.parametrize(
    "what", ["func/sub-02_task-rest_bold.nii.gz", "anat/sub-02_T1w.nii.gz", "anat/sub-02_T1w.json"]
)
def test_links_without_content_cost_themselves(what, tmp_path):
    root = bids(tmp_path / "data")
    link = root / "sub-02" / what
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to("../../.git/annex/objects/xX/yY/MD5E-s9--0/MD5E-s9--0.nii.gz")
    assert path_digest(root)
    listed = read("bids", root)
    assert len(used(listed)) == (1 if what == "anat/sub-02_T1w.nii.gz" else 2)
    if what.endswith("json"):
        assert "sub-02_T1w.json cannot be read" in listed["notes"].dropna().item()
    else:
        assert "datalad get" in listed.set_index("path").loc[str(link), "excluded"]


def test_pointer_files_have_no_content(tmp_path):
    root = bids(tmp_path / "data")
    for name, text in (("01", "/annex/objects/MD5E-s9--0.nii.gz\n"), ("02", "version https://git-lfs.github.com/x\n")):
        (root / f"sub-{name}/anat/sub-{name}_acq-2_T1w.nii.gz").write_text(text)
    assert read("bids", root)["excluded"].dropna().str.contains("datalad get").sum() == 2


def test_linked_folders_are_walked_once(tmp_path):
    root, outside = bids(tmp_path / "data"), tmp_path / "outside"
    bids(outside, scans=["sub-03_T1w"])
    (root / "sub-03").symlink_to(outside / "sub-03")
    (root / "again").symlink_to(root / "sub-01")
    (root / "loop").symlink_to(tmp_path)
    (root / ".git").mkdir()
    inside = [found.inside for found in walk(root)]
    assert len(inside) == len(set(inside))
    assert sorted(used(read("bids", root))["participant_id"]) == ["sub-01", "sub-02", "sub-03"]
    assert {found.inside for found in walk(root) if found.fault} == {".git", "again", "loop"}


@pytest.mark.parametrize("doubled", ["_T1w", ""])
def test_caps_of_every_clinica(doubled, tmp_path):
    root = tmp_path / "data"
    for seed, more in enumerate(("", "_run-02", "_acq-mprage")):
        image(root / "subjects/sub-01/ses-M000/t1_linear" / CAPS_NAME.format(more + doubled), seed)
    (tmp_path / "t.tsv").write_text("participant_id\tsession_id\tdiagnosis\nsub-01\tses-M000\tAD\n")
    listed = read("caps", root, table=tmp_path / "t.tsv")
    assert sorted(used(listed)["scan_id"]) == [
        "sub-01_ses-M000_T1w", "sub-01_ses-M000_acq-mprage_T1w", "sub-01_ses-M000_run-02_T1w",
    ]  # fmt: skip
    assert set(listed["diagnosis"]) == {"AD"}


def test_cifti_in_a_class_folder_is_left_out(tmp_path):
    settings = one_of("folders", tmp_path / "data")
    mask = nib.cifti2.BrainModelAxis.from_mask(np.ones(20, bool), name="cortex_left")
    surfaces = nib.Cifti2Image(np.zeros((1, 20)), (nib.cifti2.ScalarAxis(["curvature"]), mask))
    nib.save(surfaces, tmp_path / "data/CN/sub-02.curvature.dscalar.nii")
    listed = read("folders", tmp_path / "data", **settings)
    assert len(used(listed)) == 1
    assert "Cifti2 file of surfaces" in listed["excluded"].dropna().item()


def test_left_out_images_say_why(tmp_path):
    root = bids(tmp_path / "data")
    for name in ("T2w", "space-MNI_T1w", "desc-brain_T1w"):
        image(root / f"sub-01/anat/sub-01_{name}.nii.gz")
    (root / "sub-01/anat/sub-01_T1w.nii (1).gz").write_bytes(b"x")
    image(root / "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz")
    reasons = read("bids", root).set_index("scan_id")["excluded"].dropna()
    assert sorted(reason.split(";")[0].split(",")[0] for reason in reasons) == [
        "a browser's or file manager's name of a second copy", "derived", "in another space", "named 't2w'",
        "under derivatives or sourcedata",
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_sidecars_are_inherited_in_any_encoding(encoding, tmp_path):
    root = bids(tmp_path / "data")
    (root / "T1w.json").write_bytes('{"EchoTime": 0.003, "Manufacturer": "Mäker",}'.encode(encoding))
    (root / "sub-01/anat/sub-01_T1w.json").write_text(json.dumps({"Manufacturer": "Other"}))
    (root / "sub-02/anat/sub-02_acq-x_T1w.json").write_text(json.dumps({"Manufacturer": "Wrong"}))
    listed = read("bids", root)
    assert listed["manufacturer"].tolist() == ["Other", "Mäker"]
    assert listed["echo_time_ms"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("times", "expected", "note"),
    [
        ({"EchoTime": 2.98, "RepetitionTime": 2300}, (2.98, 2300), "'EchoTime 2.98' is read as ms"),
        ({"EchoTime": [0.003], "RepetitionTime": 2.3, "MagneticFieldStrength": "3T"}, (3, 2300), ""),
        ({"EchoTime": "2.98 ms", "RepetitionTime": 2.3}, (np.nan, 2300), "'EchoTime 2.98 ms' is no number"),
    ],
)
def test_times_of_sidecars_in_other_units(times, expected, note, tmp_path):
    root = bids(tmp_path / "data", scans=["sub-01_T1w"])
    (root / "sub-01/anat/sub-01_T1w.json").write_text(json.dumps(times))
    row = read("bids", root).iloc[0]
    assert row[["echo_time_ms", "repetition_time_ms"]].tolist() == pytest.approx(expected, nan_ok=True)
    assert row["field_strength_T"] == 3 or "MagneticFieldStrength" not in times
    assert note in str(row.get("notes")) and (note or "EchoTime" not in str(row.get("notes")))


@pytest.mark.parametrize("name", ["sub-01_T1w.nii", "sub-01_T1w.nii.gz", "sub-01_T1w.NII.GZ", "sub-01_t1w.nii"])
@pytest.mark.parametrize("packed", [True, False])
def test_content_goes_before_the_name(packed, name, tmp_path):
    root = bids(tmp_path / "data", scans=["sub-01_T1w"])
    path = root / "sub-01/anat/sub-01_T1w.nii.gz"
    content = gzip.decompress(path.read_bytes())
    path.unlink()
    (root / "sub-01/anat" / name).write_bytes(gzip.compress(content) if packed else content)
    row = read("bids", root).iloc[0]
    assert row[["scan_id", "shape", "diagnosis"]].tolist() == ["sub-01_T1w", "10x11x12", "CN"]
    misnamed = packed != name.lower().endswith(".gz")
    assert ("compressed, unlike its name" in str(row.get("notes"))) == misnamed


@pytest.mark.parametrize(("age", "expected"), [("89+", 89), ("35-40", None), ("P071Y", 71), ("n/a", None)])
@pytest.mark.parametrize("kind", ["bids", "adni", "oasis3"])
def test_an_age_costs_itself(kind, age, expected, tmp_path):
    root = tmp_path / "data"
    one_of(kind, root)
    if kind == "bids":
        (root / "participants.tsv").write_text(f"participant_id\tage\tdiagnosis\nsub-01\t{age}\tCN\n")
    elif kind == "adni":
        (root / "c.csv").write_text(f"Image Data ID,Subject,Group,Age\nI120562,002_S_0295,CN,{age}\n")
    else:
        (root / "cdr.csv").write_text(f"OASISID,days_to_visit,age at visit,CDRTOT\nOAS30001,129,{age},0\n")
    if kind == "oasis3" and age == "89+":
        (root / "people.csv").write_text("OASISID,GENDER,AgeatEntry\nOAS30001,2,89+\n")
        row = read(kind, root).iloc[0]
        assert row["sex"] == "F" and row["age"] == 89.35
        (root / "people.csv").unlink()
    row = read(kind, root).iloc[0]
    assert row["diagnosis"] == "CN"
    assert row["age"] == expected if expected else np.isnan(row["age"])
    assert (age in ("89+", "35-40")) == ("line 2, column" in str(row.get("notes")))


OTHERS = {
    "adni": (b"", b"RID,VISCODE,VISCODE,WEIGHT\n1,bl,bl,70\n", b"TBLNAME,FLDNAME,TEXT\nA,B,first\x0bsecond\n"),
    "oasis3": (b"", b"OASISID,NOTE\nOAS30001,seen, again\n", b"Subject,M/F,ageAtEntry,cdr\nOAS30001,M,69.8,0\n"),
}


@pytest.mark.parametrize("kind", list(OTHERS))
def test_unrelated_tables_are_left_alone(kind, tmp_path):
    one_of(kind, tmp_path / "data")
    if kind == "adni":
        (tmp_path / "data/c.csv").write_text("Image Data ID,Subject,Group\nI120562,002_S_0295,CN\n")
    for number, content in enumerate(OTHERS[kind]):
        (tmp_path / f"data/other{number}.csv").write_bytes(content)
    assert used(read(kind, tmp_path / "data"))["diagnosis"].tolist() == ["CN"]


def test_visits_are_found_without_prefix_and_zeros(tmp_path):
    root = bids(tmp_path / "data", "participant_id\tdiagnosis\n1\tMCI\n", ["sub-001_ses-1_T1w", "sub-001_ses-2_T1w"])
    (root / "sub-001/sub-001_sessions.tsv").write_text("session_id\tage\tdiagnosis\n1\t71\tMCI\n02\t73\tAD\n")
    listed = read("bids", root)
    assert listed[["session_id", "diagnosis", "age"]].values.tolist() == [["ses-1", "MCI", 71], ["ses-2", "AD", 73]]
    (root / "sub-001/sub-001_sessions.tsv").write_text("session_id\tdiagnosis\n1\tCN\n")
    listed = read("bids", root)
    assert listed["diagnosis"].tolist() == ["CN", "MCI"]
    assert "has no ses-2, only ses-01; participants.tsv is used" in listed["notes"].dropna().item()


@pytest.mark.parametrize("written", ["1", "01", "001", "sub-1", "SUB-001", "sub001", "Sub_01", "sub 1"])
def test_participants_are_found_however_they_are_written(written, tmp_path):
    root = bids(tmp_path / "data", f"participant_id\tdiagnosis\n{written}\tMCI\nsub-9\tAD\n", ["sub-001_T1w"])
    assert read("bids", root)["diagnosis"].tolist() == ["MCI"]


@pytest.mark.parametrize("written", ["bl", "baseline", "M0", "m00", "ses-M000", "M000"])
def test_first_visits_have_the_names_of_their_studies(written, tmp_path):
    root = bids(tmp_path / "data", "participant_id\tdiagnosis\nsub-01\tCN\n", ["sub-01_ses-M000_T1w"])
    (root / "sub-01/sub-01_sessions.tsv").write_text(f"session_id\tdiagnosis\n{written}\tMCI\nM012\tAD\n")
    assert read("bids", root)["diagnosis"].tolist() == ["MCI"]


@pytest.mark.parametrize("content", ["", "visit\tdiagnosis\n1\tAD\n", "session_id\tdiagnosis\n"])
def test_a_faulty_table_of_sessions_costs_itself(content, tmp_path):
    root = bids(tmp_path / "data", scans=["sub-01_ses-1_T1w", "sub-02_ses-1_T1w"])
    (root / "sub-01/sub-01_sessions.tsv").write_text(content)
    listed = read("bids", root)
    assert listed["diagnosis"].tolist() == ["CN", "AD"]
    note = listed["notes"].dropna().item()
    assert "sub-01_sessions.tsv" in note and "participants.tsv is used" in note


def test_a_ragged_row_costs_itself(tmp_path, capsys):
    people = "participant_id\tage\tdiagnosis\nsub-01\t70\tCN\nsub-02\t71\nsub-03\t72\tAD\n"
    listed = read("bids", bids(tmp_path / "data", people))
    assert listed["diagnosis"].tolist() == ["CN", None]
    assert "participants.tsv, line 3: 2 cells where the header has 3 columns" in capsys.readouterr().out


def test_ids_that_two_people_share_are_not_guessed(tmp_path):
    scans = ["sub-1_T1w", "sub-01_T1w", "sub-2_T1w"]
    listed = read("bids", bids(tmp_path / "data", "participant_id\tdiagnosis\n01\tMCI\n002\tAD\n", scans))
    assert listed.set_index("scan_id")["diagnosis"].to_dict() == {
        "sub-1_T1w": None, "sub-01_T1w": "MCI", "sub-2_T1w": "AD",
    }  # fmt: skip


def test_ids_of_another_kind_show_both_sides(tmp_path):
    root = bids(tmp_path / "data", "participant_id\tdiagnosis\nCON\tCN\nPAT\tAD\n")
    with pytest.raises(StudyError, match="the table has 'sub-CON', 'sub-PAT', the scans have 'sub-01', 'sub-02'"):
        read("bids", root)


def test_columns_have_other_names(tmp_path):
    people = "participant_id\tvisit\tage_at_scan\tgender\tdiagnosis\nsub-01\t1\t70\tf\tCN\nsub-01\t2\t72\tf\tAD\n"
    root = bids(tmp_path / "data", people, ["sub-01_ses-1_T1w", "sub-01_ses-2_T1w"])
    with pytest.raises(StudyError, match="contradictory rows for one participant_id: lines 2, 3"):
        read("bids", root)
    listed = read("bids", root, columns={"visit": "session_id", "age_at_scan": "age"})
    assert listed[["diagnosis", "age", "sex"]].values.tolist() == [["CN", 70, "F"], ["AD", 72, "F"]]


@pytest.mark.parametrize(
    "header",
    ["participant_id\tSEX\tAGE\tDiagnosis", "Participant ID\tGender\tage\tDIAGNOSIS", "Subject\tsex\tAge\tdiagnosis"],
)
def test_columns_are_found_however_they_are_written(header, tmp_path):
    listed = read("bids", bids(tmp_path / "data", f"{header}\nsub-01\tm\t70\tCN\nsub-02\tf\t71\tAD\n"))
    assert listed[["sex", "age", "diagnosis"]].values.tolist() == [["M", 70, "CN"], ["F", 71, "AD"]]


@pytest.mark.parametrize("cells", [("control", "Dementia"), ("0.0", "1.0"), ("0", "1"), ("CONTROL\u200b", "dementia ")])
def test_labels_are_found_however_they_are_written(cells, tmp_path):
    people = "participant_id\tdiagnosis\nsub-01\t{}\nsub-02\t{}\n".format(*cells)
    labels = {"Control": "CN", "0": "CN", "dementia": "AD", "1": "AD"}
    assert read("bids", bids(tmp_path / "data", people), labels=labels)["diagnosis"].tolist() == ["CN", "AD"]


ROWS = {
    "adni": ("c.csv", "Image Data ID,Subject,Group\n{}\n", ["i120562,002_s_0295,cn", "120562.0,002_S_0295,Normal"]),
    "oasis1": (
        "oasis_cross-sectional.csv",
        "ID,M/F,Age,CDR,eTIV,nWBV\n{0}\n{0}\n",
        ["oas1_0001_mr1,F,74,0.0,1344,0.743", 'OAS1_0001_MR1,female,"74,5","0,0",#REF!,"0,743"'],
    ),
    "oasis3": ("cdr.csv", "OASISID,days_to_visit,CDRTOT\n{}\n", ["oas30001,d0129,0", "OAS30001,129.0,0.0"]),
}


@pytest.mark.parametrize(("kind", "row"), [(kind, row) for kind, (_, _, rows) in ROWS.items() for row in rows])
def test_rows_of_archives_are_found_however_written(kind, row, tmp_path):
    one_of(kind, tmp_path / "data")
    name, table, _ = ROWS[kind]
    (tmp_path / "data" / name).write_text(table.format(row))
    assert used(read(kind, tmp_path / "data"))["diagnosis"].tolist() == ["CN"]


OWN = {
    "adni": ("c.csv", "Image Data ID,Subject,Group,Years\nI120562,002_S_0295,CN,70\n"),
    "oasis1": ("oasis_cross-sectional.csv", "ID,M/F,Years,CDR,eTIV,nWBV\nOAS1_0001_MR1,F,70,0,1344,0.743\n"),
    "oasis2": ("oasis_longitudinal.csv", "MRI ID,M/F,Years,CDR,eTIV,nWBV\nOAS2_0001_MR1,M,70,0,1987,0.696\n"),
    "oasis_slices": ("oasis_longitudinal.csv", "MRI ID,M/F,Years,CDR,eTIV,nWBV\nOAS2_0001_MR1,M,70,0,1987,0.696\n"),
    "oasis3": ("cdr.csv", "OASISID,days_to_visit,Years,CDRTOT\nOAS30001,129,70,0\n"),
    "bids": ("participants.tsv", "participant_id\tYears\tdiagnosis\nsub-01\t70\tCN\n"),
    "caps": ("t.tsv", "participant_id\tYears\tdiagnosis\nsub-01\t70\tCN\n"),
    "dicom": ("people.csv", "participant_id,Years,diagnosis\nP1,70,CN\n"),
    "folders": ("people.csv", "participant_id,Years\nsub-01,70\n"),
}


@pytest.mark.parametrize("kind", list(OWN))
def test_columns_can_be_named_for_every_source(kind, tmp_path):
    settings = one_of(kind, tmp_path / "data")
    name, table = OWN[kind]
    (tmp_path / "data" / name).write_text(table)
    settings |= {"table": tmp_path / "data" / name} if kind == "folders" else {}
    column = {"adni": "Age"}.get(kind, "age")
    row = used(read(kind, tmp_path / "data", columns={"Years": column}, **settings)).iloc[0]
    assert row[["diagnosis", "age"]].tolist() == ["CN", 70]


def workbook(path, rows):
    """A minimal workbook with shared strings, as spreadsheet programs write it."""
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    texts = [cell for row in rows for cell in row if isinstance(cell, str)]
    cells = [
        [f'<c r="{chr(65 + k)}{n}" t="s"><v>{texts.index(cell)}</v></c>' if isinstance(cell, str)
         else f'<c r="{chr(65 + k)}{n}"><v>{cell}</v></c>' for k, cell in enumerate(row) if cell is not None]
        for n, row in enumerate(rows, 1)
    ]  # fmt: skip
    with zipfile.ZipFile(path, "w") as book:
        strings = "".join(f"<si><t>{text}</t></si>" for text in texts)
        book.writestr("xl/sharedStrings.xml", f"<sst {space}>{strings}</sst>")
        data = "".join(f"<row>{''.join(row)}</row>" for row in cells)
        book.writestr("xl/worksheets/sheet1.xml", f"<worksheet {space}><sheetData>{data}</sheetData></worksheet>")


def test_oasis_workbooks_are_read(tmp_path):
    one_of("oasis1", tmp_path / "data")
    (tmp_path / "data/oasis_cross-sectional.csv").unlink()
    book = tmp_path / "data/oasis_cross-sectional-5708aa0a98d82080.xlsx"
    workbook(book, [["ID", "M/F", "Age", "CDR", "eTIV", "nWBV", "Delay"], ["OAS1_0001_MR1", "F", 74, 0.5, 1344, 0.743]])
    row = used(read("oasis1", tmp_path / "data")).iloc[0]
    assert row[["diagnosis", "age", "sex", "nbv"]].tolist() == ["MCI", 74, "F", 0.743]
    one_of("oasis2", tmp_path / "second")
    (tmp_path / "second/oasis_longitudinal.csv").unlink()
    rows = [
        ["Subject ID", "MRI ID", "M/F", "Age", "CDR", "eTIV", "nWBV"],
        ["x", "OAS2_0001_MR1", "M", 87, 0.5, 1987, 0.69],
    ]
    workbook(tmp_path / "second/oasis_longitudinal_demographics-8d83e569fa2e2d30.xlsx", rows)
    assert used(read("oasis2", tmp_path / "second")).iloc[0][["diagnosis", "age"]].tolist() == ["MCI", 87]
    book.write_bytes(b"PK\x03\x04" + bytes(99))
    with pytest.raises(StudyError, match=r"xlsx.*save it as csv"):
        read("oasis1", tmp_path / "data")
