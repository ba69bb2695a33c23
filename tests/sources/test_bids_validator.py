"""The official BIDS validator finds no fault in a written cohort, and finds those of a spoilt copy."""

import json
import shutil
import subprocess
from importlib import resources

import numpy as np
import pytest
from deno import find_deno_bin

from adlib.phantom import cohort as phantom
from adlib.sources.reading import list_source
from adlib.study.exec_params import HERE
from adlib.study.records import read_table
from adlib.study.source_params import BidsSource, PhantomSource

CLASSES = ("CN", "MCI", "LMCI", "AD")
SOURCE = PhantomSource(kind="phantom", participants_per_class=1, voxel_mm=4.0, followup_fraction=1.0)
TOLERATED = {
    "TOO_FEW_AUTHORS",  # the authors are one group
    "AGE_89",  # ages of simulated heads identify nobody
    ("JSON_KEY_RECOMMENDED", "HEDVersion"),  # there are no events
}
UNKNOWN = "SIDECAR_KEY_RECOMMENDED"  # of coils, sequence and address, which the simulation does not have


def issues(root):
    """What the validator says, by severity: code, or code and key. It gets no network, so its schema is its own."""
    bundle = resources.files("bids_validator_deno") / "bids-validator.js"
    command = [find_deno_bin(), "run", "--allow-read", "--allow-env", "--deny-net", "--no-prompt", bundle]
    done = subprocess.run([*command, root, "--format", "json"], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found = {"error": set(), "warning": set()}
    for issue in json.loads(done.stdout)["issues"]["issues"]:
        found[issue["severity"]].add((issue["code"], issue["subCode"]) if "subCode" in issue else issue["code"])
    assert (done.returncode != 0) == bool(found["error"])
    return found


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Four participants with two or three sessions each; of some, age, sex or score is missing."""
    folder = tmp_path_factory.mktemp("cohort")
    root = phantom.write_cohort(SOURCE, CLASSES, 5, folder, pool=HERE)
    drawn = phantom.draw_cohort(SOURCE, CLASSES, 5)
    drawn.loc[drawn["participant_id"] == "sub-0001", ["age", "mmse"]] = np.nan
    drawn.loc[drawn["participant_id"] == "sub-0002", "sex"] = None
    drawn.loc[drawn["participant_id"] == "sub-0003", "age"] = 93.0
    phantom._write_tables(drawn, CLASSES, root)
    return root


def test_written_cohort_is_valid_bids(cohort):
    assert "n/a" in (cohort / "participants.tsv").read_text() and list(cohort.glob("sub-*/ses-02"))
    found = issues(cohort)
    assert not found["error"]
    assert {one for one in found["warning"] if one[0] != UNKNOWN} <= TOLERATED


def test_missing_values_are_read_back_as_empty(cohort):
    listed = list_source(BidsSource(kind="bids", root=cohort), cohort, pool=HERE).set_index("participant_id")
    truth = read_table(cohort.parent / "truth" / "truth.tsv", phantom.TRUTH)
    assert sorted(listed["scan_id"]) == sorted(truth["scan_id"])
    assert listed.loc["sub-0001", "age"].isna().all() and listed.loc["sub-0002", "sex"].isna().all()
    assert (listed.loc["sub-0003", "age"].astype(float) == 93.0).all() and listed.loc["sub-0004", "age"].notna().all()


def test_validator_finds_planted_errors(cohort, tmp_path):
    root = tmp_path / "bids"
    shutil.copytree(cohort, root)
    first, second, *_ = sorted(root.rglob("*_T1w.nii.gz"))
    first.rename(first.with_name(first.name.replace("_T1w", "_T1")))
    second.write_bytes(second.read_bytes()[:20])
    people = root / "participants.tsv"
    people.write_text("".join(people.read_text().splitlines(keepends=True)[:-1]))
    assert {"NOT_INCLUDED", "NIFTI_HEADER_UNREADABLE", "PARTICIPANT_ID_MISMATCH"} <= issues(root)["error"]
