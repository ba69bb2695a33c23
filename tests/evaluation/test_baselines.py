"""Baselines find what was planted for them, on participants they were not fitted on, and nothing else."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from adlib.evaluation.baselines import _joined, feature_sets, grey_matter_rows, has_maps, predict_baselines
from adlib.imaging.atlas import template
from adlib.preprocess.derivatives import file_names
from adlib.study.exec_params import HERE
from adlib.study.params import validate_params
from adlib.study.records import FEATURES, MANIFEST, SLICES, SPLITS, check_table, write_table

CLASSES = ("CN", "MCI", "AD")
PARTS = np.array(["train", "train", "validation", "test"])
PEOPLE = 72


@pytest.fixture(scope="module")
def scans():
    """Manifest and features of 72 participants, one in nine with two sessions; only the site tells the class."""
    rng, rows = np.random.default_rng(0), []
    for k in range(PEOPLE):
        for session in range(1 + (k % 9 == 0)):
            who = {"participant_id": f"sub-{k:02d}", "session_id": f"ses-{session}", "diagnosis": CLASSES[k % 3]}
            facts = {"site": "abc"[k % 3], "field_strength_T": rng.choice([1.5, 3.0]), "age": rng.normal(70, 8)}
            rows.append({**who, "scan_id": f"sub-{k:02d}_ses-{session}", **facts, "sex": rng.choice(["F", "M"])})
    table = pd.DataFrame(rows)
    features = table[["participant_id", "session_id", "scan_id"]].assign(
        qc_verdict="pass", nbv=rng.normal(0.8, 0.02, len(table))
    )
    features.loc[0, ["qc_verdict", "qc_reasons"]] = ["fail", "truncated file"]
    manifest = check_table(table.assign(path="p", sha256="s"), MANIFEST, "made")
    return manifest, check_table(features, FEATURES, "made")


@pytest.fixture(scope="module")
def splits(scans):
    people = scans[0].drop_duplicates("participant_id")[["participant_id", "diagnosis"]]
    return check_table(people.assign(fold=0, split=PARTS[np.arange(PEOPLE) // 3 % 4]), SPLITS, "made")


@pytest.fixture
def params(tmp_path):
    content = {"study": "t", "classes": CLASSES, "source": {"kind": "bids", "root": "x"}}
    return validate_params(content | {"exec": {"outputs": str(tmp_path), "workers": 1}}, "test")


def write_maps(manifest, derivatives, loss):
    """Tissue maps in which each class keeps less grey matter on the left, by a share `loss` per step."""
    base, rng = template(4.0), np.random.default_rng(1)
    left = np.arange(base.gm.shape[0])[:, None, None] < base.gm.shape[0] // 2
    for scan in manifest.to_dict("records"):
        grey = base.gm * (1 - loss * CLASSES.index(scan["diagnosis"]) * left) + rng.normal(0, 0.1, base.gm.shape)
        path = file_names(scan, derivatives)["tissues"]
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.stack([grey, base.wm, base.csf], -1).astype(np.float32), base.affine), path)


def accuracies(predicted):
    """Balanced accuracy of each baseline on test scans."""
    columns = [f"p_{name}" for name in CLASSES]
    table = predicted[predicted["split"] == "test"]
    table = table.assign(decided=np.array(CLASSES)[table[columns].to_numpy().argmax(1)])
    return {run: balanced_accuracy_score(part["truth"], part["decided"]) for run, part in table.groupby("run")}


def test_each_finds_its_own_signal_and_chance_finds_none(scans, splits, params):
    write_maps(scans[0], params.folder / "derivatives", loss=0.1)
    predicted = predict_baselines(*scans, splits, params)
    assert set(predicted["run"]) == {"majority", "metadata", "age_sex", "brain_fraction", "age_sex_volumes",
                                     "volumes", "grey_matter_svm"}  # fmt: skip
    found = accuracies(predicted)
    assert found["metadata"] > 0.9
    assert found["grey_matter_svm"] > 0.9
    assert found["majority"] == pytest.approx(1 / 3)
    assert found["age_sex"] < 0.7
    p = predicted[[f"p_{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1)


def test_maps_that_tell_nothing_are_chance(scans, splits, params):
    write_maps(scans[0], params.folder / "derivatives", loss=0.0)
    found = accuracies(predict_baselines(*scans, splits, params))
    assert found["grey_matter_svm"] < 0.7


def test_only_unseen_and_usable_scans_are_predicted_and_maps_are_not_required(scans, splits, params):
    predicted = predict_baselines(*scans, splits, params)
    assert set(predicted["split"]) == {"validation", "test"}
    assert scans[0].loc[0, "scan_id"] not in set(predicted["scan_id"])
    assert "grey_matter_svm" not in set(predicted["run"])


def test_features_of_an_untrained_network_see_what_is_drawn(scans, splits, params):
    manifest, rng = scans[0], np.random.default_rng(2)
    table = manifest[["participant_id", "session_id", "scan_id", "diagnosis"]].sample(frac=1, random_state=3)
    x = rng.normal(0, 1, (len(table), 3, 32, 32)).astype(np.float16)
    for name in CLASSES[1:]:
        x[table["diagnosis"] == name, :, 8:24, 8:24] += 4 * CLASSES.index(name)
    params.folder.mkdir()
    np.save(params.folder / "slices.npy", x)
    write_table(table.assign(row=range(len(table)), slice=0), params.folder / "slices.tsv", SLICES)
    assert accuracies(predict_baselines(*scans, splits, params))["untrained_network"] > 0.8


def test_baselines_are_cross_fitted_where_the_network_is(scans, splits, params):
    """Validation scans are predicted by fits that left them out, those of the test by one fit on all others."""
    people = splits.assign(split=splits["split"].replace("validation", "train"))
    people["member"] = [None if part == "test" else str(k % 2 + 1) for k, part in enumerate(people["split"])]
    predicted = predict_baselines(*scans, people, params).query("run == 'metadata'")
    assert not predicted.duplicated("scan_id").any()
    assert set(predicted["participant_id"]) == set(people["participant_id"])
    left_out = people.loc[people["member"] == "1", "participant_id"]
    other = scans[0]["diagnosis"].map({"CN": "MCI", "MCI": "AD", "AD": "CN"})
    wrong = scans[0].assign(diagnosis=scans[0]["diagnosis"].mask(scans[0]["participant_id"].isin(left_out), other))
    columns = ["scan_id", "p_CN"]
    again = predict_baselines(wrong, scans[1], people, params).query("run == 'metadata'")
    rows = predicted["participant_id"].isin(left_out).to_numpy()
    pd.testing.assert_frame_equal(predicted.loc[rows, columns], again.loc[rows, columns])
    assert not np.allclose(predicted.loc[~rows, "p_CN"], again.loc[~rows, "p_CN"])


def test_a_site_of_tested_people_alone_is_no_error(scans, splits, params):
    manifest, features = scans
    people = splits.loc[splits["split"] == "test", "participant_id"]
    moved = manifest.assign(site=manifest["site"].mask(manifest["participant_id"].isin(people), "elsewhere"))
    assert accuracies(predict_baselines(moved, features, splits, params))["metadata"] < 0.7


@pytest.mark.parametrize("dtype", [object, "str"])
def test_unknown_sex_is_no_sex(dtype):
    manifest = pd.DataFrame({"scan_id": ["a", "b", "c"], "sex": pd.Series(["F", None, "M"], dtype=dtype)})
    manifest = manifest.assign(shape="9x9x9", acquisition_date=None, path="p", participant_id=manifest["scan_id"])
    joined = _joined(manifest, pd.DataFrame({"scan_id": ["a", "b", "c"], "qc_verdict": "pass"}))
    assert np.array_equal(joined["female"], [1, np.nan, 0], equal_nan=True)


def test_volumes_that_do_not_vary_are_left_out():
    table = pd.DataFrame({"age": [1, 2], "female": [1, 1], "nbv": [0.7, 0.8]})
    assert feature_sets(table)["age_sex"] == ("age",)


def test_rows_are_smoothed_grey_matter_in_the_order_of_the_scans(scans, tmp_path):
    manifest = scans[0].drop_duplicates("participant_id").head(3)
    write_maps(manifest, tmp_path, loss=0.4)
    assert has_maps(manifest, tmp_path)
    assert not has_maps(scans[0], tmp_path)
    rows = grey_matter_rows(manifest, tmp_path, pool=HERE)
    assert manifest["diagnosis"].tolist() == list(CLASSES)
    assert np.all(np.diff(rows.mean(axis=1)) < 0)
    grey = template(4.0).gm
    assert rows[0].std() < grey[grey > 0.2].std()
