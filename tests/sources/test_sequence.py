"""Names of series and files as scanners and archives write them, with their truth in ``series_names``."""

from pathlib import Path

import pytest

from adlib.sources.sequence import Sequence, sequence_of, sequence_of_file


def read(name):
    return sequence_of_file(name) if name.startswith("sub-") else sequence_of(name)


def names(kind):
    return (Path(__file__).parent / "series_names" / f"{kind}.txt").read_text(encoding="utf-8").splitlines()


def test_there_are_many_names():
    assert len({*names("t1w"), *names("agent"), *names("other")}) >= 650


@pytest.mark.parametrize("name", names("t1w"))
def test_t1w_is_named(name):
    assert read(name).t1w, read(name)
    assert not read(name).agent, read(name)


@pytest.mark.parametrize("name", names("agent"))
def test_contrast_agent_is_named(name):
    assert read(name).t1w and read(name).agent, read(name)


@pytest.mark.parametrize("name", names("other"))
def test_other_image_is_named(name):
    assert read(name).other and not read(name).t1w, read(name)


@pytest.mark.parametrize(
    "name", ["anat", "brain", "scan 3", "sub-01", "head", "volume", "I120562", "patient2", "3D SAG"]
)
def test_nothing_is_said(name):
    assert read(name) == Sequence(False, "", "")
