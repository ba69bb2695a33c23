"""Uploads, cancel and reports of the form on Voilà and in JupyterLab, in a browser; answers come from a stand-in.

``ADLIB_SHOTS`` may name a folder, which receives a screenshot of each step.
"""

import base64
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from chromium import CHROMIUM, chromium
from PIL import Image
from playwright.sync_api import expect
from test_widget import prediction_of

from adlib.answer import as_record

ROOT = Path(__file__).parents[1]
WAIT_MS = 200_000
WIDTH = 1024
SECRET = b"bytes of somebody's head,  "  # 27 bytes: whole groups of three in base64
TOKEN = "0123456789abcdef0123456789abcdef"
CELL = """
import sys
from pathlib import Path
from adlib.params import ClassifyParams
from adlib.widget.app import App
from adlib.widget.jobs import Worker
from adlib.widget.uploads import Inbox, open_home
inbox = Inbox(ClassifyParams(), open_home())
worker = Worker(Path("none"), inbox.limits, inbox.home, command=(sys.executable, {fake!r}))
App(worker, inbox, {{"sub-01 (AD)": "sub-01.nii"}}).box
"""
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium (Debian: apt install chromium)"),
]


def command(target: str, notebook: Path) -> list[str]:
    """What the Makefile runs for a target, with this environment's programs."""
    options = ["READY=Makefile", f"BIN={Path(sys.prefix) / 'bin'}", f"APP={notebook}"]
    said = subprocess.run(["make", "--dry-run", target, *options], cwd=ROOT, capture_output=True, text=True, check=True)
    program, *arguments = shlex.split(said.stdout.strip().splitlines()[-1])
    return [sys.executable, "-m", Path(program).name, *arguments]


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def form():
    """A notebook that shows the form alone."""
    folder = ROOT / "outputs" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    cells = [nbformat.v4.new_code_cell(CELL.format(fake=str(ROOT / "tests" / "fake_worker.py")))]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "form.ipynb")
    (folder / "record.json").write_text(json.dumps(as_record(prediction_of("x"))))
    Image.new("RGB", (900, 500), "navy").save(folder / "picture.png")
    yield folder / "form.ipynb"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def serve(form, temporary):
    """Starts the server of a Makefile target; gives its address."""
    started = []

    def start(target: str, *options: str) -> str:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        own = {"FAKE_RECORD": str(form.with_name("record.json")), "FAKE_PICTURE": str(form.with_name("picture.png"))}
        own |= {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
        line = [one for one in command(target, form) if one != "--token"]
        more = [*options, "--no-browser", f"--port={port}"]
        process = subprocess.Popen([*line, *more], cwd=ROOT, env=os.environ | own, start_new_session=True)
        started.append(process)
        _await(f"http://127.0.0.1:{port}/", process)
        return f"http://127.0.0.1:{port}/"

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)


def _await(address: str, process: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=300)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert process.poll() is None, f"the server ended with {process.poll()}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def shoot(page, name: str) -> None:
    if folder := os.environ.get("ADLIB_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def give(page, *files: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose scans").click()
    chooser.value.set_files([str(file) for file in files])
    expect(page.get_by_text("Received:")).to_be_visible(timeout=WAIT_MS)


def classify(page, count: int) -> None:
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("p.answer")).to_have_count(count, timeout=WAIT_MS)
    expect(page.get_by_role("button", name="Classify")).to_be_enabled(timeout=WAIT_MS)


def walk(page, files: dict[str, Path], where: str) -> None:
    """An upload of 60 MB, several at once with a bad one, cancel, and a report."""
    expect(page.get_by_text("Choose scans")).to_be_visible(timeout=WAIT_MS)
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


def test_voila_lets_nobody_in_without_the_token(serve, browser, files, temporary):
    address = serve("app", f"--Voila.token={TOKEN}")
    page = browser.new_page(viewport={"width": WIDTH, "height": 900})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(address, timeout=WAIT_MS)
    assert "login" in page.url and not page.get_by_text("Choose scans").count()
    page.goto(f"{address}?token={TOKEN}", timeout=WAIT_MS)
    walk(page, files, "voila")
    assert not [path for path in temporary.rglob("*.nii*") if path.is_file()]
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH
    assert not faults
    page.close()


def test_jupyterlab_shows_the_same_form_and_keeps_no_byte_of_an_upload(serve, browser, form, files, temporary):
    own = [f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True", "--allow-root"]
    address = serve("lab", *own)
    page = browser.new_page(viewport={"width": WIDTH + 400, "height": 1200})
    page.goto(f"{address}lab/tree/{form.relative_to(ROOT)}?token={TOKEN}", timeout=WAIT_MS)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=WAIT_MS)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    walk(page, files, "lab")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    kept = form.read_bytes()
    assert b"widget-view" in kept
    assert SECRET not in kept and base64.b64encode(SECRET) not in kept
    assert not [path for path in temporary.rglob("*.nii*") if path.is_file()]
    page.close()
