"""Shared fixtures, and the choice of tests that need real images."""

import os

import matplotlib
import pytest

matplotlib.use("Agg")


def pytest_collection_modifyitems(config, items):
    """Leave out the tests marked realdata unless ADLIB_REALDATA names the folder of real images."""
    if os.environ.get("ADLIB_REALDATA"):
        return
    real = [item for item in items if item.get_closest_marker("realdata")]
    if real:
        config.hook.pytest_deselected(items=real)
        items[:] = [item for item in items if item not in set(real)]


@pytest.fixture
def realdata():
    """Folder of real images."""
    from pathlib import Path

    return Path(os.environ["ADLIB_REALDATA"])
