import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from adlib.imaging import atlas
from adlib.phantom import cohort as phantom
from adlib.phantom.head import MEASURED, Subject, image_head
from adlib.study.exec_params import HERE, Pool
from adlib.study.records import file_digest, read_table
from adlib.study.source_params import PhantomSource

CLASSES = ("CN", "MCI", "LMCI", "AD")
SOURCE = PhantomSource(kind="phantom", participants_per_class=2, voxel_mm=4.0, followup_fraction=0.5)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    phantom.write_cohort(SOURCE, CLASSES, 5, folder, pool=HERE)
    return folder


def files(folder):
    return {str(p.relative_to(folder)): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.studies
def test_cohort_is_independent_of_workers(cohort, tmp_path):
    phantom.write_cohort(SOURCE, CLASSES, 5, tmp_path, pool=Pool(workers=2))
    assert files(tmp_path) == files(cohort)


def test_interrupted_cohort_is_completed(cohort):
    before = files(cohort)
    scans = sorted((cohort / "truth" / "scans").iterdir())
    scans[1].unlink()
    untouched = cohort / "bids" / "sub-0001" / "ses-01" / "anat" / "sub-0001_ses-01_T1w.nii.gz"
    stamp = untouched.stat().st_mtime_ns
    phantom.write_cohort(SOURCE, CLASSES, 5, cohort, pool=HERE)
    assert files(cohort) == before
    assert untouched.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("bids/sub-0002/ses-01/anat/sub-0002_ses-01_T1w.nii.gz", Path.unlink),
        ("bids/sub-0002/ses-01/anat/sub-0002_ses-01_T1w.nii.gz", lambda head: head.write_bytes(head.read_bytes()[:-9])),
        ("bids/sub-0002/ses-01/anat/sub-0002_ses-01_T1w.json", Path.unlink),
        ("truth/scans/sub-0002_ses-01_T1w.json", lambda record: record.write_text(record.read_text()[:100])),
        (
            "truth/scans/sub-0002_ses-01_T1w.json",
            lambda record: record.write_text(record.read_text().replace('"severity": 0.', '"severity": 7.')),
        ),
    ],
)
def test_damaged_head_is_written_again(cohort, name, damage):
    before = files(cohort)
    damage(cohort / name)
    assert files(cohort) != before
    phantom.write_cohort(SOURCE, CLASSES, 5, cohort, pool=HERE)
    assert files(cohort) == before


def test_seed_changes_the_cohort():
    first, again, other = (phantom.draw_cohort(SOURCE, CLASSES, seed)["severity"] for seed in (5, 5, 6))
    assert first.equals(again) and not first.equals(other)


def test_another_seed_replaces_the_cohort(tmp_path):
    source = SOURCE.model_copy(update={"participants_per_class": 1})
    for seed in (5, 6):
        phantom.write_cohort(source, CLASSES, seed, tmp_path, pool=HERE)
    truth = read_table(tmp_path / "truth" / "truth.tsv", phantom.TRUTH)
    expected = phantom.draw_cohort(source, CLASSES, 6)
    assert sorted(truth["severity"].round(6)) == sorted(expected["severity"].round(6))


def test_orientation_by_site_and_true_affine_to_mni(cohort):
    truth = read_table(cohort / "truth" / "truth.tsv", phantom.TRUTH)
    codes = {s.site: s.orientation for s in phantom.SCANNERS}
    template = atlas.template(4.0)
    for row in truth.itertuples():
        path = cohort / "bids" / row.participant_id / row.session_id / "anat" / f"{row.scan_id}.nii.gz"
        image = nib.load(path)
        assert "".join(nib.aff2axcodes(image.affine)) == codes[row.site]
        to_template = np.linalg.inv(template.affine) @ np.array(json.loads(row.scan_to_mni)) @ image.affine
        volume = image.get_fdata()
        points = to_template[:3, :3] @ np.argwhere(volume > 0).T + to_template[:3, 3:]
        index = np.clip(np.rint(points).astype(int), 0, np.array(template.wm.shape)[:, None] - 1)
        values, white = volume[volume > 0], template.wm[tuple(index)] > 0.8
        fluid = template.csf[tuple(index)] > 0.8
        assert values[white].mean() > 1.5 * values[fluid].mean()


def test_severity_changes_volumes_but_not_icv():
    pose = np.diag([1.1, 1.1, 1.1, 1.0])
    scanner = phantom.SCANNERS[0]
    well, ill = (image_head(Subject(s, 70.0, pose, 1, 2), scanner, 3.0)[2] for s in (0.0, 1.0))
    change = {name: ill[f"{name}_ml"] / well[f"{name}_ml"] - 1 for name in MEASURED}
    assert change["hippocampus"] < -0.2
    assert change["ventricles"] > 0.2
    assert -0.12 < change["gm"] < -0.02
    assert abs(ill["icv_ml"] / well["icv_ml"] - 1) < 0.02
    assert 1000 < well["icv_ml"] < 2000


def test_true_brain_fractions_match_oasis():
    """Mean ages and severities of the classes give OASIS-1's brain fractions to within a third of their spread."""
    pose = np.diag([1.1, 1.1, 1.1, 1.0])
    for age, severity, mean, sd in ((69, 0.1, 0.769, 0.046), (76, 0.5, 0.729, 0.035), (78, 1.0, 0.706, 0.031)):
        truth = image_head(Subject(severity, age, pose, 3, 4), phantom.SCANNERS[0], 3.0)[2]
        assert abs(truth["nbv"] - mean) < sd / 3


def test_bayes_ceiling_is_reached_by_the_best_rule():
    source = PhantomSource(kind="phantom")
    ceiling = phantom.bayes_ceiling(source, CLASSES)
    assert 0.25 < ceiling["severity"] <= ceiling["severity_and_age"] < 0.75
    many = source.model_copy(update={"participants_per_class": 3000, "followup_fraction": 0.0})
    drawn = phantom.draw_cohort(many, CLASSES, 1)
    p = phantom.bayes_probabilities(drawn, source, CLASSES)
    right = pd.Series(np.array(CLASSES)[p.argmax(1)] == drawn["diagnosis"]).groupby(drawn["diagnosis"]).mean().mean()
    assert right == pytest.approx(ceiling["severity_and_age"], abs=0.015)
    assert p.sum(1) == pytest.approx(1)


def test_bayes_ceiling_of_ad_against_cn_is_realistic():
    """Leak-free studies reach 0.80 to 0.87 (Wen et al. 2020, doi:10.1016/j.media.2020.101694)."""
    source = PhantomSource(kind="phantom", severity_mean=(0.1, 1.0))
    ceiling = phantom.bayes_ceiling(source, ("CN", "AD"))
    assert 0.87 < ceiling["severity"] <= ceiling["severity_and_age"] < 0.94


def test_site_does_not_follow_diagnosis():
    drawn = phantom.draw_cohort(PhantomSource(kind="phantom", participants_per_class=20), CLASSES, 1)
    people = drawn.drop_duplicates("participant_id")
    assert (pd.crosstab(people["diagnosis"], people["site"]) == 5).all().all()
