"""Small studies to the report, from layouts whose kind of cohort is another one; test_layouts.py reads all of them."""

import json
import re
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

from adlib.audit.run import AuditStop, enforce, run_audit
from adlib.imaging.atlas import template
from adlib.phantom import cohort as phantom
from adlib.sources.reading import read_source
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
PEOPLE, EACH = 40, 10


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    params = load_params(ROOT / "params" / "smoke.yaml")
    source = params.source.model_copy(update={"participants_per_class": EACH})
    return phantom.write_cohort(source, params.classes, params.seed, tmp_path_factory.mktemp("cohort"))


def write_params(folder, source, **sections):
    """A params file of a small study from a source."""
    execution = {"outputs": str(folder / "outputs"), "workers": 1}
    content = SMALL | {"study": "small", "source": source, "exec": execution} | sections
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return folder / "small.yaml"


def audited(folder, source, **sections):
    """Params and audit of a small study from a source."""
    params = load_params(write_params(folder, source, **sections))
    return params, run_audit(read_source(params), params.classes, params.audit, params.seed)


def stops(folder, source, **sections):
    """Checks that stop a small study from a source."""
    findings = audited(folder, source, **sections)[1].findings
    with pytest.raises(AuditStop):
        enforce(findings)
    return findings.loc[findings["decision"] == "stop", "check"].tolist()


def run_study(folder, source, **sections):
    """Exit code, printed text and results folder of a small study from a source."""
    path = write_params(folder, source, **sections)
    command = [sys.executable, str(ROOT / "run_all.py"), "--params", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, folder / "outputs" / "small"


def scored(results):
    """Manifest, after looking that its scans were judged and some scored, and that the report names nobody."""
    manifest = pd.read_csv(results / "manifest.tsv", sep="\t")
    features = pd.read_csv(results / "features.tsv", sep="\t")
    assert set(features["scan_id"]) == set(manifest["scan_id"])
    assert (features["qc_verdict"] != "fail").mean() > 0.9
    metrics = json.loads((results / "metrics.json").read_text())
    assert any(entry["run"] == "resnet50" and entry["level"] == "subject" for entry in metrics["entries"])
    page = (results / "report" / "index.html").read_text()
    assert page.count("data:image/png") > 5
    names = "|".join(re.escape(name) for name in {*manifest["participant_id"], *manifest["scan_id"]})
    assert re.findall(rf"(?<![\w-])(?:{names})(?![\w-])", page) == []
    return manifest


def test_pictures_need_participants(cohort, tmp_path):
    root = layouts.write_layout(cohort, "images", tmp_path / "data")
    source = {"kind": "folders", "root": str(root), "contents": "images", "parts": ["train", "test"]}
    flat = {"input": {"plane": "images_2d", "size": 64}}
    assert "participants-unknown" in stops(tmp_path, source, **flat)
    known = source | {"table": str(root / "pictures.csv")}
    assert stops(tmp_path, known, **flat) == ["given-split-leaks"]
    _, audit = audited(tmp_path, known, audit={"accept": ["given-split-leaks"]}, **flat)
    enforce(audit.findings)
    assert audit.manifest["participant_id"].nunique() == PEOPLE


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
