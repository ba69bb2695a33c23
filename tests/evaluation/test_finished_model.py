"""A finished model scored on a cohort it never saw, and again on the people it was tested on."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from tiny_study import Tiny, make_study, train_study

from adlib.evaluate import main
from adlib.evaluation import finished_model
from adlib.evaluation.finished_model import score_model
from adlib.study.metrics import NETWORK
from adlib.study.params import dump_params
from adlib.study.records import MANIFEST, PREDICTIONS, StudyError, read_json, read_table, write_table
from adlib.study.steps import STEPS, StepState
from adlib.training import model_file


@pytest.fixture
def salt(tmp_path):
    path = tmp_path / "salt.txt"
    path.write_text("a secret of two studies\n")
    return path


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(model_file, "load", partial(model_file.load, build_network=Tiny))


def prepared(folder, *sets, rename=None, **options):
    """A study whose steps 01 and 02 are up to date; `rename` changes the names of its participants."""
    study = make_study(folder, "train.controls=[]", *sets, **options)
    for name in ("manifest.tsv", "features.tsv", "slices.tsv", "splits.tsv") if rename else ():
        table = pd.read_csv(study.folder / name, sep="\t", dtype=str, keep_default_na=False)
        renamed = table["participant_id"].map(rename)
        table.assign(participant_id=renamed).to_csv(study.folder / name, sep="\t", index=False)
    for step in STEPS[:2]:
        state = StepState(step, study)
        for name in step.writes:
            (study.folder / name).touch()
        state.finish(state.key(), 0.0)
    return study


def test_held_out_people_get_the_scores_of_their_study(tmp_path, capsys):
    study = prepared(tmp_path, "train.covariates=[age, sex]", scans=2)
    trained = train_study(study).query("split == 'test'").reset_index(drop=True)
    (tmp_path / "tiny.yaml").write_text(dump_params(study))
    arguments = ["--model", str(study.folder), "--params", str(tmp_path / "tiny.yaml")]
    assert main(arguments) == 1 and "--held-out scores those it was tested on" in capsys.readouterr().err
    assert main([*arguments, "--held-out"]) == 0 and "balanced_accuracy" in capsys.readouterr().out
    metrics = read_json(study.folder / "scored" / "tiny" / "metrics.json")
    again = read_table(study.folder / "scored" / "tiny" / "predictions.parquet", PREDICTIONS)
    pd.testing.assert_frame_equal(again, trained, check_like=True, rtol=0, atol=1e-12)
    assert metrics["people_checked"] and np.sum(metrics["confusion"][NETWORK]) == 10
    assert {entry["level"] for entry in metrics["entries"]} == {"slice", "scan", "subject"}


def test_people_of_the_training_are_refused(tmp_path, salt):
    secret = f"splits.salt={salt}"
    study = prepared(tmp_path / "first", secret)
    train_study(study)
    model = study.folder / "model.safetensors"
    assert len(model_file.load(model).card.people) == 31
    with pytest.raises(StudyError, match=r"trained on this study, on sub-00, sub-01, .* --held-out"):
        score_model(model, study)
    shared = prepared(tmp_path / "shared", secret, rename=lambda name: name if name > "sub-28" else f"sub-N{name[4:]}")
    with pytest.raises(StudyError, match="was trained on sub-29; leave them out"):
        score_model(model, shared)
    other = prepared(tmp_path / "other", secret, rename=lambda name: f"sub-N{name[4:]}")
    metrics = score_model(model.parent, other)
    assert metrics["people_checked"] and np.sum(metrics["confusion"][NETWORK]) == 40
    with pytest.raises(StudyError, match="nobody is known as held out"):
        score_model(model, other, held_out=True)
    with pytest.raises(StudyError, match="name the file of their secret"):
        score_model(model, other.model_copy(update={"splits": other.splits.model_copy(update={"salt": None})}))
    salt.write_text("another secret of others")
    with pytest.raises(StudyError, match="is not the secret that"):
        score_model(model, other)


def test_a_cohort_that_does_not_fit_is_refused(tmp_path, capsys):
    study = prepared(tmp_path / "first")
    train_study(study)
    model = study.folder / "model.safetensors"
    other = prepared(tmp_path / "other", rename=lambda name: f"sub-N{name[4:]}")
    assert not score_model(model, other)["people_checked"]
    assert "is not checked" in capsys.readouterr().out
    maps = read_table(other.folder / "manifest.tsv", MANIFEST).assign(space="MNI152 tissue maps")
    write_table(maps, other.folder / "manifest.tsv", MANIFEST)
    with pytest.raises(StudyError, match=r"01_data_audit of study 'tiny' is not up to date \(manifest.tsv was edited"):
        score_model(model, other)
    with pytest.raises(StudyError, match="takes T1w images, the images of the cohort are others"):
        finished_model._check_spaces(model_file.load(model).card, maps, model)
    turned = prepared(tmp_path / "turned", "classes=[AD, CN]")
    with pytest.raises(StudyError, match="the order counts too"):
        score_model(model, turned)
    larger = prepared(tmp_path / "larger", "input.positions_mm=[1.0]")
    with pytest.raises(StudyError, match=r"trained with positions_mm = \(0.0,\), the study has \(1.0,\)"):
        score_model(model, larger)
