"""Tests of preprocessing run with one thread, with which results repeat to the last bit."""

import pytest

from adlib.parallel.threads import one_thread


@pytest.fixture(autouse=True, scope="module")
def _single_thread():
    with one_thread():
        yield
