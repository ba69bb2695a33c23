"""The form on the servers of the Makefile, and the actions of a user in a browser.

``ADLIB_SHOTS`` may name a folder, which receives screenshots.
"""

import os
import shlex
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
from playwright.sync_api import expect

ROOT = Path(__file__).parents[1]
WAIT_MS = 200_000
WIDTH = 1024
TOKEN = "0123456789abcdef0123456789abcdef"
MARKS = [
    pytest.mark.browser,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium (Debian: apt install chromium)"),
]
LAB_ONLY = ("--LabApp.expose_app_in_browser=True", "--allow-root")


def command(target: str, notebook: Path) -> list[str]:
    """Command of a Makefile target, with the programs of this environment."""
    options = ["READY=Makefile", f"BIN={Path(sys.prefix) / 'bin'}", f"APP={notebook}"]
    printed = subprocess.run(
        ["make", "--dry-run", target, *options], cwd=ROOT, capture_output=True, text=True, check=True
    )
    program, *arguments = shlex.split(printed.stdout.strip().splitlines()[-1])
    return [sys.executable, "-m", Path(program).name, *arguments]


def write_form(folder: Path, code: str) -> Path:
    """A notebook of one cell that shows the form alone."""
    folder.mkdir(parents=True, exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=kernel)
    nbformat.write(notebook, folder / "form.ipynb")
    return folder / "form.ipynb"


@pytest.fixture(scope="module", name="temporary")
def temporary_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module", name="serve")
def server_starter(temporary):
    """Starts the server of a Makefile target for a notebook; gives the address of the form."""
    started = []

    def start(target: str, form: Path, **environment: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment |= {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
        line = [word for word in command(target, form) if word != "--token"]
        line += [f"--Voila.token={TOKEN}"] if target == "app" else [f"--IdentityProvider.token={TOKEN}", *LAB_ONLY]
        line += ["--no-browser", f"--port={port}"]
        process = subprocess.Popen(line, cwd=ROOT, env=os.environ | environment, start_new_session=True)
        started.append(process)
        address = f"http://127.0.0.1:{port}/"
        _await(address, process)
        return address if target == "app" else f"{address}lab/tree/{form.relative_to(ROOT)}"

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


@pytest.fixture(scope="module", name="browser")
def open_browser():
    with chromium() as started:
        yield started


def opened(browser, address: str):
    """A page that shows the form; in JupyterLab its cell is run."""
    lab = "lab/tree" in address
    page = browser.new_page(viewport={"width": WIDTH + 400 * lab, "height": 900})
    page.goto(f"{address}?token={TOKEN}", timeout=WAIT_MS)
    if lab:
        expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=WAIT_MS)
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    expect(page.get_by_text("Choose scans")).to_be_visible(timeout=WAIT_MS)
    return page


def shoot(page, name: str) -> None:
    """Keep a screenshot where one is wanted."""
    if folder := os.environ.get("ADLIB_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def give(page, *files: Path) -> None:
    """Choose files and wait until they have arrived."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose scans").click()
    chooser.value.set_files([str(file) for file in files])
    expect(page.get_by_text("Received:")).to_be_visible(timeout=WAIT_MS)


def classify(page, count: int) -> None:
    """Press the button and wait for as many new results or refusals."""
    page.evaluate("document.querySelectorAll('p.result').forEach(one => one.dataset.old = '')")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("p.result:not([data-old])")).to_have_count(count, timeout=WAIT_MS)
    expect(page.get_by_role("button", name="Classify")).to_be_enabled(timeout=WAIT_MS)
