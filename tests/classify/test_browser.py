"""Uploads, cancel and reports of the form on Voilà and in JupyterLab, in a browser; answers come from a stand-in."""

import base64
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect
from served import (  # noqa: F401
    MARKS,
    ROOT,
    WAIT_MS,
    WIDTH,
    classify,
    give,
    open_browser,
    opened,
    server_starter,
    shoot,
    temporary_folder,
    write_form,
)
from test_widget import prediction_of

from adlib.classify.result import as_record

SECRET = b"bytes of somebody's head,  "  # 27 bytes: whole groups of three in base64
CELL = """
import sys
from pathlib import Path
from adlib.study.params import ClassifyParams
from adlib.classify.widget.app import App
from adlib.classify.widget.jobs import Worker
from adlib.classify.widget.uploads import Inbox, open_home
inbox = Inbox(ClassifyParams(), open_home())
worker = Worker(Path("none"), inbox.limits, inbox.home, command=(sys.executable, {fake!r}))
App(worker, inbox, {{"sub-01 (AD)": "sub-01.nii"}}).box
"""
pytestmark = MARKS


@pytest.fixture(scope="module")
def form():
    """A notebook that shows the form alone."""
    path = write_form(ROOT / "outputs" / "browser", CELL.format(fake=str(ROOT / "tests" / "fake_worker.py")))
    path.with_name("record.json").write_text(json.dumps(as_record(prediction_of("x"))))
    Image.new("RGB", (900, 500), "navy").save(path.with_name("picture.png"))
    yield path
    shutil.rmtree(path.parent)


@pytest.fixture(scope="module")
def stand_in(form):
    return {"FAKE_RECORD": str(form.with_name("record.json")), "FAKE_PICTURE": str(form.with_name("picture.png"))}


def walk(page, files: dict[str, Path], where: str) -> None:
    """An upload of 60 MB, several at once with a bad one, cancel, and a report."""
    shoot(page, f"{where}-1-empty")
    give(page, files["large"])
    expect(page.get_by_text("large.nii, 60.0 MiB")).to_be_visible()
    classify(page, 1)
    shoot(page, f"{where}-2-answer")
    page.get_by_role("button", name="turn it with the mouse").click()
    expect(page.locator("canvas").first).to_be_visible(timeout=WAIT_MS)
    page.wait_for_timeout(3000)
    shoot(page, f"{where}-2-scene")
    page.get_by_role("button", name="turn it with the mouse").click()
    give(page, files["a"], files["bad"], files["c"])
    classify(page, 3)
    expect(page.get_by_text("copy it again")).to_be_visible()
    shoot(page, f"{where}-3-several")
    give(page, files["slow"])
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_text("classifying slices")).to_be_visible(timeout=WAIT_MS)
    shoot(page, f"{where}-4-working")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("slow.nii: cancelled")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Make report").click()
    link = page.get_by_role("link", name="JSON", exact=True)
    expect(link).to_be_visible(timeout=WAIT_MS)
    with page.expect_download() as kept:
        link.click()
    records = json.loads(Path(kept.value.path()).read_text(encoding="utf-8"))
    assert [one["name"] for one in records] == ["large", "a", "c"] and records[0]["bytes"] == 60 * 2**20
    shoot(page, f"{where}-5-report")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files by what they are there for; each holds bytes that are found nowhere else."""
    folder = tmp_path_factory.mktemp("files")
    names = {"large": "large.nii", "a": "a.nii", "bad": "bad.nii", "c": "c.nii.gz", "slow": "slow.nii"}
    for kind, name in names.items():
        (folder / name).write_bytes(SECRET * 40 + bytes(60 * 2**20 - 40 * len(SECRET) if kind == "large" else 0))
    return {kind: folder / name for kind, name in names.items()}


def test_voila_lets_nobody_in_without_the_token(serve, browser, form, stand_in, files, temporary):
    address = serve("app", form, **stand_in)
    stranger = browser.new_page()
    stranger.goto(address, timeout=WAIT_MS)
    assert "login" in stranger.url and not stranger.get_by_text("Choose scans").count()
    page = opened(browser, address)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    walk(page, files, "voila")
    assert not [path for path in temporary.rglob("*.nii*") if path.is_file()]
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH
    assert not faults
    page.close()


def test_jupyterlab_keeps_no_byte_of_an_upload_in_the_notebook(serve, browser, form, stand_in, files, temporary):
    page = opened(browser, serve("lab", form, **stand_in))
    walk(page, files, "lab")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(5000)
    kept = form.read_bytes()
    assert b"widget-view" in kept
    assert SECRET not in kept and base64.b64encode(SECRET) not in kept
    assert not [path for path in temporary.rglob("*.nii*") if path.is_file()]
    page.close()
