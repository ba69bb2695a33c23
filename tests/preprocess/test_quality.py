"""Quality control: planted faults, limits, ranking and figures."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from made_head import add_noise, made_head, random_affine, reoriented, spoil

from adlib.figures import plot_preprocessing as quality
from adlib.preprocess import quality as qc
from adlib.preprocess.pipeline import preprocess_image
from adlib.preprocess.quality import LEARNT, raw_quality
from adlib.study.params import PreprocessParams
from adlib.study.records import StudyError

pytestmark = pytest.mark.usefixtures("look")
PARAMS = PreprocessParams(resolution_mm=3.0)
POSE = random_affine(1, degrees=8, shift=10, scale=0.02)


@pytest.fixture(scope="module")
def ideal():
    """A head without noise, (X, Y, Z) float32, its affine and its pose."""
    head = made_head(1, voxel_mm=(3.0, 3.0, 3.0), pose=POSE, noise=0.0)
    return np.asarray(head.image.dataobj).astype(np.float32), head.image.affine, np.linalg.inv(head.mni_to_scan)


@pytest.fixture(scope="module")
def noisy(ideal):
    volume, affine, scan_to_mni = ideal
    return add_noise(volume, 0.03, np.random.default_rng(0)), affine, scan_to_mni


@pytest.fixture(scope="module")
def clean(noisy):
    return preprocess_image(nib.Nifti1Image(noisy[0], noisy[1]), PARAMS, "clean")


def reasons_of(image):
    try:
        return " ".join(preprocess_image(image, PARAMS, "spoilt").reasons)
    except StudyError as error:
        return str(error)


def test_clean_head_passes_with_every_value(clean):
    assert (clean.verdict, clean.reasons) == ("pass", ())
    assert set(clean.qc) == set(qc.LIMITS)
    assert not any("not measured" in step for step in clean.steps)


REFUSED = ("no brain was found", "shows no grey and white matter")  # by registration, before quality is measured


@pytest.mark.parametrize(
    ("fault", "seed", "signs"),
    [
        ("motion", 5, ("qc_ghost", "qc_edge")),
        ("wrap", 5, ("qc_wrap", "qc_coverage")),
        ("missing slices", 2, ("qc_dark", "qc_jump", *REFUSED)),
        ("inverted", 5, ("as in a T2-",)),
        ("half brain", 0, ("qc_symmetry", "qc_asymmetry", *REFUSED)),
    ],
)
def test_fault_is_flagged_for_the_right_reason(ideal, fault, seed, signs):
    volume, affine, _ = ideal
    rng = np.random.default_rng(seed)
    spoilt = add_noise(spoil(volume, affine, fault, 0.6, rng), 0.03, rng)
    reasons = reasons_of(nib.Nifti1Image(spoilt, affine))
    assert any(sign in reasons for sign in signs), reasons


def test_ghost_grows_with_planted_ghost(noisy):
    volume, affine, scan_to_mni = noisy
    assert raw_quality(*noisy)["qc_ghost"] == pytest.approx(1, abs=0.03)
    faint, strong = (
        raw_quality(volume + share * np.roll(volume, volume.shape[1] // 2, 1), affine, scan_to_mni)["qc_ghost"]
        for share in (0.1, 0.3)
    )
    assert 1.2 < faint < strong


def test_dark_slice_is_measured(noisy):
    volume, affine, scan_to_mni = noisy
    for axis in range(3):
        spoilt = volume.copy()
        spoilt[tuple(volume.shape[axis] // 2 + 5 if k == axis else slice(None) for k in range(3))] *= 0.25
        values = raw_quality(spoilt, affine, scan_to_mni)
        assert values["qc_dark"] == pytest.approx(0.25, abs=0.06)
        assert values["qc_jump"] > 2
    assert raw_quality(*noisy)["qc_dark"] > 0.7 and raw_quality(*noisy)["qc_jump"] < 1.5


def test_raw_quality_ignores_gain_and_offset(noisy):
    volume, affine, scan_to_mni = noisy
    brighter = raw_quality(7 * volume + 500, affine, scan_to_mni)
    for name, value in raw_quality(*noisy).items():
        assert brighter[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_verdict_is_that_of_the_worst_value(clean):
    verdict, reasons = qc.verdict(clean.qc | {"qc_ghost": 3.0})
    assert verdict == "check" and reasons[0].startswith("qc_ghost = 3 (expected at most")
    verdict, reasons = qc.verdict(clean.qc | {"qc_ghost": 3.0, "qc_order": -0.2})
    assert verdict == "fail" and reasons[0].startswith("qc_order = -0.2") and len(reasons) == 2
    assert qc.verdict({"qc_unknown": -1.0}) == ("pass", ())


def cohort():
    """Ten scans that pass, one that is barely sharp enough, one with ghosts, one refused."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "scan_id": [f"s{k}_T1w" for k in range(13)],
            "qc_verdict": ["pass"] * 11 + ["check", "fail"],
            "qc_reasons": [None] * 11 + ["qc_ghost is 2, expected less; qc_edge is 0.2, expected more", "no brain"],
            "qc_edge": LEARNT["qc_edge"][0] * (1.25 + 0.02 * rng.standard_normal(13)),
            "qc_ghost": 1.0 + 0.01 * rng.random(13),
        }
    )
    table.loc[5, "qc_edge"], table.loc[11, "qc_ghost"] = 1.02 * LEARNT["qc_edge"][0], 2.0
    table.loc[12, ["qc_edge", "qc_ghost"]] = np.nan
    return table


def test_scans_are_ranked_by_verdict_and_margin():
    ranked = qc.ranked(cohort())
    assert ranked["scan_id"].tolist()[:3] == ["s12_T1w", "s11_T1w", "s5_T1w"]
    assert ranked["qc_worst"].tolist()[:3] == [None, "qc_ghost", "qc_edge"]
    assert ranked["qc_margin"].iloc[1] < 0 < ranked["qc_margin"].iloc[2] < ranked["qc_margin"].iloc[3:].min()
    assert ranked["qc_percentile"].iloc[1] == pytest.approx(100 / 12)
    bare = cohort()[["scan_id", "qc_verdict", "qc_reasons"]]
    assert qc.ranked(bare)["scan_id"].iloc[0] == "s12_T1w" and qc.ranked(bare)["qc_worst"].isna().all()


def test_page_shows_worst_scans_with_reasons(clean):
    ranked = qc.ranked(cohort()).head(3)
    figure = quality.plot_quality_page(ranked, dict.fromkeys(ranked["scan_id"].iloc[1:], clean))
    first, second, third = figure.axes[:3]
    assert [axis.get_title() for axis in (first, second, third)] == ["s12: fail", "s11: check", "s5: pass"]
    assert "no brain" in first.texts[0].get_text()
    assert second.get_xlabel().startswith("ghost 2: 8 % of scans no better\nexpected at most")
    assert second.get_xlabel().endswith("and 1 more")
    assert third.get_xlabel().startswith(f"edge {1.02 * LEARNT['qc_edge'][0]:.4g}: 8 %")
    bare = replace(clean, native=None, tissues=None)
    drawn = quality.plot_quality_page(ranked.tail(1), {ranked["scan_id"].iloc[2]: bare}).axes[0].images[0].get_array()
    assert drawn.min() == 0 < drawn.std()
    with pytest.raises(StudyError, match="no scan to draw"):
        quality.plot_quality_page(ranked.head(0), {})


def test_distributions_show_scans_and_limits():
    figure = quality.plot_quality_values(cohort())
    shown = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in shown] == ["edge", "ghost"]
    assert sum(bar.get_height() for bar in shown[0].patches) == 12
    assert any(line.get_xdata()[0] == LEARNT["qc_ghost"][1] for line in shown[1].lines)
    assert figure.get_suptitle() == "11 pass, 1 check, 1 fail"


def test_steps_figure_shows_before_and_after(clean, noisy):
    figure = quality.plot_steps(clean, reoriented(nib.Nifti1Image(noisy[0], noisy[1]), "PSR"))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == "1 orientation: as stored, PSR" and titles[1] == "turned to RAS" and len(titles) == 12
    before, after = (figure.axes[k].images[0].get_array() for k in (0, 1))
    assert before.shape == after.shape and not np.allclose(before, after)
    counted = [sum(1000 * step.get_data().values.sum() for step in figure.axes[k].patches) for k in (10, 11)]
    pure = int((clean.tissues.max(axis=-1) > 0.8).sum())
    assert all(0.97 * pure < number <= pure for number in counted)
