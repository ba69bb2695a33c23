"""Bias field correction, normalisation and intensity landmarks."""

import numpy as np
import pytest

from adlib.imaging import atlas
from adlib.preprocess import intensity
from adlib.study.records import StudyError


def test_bias_field_is_recovered():
    base = atlas.template(3.0)
    x, y, _ = atlas.coordinates(base.mask.shape, base.affine) / 80
    true = np.exp(0.3 * x - 0.2 * y)
    rng = np.random.default_rng(0)
    tissue = 0.65 * base.gm + base.wm + 0.2 * base.csf
    volume = (1000 * true * tissue + 15 * rng.standard_normal(tissue.shape)).clip(0).astype(np.float32)
    field = intensity.bias_field(volume, base.mask, base.affine)
    assert np.corrcoef(np.log(field[base.mask]), np.log(true[base.mask]))[0, 1] > 0.93


def test_normalise_refuses_constant_or_misshapen_input():
    volume, mask = np.ones((4, 4, 4), np.float32), np.ones((4, 4, 4), bool)
    with pytest.raises(StudyError, match="constant"):
        intensity.normalise(volume, mask, *intensity.brain_zscore(volume, mask))
    with pytest.raises(StudyError, match=r"\(4, 4, 4\) but its mask is \(2, 2, 2\)"):
        intensity.normalise(volume, mask[:2, :2, :2], 0, 1)


def test_landmarks_undo_monotonic_contrast():
    rng = np.random.default_rng(1)
    tissue = rng.choice([0.2, 0.65, 1.0], 20000, p=[0.2, 0.45, 0.35]) + 0.05 * rng.standard_normal(20000)
    scans = [tissue * 500, 90 * tissue + 40, 300 * np.clip(tissue, 0, None) ** 1.3]
    mask = np.ones(tissue.shape, bool)
    percentiles = [intensity.brain_percentiles(scan, mask) for scan in scans]
    standard = intensity.fit_landmarks(percentiles[:2])
    assert standard[0] == 0 and standard[-1] == 100 and np.all(np.diff(standard) > 0)
    moved = [intensity.apply_landmarks(scan, p, standard) for scan, p in zip(scans, percentiles, strict=True)]
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-3)
    for scan, p, done in zip(scans, percentiles, moved, strict=True):
        np.testing.assert_allclose(np.interp(p, np.sort(scan), np.sort(done)), standard, atol=0.1)
        assert np.all(np.diff(done[np.argsort(scan)]) >= -1e-4)
    assert np.abs(moved[0] - moved[2]).mean() < 0.5 < np.abs(scans[0] - scans[2]).mean()


def test_constant_landmarks_are_refused():
    flat = np.zeros(len(intensity.LANDMARKS))
    rising = np.arange(float(len(flat)))
    with pytest.raises(StudyError, match="training scan 1"):
        intensity.fit_landmarks([rising, flat])
    with pytest.raises(StudyError, match="of the scan"):
        intensity.apply_landmarks(rising, flat, rising)
    with pytest.raises(StudyError, match="expected the 11 percentiles"):
        intensity.fit_landmarks(np.zeros((0, 11)))
