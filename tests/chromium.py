"""The browser that pages are opened in."""

import os
import shutil
from contextlib import contextmanager

from playwright.sync_api import sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium():
    """A browser without a window; as root it runs without its sandbox, which root cannot have."""
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=root)
        yield started
        started.close()
