"""Clean made cohorts are let through; each fault planted in one is found, by its name and alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import adlib.audit as audit_package
from adlib.audit.advice import CHECKS
from adlib.audit.checks import check_people
from adlib.audit.confounds import associations
from adlib.audit.run import AuditStop, enforce, run_audit
from adlib.study.params import AuditParams
from adlib.study.records import LISTING, StudyError, check_table

CLASSES = ("CN", "MCI", "LMCI", "AD")


def clean(seed=0, per_class=30):
    """Listing of `per_class` participants of each class, one in five with a second session; nothing tells the label."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(per_class * len(CLASSES)):
        person = {
            "participant_id": f"sub-{k:03d}",
            "participant_source": "file name",
            "diagnosis": CLASSES[k % len(CLASSES)],
            "sex": rng.choice(["F", "M"]),
            "site": rng.choice(["a", "b", "c"]),
            "phase": rng.choice(["ADNI1", "ADNI2"]),
            "given_split": rng.choice(["train", "test"], p=[0.7, 0.3]),
        }
        age = rng.normal(72, 8)
        rows += [person | _session(rng, k, visit, age) for visit in range(1 + (k % 5 == 0))]
    return check_table(pd.DataFrame(rows), LISTING, "made")


def _session(rng, k, visit, age):
    edge = rng.choice([0.9, 1.0, 1.2])
    return {
        "session_id": f"ses-{visit + 1:02d}",
        "scan_id": f"sub-{k:03d}_ses-{visit + 1:02d}_T1w",
        "image_id": f"I{1000 * visit + k}",
        "path": f"/d/sub-{k:03d}_ses-{visit + 1:02d}_T1w.nii.gz",
        "sha256": f"{1000 * visit + k:064x}",
        "age": age + visit,
        "manufacturer": rng.choice(["Alpha", "Beta"]),
        "model": rng.choice(["One", "Two"]),
        "field_strength_T": rng.choice([1.5, 3.0]),
        "series_description": rng.choice(["MPRAGE", "MP-RAGE REPEAT", "Accelerated Sag IR-FSPGR"]),
        "modality": "MR",
        "image_type": rng.choice(["ORIGINAL/PRIMARY/M/ND/NORM", "DERIVED/SECONDARY/MPR"]),
        "echo_time_ms": rng.choice([2.9, 3.5]),
        "repetition_time_ms": 2300.0,
        "inversion_time_ms": 900.0,
        "acquisition_date": f"20{rng.integers(10, 20)}-01-01",
        "voxel_x_mm": edge,
        "voxel_y_mm": 1.0,
        "voxel_z_mm": 1.2,
        "shape": f"{rng.choice([192, 256])}x256x{rng.integers(160, 184)}",
        "dtype": rng.choice(["int16", "float32"]),
        "orientation": rng.choice(["RAS", "LPS"]),
        "slice_index": float(rng.integers(70, 100)),
    }


def _two_labels(table, rng, **changes):
    row = table.iloc[[int(rng.integers(len(table)))]]
    other = "CN" if row["diagnosis"].iloc[0] != "CN" else "AD"
    return pd.concat([table, row.assign(diagnosis=other, **changes)], ignore_index=True)


def _some(table, rng, **values):
    table = table.astype({name: object for name in values if name in table and isinstance(values[name], str)})
    table.loc[rng.choice(len(table), 3, replace=False), list(values)] = list(values.values())
    return table


def _crossing_twins(table, rng):
    one, other = rng.choice(table.index[table["session_id"] == "ses-01"], 2, replace=False)
    table.loc[other, "sha256"] = table.loc[one, "sha256"]
    return table


def _renamed(table):
    """Three people stand in the table a second time, under other names, as from another release."""
    again = table.iloc[[3, 7, 11]].assign(image_id=["a", "b", "c"], sha256=["a", "b", "c"], scan_id=["a", "b", "c"])
    return pd.concat([table, again.assign(participant_id=["old-1", "old-2", "old-3"])], ignore_index=True)


def _leak(table, rng):
    """85 % of the test scans are of people whose other scan is trained on."""
    tested = table.groupby("participant_id").head(1)
    tested = tested[tested["given_split"] == "test"]
    twins = tested.sample(frac=0.85, random_state=int(rng.integers(1000)))
    names = twins["scan_id"] + "b"
    fresh = {"session_id": "ses-09", "sha256": names.map(hash).map(str), "image_id": names, "path": "/d/" + names}
    return pd.concat([table, twins.assign(scan_id=names, given_split="train", **fresh)], ignore_index=True)


def _by_class(column, values, noise=0.0):
    def plant(table, rng):
        fact = table["diagnosis"].map(values)
        return table.assign(**{column: fact + noise * rng.normal(size=len(table)) if noise else fact})

    return plant


def _phase_of_mci(table, rng):
    """ADNI's own: MCI in one phase, LMCI in the other; CN and AD in both."""
    phase = table["diagnosis"].map({"MCI": "ADNI2", "LMCI": "ADNI1"})
    return table.assign(phase=phase.fillna(table["phase"]))


FEW = dict(zip(CLASSES, (60.0, 75.0, 90.0, 105.0), strict=True))
SERIES = ("MPRAGE", "SPGR", "BRAVO", "TFE")
STOPS = {
    "scan-two-labels": lambda t, r: _two_labels(t, r),
    "image-two-labels": lambda t, r: _two_labels(t, r, scan_id="other", session_id="ses-08", sha256="f"),
    "visit-two-labels": lambda t, r: _two_labels(t, r, scan_id="other", image_id="other", sha256="f"),
    "same-image": _crossing_twins,
    "given-split-leaks": _leak,
    "participants-unknown": lambda t, r: t.assign(participant_id=None, participant_source=None, given_split=None),
    "sequence-not-t1w": lambda t, r: t.assign(series_description=r.choice(["Axial T2 FLAIR", "ep2d_bold", "ASL"])),
    "sequence-not-t1w (timing)": lambda t, r: t.assign(echo_time_ms=95.0, repetition_time_ms=3000.0),
    "sequence-not-t1w (modality)": lambda t, r: t.assign(modality="PT"),
    "sequence-not-t1w (image type)": lambda t, r: t.assign(image_type="DERIVED/PRIMARY/DIFFUSION/ADC"),
    "sequence-not-t1w (file name)": lambda t, r: t.assign(path=t["path"].str.replace("T1w", "T2w")),
    "cohort-tells-label": _by_class("cohort", dict(zip(CLASSES, "aabb", strict=True))),
    "phase-tells-label": _phase_of_mci,
    "slices-tell-label": _by_class("slice_index", FEW, noise=1.0),
    "slices-tell-label (count)": _by_class("shape", {c: f"256x256x{150 + 9 * k}" for k, c in enumerate(CLASSES)}),
    "sequence-tells-label": _by_class("series_description", dict(zip(CLASSES, SERIES, strict=True))),
    "acquisition-tells-label": _by_class("site", dict(zip(CLASSES, "abcd", strict=True))),
    "participants": lambda t, r: t[(t["diagnosis"] != "AD") | (t["participant_id"] < "sub-016")],
    "not-3d": lambda t, r: t.assign(shape="64x64x40x200"),
    "affine": lambda t, r: t.assign(affine_fault="singular"),
    "dtype": lambda t, r: t.assign(dtype="complex64"),
}  # fmt: skip
WARNS = {
    "sequence-not-t1w": lambda t, r: _some(t, r, series_description="3-plane localizer"),
    "few-slices": lambda t, r: _some(t, r, shape="256x256x24", voxel_z_mm=2.0),
    "anisotropic": lambda t, r: _some(t, r, voxel_z_mm=5.0, shape="256x256x44"),
    "field-of-view": lambda t, r: _some(t, r, voxel_x_mm=0.1),
    "affine": lambda t, r: _some(t, r, affine_fault="missing"),
    "orientation-unstated": lambda t, r: _some(t, r, affine_fault="unstated"),
    "dtype": lambda t, r: _some(t, r, dtype="rgb"),
    "not-3d": lambda t, r: _some(t, r, shape="64x64x40x200"),
    "unreadable": lambda t, r: _some(t, r, shape=None),
    "label-missing": lambda t, r: _some(t, r, diagnosis=None),
    "label-outside": lambda t, r: _some(t, r, diagnosis="SMC"),
    "source-left-out": lambda t, r: _some(t, r, excluded="another run of the session is used"),
    "image-repeated": lambda t, r: pd.concat([t, t.iloc[:1].assign(scan_id="copy", sha256="f")], ignore_index=True),
    "scan-repeated": lambda t, r: pd.concat([t, t.iloc[:1]], ignore_index=True),
    "imbalance": lambda t, r: pd.concat([t[t["diagnosis"] != "AD"], clean(9, 160).query("diagnosis == 'AD'").assign(
        participant_id=lambda x: x["participant_id"] + "x", scan_id=lambda x: x["scan_id"] + "x",
        image_id=lambda x: x["image_id"] + "x", sha256=lambda x: x["sha256"] + "x")], ignore_index=True),
    "age-missing": lambda t, r: _some(t, r, age=np.nan),
    "same-person": lambda t, r: _renamed(t.assign(icv_ml=r.normal(1450, 150, len(t)))),
    "followups": lambda t, r: t,
    "label-changes": lambda t, r: t.assign(diagnosis=t["diagnosis"].mask(t["session_id"] == "ses-02", "AD")),
}  # fmt: skip
CONFOUNDS = {name for name in STOPS if "tell" in name}
HEADERS = [*(("stop", name) for name in STOPS if name not in CONFOUNDS), *(("warn", name) for name in WARNS)]


def audited(table, **limits):
    return run_audit(table, CLASSES, AuditParams(**limits), seed=1)


def stops(audit):
    return audit.findings.loc[audit.findings["decision"] == "stop", "check"].tolist()


@pytest.fixture
def without_confounds(monkeypatch):
    """Spare the classifiers where they have nothing to do with the fault."""
    monkeypatch.setattr("adlib.audit.run.check_confounds", lambda *_: [])
    monkeypatch.setattr("adlib.audit.run.associations", lambda *_: pd.DataFrame())


@pytest.mark.parametrize("seed", range(10))
def test_clean_cohort_has_no_warning(seed):
    audit = audited(clean(seed))
    assert stops(audit) == []
    assert not (audit.findings["severity"] == "warn").any()
    enforce(audit.findings)
    assert len(audit.manifest) == len(clean(seed))


@pytest.mark.parametrize(("severity", "fault"), HEADERS)
def test_fault_of_ids_labels_or_headers_is_found(severity, fault, without_confounds):
    check = fault.split(" ")[0]
    for seed in range(4):
        plant = (STOPS if severity == "stop" else WARNS)[fault]
        audit = audited(plant(clean(seed, 12), np.random.default_rng(seed)))
        assert stops(audit) == ([check] if severity == "stop" else [])
        grave = audit.findings[audit.findings["severity"] != "info"]
        assert (audit.findings["check"] == check).any() and (grave["check"] == check).sum() <= 1


@pytest.mark.parametrize("fault", sorted(CONFOUNDS))
def test_confound_is_found(fault):
    for seed in range(3):
        audit = audited(STOPS[fault](clean(seed), np.random.default_rng(seed)))
        assert stops(audit) == [fault.split(" ")[0]]


@pytest.mark.parametrize("seed", range(3))
def test_several_faults_are_reported_once_each(seed):
    rng = np.random.default_rng(seed)
    faults = ("given-split-leaks", "phase-tells-label", "slices-tell-label", "image-two-labels", "sequence-not-t1w")
    table = clean(seed)
    for fault in faults:
        table = STOPS[fault](table, rng)
    audit = audited(table)
    assert sorted(stops(audit)) == sorted(faults)
    leak = audit.findings.set_index("check").loc["given-split-leaks", "value"]
    assert "(8" in leak.split(";")[1], leak
    with pytest.raises(AuditStop) as error:
        enforce(audit.findings)
    assert str(error.value).count("\n  [") == len(faults)


@pytest.mark.parametrize(
    ("column", "name", "image"),
    [
        ("session_id", "ADNI{} Screening MRI", "/d/{}/slice_{}.jpg"),
        ("session_id", "ses-ADNI{}InitialVisitContPt", "/d/{}_{:03d}.png"),
        ("series_description", "MPRAGE ADNI {} accelerated", "/d/{}/{}.png"),
        ("series_description", "Sag ADNI-{}", "/d/{}_SLICE-{:03d}_T1w.nii.gz|/d/other.nii.gz"),
    ],
)
def test_phase_and_slice_in_names_tell_the_label(column, name, image):
    table, rng = clean(4), np.random.default_rng(4)
    phases = [name.format(3 if label == "AD" else 2) for label in table["diagnosis"]]
    indices = table["diagnosis"].map({"CN": 40, "MCI": 52, "LMCI": 60, "AD": 70}) + rng.integers(0, 2, len(table))
    paths = [image.format(person, index) for person, index in zip(table["participant_id"], indices, strict=True)]
    named = table.drop(columns=["slice_index", "phase"]).assign(**{column: phases, "path": paths, "shape": "176x208"})
    audit = audited(named.drop_duplicates("participant_id"))
    assert {"phase-tells-label", "slices-tell-label"} <= set(stops(audit))
    assert set(audit.manifest["phase"]) == {"ADNI2", "ADNI3"}
    found = audit.confounds.set_index("column")["p_holm"]
    assert found["phase"] < 1e-6 and found["slice_index"] < 1e-6


def test_other_numbers_in_names_are_no_slices_and_no_phases():
    table = clean(4).drop_duplicates("participant_id").drop(columns=["slice_index", "phase"])
    number = table.groupby("diagnosis").cumcount() + 10 * table["diagnosis"].map(CLASSES.index)
    for path in ("/d/image_" + number.astype(str).str.zfill(3) + ".png", "/d/" + table["participant_id"] + ".png"):
        named = table.assign(path=path, shape="176x208", series_description="MPRAGE_ADNI", session_id="ses-02")
        audit = audited(named)
        assert not {"slice_index", "phase"} & set(audit.confounds["column"]) and stops(audit) == []


def test_phase_that_separates_one_pair_of_classes_is_found():
    audit = audited(_phase_of_mci(clean(3), None))
    value = audit.findings.set_index("check").loc["phase-tells-label", "value"]
    macro, pair = value.split(", ")
    assert float(macro) < 0.9
    assert pair == "LMCI against MCI 1.00"


def test_association_intervals_narrow_with_cohort_size():
    small, large = (audited(clean(1, n)).confounds.set_index("column").loc["age"] for n in (15, 120))
    for row in (small, large):
        assert 0 <= row["ci_low"] <= row["association"] <= row["ci_high"] <= 1
    assert large["ci_high"] - large["ci_low"] < small["ci_high"] - small["ci_low"]


def test_same_person_pairs_and_their_number_by_chance():
    rng = np.random.default_rng(3)
    n = 3000
    people = pd.DataFrame(
        {
            "participant_id": [f"sub-{k}" for k in range(n)],
            "sex": rng.choice(["F", "M"], n),
            "age": rng.integers(60, 90, n).astype(float),
            "icv_ml": rng.normal(1450, 150, n).round(),
        }
    )
    equal = sum(k * (k - 1) / 2 for k in people.groupby(["sex", "age", "icv_ml"]).size())
    expected = 2 * 30 * (n / 60) ** 2 / 2 / (2 * 150 * np.sqrt(np.pi))
    found = check_people(pd.concat([people, people.iloc[:40].assign(participant_id=[f"x-{k}" for k in range(40)])]))
    by_chance = float(found[0]["value"].split("; ")[1].split(" ")[0])
    assert abs(by_chance - expected) < 0.15 * expected and abs(equal - expected) < 4 * np.sqrt(expected)
    assert int(found[0]["value"].split(" ")[0]) >= 40 and "sub-0 = x-0" in found[0]["subject"]
    assert check_people(people.drop(columns="icv_ml")) == [] == check_people(people.drop_duplicates(["age", "sex"]))


def test_accepted_stop_is_recorded():
    table = _crossing_twins(clean(), np.random.default_rng(0))
    audit = audited(table, accept=("same-image",))
    enforce(audit.findings)
    assert "accepted by params" in set(audit.findings["decision"])
    with pytest.raises(AuditStop, match=r"\[same-image\]"):
        enforce(audited(table).findings)


def test_the_end_of_an_audit_names_its_warnings(without_confounds, capsys):
    table = clean(per_class=12).assign(notes=None)
    table.loc[[0, 1], "notes"] = ["p.tsv, line 2: '89+' is read as 89", "p.tsv, line 3: '90+' is read as 90"]
    table.loc[2, "age"] = None
    enforce(audited(table).findings)
    assert capsys.readouterr().err.splitlines() == [
        "audit: warn [source-note] 2 scans: p.tsv, line 2: '89+' is read as 89",
        "audit: warn [age-missing] 1 scans",
        "audit: 2 warnings; notebooks/01_data_audit.html in the study's folder has their meaning, "
        "docs/audit.md remedies",
    ]
    enforce(audited(clean(per_class=12)).findings)
    assert capsys.readouterr().err == "audit: no warnings\n"


def test_excluded_scans_leave_the_flow_and_the_manifest(without_confounds):
    table = clean(per_class=12)
    table.loc[3, "series_description"] = "3-plane localizer"
    table.loc[[0, 2], "diagnosis"] = None
    table.loc[1, "diagnosis"] = "SMC"
    n = len(table)
    audit = audited(table)
    assert audit.flow["scans"].tolist() == [n, n - 2, n - 3, n - 4] and audit.flow["step"].iloc[-1] == "T1w"
    assert not audit.manifest["series_description"].str.contains("localizer").any()


def test_minimum_age_excludes_the_young_and_the_unknown(without_confounds):
    table = clean(per_class=12)
    table["age"] = 70.0
    table.loc[[1, 2, 3], "age"] = 60.0, 59.9, np.nan
    n, audit = len(table), audited(table, min_age=60)
    assert audit.flow["scans"].tolist() == [n, n, n, n - 2] and audit.flow["step"].iloc[-1] == "aged 60 or more"
    assert set(table["scan_id"]) - set(audit.manifest["scan_id"]) == set(table.loc[[2, 3], "scan_id"])
    found = audit.findings.set_index("check").loc["too-young"]
    assert (found["value"], found["limit"]) == ("2 scans", "60 years")
    assert "too-young" not in set(audited(table).findings["check"])
    with pytest.raises(StudyError, match=r"empty cohort.*audit\.min_age 80"):
        audited(table, min_age=80)


def test_empty_cohort_is_refused():
    with pytest.raises(StudyError, match=r"empty cohort.*'CN'"):
        run_audit(clean(per_class=2), ("x", "y"), AuditParams(), seed=1)


def test_planted_association_ranks_first():
    found = associations(STOPS["acquisition-tells-label"](clean(), None))
    assert found.iloc[0]["column"] == "site"
    assert found.iloc[0]["association"] > 0.95
    assert (found.iloc[1:]["p_holm"] > 0.05).all()


def test_equal_class_means_have_no_association():
    table = clean(per_class=20).drop_duplicates("participant_id")
    row = associations(table.assign(voxel_z_mm=np.repeat([1.88, 2.4], 4).tolist() * 10)).set_index("column")
    assert row.loc["voxel_z_mm", ["association", "p_holm"]].tolist() == [0, 1]


def test_every_check_is_documented_and_used():
    package = Path(audit_package.__file__).parent
    code = "".join(path.read_text() for path in package.glob("*.py") if path.name != "advice.py")
    page = (package.parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    for name, check in CHECKS.items():
        assert f'"{name}"' in code, name
        assert f"| `{name}` | {check.severities} | {check.meaning} | {check.remedy} |" in page, name


@pytest.mark.realdata
def test_oasis1_participants_are_found_in_oasis2(realdata):
    first = (
        pd.read_csv(realdata / "oasis1_axial_slices" / "subjects.csv").drop_duplicates("subject").dropna(subset="Age")
    )
    visits = realdata / "oasis2_mid_slices" / "oasis_longitudinal_demographic.csv"
    second = pd.read_csv(visits, sep=";", decimal=",").rename(columns={"Subject ID": "oasis"})
    names = {"oasis": "participant_id", "M/F": "sex", "Age": "age", "eTIV": "icv_ml"}
    first, second = (table.rename(columns=names)[[*names.values(), "CDR", "MMSE"]] for table in (first, second))
    both = first.merge(second, on=["sex", "age", "icv_ml"], suffixes=("", "_2"))
    (found,) = check_people(pd.concat([first, second]))
    assert found["value"] == f"{len(both)} visits with two or more ids; 2.5 expected by chance" and len(both) == 49
    assert (both["CDR"] == both["CDR_2"]).all() and (both["MMSE"] == both["MMSE_2"]).all()
    assert check_people(first) == [] == check_people(second)


def test_people_that_may_be_one_are_linked_in_the_manifest(without_confounds):
    rng = np.random.default_rng(0)
    plain = clean().assign(icv_ml=lambda t: rng.normal(1450, 150, len(t)))
    assert "same_person" not in audited(plain).manifest
    for fault in (_renamed(plain), _crossing_twins(clean(), rng)):
        manifest = audited(fault).manifest.dropna(subset="same_person")
        groups = manifest.groupby("same_person")["participant_id"].unique()
        assert len(groups) and all(len(ids) > 1 and min(ids) == first for first, ids in groups.items())
