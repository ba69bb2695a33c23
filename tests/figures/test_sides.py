"""The side of a picture: what is drawn turns, what has no side stays, and the letters follow."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from adlib.figures.sides import channel_planes, mark_sides, note, strip, turned
from adlib.imaging.atlas import template
from adlib.study.params import InputParams

PICTURE = np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(("display", "left"), [("neurological", "L"), ("radiological", "R")])
def test_letters_stand_on_the_side_that_is_drawn(display, left):
    axis = plt.figure().add_subplot()
    axis.imshow(PICTURE)
    mark_sides(axis, "coronal", display)
    letters = {text.get_position()[0]: text.get_text() for text in axis.texts}
    assert letters[0.03] == left and set(letters.values()) == {"L", "R"}
    low, high = axis.get_xlim()
    assert (low < high) == (display == "neurological")


@pytest.mark.parametrize("plane", ["sagittal", ""])
def test_planes_without_sides_stay_as_they_are(plane):
    axis = plt.figure().add_subplot()
    mark_sides(axis, plane, "radiological")
    assert not axis.texts
    assert turned(PICTURE, plane, "radiological") is PICTURE


def test_a_left_lesion_is_on_the_right_of_a_radiological_strip():
    base = template(4.0)
    volume = np.where(base.mask, 1.0, 0.0).astype(np.float32)
    middle = volume.shape[0] // 2
    volume[:middle] *= 2  # low x: left
    shown, other = (strip(volume, base.affine, display) for display in ("neurological", "radiological"))
    width = shown.shape[1]
    axial = slice(width - base.mask.shape[0], width)
    assert shown[:, axial].sum(0).argmax() < base.mask.shape[0] / 2 < other[:, axial].sum(0).argmax()
    np.testing.assert_array_equal(shown[:, axial], other[:, axial][:, ::-1])
    np.testing.assert_array_equal(shown[:, : base.mask.shape[1]], other[:, : base.mask.shape[1]])


def test_the_note_and_the_planes_of_channels():
    assert "left of the head on the left" in note("neurological")
    assert "right of the head on the left" in note("radiological")
    assert channel_planes(InputParams(plane="three_planes")) == ("axial", "coronal", "sagittal")
    assert channel_planes(InputParams(plane="axial")) == ("axial",) * 3
    assert channel_planes(InputParams(plane="images_2d")) == ("", "", "")
