"""A small study from every layout: the same simulated cohort, written as archives would have it.

What follows the reading is the same for all of them, so only some layouts go on: to one space those whose images come
otherwise prepared, to the report those of each kind of cohort.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import layouts
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from nilearn.datasets import fetch_oasis_vbm
from nilearn.datasets.struct import oasis_missing_subjects

from adlib.imaging.atlas import template
from adlib.phantom import cohort as phantom
from adlib.study.params import load_params

pytestmark = [pytest.mark.studies, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
SMALL = {
    "preprocess": {"resolution_mm": 3.0},
    "input": {"positions_mm": [-20.0], "size": 64},
    "train": {"weights": "random", "epochs": 1, "batch_size": 8, "controls": []},
    "evaluate": {"bootstrap": 100, "attribution_scans": 2},
}
CDR = ["CN", "MCI", "AD"]
NAMED = r"(?P<participant>sub-\d+)_(?P<session>ses-\d+)"
PEOPLE, EACH = 40, 10
READ = ("--only", "01")
IN_ONE_SPACE = (*READ, "--only", "02")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    params = load_params(ROOT / "params" / "smoke.yaml")
    source = params.source.model_copy(update={"participants_per_class": EACH})
    return phantom.write_cohort(source, params.classes, params.seed, tmp_path_factory.mktemp("cohort"))


def run_study(folder, source, *options, **sections):
    """Exit code, printed text and results folder of a small study from a source."""
    content = (
        SMALL
        | {"study": "small", "source": source, "exec": {"outputs": str(folder / "outputs"), "workers": 1}}
        | sections
    )
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, str(ROOT / "run_all.py"), "--params", str(folder / "small.yaml"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, folder / "outputs" / "small"


def audited(results):
    """Scans of the manifest, after looking that each has a participant and a diagnosis."""
    manifest = pd.read_csv(results / "manifest.tsv", sep="\t")
    assert manifest[["participant_id", "diagnosis"]].notna().all(axis=None)
    return manifest


def judged(results):
    """Audited scans, after looking that all were brought into one space and judged."""
    manifest = audited(results)
    features = pd.read_csv(results / "features.tsv", sep="\t")
    assert set(features["scan_id"]) == set(manifest["scan_id"])
    assert (features["qc_verdict"] != "fail").mean() > 0.9
    return manifest


def scored(results):
    """Judged scans, after looking that some were scored, and that the report names nobody."""
    manifest = judged(results)
    metrics = json.loads((results / "metrics.json").read_text())
    assert any(entry["run"] == "resnet50" and entry["level"] == "subject" for entry in metrics["entries"])
    page = (results / "report" / "index.html").read_text()
    assert page.count("data:image/png") > 5
    names = "|".join(re.escape(name) for name in {*manifest["participant_id"], *manifest["scan_id"]})
    assert re.findall(rf"(?<![\w-])(?:{names})(?![\w-])", page) == []
    return manifest


@pytest.mark.parametrize(
    ("kind", "layout", "settings", "classes", "options", "look"),
    [
        ("bids", "bids", {}, None, (), scored),
        ("adni", "adni", {}, None, READ, audited),
        ("adni", "adni_flat", {}, None, READ, audited),
        ("folders", "folders", {"participant": NAMED}, None, READ, audited),
        ("caps", "caps", {"table": "people.csv"}, None, IN_ONE_SPACE, judged),
        ("dicom", "dicom", {"table": "people.csv"}, None, IN_ONE_SPACE, judged),
        ("oasis1", "oasis1", {}, CDR, READ, audited),
        ("oasis2", "oasis2", {}, CDR, READ, audited),
        ("oasis3", "oasis3", {}, CDR, READ, audited),
    ],
)
def test_a_study_from_each_layout(cohort, tmp_path, kind, layout, settings, classes, options, look):
    root = layouts.write_layout(cohort, layout, tmp_path / "data")
    settings = {name: str(root / value) if name == "table" else value for name, value in settings.items()}
    sections = {"classes": classes} if classes else {}
    sections |= {"audit": load_params(ROOT / "params" / "caps.yaml").audit.model_dump()} if kind == "caps" else {}
    code, said, results = run_study(tmp_path, {"kind": kind, "root": str(root), **settings}, *options, **sections)
    assert code == 0, said[-3000:]
    assert look(results)["participant_id"].nunique() == PEOPLE
    shutil.rmtree(tmp_path)


def test_pictures_need_participants(cohort, tmp_path):
    root = layouts.write_layout(cohort, "images", tmp_path / "data")
    source = {"kind": "folders", "root": str(root), "contents": "images", "parts": ["train", "test"]}
    flat = {"input": {"plane": "images_2d", "size": 64}}
    code, said, _ = run_study(tmp_path, source, **flat)
    assert code == 2, said[-3000:]
    assert "[participants-unknown]" in said
    known = source | {"table": str(root / "pictures.csv")}
    code, said, _ = run_study(tmp_path, known, **flat)
    assert code == 2, said[-3000:]
    assert "[given-split-leaks]" in said
    assert "[participants-unknown]" not in said
    code, said, results = run_study(tmp_path, known, audit={"accept": ["given-split-leaks"]}, **flat)
    assert code == 0, said[-3000:]
    assert scored(results)["participant_id"].nunique() == PEOPLE


def test_tissue_maps_as_nilearn_keeps_them(tmp_path):
    """Maps made from the template under the names and in the folder that the fetcher looks for."""
    store = tmp_path / "nilearn" / "oasis1"
    base, rng, rows = template(3.0), np.random.default_rng(0), []
    missing = {*oasis_missing_subjects(), 27, 57}
    for number in [n for n in range(1, 60) if n not in missing][:48]:
        name, rating = f"OAS1_{number:04d}_MR1", (0.0, 0.5, 1.0)[number % 3]
        (store / name).mkdir(parents=True)
        for prefix, part in (("mwrc1", base.gm), ("mwrc2", base.wm)):
            noisy = part * (1.0 - 0.1 * rating) + rng.normal(0, 0.02, part.shape)
            image = nib.Nifti1Image(noisy.astype(np.float32), base.affine)
            nib.save(image, store / name / f"{prefix}{name}_mpr_anon_fslswapdim_bet.nii.gz")
        rows.append([name, "F" if number % 2 else "M", 60 + number % 30, rating, 1500, 0.75])
    columns = ["ID", "M/F", "Age", "CDR", "eTIV", "nWBV"]
    pd.DataFrame(rows, columns=columns).to_csv(store / "oasis_cross-sectional.csv", index=False)
    (store / "data_usage_agreement.txt").write_text("made")
    assert len(fetch_oasis_vbm(n_subjects=48, data_dir=store.parent, verbose=0).gray_matter_maps) == 48
    source = {"kind": "oasis_vbm", "data_dir": str(store.parent), "participants": 48}
    code, said, results = run_study(tmp_path, source, classes=CDR)
    assert code == 0, said[-3000:]
    assert len(scored(results)) == 48


def test_copy_among_registered_heads_stops_the_study(cohort, tmp_path):
    """Brightened, noised and stored in another type under another person's name, it is still the same head."""
    root = layouts.write_layout(cohort, "caps", tmp_path / "data")
    first, *_, last = sorted(root.rglob("*_T1w.nii.gz"))
    image = nib.load(first)
    values = image.get_fdata(dtype=np.float32)
    noise = np.random.default_rng(0).normal(0, 0.01 * np.percentile(values, 99), values.shape)
    nib.save(nib.Nifti1Image((1.7 * values + noise * (values > 0)).astype(np.float32), image.affine), last)
    audit = load_params(ROOT / "params" / "caps.yaml").audit.model_dump()
    source = {"kind": "caps", "root": str(root), "table": str(root / "people.csv")}
    code, said, results = run_study(tmp_path, source, audit=audit)
    assert code == 2, said[-3000:]
    assert "[near-duplicate]" in said
    found = pd.read_csv(results / "audit.tsv", sep="\t").query("check == 'near-duplicate' and severity == 'stop'")
    (who,) = found["subject"]
    assert {path.name.split("_space")[0] for path in (first, last)} == {
        name.split("_T1w")[0] for name in who.split(" = ")
    }
