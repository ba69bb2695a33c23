from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import adlib.audit as audit_package
from adlib.audit.acquisition import first_scans
from adlib.audit.associations import associations, macro_auc, predict_label
from adlib.audit.findings import CHECKS, AuditStop, enforce
from adlib.audit.run import run_audit
from adlib.study.params import AuditParams
from adlib.study.records import StudyError

CLASSES = ("CN", "AD")


def listing(seed=0, per_class=40):
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(2 * per_class):
        rows.append(
            {
                "participant_id": f"sub-{k:03d}",
                "session_id": "ses-01",
                "scan_id": f"sub-{k:03d}_T1w",
                "path": f"/d/{k}.nii.gz",
                "sha256": f"{k:064d}",
                "diagnosis": CLASSES[k % 2],
                "age": rng.normal(72, 8),
                "sex": rng.choice(["F", "M"]),
                "site": rng.choice(["a", "b", "c"]),
                "field_strength_T": rng.choice([1.5, 3.0]),
                "acquisition_date": f"20{rng.integers(10, 20)}-01-01",
                "shape": "10x10x10",
            }
        )
    return pd.DataFrame(rows)


def audited(table, **limits):
    return run_audit(table, CLASSES, AuditParams(**limits), seed=1)


def stops(audit):
    return set(audit.findings.loc[audit.findings["decision"] == "stop", "check"])


@pytest.mark.parametrize("seed", range(3))
def test_clean_cohorts_go_on(seed):
    audit = audited(listing(seed))
    assert stops(audit) == set()
    enforce(audit.findings)
    assert len(audit.manifest) == 80


def planted(fault):
    table = listing()
    if fault == "scan-two-labels":
        return pd.concat([table, table.iloc[:1].assign(diagnosis="AD")], ignore_index=True)
    if fault == "visit-two-labels":
        return pd.concat([table, table.iloc[:1].assign(scan_id="other", sha256="f", diagnosis="AD")], ignore_index=True)
    if fault == "same-image":
        table.loc[3, "sha256"] = table.loc[2, "sha256"]
    if fault == "acquisition-tells-label":
        table["site"] = table["diagnosis"].map({"CN": "here", "AD": "there"})
    if fault == "participants":
        table = table[(table["diagnosis"] == "CN") | (table.index < 10)]
    return table


@pytest.mark.parametrize(
    "fault", ["scan-two-labels", "visit-two-labels", "same-image", "acquisition-tells-label", "participants"]
)
def test_planted_fault_stops_the_study(fault):
    audit = audited(planted(fault))
    assert fault in stops(audit)
    with pytest.raises(AuditStop, match=rf"\[{fault}\]"):
        enforce(audit.findings)


def test_accepted_stop_is_recorded():
    audit = audited(planted("same-image"), accept=("same-image",))
    enforce(audit.findings)
    assert "accepted by params" in set(audit.findings["decision"])


def test_scans_without_a_class_are_excluded():
    table = listing()
    table.loc[[0, 2], "diagnosis"] = None
    table.loc[1, "diagnosis"] = "SMC"
    audit = audited(table)
    assert audit.flow["scans"].tolist() == [80, 78, 77]
    assert {"label-missing", "label-outside"} <= set(audit.findings["check"])


def test_empty_cohort_is_refused():
    with pytest.raises(StudyError, match=r"empty cohort.*'CN'"):
        run_audit(listing(), ("x", "y"), AuditParams(), seed=1)


def test_unreadable_headers_warn_and_stay():
    table = listing()
    table.loc[0, "shape"] = None
    audit = audited(table)
    assert "unreadable" in set(audit.findings["check"])
    assert len(audit.manifest) == 80


def metadata_auc(table, *columns):
    return macro_auc(*predict_label(first_scans(audited(table).manifest), columns, 1))


def test_metadata_auc_of_noise_and_of_the_label():
    assert metadata_auc(planted("acquisition-tells-label"), "site") == pytest.approx(1)
    noise = [metadata_auc(listing(seed, 100), "site", "field_strength_T") for seed in range(5)]
    assert abs(np.mean(noise) - 0.5) < 0.08


def test_planted_association_ranks_first():
    found = associations(audited(planted("acquisition-tells-label")).manifest)
    assert found.iloc[0]["column"] == "site"
    assert found.iloc[0]["association"] > 0.95
    assert (found.iloc[1:]["p_holm"] > 0.05).all()


def test_every_check_is_documented_and_used():
    package = Path(audit_package.__file__).parent
    code = "".join(path.read_text() for path in package.glob("*.py") if path.name != "findings.py")
    page = (package.parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    for name, check in CHECKS.items():
        assert f'"{name}"' in code, name
        assert f"| `{name}` | {', '.join(check.severities)} | {check.meaning} | {check.remedy} |" in page, name


def test_equal_class_means_have_no_association():
    table = listing().assign(voxel_z_mm=np.repeat([0.94 * 2, 1.2 * 2], 2).tolist() * 20)
    row = associations(audited(table).manifest).set_index("column").loc["voxel_z_mm"]
    assert row["association"] == 0
    assert row["p_holm"] == 1
