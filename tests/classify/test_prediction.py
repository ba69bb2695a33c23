"""A prediction is made by the code of the study; the command goes on after a bad file."""

import json
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from adlib import predict
from adlib.classify import prediction as module
from adlib.classify.model_store import find_model
from adlib.classify.plot_prediction import POSITIONS_MM, plot_prediction
from adlib.classify.prediction import STAGES, outside_cohort, predict_file, predict_image
from adlib.classify.result import as_record
from adlib.imaging.volume import extract_slice
from adlib.preprocess.pipeline import preprocess_image
from adlib.sources.scanfile import ScanFile
from adlib.study.params import InputParams, PreprocessParams, load_params
from adlib.study.records import TISSUE_MAPS, StudyError
from adlib.training import model_file
from adlib.training.slabs import cut_slab
from adlib.training.slices import scan_slices, slab_slices


def test_prediction_composes_the_functions_of_the_study(prediction, classifier, scan):
    prepared = preprocess_image(scan, classifier.card.preprocess, "made")
    cut = scan_slices(prepared.t1w, prepared.affine, classifier.card.input)
    slices, _ = model_file.classify_slices(classifier, cut)
    assert prediction.slices.shape == (3, 4) and np.allclose(prediction.slices, slices, atol=1e-5)
    assert np.allclose(prediction.slices.sum(axis=1), 1)
    assert np.allclose(list(prediction.probabilities.values()), slices.mean(0), atol=1e-5)
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-9)
    assert prediction.predicted == classifier.card.classes[int(slices.mean(0).argmax())]


def test_prediction_of_file_and_image_are_identical(prediction, classifier, scan, tmp_path):
    scan.to_filename(tmp_path / "made.nii.gz")
    stages = []
    again = predict_file(tmp_path / "made.nii.gz", classifier, stage=stages.append, person=prediction.person)
    assert as_record(replace(again, time=prediction.time)) == as_record(prediction)
    assert stages == list(STAGES)


def test_record_is_complete_json(prediction):
    record = json.loads(json.dumps(as_record(prediction), allow_nan=False))
    assert tuple(record["probabilities"]) == prediction.card.classes
    assert record["volumes"]["icv_ml"] == pytest.approx(prediction.prepared.features["icv_ml"])
    assert record["model"]["study"] == "phantom" and record["model"]["simulated_cohort"]
    assert "means nothing about a patient" in record["warning"]
    assert any("brain extraction" in step for step in record["steps"])


def test_warning_depends_on_the_cohort(prediction):
    real = replace(prediction, card=replace(prediction.card, simulated=False))
    assert "simulated" not in real.warning and "no diagnosis" in real.warning


def test_failed_quality_control_refuses(classifier, scan, monkeypatch):
    def failed(*arguments):
        return replace(preprocess_image(*arguments), verdict="fail", reasons=("no brain",))

    monkeypatch.setattr(module, "preprocess_image", failed)
    refused = predict_image(scan, "made", classifier)
    assert refused.predicted is None
    assert as_record(refused)["reasons"] == as_record(refused)["refused"] == ["no brain"]
    assert "Not classified: no brain" in plot_prediction(refused).subfigs[0].get_suptitle()


def test_volumes_outside_the_cohort_are_noted(classifier):
    cohort = classifier.card.cohort
    assert outside_cohort({"icv_ml": 1500.0, "ventricles_ml": 50.0}, cohort) == ()
    (remark,) = outside_cohort({"icv_ml": 2400.0, "ventricles_ml": 50.0}, cohort)
    assert remark.startswith("icv_ml 2400 lies outside")


def test_head_is_cut_into_the_slab_of_a_model_of_slabs(classifier, scan):
    settings = InputParams(plane="coronal_2d", positions_mm=(-29.2, -25.1), channel_spacing_mm=1.0, size=64)
    preprocess = PreprocessParams(resolution_mm=2.0, normalise="white_matter_peak")
    other = replace(classifier, card=replace(classifier.card, input=settings, preprocess=preprocess))
    result = predict_image(scan, "made", other)
    assert result.predicted and result.seen.shape == (2, 3, 64, 64) and result.seen.min() == 0
    prepared = preprocess_image(scan, preprocess, "made")
    expected = slab_slices(cut_slab(prepared.t1w, prepared.affine, "made"), settings)
    np.testing.assert_allclose(result.seen, expected, atol=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"input": InputParams(plane="three_planes_2d")}, "2-D slices"), ({"spaces": (TISSUE_MAPS,)}, "grey-matter maps")],
)
def test_models_of_other_images_refuse_heads(classifier, scan, change, message):
    other = replace(classifier, card=replace(classifier.card, **change))
    with pytest.raises(StudyError, match=message):
        predict_image(scan, "made", other)


def test_summary_figure_shows_slices_and_probabilities(prediction):
    mosaic, result, foot = plot_prediction(prediction).subfigs
    for axis, letter, (plane, positions) in zip(mosaic.axes, "zyx", POSITIONS_MM.items(), strict=True):
        cuts = [extract_slice(prediction.prepared.native, prediction.prepared.affine, plane, at) for at in positions]
        np.testing.assert_array_equal(axis.images[0].get_array(), np.hstack(cuts))
        assert {f"{letter} = {at:+.0f}" for at in positions} <= {text.get_text() for text in axis.texts}
    bars = [bar.get_height() for bar in result.axes[0].patches]
    assert bars == pytest.approx(list(prediction.probabilities.values()))
    assert foot.texts[0].get_text() == prediction.warning


def test_missing_model_message(tmp_path):
    params = load_params("params/smoke.yaml", (f"exec.outputs={tmp_path}", "study=nothing"))
    with pytest.raises(StudyError, match="run the study first"):
        find_model(params)


def test_help_imports_no_torch():
    code = (
        "import sys; from adlib.predict import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    help_text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--model" in help_text


def test_command_goes_on_after_a_bad_file(classifier, scan, prediction, tmp_path, capsys):
    model_file.save(classifier, tmp_path / "model.safetensors")
    files = [tmp_path / name for name in ("a/made.nii.gz", "bad.nii", "b/made.nii.gz")]
    for path in files:
        path.parent.mkdir(exist_ok=True)
        scan.to_filename(path)
    files[1].write_text("no scan")
    options = ["--model", str(tmp_path / "model.safetensors"), "--out", str(tmp_path / "out")]
    assert predict.main([*map(str, files), *options]) == 1
    output = capsys.readouterr()
    assert "bad.nii" in output.err and "copy it again" in output.err
    first, _ = json.JSONDecoder().raw_decode(output.out)
    assert first["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)
    assert output.out.count('"predicted"') == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"made_summary.png", "made_2_summary.png"}


REAL = {
    "dicom_t1/t1w_dicom.zip": False,
    "t1w_head/t1_crop.nii.gz": False,
    "t1w_cc0/sub-01/anat/sub-01_T1w.nii.gz": True,
    "t1w_cc0/sub-02/anat/sub-02_T1w.nii.gz": True,
    "t1w_cc0/sub-03/anat/sub-03_T1w.nii.gz": True,
}


@pytest.mark.realdata
@pytest.mark.parametrize(("file", "extracted"), REAL.items())
def test_real_scans(realdata, classifier, file, extracted):
    prediction = predict_file(realdata / file, classifier)
    assert 1000 < prediction.prepared.features["brain_ml"] < 1800
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.predicted in prediction.card.classes
    skipped = "brain extraction skipped: input is already brain-extracted"
    assert (skipped in prediction.prepared.steps) == extracted
    assert nib.aff2axcodes(prediction.prepared.affine) == ("R", "A", "S")


def test_age_and_sex_of_the_header_are_read_but_not_assumed(monkeypatch):
    facts = {"age": 3.0, "sex": "F"}
    monkeypatch.setattr(module, "open_scan", lambda path: ScanFile("a", None, (), facts))
    monkeypatch.setattr(module, "predict_image", lambda *_, **options: options)
    assert module.stated_person("a.dcm") == {"age": 3, "sex": 1}
    assert predict_file("a.dcm", None, person={"age": 4.0})["person"] == {"age": 4}
    assert "person" not in predict_file("a.dcm", None)
    facts.clear()
    assert module.stated_person("a.dcm") == {}
