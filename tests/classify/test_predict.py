"""Prediction is the study's own pieces put together, says what it is worth, and survives bad files."""

import json
import os
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest
import torch
from made_head import made_head, random_affine

from adlib.classify import model_store as stored
from adlib.classify import prediction as predict
from adlib.classify.picture import POSITIONS_MM
from adlib.imaging.volume import extract_slice
from adlib.parallel.threads import one_thread
from adlib.preprocess.cohort_run import preprocess_scan
from adlib.preprocess.derivatives import load_preprocessed
from adlib.preprocess.intensity import LANDMARKS, brain_percentiles, standard_slices
from adlib.preprocess.pipeline import preprocess_image
from adlib.study.params import InputParams, PreprocessParams, load_params
from adlib.study.records import TISSUE_MAPS, StudyError
from adlib.training import model_file
from adlib.training import network as model
from adlib.training.slices import scan_slices

CLASSES = ("CN", "MCI", "LMCI", "AD")
VOLUMES = {
    "icv_ml": {name: [1450.0, 130.0] for name in CLASSES},
    "ventricles_ml": {name: [20.0 + 10 * i, 9.0] for i, name in enumerate(CLASSES)},
}


@pytest.fixture(scope="module")
def classifier():
    """A ResNet50 with random weights: what it answers is arbitrary, that it answers by the contract is not."""
    torch.manual_seed(3)
    network, origin = model.ResNet50(len(CLASSES)), "random initialisation"
    card = model_file.ModelCard(
        study="phantom",
        classes=CLASSES,
        simulated=True,
        input=InputParams(size=64),
        preprocess=PreprocessParams(resolution_mm=3.0),
        temperature=1.3,
        cohort={"participants": dict.fromkeys(CLASSES, 5), "volumes": VOLUMES},
        weights_origin=origin,
        splits_sha256="0" * 64,
        code="0" * 64,
        seed=3,
    )
    return model_file.Classifier(network.eval(), card)


@pytest.fixture(scope="module")
def head():
    pose = random_affine(4, scale=0.0)
    pose[:3, :3] *= 0.9  # the template's head is larger than a person's
    return made_head(seed=4, pose=pose, voxel_mm=(2.5, 2.5, 2.5), codes="PSR").image


@pytest.fixture(scope="module")
def prediction(classifier, head):
    return predict.predict_image(head, "made", classifier)


def test_it_is_the_pieces_of_the_study_put_together(prediction, classifier, head):
    prepared = preprocess_image(head, classifier.card.preprocess, "made")
    slices, _ = model_file.classify_slices(
        classifier, scan_slices(prepared.t1w, prepared.affine, classifier.card.input)
    )
    assert np.allclose(prediction.slices, slices, atol=1e-5)
    assert np.allclose(list(prediction.probabilities.values()), slices.mean(0), atol=1e-5)
    assert prediction.predicted == CLASSES[int(slices.mean(0).argmax())]


def test_probabilities_sum_to_one(prediction):
    assert abs(sum(prediction.probabilities.values()) - 1) < 1e-9
    assert np.allclose(prediction.slices.sum(axis=1), 1)
    assert prediction.slices.shape == (3, 4)


def test_twice_the_same(prediction, classifier, head):
    again = predict.predict_image(head, "made", classifier)
    assert again.probabilities == prediction.probabilities
    assert predict.as_record(again) == predict.as_record(prediction)


def test_file_and_image_give_the_same_answer(prediction, classifier, head, tmp_path):
    head.to_filename(tmp_path / "made.nii.gz")
    told = []
    assert predict.predict_file(tmp_path / "made.nii.gz", classifier, told.append).probabilities == pytest.approx(
        prediction.probabilities, abs=1e-6
    )
    assert told == list(predict.STAGES)


def test_a_scan_of_the_study_gets_the_study_s_own_answer(classifier, head, tmp_path):
    """Through files of the cohort run, 16-bit images and half-precision slices, the answer is the same."""
    head.to_filename(tmp_path / "made.nii.gz")
    scan = {"participant_id": "sub-1", "session_id": "ses-1", "scan_id": "made", "sha256": "0"}
    scan["path"] = str(tmp_path / "made.nii.gz")
    with one_thread():
        preprocess_scan(scan, tmp_path / "derivatives", classifier.card.preprocess)
    stored = load_preprocessed(scan, tmp_path / "derivatives")
    slices = scan_slices(stored.t1w, stored.affine, classifier.card.input).astype(np.float16)
    prediction = predict.predict_file(scan["path"], classifier)
    assert np.allclose(model_file.classify_slices(classifier, slices)[0], prediction.slices, atol=0.005)
    assert stored.features == prediction.prepared.features


def test_record_is_json_and_complete(prediction):
    record = json.loads(json.dumps(predict.as_record(prediction), allow_nan=False))
    assert record["probabilities"].keys() == set(CLASSES)
    assert record["volumes"]["icv_ml"] == pytest.approx(prediction.prepared.features["icv_ml"])
    assert record["model"]["study"] == "phantom" and record["model"]["simulated_cohort"]
    assert "means nothing about a patient" in record["warning"]
    assert any("brain extraction" in step for step in record["steps"])


def test_warning_follows_the_cohort(prediction):
    real = replace(prediction, card=replace(prediction.card, simulated=False))
    assert "simulated" not in real.warning and "no diagnosis" in real.warning


def test_no_answer_where_quality_control_fails(classifier, head, monkeypatch):
    def failed(*arguments):
        return replace(preprocess_image(*arguments), verdict="fail", reasons=("no brain",))

    monkeypatch.setattr(predict, "preprocess_image", failed)
    refused = predict.predict_image(head, "made", classifier)
    assert refused.predicted is None
    assert predict.as_record(refused)["reasons"] == ["no brain"]
    assert "no answer" in predict.draw(refused).subfigs[0].get_suptitle()


def test_volumes_outside_the_cohort_are_said():
    cohort = {"volumes": VOLUMES}
    assert predict.outside_cohort({"icv_ml": 1500.0, "ventricles_ml": 50.0}, cohort) == ()
    (remark,) = predict.outside_cohort({"icv_ml": 2400.0, "ventricles_ml": 50.0}, cohort)
    assert remark.startswith("icv_ml 2400 lies outside")


def test_a_model_of_landmarks_takes_any_scale_of_intensities(classifier, head):
    standard = tuple(float(n) for n in np.linspace(0, 100, len(LANDMARKS)))
    preprocess = classifier.card.preprocess.model_copy(update={"normalise": "landmarks"})
    other = replace(classifier, card=replace(classifier.card, landmarks=standard, preprocess=preprocess))
    answer = predict.predict_image(head, "made", other)
    prepared = answer.prepared
    cut = scan_slices(prepared.t1w, prepared.affine, other.card.input)
    moved = standard_slices(cut, brain_percentiles(prepared.t1w, prepared.mask), standard)
    assert np.allclose(answer.slices, model_file.classify_slices(other, moved)[0], atol=1e-6)
    assert not np.allclose(answer.slices, model_file.classify_slices(other, cut)[0], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"input": InputParams(plane="three_planes_2d")}, "2-D slices"), ({"spaces": (TISSUE_MAPS,)}, "grey-matter maps")],
)
def test_models_of_other_images_refuse_heads(classifier, head, change, words):
    other = replace(classifier, card=replace(classifier.card, **change))
    with pytest.raises(StudyError, match=words):
        predict.predict_image(head, "made", other)


def test_picture_shows_every_slice_and_every_class(prediction):
    figure = predict.draw(prediction)
    mosaic, answer, foot = figure.subfigs
    for axis, letter, (plane, positions) in zip(mosaic.axes, "zyx", POSITIONS_MM.items(), strict=True):
        cuts = [extract_slice(prediction.prepared.native, prediction.prepared.affine, plane, at) for at in positions]
        np.testing.assert_array_equal(axis.images[0].get_array(), np.hstack(cuts))
        assert {f"{letter} = {at:+.0f}" for at in positions} <= {text.get_text() for text in axis.texts}
    bars = [bar.get_height() for bar in answer.axes[0].patches]
    assert bars == pytest.approx(list(prediction.probabilities.values()))
    assert foot.texts[0].get_text() == prediction.warning


def test_no_model_says_run_the_study(tmp_path):
    params = load_params("params/smoke.yaml", (f"exec.outputs={tmp_path}", "study=nothing"))
    with pytest.raises(StudyError, match="run the study first"):
        stored.find_model(params)


def test_command_goes_on_after_a_bad_file(classifier, head, prediction, tmp_path, capsys):
    model_file.save(classifier, tmp_path / "model.safetensors")
    head.to_filename(tmp_path / "made.nii.gz")
    bad = tmp_path / "bad.nii"
    bad.write_text("no scan")
    options = ["--model", str(tmp_path / "model.safetensors"), "--out", str(tmp_path / "out")]
    assert predict.main([str(bad), str(tmp_path / "made.nii.gz"), *options]) == 1
    said = capsys.readouterr()
    assert "bad.nii" in said.err and "copy it again" in said.err
    assert json.loads(said.out)["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["made_summary.png"]


def test_command_ends_well_and_keeps_pictures_apart(classifier, prediction, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict.model_file, "load", lambda path: classifier)
    monkeypatch.setattr(predict, "predict_file", lambda path, classifier, **known: prediction)
    monkeypatch.setattr(predict, "map_scans", lambda function, items, **_: [function(item) for item in items])
    files, open_before = ["a/made.nii.gz", "b/made.nii.gz"], plt.get_fignums()
    assert predict.main([*files, "--model", "any", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"made_summary.png", "made_2_summary.png"}
    assert plt.get_fignums() == open_before
    assert capsys.readouterr().out.count('"predicted"') == 2


REAL = {
    "dicom_t1/t1w_dicom.zip": False,
    "t1w_head/t1_crop.nii.gz": False,
    "t1w_cc0/sub-01/anat/sub-01_T1w.nii.gz": True,
    "t1w_cc0/sub-02/anat/sub-02_T1w.nii.gz": True,
    "t1w_cc0/sub-03/anat/sub-03_T1w.nii.gz": True,
}


@pytest.mark.realdata
@pytest.mark.parametrize(("file", "extracted"), REAL.items())
def test_real_scans(classifier, file, extracted):
    prediction = predict.predict_file(Path(os.environ["ADLIB_REALDATA"]) / file, classifier)
    assert 1000 < prediction.prepared.features["brain_ml"] < 1800
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.predicted in CLASSES
    skipped = "brain extraction skipped: input is already brain-extracted"
    assert (skipped in prediction.prepared.steps) == extracted
    assert nib.aff2axcodes(prediction.prepared.affine) == ("R", "A", "S")
