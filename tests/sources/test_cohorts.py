"""Several cohorts in one study: their names, what they share, and training on one to test on the other."""

import shutil

import pandas as pd
import pytest

from adlib.audit.run import AuditStop, enforce, run_audit
from adlib.audit.similarity import pixel_facts
from adlib.sources.reading import read_source
from adlib.study.exec_params import HERE
from adlib.study.params import load_params
from adlib.study.records import StudyError
from adlib.study.steps import STEPS, StepState
from adlib.training.splits import make_splits

COHORT = "kind: phantom, participants_per_class: 6, voxel_mm: 4.0, followup_fraction: 0.0, severity_mean: [0.1, 1.0]"
SETS = (
    f"sources={{north: {{{COHORT}}}, south: {{{COHORT}}}}}", "source={kind: cohorts}", "classes=[CN, AD]",
    "evaluate.binary={negative: [CN], positive: [AD]}", "audit.min_participants_per_class=2", "exec.workers=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    return load_params("params/phantom.yaml", (*SETS, f"exec.outputs={outputs}"))


@pytest.fixture(scope="module")
def listed(params):
    return read_source(params)


def audited(listed, params):
    return run_audit(listed, params.classes, params.audit, 0, pixel_facts(listed, pool=HERE))


def test_train_on_one_cohort_and_test_on_the_other(listed, params):
    audit = audited(listed, params)
    enforce(audit.findings)
    manifest = audit.manifest
    assert manifest.groupby("cohort")["participant_id"].nunique().to_dict() == {"north": 12, "south": 12}
    assert {"sub-north0001", "sub-south0001"} < set(manifest["participant_id"])
    assert manifest["scan_id"].is_unique and manifest["sha256"].is_unique
    assert set(pd.Series(manifest["path"]).str.extract(r"source/(\w+)/bids")[0]) == {"north", "south"}
    settings = {"protocol": "external", "leave_out": "cohort", "test_sites": ("south",)}
    splits = make_splits(manifest, params.splits.model_copy(update=settings), 0)
    tested = splits.loc[splits["split"] == "test", "participant_id"]
    assert len(tested) == 12 and tested.str.startswith("sub-south").all()
    images = {name for name in StepState(STEPS[1], params)._reads() if name.startswith("@source")}
    assert images == {"@source north", "@source south"}
    assert params.simulated and all((params.folder / "source" / name / "truth" / "truth.tsv").is_file()
                                    for name in params.sources)  # fmt: skip


def as_bids(params, tmp_path, label):
    """The cohorts as BIDS datasets whose participants are named alike."""
    sources = {}
    for name in params.sources:
        root = shutil.copytree(params.folder / "source" / name / "bids", tmp_path / name)
        for path in sorted(root.rglob("*sub-*"), reverse=True):
            path.rename(path.with_name(path.name.replace("sub-", f"sub-{label}")))
        people = (root / "participants.tsv").read_text().replace("sub-", f"sub-{label}")
        (root / "participants.tsv").write_text(people)
        sources[name] = f"{name}: {{kind: bids, root: {root}}}"
    sets = (*SETS, f"sources={{{', '.join(sources.values())}}}", f"exec.outputs={tmp_path}")
    return load_params("params/phantom.yaml", sets)


def test_shared_people_are_found_and_refused(listed, params, tmp_path):
    shared = as_bids(params, tmp_path, "AB")
    with pytest.raises(AuditStop, match=r"person-in-cohorts\] sub-AB0001 \(north, south\), .* and 7 more: 12 part"):
        enforce(audited(read_source(shared), shared).findings)


def test_one_image_in_two_cohorts_is_refused(listed, params):
    twins = listed.copy()
    north, south = (twins.index[(twins["cohort"] == name) & (twins["diagnosis"] == "AD")] for name in params.sources)
    twins.loc[south[0], ["path", "sha256"]] = twins.loc[north[0], ["path", "sha256"]].to_numpy()
    names = rf"same-image\] {twins.loc[north[0], 'scan_id']}, {twins.loc[south[0], 'scan_id']}:"
    with pytest.raises(AuditStop, match=names):
        enforce(audited(twins, params).findings)


def test_cohorts_that_differ_in_classes_and_labels_are_named(listed, params):
    table = pd.concat([listed] * 4, ignore_index=True)
    number = table.index.astype(str)
    table = table.assign(
        participant_id=table["participant_id"] + number, scan_id=table["scan_id"] + number, sha256=None
    )
    table = table[(table["cohort"] == "north") == (table["diagnosis"] == "CN")].copy()
    table.loc[table["cohort"] == "north", "label_source"] = "CDR"
    findings = run_audit(table, params.classes, params.audit, 0).findings.set_index("check")
    assert findings.loc["cohort-tells-label", "severity"] == "stop"
    assert findings.loc["label-policies", "value"].startswith("north: CDR; south: diagnosis of")


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (("sources={a-b: {kind: phantom}}", "source={kind: cohorts}"), "sources.a-b must be a source, under a name of"),
        (("sources={a: {kind: cohorts}}", "source={kind: cohorts}"), "sources.a must be a source"),
        (("sources={a: {kind: phantom}}",), "give source, or sources"),
        (("source={kind: cohorts}",), "give source, or sources"),
        (("source={kind: cohorts, root: x}",), "source.root: unknown key; expected one of: kind"),
        (("sources={bids: {kind: bids, rot: x}}",), "sources.bids.rot: unknown key; did you mean 'root'"),
    ],
)
def test_wrong_sources_are_refused(sets, words):
    with pytest.raises(StudyError, match=words):
        load_params("params/phantom.yaml", sets)
