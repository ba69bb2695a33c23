"""What is not T1-weighted is refused, by the kind that it resembles."""

import numpy as np
import pytest

from adlib.imaging import atlas
from adlib.preprocess.contrast import check_contrast, check_texture
from adlib.preprocess.registration import register
from adlib.study.records import StudyError


def image(grey, white, fluid):
    base = atlas.template(3.0)
    field = 1 + 0.2 * np.linspace(-1, 1, base.mask.shape[0], dtype=np.float32)[:, None, None]
    return (grey * base.gm + white * base.wm + fluid * base.csf) * field


def contrast(volume):
    return register(volume, atlas.template(3.0).affine, "a scan", registered=True).contrast


@pytest.mark.parametrize(
    ("means", "kind"),
    [
        ((1.0, 0.85, 0.2), "FLAIR"),
        ((0.95, 1.0, 0.2), "FLAIR"),
        ((0.6, 0.45, 1.0), "T2-"),
        ((1.0, 0.8, 0.99), "proton-density"),
        ((0.7, 1.0, 0.8), "without dark fluid"),
        ((1.0, 0.0, 0.0), "map of grey matter"),
        ((0.0, 1.0, 0.0), "map of white matter"),
    ],
)
def test_other_contrasts_are_refused_by_name(means, kind):
    values = contrast(image(*means))
    with pytest.raises(StudyError, match=f"a scan: not T1-weighted: .*{kind}"):
        check_contrast(*values, "a scan")


def test_contrast_of_a_t1w_is_measured_in_any_unit():
    for unit in (1e-3, 1.0, 1e4):
        white, fluid = contrast(unit * image(0.7, 1.0, 0.3))
        assert white == pytest.approx(0.3, abs=0.03) and fluid == pytest.approx(0.4, abs=0.04)
        check_contrast(white, fluid, "a scan")


def test_black_brain_is_refused():
    black = np.zeros(atlas.template(3.0).mask.shape, np.float32)
    black[:, 0] = np.random.default_rng(0).random(black[:, 0].shape)
    with pytest.raises(StudyError, match="shows no grey and white matter"):
        contrast(black)


def test_map_of_labels_is_refused():
    labels = np.kron(np.random.default_rng(0).integers(0, 200, (9, 9, 9)), np.ones((5, 5, 5))).astype(np.float32)
    with pytest.raises(StudyError, match="have one value; a map of labels"):
        check_texture(labels, "a scan")
    check_texture(np.random.default_rng(0).integers(0, 200, labels.shape).astype(np.float32), "a scan")
