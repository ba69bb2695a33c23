"""Shared fixtures, and the choice of tests that need real images."""

import os
import signal

import matplotlib
import pytest
from tiny_study import study  # noqa: F401

matplotlib.use("Agg")


def pytest_configure():
    """Let the runs that tests interrupt hear it: a suite started in the background inherits an ignored Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Leave out realdata unless ADLIB_REALDATA names the images, and studies and browser unless -m asks for them."""
    unwanted = set() if os.environ.get("ADLIB_REALDATA") else {"realdata"}
    unwanted |= {name for name in ("studies", "browser") if name not in config.getoption("-m")}
    left = [item for item in items if any(item.get_closest_marker(name) for name in unwanted)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


@pytest.fixture
def realdata():
    """Folder of real images."""
    from pathlib import Path

    return Path(os.environ["ADLIB_REALDATA"])


@pytest.fixture
def look():
    """The theme of the figures, and no figure left open afterwards."""
    import matplotlib.pyplot as plt

    from adlib.figures.theme import apply_theme

    apply_theme()
    yield
    plt.close("all")
