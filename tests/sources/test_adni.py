"""Made ADNI downloads: every layout, table dialect and label policy gives the rows that it should."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from adlib.sources import adni
from adlib.sources.adni_tables import phase_name
from adlib.sources.reading import list_source
from adlib.study.exec_params import HERE
from adlib.study.records import LISTING, MANIFEST, StudyError, check_table, digest, file_digest
from adlib.study.source_params import AdniSource

SERIES = "MPR__GradWarp__B1_Correction__N3__Scaled"
SUBJECT, IMAGE = "002_S_0295", "I120562"
HEADER = "Image Data ID,Subject,Group,Sex,Age,Visit,Modality,Description,Type,Acq Date,Format,Downloaded"
MERGE = "RID,PTID,VISCODE,EXAMDATE,DX_bl,DX,COLPROT,ORIGPROT,AGE,PTGENDER,SITE,FLDSTRENG"


def flat(subject=SUBJECT, image=IMAGE, archived="20090109102030123", series=SERIES, end=".nii.gz"):
    return f"ADNI_{subject}_MR_{series}_Br_{archived}_S52648_{image}{end}"


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.diag([1, 2, 3, 1])), path)
    return path


def download(root, subject=SUBJECT, number=IMAGE, name=None, day="2008-10-14", end=".nii.gz"):
    folder = root / "ADNI" / subject / SERIES / f"{day}_09_08_07.0" / number
    return image(folder / (name or flat(subject, number, end=end)))


def listed_line(subject=SUBJECT, number=IMAGE, group="MCI", visit="ADNI1/GO Month 24", day="10/14/2008"):
    return f'"{number}","{subject}","{group}","F","74","{visit}","MRI","MPR; N3","Processed","{day}","NiFTI","1/5/2010"'


def collection(root, *lines, name="study_1_05_2010.csv"):
    (root / name).write_text("\n".join([HEADER, *lines]) + "\n")


def merge(root, *lines, name="ADNIMERGE_15Jan2024.csv"):
    (root / name).write_text("\n".join([MERGE, *lines]) + "\n")


def read(root, **settings):
    return list_source(AdniSource(kind="adni", root=root, **settings), root, pool=HERE)


def only(root, **settings):
    table = read(root, **settings)
    assert len(table) == 1
    return table.iloc[0]


def test_download_with_collection(tmp_path):
    path = download(tmp_path)
    collection(tmp_path, listed_line())
    row = only(tmp_path)
    assert row["scan_id"] == "sub-ADNI002S0295_ses-20081014_acq-I120562_T1w"
    assert (row["participant_id"], row["session_id"]) == ("sub-ADNI002S0295", "ses-20081014")
    assert (row["image_id"], row["site"], row["modality"]) == (IMAGE, "002", "MR")
    assert (row["series_description"], row["acquisition_date"]) == ("MPR; N3", "2008-10-14")
    assert (row["diagnosis"], row["label_source"]) == ("MCI", "Group of study_1_05_2010.csv")
    assert (row["age"], row["sex"], row["phase"]) == (74.0, "F", "ADNI1/GO")
    assert (row["path"], row["sha256"]) == (str(path), file_digest(path))
    assert (row["shape"], row["voxel_z_mm"], row["excluded"]) == ("4x5x6", 3.0, None)
    check_table(pd.DataFrame([row]), MANIFEST, "test")


@pytest.mark.parametrize("day", ["10/14/2008", "2008-10-14", "2008-10-14 00:00:00.0", "2008/10/14"])
@pytest.mark.parametrize("header", [HEADER, HEADER.replace("Image Data ID", "Image ID"), HEADER.upper()])
def test_collection_dialects_are_equivalent(tmp_path, day, header):
    image(tmp_path / "flat" / flat())
    collection(tmp_path, listed_line(day=day, number=IMAGE[1:] if "Data" not in header else IMAGE))
    text = (tmp_path / "study_1_05_2010.csv").read_text().replace(HEADER, header)
    (tmp_path / "study_1_05_2010.csv").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    row = only(tmp_path)
    assert (row["session_id"], row["diagnosis"], row["age"]) == ("ses-20081014", "MCI", 74.0)


def test_class_folder_labels_without_tables(tmp_path, capsys):
    image(tmp_path / "Normal" / flat(image="I1"))
    image(tmp_path / "train" / "EMCI" / flat("005_S_10221", "I2", end=".nii"))
    image(tmp_path / "odd" / flat(image="I3"))
    table = read(tmp_path).set_index("image_id")
    assert table["diagnosis"].to_dict() == {"I1": "CN", "I2": "MCI", "I3": None}
    assert table.loc["I1", "label_source"] == "name of the class folder"
    assert table.loc["I1", "series_description"] == "MPR; GradWarp; B1 Correction; N3; Scaled"
    assert table.loc["I2", ["participant_id", "site"]].tolist() == ["sub-ADNI005S10221", "005"]
    assert set(table["session_id"]) == {"ses-20090109"}
    assert "3 images are dated by their file name" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("subject", "number", "reason"),
    [
        ("003_S_0001", IMAGE, "folder is of 002_S_0295, its file name of 003_S_0001"),
        (SUBJECT, "I7", "file name of I7"),
    ],
)
def test_file_in_folder_of_another_subject_is_excluded(tmp_path, subject, number, reason):
    download(tmp_path)
    download(tmp_path, name=flat(subject, number))
    collection(tmp_path, listed_line())
    table = read(tmp_path)
    assert table["excluded"].notna().sum() == 1
    assert reason in table["excluded"].dropna().iloc[0]
    assert table.loc[table["excluded"].notna(), "diagnosis"].isna().all()


def test_other_files_are_excluded_with_reasons(tmp_path):
    download(tmp_path)
    image(tmp_path / "other" / "brain.nii")
    (tmp_path / "other" / f"._{flat()}").write_bytes(b"junk of another system")
    (tmp_path / "other" / flat(end=".img")).write_bytes(b"")
    collection(tmp_path, listed_line())
    table = read(tmp_path).set_index("scan_id")
    assert len(table) == 4
    assert table["excluded"].str.contains("download the image as NIfTI").sum() == 1
    assert table["excluded"].str.contains("shadow file").sum() == 1
    assert "neither an ADNI file name" in table.loc["other-brain-nii", "excluded"]


def test_plain_file_name_in_adni_folder(tmp_path):
    download(tmp_path, name="scan.nii")
    collection(tmp_path, listed_line())
    row = only(tmp_path)
    assert (row["image_id"], row["participant_source"], row["diagnosis"]) == (IMAGE, "folder name", "MCI")


def test_dicom_folder_is_one_scan(tmp_path):
    folder = tmp_path / "ADNI" / SUBJECT / "MP-RAGE" / "2008-10-14_09_08_07.0" / IMAGE
    folder.mkdir(parents=True)
    files = [folder / f"ADNI_{SUBJECT}_MR_MP-RAGE_br_raw_20090109102030123_{n}_S52648_{IMAGE}.dcm" for n in (1, 2)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    collection(tmp_path, listed_line())
    row = only(tmp_path)
    assert (row["path"], row["shape"], row["image_id"]) == (str(folder), None, IMAGE)
    assert row["sha256"] == digest(sorted(map(file_digest, files)))
    assert adni.name_facts(files[0].name)["series_description"] == "MP-RAGE"
    (folder / files[0].name.replace(IMAGE, "I9")).write_bytes(b"3")
    download(tmp_path, number="I5")
    collection(tmp_path, listed_line(), listed_line(number="I5"))
    assert read(tmp_path)["excluded"].dropna().tolist() == [f"the folder mixes DICOM files of {IMAGE}, I9"]


def test_one_image_in_two_folders_is_refused(tmp_path):
    download(tmp_path)
    for part in ("part1", "part2"):
        folder = tmp_path / part / "ADNI" / SUBJECT / "MP-RAGE" / "2008-10-14_09_08_07.0" / "I7"
        folder.mkdir(parents=True)
        (folder / f"ADNI_{SUBJECT}_MR_MP-RAGE_br_raw_20090109102030123_1_S52648_I7.dcm").write_bytes(part.encode())
    collection(tmp_path, listed_line(), listed_line(number="I7"))
    table = read(tmp_path)
    assert table["excluded"].dropna().tolist() == ["DICOM files of I7 lie in 2 folders; join them in one"] * 2
    assert table["scan_id"].is_unique


def test_unclear_cells_and_codes_cost_themselves(tmp_path, capsys):
    download(tmp_path)
    merge(tmp_path, *VISITS)
    (tmp_path / "DXSUM.csv").write_text("RID,VISCODE,EXAMDATE,DXCHANGE\n295,m24,2008-10-15,12\nx,bl,2006-05-02,1\n")
    assert only(tmp_path, label="visit", tables=(tmp_path / "DXSUM.csv",))["diagnosis"] == "DXCHANGE 12"
    said = capsys.readouterr().out
    assert "line 2, column 'DXCHANGE': '12' where one of the codes" in said
    assert (
        "line 3, column 'RID': 'x' where a roster number such as 295 is expected; correct it; the row is left out"
        in said
    )


def test_image_with_two_groups_has_two_rows(tmp_path):
    download(tmp_path)
    collection(tmp_path, listed_line(), listed_line(), name="a.csv")
    assert len(read(tmp_path)) == 1
    collection(tmp_path, listed_line(group="AD"), name="b.csv")
    table = read(tmp_path)
    assert sorted(table["diagnosis"]) == ["AD", "MCI"]
    assert table["scan_id"].nunique() == table["image_id"].nunique() == 1


def test_image_listed_under_another_subject_is_excluded(tmp_path):
    download(tmp_path)
    collection(tmp_path, listed_line(subject="003_S_0001"))
    assert only(tmp_path)["excluded"] == "its name is of 002_S_0295, study_1_05_2010.csv lists it under 003_S_0001"


def test_missing_images_and_other_tables_are_reported(tmp_path, capsys):
    download(tmp_path)
    collection(tmp_path, listed_line(), listed_line(number="I8"), listed_line(number="I9"))
    (tmp_path / "MMSE.csv").write_text("RID,VISCODE,MMSCORE\n295,bl,29\n")
    assert only(tmp_path)["diagnosis"] == "MCI"
    said = capsys.readouterr().out
    assert "2 of the 3 listed image ids are not on disk, I8 first" in said
    assert "MMSE.csv is ignored" in said


VISITS = (
    "295,002_S_0295,bl,2006-05-02,SMC,NL,ADNI1,ADNI1,72.1,Female,2,1.5 Tesla MRI",
    "295,002_S_0295,m24,2008-10-20,SMC,NL to MCI,ADNI1,ADNI1,72.1,Female,2,1.5 Tesla MRI",
    "295,002_S_0295,m36,2009-10-20,SMC,Dementia,ADNIGO,ADNI1,72.1,Female,2,3 Tesla MRI",
)


@pytest.mark.parametrize(
    ("settings", "diagnosis", "words"),
    [
        ({"label": "collection"}, "LMCI", "Group of"),
        ({"label": "baseline"}, "CN", "DX_bl of ADNIMERGE_15Jan2024.csv"),
        ({"label": "baseline", "labels": {}}, "SMC", "DX_bl of"),
        ({"label": "visit"}, "MCI", "diagnosis nearest the scan, ADNIMERGE"),
        ({"label": "visit", "window_days": 5}, None, "no diagnosis within 5 days"),
    ],
)
def test_label_policies(tmp_path, settings, diagnosis, words):
    download(tmp_path)
    download(tmp_path, number="I2", day="2006-05-02")
    collection(tmp_path, listed_line(group="LMCI"), listed_line(number="I2", day="5/2/2006", group="LMCI"))
    merge(tmp_path, *VISITS)
    row = read(tmp_path, **settings).set_index("image_id").loc[IMAGE]
    assert row["diagnosis"] == diagnosis
    assert words in row["label_source"]


def test_visits_supply_age_sex_field_and_phase(tmp_path):
    download(tmp_path)
    merge(tmp_path, *VISITS)
    row = only(tmp_path, label="visit")
    assert (row["age"], row["sex"], row["field_strength_T"], row["phase"]) == (74.6, "F", 1.5, "ADNI1")


def test_day_of_archiving_never_matches_a_visit(tmp_path):
    image(tmp_path / flat(archived="20081014102030123"))
    download(tmp_path, number="I2")
    merge(tmp_path, *VISITS)
    table = read(tmp_path, label="visit").set_index("image_id")
    assert table["diagnosis"].to_dict() == {IMAGE: None, "I2": "MCI"}
    assert "day of the scan unknown" in table.loc[IMAGE, "label_source"]


@pytest.mark.parametrize(
    ("column", "codes", "diagnosis"),
    [
        *[("DXCHANGE", *row) for row in (("179", "CN"), ("248", "MCI"), ("356", "AD"))],
        *[(column, *row) for column in ("DXCURREN", "DIAGNOSIS") for row in (("1", "CN"), ("2", "MCI"), ("3", "AD"))],
    ],
)
def test_dxsum_codes_by_the_data_dictionary(tmp_path, column, codes, diagnosis):
    download(tmp_path)
    for code in (*codes, f"{codes[0]}.0"):
        cells = {"DXCURREN": "-4", "DXCHANGE": "", "DIAGNOSIS": "NA"} | {column: code}
        header, line = ",".join(cells), ",".join(cells.values())
        table = f"Phase,RID,VISCODE,EXAMDATE,USERDATE,{header}\nADNI2,295,m24,,2008-10-15,{line}\n"
        (tmp_path / "DXSUM_PDXCONV_ADNIALL.csv").write_text(table)
        row = only(tmp_path, label="visit", phases=("ADNI2",))
        assert (row["diagnosis"], row["phase"], row["excluded"]) == (diagnosis, "ADNI2", None)


def test_first_visit_is_the_baseline_without_dx_bl(tmp_path):
    download(tmp_path)
    lines = ["RID,VISCODE,EXAMDATE,DIAGNOSIS", "295,m12,2007-05-01,3", "295,bl,,2", "295,m06,2006-11-01,1"]
    (tmp_path / "DXSUM.csv").write_text("\n".join(lines) + "\n")
    assert only(tmp_path, label="baseline")["diagnosis"] == "MCI"
    (tmp_path / "DXSUM.csv").write_text("\n".join([*lines[:2], lines[3]]) + "\n")
    assert only(tmp_path, label="baseline")["diagnosis"] == "CN"


def test_tables_are_joined_and_contradictions_kept(tmp_path):
    download(tmp_path)
    download(tmp_path, "005_S_0221", "I5")
    merge(tmp_path, VISITS[1], name="one.csv")
    merge(tmp_path, "221,005_S_0221,m24,10/20/2008,AD,Dementia,ADNI1,ADNI1,70,Male,5,", name="two.csv")
    table = read(tmp_path, label="visit").set_index("image_id")
    assert table["diagnosis"].to_dict() == {IMAGE: "MCI", "I5": "AD"}
    (tmp_path / "DXSUM.csv").write_text("RID,VISCODE,EXAMDATE,DIAGNOSIS\n295,m24,2008-10-20,3\n")
    assert sorted(read(tmp_path, label="visit").query("image_id == @IMAGE")["diagnosis"]) == ["AD", "MCI"]


@pytest.mark.parametrize(
    ("visit", "phases", "kept"),
    [
        ("ADNI1 Baseline", ("ADNI1",), True),
        ("ADNI Screening", ("ADNI1",), True),
        ("ADNI2 Month 3 MRI-New Pt", ("ADNI1", "ADNIGO"), False),
        ("ADNIGO Month 60", ("ADNIGO",), True),
        ("ADNI1/GO Month 24", ("ADNIGO",), True),
        ("ADNI3 Initial Visit-Cont Pt", ("ADNI2",), False),
        ("bl", ("ADNI2",), False),
        ("bl", (), True),
    ],
)
def test_other_phases_are_excluded(tmp_path, visit, phases, kept):
    download(tmp_path)
    collection(tmp_path, listed_line(visit=visit))
    reason = only(tmp_path, phases=phases)["excluded"]
    assert reason is None if kept else "not among source.phases" in reason


def test_visit_settles_an_open_phase(tmp_path):
    download(tmp_path)
    collection(tmp_path, listed_line())
    merge(tmp_path, *VISITS)
    assert only(tmp_path)["phase"] == "ADNI1"
    assert [phase_name(text) for text in ("ADNI 2", "adnigo", "m12", "ADNIX", None)] == [
        "ADNI2", "ADNIGO", None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (f"{HEADER}\n{listed_line()}\n{listed_line(day='14/10/2008')}\n", r"line 3, column 'Acq Date': '14/10/2008'"),
        (f"{HEADER}\n{listed_line(number='D.5')}\n", r"line 2, column 'Image Data ID': 'D.5'"),
        (f'{HEADER}\n{listed_line()},"more"\n', r"line 2: 13 cells where the header has 12"),
        (f"{MERGE}\n295,003_S_0001,bl,,,,,,,,,\n", r"line 2, column 'RID': '295' where 1, as the PTID"),
        (f"{MERGE}\n,,bl,2008-10-14,,,,,,,,\n", r"line 2, column 'RID': None"),
        (f"{MERGE}\n1,S0001,bl,,,,,,,,,\n", r"line 2, column 'PTID': 'S0001'"),
    ],
)
def test_table_errors_name_file_line_and_column(tmp_path, table, words):
    download(tmp_path)
    (tmp_path / "brought.csv").write_text(table)
    with pytest.raises(StudyError, match=rf"brought\.csv, {words}"):
        read(tmp_path)


def test_missing_images_tables_and_labels(tmp_path):
    with pytest.raises(StudyError, match=r"source\.root .* is not a folder"):
        read(tmp_path / "none")
    with pytest.raises(StudyError, match=r"no \.nii"):
        read(tmp_path)
    download(tmp_path)
    with pytest.raises(StudyError, match=r"none of the 1 images .* no folder is named by a group"):
        read(tmp_path)
    with pytest.raises(StudyError, match="visit needs ADNIMERGE or DXSUM"):
        read(tmp_path, label="visit")
    merge(tmp_path, *VISITS)
    with pytest.raises(StudyError, match="collection needs the collection csv"):
        read(tmp_path)
    (tmp_path / "MMSE.csv").write_text("RID,VISCODE,MMSCORE\n295,bl,29\n")
    with pytest.raises(StudyError, match=r"MMSE\.csv is no collection table"):
        read(tmp_path, tables=(tmp_path / "MMSE.csv",))


def test_only_given_tables_are_read(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "tables"
    elsewhere.mkdir()
    download(root)
    collection(root, listed_line(group="AD"))
    collection(elsewhere, listed_line(group="CN"))
    assert only(root, tables=(elsewhere / "study_1_05_2010.csv",))["diagnosis"] == "CN"


def test_other_names_and_folders():
    for name in ("brain.nii", flat(archived="20081314102030123"), f"{SUBJECT}_{IMAGE}.nii"):
        assert adni.name_facts(name) is None
    whole, part = adni.name_facts(flat()), adni.name_facts(flat(end="_88.jpg"))
    assert set(whole) - set(part) == {"scan_id"}
    assert set(whole) <= set(LISTING.columns)


def test_folder_by_series(tmp_path):
    folder = tmp_path / SUBJECT / "MP-RAGE" / "2008-10-14_09_08_07.0" / "S52648"
    image(folder / "scan.nii")
    merge(tmp_path, *VISITS)
    assert only(tmp_path, label="visit")["scan_id"] == "sub-ADNI002S0295_ses-20081014_acq-S52648_T1w"
