"""The form on Voilà and in JupyterLab, in a browser: with a replaced worker process, and with the released model.

``ADLIB_SHOTS`` may name a folder, which receives screenshots.
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
from contextlib import suppress
from itertools import product
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import CHROMIUM, chromium
from dicom_writer import write_series
from PIL import Image
from playwright.sync_api import expect
from test_form import prediction_of

from adlib.classify.result import as_record
from adlib.classify.stored_results import simulate_scans
from adlib.classify.uploads import PREFIX
from adlib.study.params import dump_params, load_params

ROOT = Path(__file__).parents[2]
WAIT_MS = 200_000
WIDTH = 1024
TOKEN = "0123456789abcdef0123456789abcdef"
LAB_ONLY = ("--LabApp.expose_app_in_browser=True", "--allow-root")
SECRET = b"bytes of somebody's head,  "  # 27 bytes: whole groups of three in base64
MODEL = ROOT / "models" / "phantom"
CELL = """
import sys
from pathlib import Path
from adlib.study.params import ClassifyParams
from adlib.classify.form import App
from adlib.classify.uploads import Inbox, open_home
from adlib.classify.worker import Worker, serve
{target}
inbox = Inbox(ClassifyParams(), open_home())
App(Worker(Path({model!r}), inbox.limits, inbox.home, target=serve), inbox, {{"sub-01 (AD)": "sub-01.nii"}}).box
"""
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium (Debian: apt install chromium)"),
]


def command_line(target: str, notebook: Path) -> list[str]:
    """Command of a Makefile target, with the programs of this environment."""
    options = ["--assume-old=.venv/.ready", f"BIN={Path(sys.prefix) / 'bin'}", f"APP={notebook}"]
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


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def serve(temporary):
    """Starts the server of a Makefile target for a notebook; gives the address of the form."""
    started = []

    def start(target: str, form: Path, **environment: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment |= {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
        line = [word for word in command_line(target, form) if word != "--token"]
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


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def opened(browser, address: str):
    """A page that shows the form; in JupyterLab its cell is run."""
    lab = "lab/tree" in address
    page = browser.new_page(viewport={"width": WIDTH + 400 * lab, "height": 900})
    page.goto(f"{address}?token={TOKEN}", timeout=WAIT_MS)
    if lab:
        expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=WAIT_MS)
        run_cell(page)
    expect(page.get_by_text("Choose scans")).to_be_visible(timeout=WAIT_MS)
    return page


def run_cell(page) -> None:
    """Run the notebook; JupyterLab ignores the command until the notebook is connected to its kernel."""
    idle = page.locator(".jp-Notebook .jp-InputPrompt", has_text="[ ]:")
    for _ in range(WAIT_MS // 5000):
        command(page, "notebook:run-all-cells")
        with suppress(AssertionError):
            expect(idle).to_have_count(0, timeout=5000)
            return


def command(page, name: str) -> None:
    """Start a command of JupyterLab without waiting for its end, which a dropped message of the kernel leaves open."""
    page.evaluate("name => void window.jupyterapp.commands.execute(name)", name)


def shoot(page, name: str) -> None:
    """Keep a screenshot where one is wanted."""
    if folder := os.environ.get("ADLIB_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def check_access(page, name: str) -> None:
    """No violation of axe-core and no sideways scroll at three widths in both themes, and a screenshot of each."""
    size = page.viewport_size
    for theme, width in product(("light", "dark"), (1280, 1024, 390)):
        page.emulate_media(color_scheme=theme)
        page.set_viewport_size({"width": width, "height": 900})
        found = [f"{one['id']}: {one['nodes'][0]['html']}" for one in Axe().run(page).response["violations"]]
        assert found == [], (name, theme, width)
        assert page.evaluate("document.querySelector('#rendered_cells').scrollWidth") <= width
        shoot(page, f"{name}-{theme}-{width}")
    page.set_viewport_size(size)


def give(page, *files: Path) -> None:
    """Choose files and wait until they have arrived."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose scans").click()
    chooser.value.set_files([str(file) for file in files])
    expect(page.get_by_text("Received:")).to_be_visible(timeout=WAIT_MS)


def classify(page, count: int) -> None:
    """Press the button and wait for as many new results or refusals."""
    page.evaluate("document.querySelectorAll('p.result').forEach(one => one.dataset.old = '')")
    page.get_by_role("button", name="Classify", exact=count == 1).click()
    expect(page.locator("p.result:not([data-old])")).to_have_count(count, timeout=WAIT_MS)
    expect(page.get_by_role("button", name="Classify", exact=True)).to_be_enabled(timeout=WAIT_MS)


@pytest.fixture(scope="module")
def fake_form():
    """A notebook with the form alone, and the environment of its worker process."""
    target = f"sys.path.append({str(Path(__file__).parent)!r})\nfrom fake_worker import serve"
    path = write_form(ROOT / "outputs" / "browser", CELL.format(model="none", target=target))
    path.with_name("record.json").write_text(json.dumps(as_record(prediction_of("x"))))
    Image.new("RGB", (900, 500), "navy").save(path.with_name("picture.png"))
    environment = {"FAKE_RECORD": "record.json", "FAKE_PICTURE": "picture.png"}
    yield path, {name: str(path.with_name(file)) for name, file in environment.items()}
    shutil.rmtree(path.parent)


def walk(page, files: dict[str, Path], where: str) -> None:
    """An upload of 60 MB, several at once with a bad one, cancel, and a report."""
    shoot(page, f"{where}-1-empty")
    give(page, files["large"])
    expect(page.get_by_text("large.nii, 60.0 MiB")).to_be_visible()
    classify(page, 1)
    shoot(page, f"{where}-2-result")
    page.get_by_role("button", name="View in 3-D").click()
    expect(page.locator("canvas").first).to_be_visible(timeout=WAIT_MS)
    page.wait_for_timeout(3000)
    shoot(page, f"{where}-2-scene")
    page.get_by_role("button", name="View in 3-D").click()
    give(page, files["a"], files["bad"], files["c"])
    classify(page, 3)
    expect(page.get_by_text("copy it again").first).to_be_visible()
    shoot(page, f"{where}-3-several")
    give(page, files["slow"])
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.get_by_text("classifying slices")).to_be_visible(timeout=WAIT_MS)
    shoot(page, f"{where}-4-working")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("slow.nii: cancelled")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Make report").click()
    link = page.get_by_role("link", name="JSON", exact=True)
    expect(link).to_be_visible(timeout=WAIT_MS)
    with page.expect_download() as download:
        link.click()
    records = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert [record["name"] for record in records] == ["large", "a", "c"] and records[0]["bytes"] == 60 * 2**20
    shoot(page, f"{where}-5-report")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files by their purpose, with bytes that are found nowhere else."""
    folder = tmp_path_factory.mktemp("files")
    names = {"large": "large.nii", "a": "a.nii", "bad": "bad.nii", "c": "c.nii.gz", "slow": "slow.nii"}
    for kind, name in names.items():
        (folder / name).write_bytes(SECRET * 40 + bytes(60 * 2**20 - 40 * len(SECRET) if kind == "large" else 0))
    return {kind: folder / name for kind, name in names.items()}


def no_scan_left(folder: Path) -> bool:
    return not [path for path in folder.rglob("*.nii*") if path.is_file()]


def test_voila_requires_the_token(serve, browser, fake_form, files, temporary):
    form, environment = fake_form
    address = serve("app", form, **environment)
    stranger = browser.new_page()
    stranger.goto(address, timeout=WAIT_MS)
    assert "login" in stranger.url and not stranger.get_by_text("Choose scans").count()
    page = opened(browser, address)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    walk(page, files, "voila")
    assert no_scan_left(temporary) and not errors
    page.close()
    await_end_of_kernel(temporary)


def await_end_of_kernel(temporary: Path) -> None:
    """A closed page leaves neither process nor file."""
    deadline = time.monotonic() + 150
    while list(temporary.glob(f"{PREFIX}*")) and time.monotonic() < deadline:
        time.sleep(1)
    assert list(temporary.glob(f"{PREFIX}*")) == []
    servers = {child.pid for child in psutil.Process().children()}
    every = psutil.process_iter(["cmdline", "ppid"])
    started = [one.info["cmdline"] or [] for one in every if one.info["ppid"] in servers]
    assert [line for line in started if "ipykernel_launcher" in line] == []


def test_jupyterlab_saves_no_byte_of_an_upload(serve, browser, fake_form, files, temporary):
    form, environment = fake_form
    page = opened(browser, serve("lab", form, **environment))
    walk(page, files, "lab")
    command(page, "docmanager:save")
    page.wait_for_timeout(5000)
    saved = form.read_bytes()
    assert b"widget-view" in saved
    assert SECRET not in saved and base64.b64encode(SECRET) not in saved
    assert no_scan_left(temporary)
    page.close()


@pytest.fixture(scope="module")
def form():
    """A notebook with the form of the released model."""
    model = str(MODEL / "model.safetensors")
    path = write_form(ROOT / "outputs" / "browser_scans", CELL.format(model=model, target=""))
    yield path
    shutil.rmtree(path.parent)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A simulated scan of each class, and one of them as a zip of DICOM."""
    folder, params = tmp_path_factory.mktemp("scans"), load_params(MODEL / "params.yaml", ("exec.workers=2", "seed=5"))
    source = params.source.model_copy(update={"participants_per_class": 1, "followup_fraction": 0.0})
    files = [Path(path) for path in simulate_scans(params.model_copy(update={"source": source}), folder)["path"]]
    image = nib.load(files[0])
    write_series(np.asarray(image.dataobj).astype(np.int16), image.affine, folder / "series", "T1 MPRAGE")
    return files, Path(shutil.make_archive(str(folder / "series"), "zip", folder / "series"))


def probabilities(page) -> list[str]:
    """First table of probabilities on the page."""
    return page.locator("table", has_text="calibrated probabilities").first.locator("td").all_inner_texts()


def test_scans_of_each_class_and_dicom_are_classified(serve, browser, form, scans, temporary):
    files, archive = scans
    page = opened(browser, serve("app", form))
    give(page, *files)
    classify(page, len(files))
    shoot(page, "app-scans")
    assert page.locator("p.result:not(.refused)").count() >= len(files) - 1
    give(page, files[0])
    classify(page, 1)
    of_file = probabilities(page)
    shoot(page, "app-one-scan")
    give(page, archive)
    classify(page, 1)
    assert probabilities(page) == of_file
    shoot(page, "app-dicom")
    page.close()
    assert no_scan_left(temporary)


@pytest.fixture(scope="module")
def whole_page():
    """The page of `make app` before the first run of the default study."""
    folder = ROOT / "outputs" / "browser_page"
    folder.mkdir(parents=True, exist_ok=True)
    params = folder / "phantom.yaml"
    params.write_text(dump_params(load_params(ROOT / "params" / "phantom.yaml", (f"exec.outputs={folder}",))))
    text = (ROOT / "adlib" / "classify" / "page.ipynb").read_text(encoding="utf-8")
    (folder / "page.ipynb").write_text(text.replace("params/phantom.yaml", str(params)), encoding="utf-8")
    yield folder / "page.ipynb"
    shutil.rmtree(folder)


def test_page_classifies_an_example_before_the_first_run(serve, browser, whole_page):
    page = opened(browser, serve("app", whole_page))
    check_access(page, "app-empty")
    assert page.get_by_role("button", name="Classify", exact=True).bounding_box()["y"] < 900
    page.get_by_role("button", name="More options").click()
    page.get_by_label("show an attribution map").check()
    page.get_by_role("button", name="(AD)").click()
    expect(page.locator("p.result")).to_have_count(1, timeout=3 * WAIT_MS)
    expect(page.get_by_text("Attribution map", exact=True)).to_be_visible(timeout=WAIT_MS)
    check_access(page, "app-example")
    for fold in page.locator(".adlib summary").all():
        fold.click()
    expect(page.get_by_alt_text("nearest training scans")).to_be_visible()
    check_access(page, "app-folds")
    page.get_by_label("overlay").select_option(label="evidence")
    note = page.get_by_text("Red or orange: evidence for the predicted class")
    expect(note).to_be_visible(timeout=WAIT_MS)
    note.scroll_into_view_if_needed()
    shoot(page, "app-evidence")
    page.get_by_role("button", name="View in 3-D").click()
    expect(page.locator("canvas").first).to_be_visible(timeout=WAIT_MS)
    page.wait_for_timeout(3000)
    shoot(page, "app-evidence-scene")
    page.close()
