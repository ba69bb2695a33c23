"""All explanations of a study: what is stored, and when it is computed anew."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_explain import Tiny, card
from tiny_study import make_study

from adlib.evaluation.explain import explain_study as study
from adlib.evaluation.explain.attribution import scan_maps
from adlib.evaluation.explain.explain_study import explain_study
from adlib.study.records import StudyError, read_json
from adlib.training.model_file import Classifier
from adlib.training.network import ResNet50

SETS = ("preprocess.resolution_mm=3.0", "input.positions_mm=[-20.0]", "evaluate.attribution_scans=6",
        "evaluate.bootstrap=100")  # fmt: skip


def classifier(plane="coronal"):
    torch.manual_seed(2)
    return Classifier(Tiny(2).eval(), card(plane, (-20.0,), 32, 3.0))


@pytest.mark.parametrize("plane", ["coronal", "three_planes_2d"])
def test_a_study_is_explained_and_repeats(tmp_path, plane):
    params = make_study(tmp_path, *SETS, f"input.plane={plane}")
    mine = classifier(plane)
    explained = explain_study(params, mine)
    folder, stored = params.folder / "attribution", read_json(params.folder / "attribution" / "sanity.json")
    assert stored == explained.sanity
    (folder / "done.json").unlink()
    assert explain_study(params, mine).sanity == stored
    flat = plane == "three_planes_2d"
    assert (explained.images == {}) == (explained.regions is None) == flat
    assert len(list(folder.glob("*.nii.gz"))) == (0 if flat else 2)
    assert (folder / "regions.tsv").is_file() != flat and ("changed" in stored) != flat
    checks = {(e["check"], e["of"]) for e in stored["entries"]}
    assert {("randomisation", stage) for stage in ResNet50.stages} <= checks
    assert {("perturbation", "deletion"), ("perturbation", "insertion")} <= checks
    assert (("overlap_volume", "randomised") in checks) != flat
    assert all(e["ci95"][0] <= e["point"] <= e["ci95"][1] and e["n"] == 6 for e in stored["entries"])
    with np.load(params.folder / "attribution.npz") as maps:
        assert maps["attribution"].shape == (2, 3 if flat else 1, 32, 32) and maps["scans"].tolist() == [3, 3]


@pytest.mark.parametrize("changed", ["nothing", "code", "network", "slices", "output", "bootstrap"])
def test_what_is_stored_is_read_unless_something_that_it_depends_on_changed(tmp_path, monkeypatch, changed):
    params, attributed = make_study(tmp_path, *SETS), []
    mine = classifier()
    first = explain_study(params, mine)
    monkeypatch.setattr(study, "scan_maps", lambda *told: attributed.append(1) or scan_maps(*told))
    if changed == "network":
        next(mine.network.parameters()).data += 0.1
    elif changed == "slices":
        np.save(params.folder / "slices.npy", 1.1 * np.load(params.folder / "slices.npy"))
    elif changed == "output":
        (params.folder / "attribution" / "regions.tsv").write_text("")
    elif changed == "bootstrap":
        params = make_study(tmp_path / "other", *SETS[:-1], "evaluate.bootstrap=120")
    elif changed == "code":
        monkeypatch.setattr(study, "code_digest", lambda function: "other")
    again = explain_study(params, mine)
    assert len(attributed) == (changed != "nothing")
    if changed in ("nothing", "code", "output"):
        assert again.sanity == first.sanity
        pd.testing.assert_frame_equal(again.regions, first.regions)
        np.testing.assert_array_equal(again.means.attribution, first.means.attribution)
        assert all((again.images[k].get_fdata() == first.images[k].get_fdata()).all() for k in params.classes)


def test_only_tested_participants_are_explained(tmp_path):
    params = make_study(tmp_path, *SETS)
    maps = scan_maps(params, classifier())
    assert set(maps.scans["participant_id"]) <= {f"sub-{k:02d}" for k in range(30, 40)}
    stored = np.load(params.folder / "slices.npy")[[int(name[4:]) for name in maps.scans["participant_id"]]]
    np.testing.assert_array_equal(maps.slices[:, 0], stored.astype(np.float32))


def test_a_class_without_a_test_scan_is_named(tmp_path):
    params = make_study(tmp_path, *SETS)
    table = pd.read_csv(params.folder / "splits.tsv", sep="\t")
    table.loc[table["diagnosis"] == "AD", "split"] = "train"
    table.to_csv(params.folder / "splits.tsv", sep="\t", index=False)
    with pytest.raises(StudyError, match="class AD has no test scan to explain"):
        scan_maps(params, classifier())
