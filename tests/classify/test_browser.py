"""The form on Voilà and in JupyterLab, in a browser: with a replaced worker process, and with the released model."""

import base64
import json
import shutil
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import pytest
from dicom_writer import write_series
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
from test_form import prediction_of

from adlib.classify.model_store import simulate_scans
from adlib.classify.result import as_record
from adlib.study.params import dump_params, load_params

SECRET = b"bytes of somebody's head,  "  # 27 bytes: whole groups of three in base64
MODEL = ROOT / "models" / "phantom"
CELL = """
import sys
from pathlib import Path
from adlib.study.params import ClassifyParams
from adlib.classify.form import App
from adlib.classify.uploads import Inbox, open_home
from adlib.classify.worker import Worker
inbox = Inbox(ClassifyParams(), open_home())
App(Worker(Path({model!r}), inbox.limits, inbox.home{command}), inbox, {{"sub-01 (AD)": "sub-01.nii"}}).box
"""
pytestmark = MARKS


@pytest.fixture(scope="module")
def fake_form():
    """A notebook with the form alone, and the environment of its worker process."""
    command = f', command=(sys.executable, "{Path(__file__).with_name("fake_worker.py")}")'
    path = write_form(ROOT / "outputs" / "browser", CELL.format(model="none", command=command))
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
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH
    page.close()


def test_jupyterlab_saves_no_byte_of_an_upload(serve, browser, fake_form, files, temporary):
    form, environment = fake_form
    page = opened(browser, serve("lab", form, **environment))
    walk(page, files, "lab")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
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
    path = write_form(ROOT / "outputs" / "browser_scans", CELL.format(model=model, command=""))
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


@pytest.mark.parametrize("target", ["app", "lab"])
def test_scans_of_each_class_and_dicom_are_classified(serve, browser, form, scans, temporary, target):
    files, archive = scans
    page = opened(browser, serve(target, form))
    give(page, *files)
    classify(page, len(files))
    shoot(page, f"{target}-scans")
    assert page.locator("p.result:not(.refused)").count() >= len(files) - 1
    give(page, files[0])
    classify(page, 1)
    of_file = probabilities(page)
    shoot(page, f"{target}-one-scan")
    give(page, archive)
    classify(page, 1)
    assert probabilities(page) == of_file
    shoot(page, f"{target}-dicom")
    page.close()
    assert no_scan_left(temporary)


@pytest.fixture(scope="module")
def notebook():
    """Notebook 05 of the default study before its first run."""
    folder = ROOT / "outputs" / "browser_notebook"
    folder.mkdir(parents=True, exist_ok=True)
    params = folder / "phantom.yaml"
    params.write_text(dump_params(load_params(ROOT / "params" / "phantom.yaml", (f"exec.outputs={folder}",))))
    content = nbformat.read(ROOT / "notebooks" / "05_interactive_classifier.ipynb", as_version=4)
    (cell,) = [cell for cell in content.cells if cell.source.startswith("params_file =")]
    cell.source = f'params_file = "{params}"'
    nbformat.write(content, folder / "notebook.ipynb")
    yield folder / "notebook.ipynb"
    shutil.rmtree(folder)


def test_notebook_is_a_page_before_the_first_run(serve, browser, notebook, temporary):
    page = opened(browser, serve("app", notebook))
    example = page.get_by_label("or example")
    example.select_option(index=1)
    page.get_by_label("show an attribution map").check()
    classify(page, 1)
    near = page.get_by_role("heading", name="Nearest training scans")
    near.scroll_into_view_if_needed()
    shoot(page, "app-notebook")
    assert page.get_by_role("heading", name="Attribution map").count() == 1
    page.get_by_label("overlay").select_option(label="evidence")
    note = page.get_by_text("Red or orange: evidence for the predicted class")
    expect(note).to_be_visible(timeout=WAIT_MS)
    note.scroll_into_view_if_needed()
    shoot(page, "app-evidence")
    page.get_by_role("button", name="turn it with the mouse").click()
    expect(page.locator("canvas").first).to_be_visible(timeout=WAIT_MS)
    page.wait_for_timeout(3000)
    shoot(page, "app-evidence-scene")
    page.close()


@pytest.mark.realdata
def test_cropped_real_head_has_a_result_or_reason(serve, browser, form, realdata, temporary):
    page = opened(browser, serve("app", form))
    give(page, realdata / "t1w_head" / "t1_crop.nii.gz")
    classify(page, 1)
    assert page.get_by_text("nothing about a patient").count() >= 1
    page.close()
