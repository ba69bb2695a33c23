"""Whole scans through the page with the released model: the working process answers, nothing stands in for it."""

import shutil
import zipfile

import nbformat
import nibabel as nib
import numpy as np
import pytest
from playwright.sync_api import expect
from served import (  # noqa: F401
    MARKS,
    ROOT,
    WAIT_MS,
    classify,
    give,
    open_browser,
    opened,
    server_starter,
    shoot,
    temporary_folder,
    write_form,
)
from test_scanfile import write_series

from adlib.phantom.cohort import draw_cohort, write_cohort
from adlib.study.exec_params import Pool
from adlib.study.params import dump_params, load_params

MODEL, SEED = ROOT / "models" / "phantom", 5
CELL = """
from pathlib import Path
from adlib.study.params import ClassifyParams
from adlib.classify.widget.app import App
from adlib.classify.widget.jobs import Worker
from adlib.classify.widget.uploads import Inbox, open_home
inbox = Inbox(ClassifyParams(), open_home())
App(Worker(Path({model!r}), inbox.limits, inbox.home), inbox, {{}}).box
"""
pytestmark = MARKS


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A simulated scan of each class, and one of them as a zip of DICOM."""
    folder, params = tmp_path_factory.mktemp("scans"), load_params(MODEL / "params.yaml")
    source = params.source.model_copy(update={"participants_per_class": 1, "followup_fraction": 0.0})
    root = write_cohort(source, params.classes, SEED, folder, pool=Pool(workers=2))
    names = draw_cohort(source, params.classes, SEED)["scan_id"]
    files = [next(root.rglob(f"{name}.nii.gz")) for name in names]
    image = nib.load(files[0])
    write_series(folder / "series", np.asarray(image.dataobj).astype(np.int16), image.affine, "T1 MPRAGE")
    with zipfile.ZipFile(folder / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((folder / "series").iterdir()):
            archive.write(file, file.name)
    return files, folder / "series.zip"


@pytest.fixture(scope="module")
def form():
    path = write_form(ROOT / "outputs" / "browser_scans", CELL.format(model=str(MODEL / "model.safetensors")))
    yield path
    shutil.rmtree(path.parent)


@pytest.fixture(scope="module")
def notebook():
    """Notebook 05 of the default study before any run of it: the released model stands in."""
    folder = ROOT / "outputs" / "browser_notebook"
    folder.mkdir(parents=True, exist_ok=True)
    params = folder / "phantom.yaml"
    params.write_text(dump_params(load_params(ROOT / "params" / "phantom.yaml", (f"exec.outputs={folder}",))))
    content = nbformat.read(ROOT / "notebooks" / "05_interactive_classifier.ipynb", as_version=4)
    (given,) = [cell for cell in content.cells if cell.source.startswith("params_file =")]
    given.source = f'params_file = "{params}"'
    nbformat.write(content, folder / "notebook.ipynb")
    yield folder / "notebook.ipynb"
    shutil.rmtree(folder)


def probabilities(page) -> list[str]:
    """What stands in the first table of probabilities on the page."""
    return page.locator("table", has_text="calibrated probabilities").first.locator("td").all_inner_texts()


@pytest.mark.parametrize("target", ["app", "lab"])
def test_a_scan_of_each_class_and_a_zip_of_dicom_are_answered(serve, browser, form, scans, temporary, target):
    files, archive = scans
    page = opened(browser, serve(target, form))
    give(page, *files)
    classify(page, len(files))
    shoot(page, f"{target}-scans")
    assert page.locator("p.answer:not(.refused)").count() >= len(files) - 1
    give(page, files[0])
    classify(page, 1)
    of_file = probabilities(page)
    shoot(page, f"{target}-one-scan")
    give(page, archive)
    classify(page, 1)
    assert probabilities(page) == of_file
    shoot(page, f"{target}-dicom")
    page.close()
    assert not [path for path in temporary.rglob("*.nii*") if path.is_file()]


def test_the_notebook_is_a_page_before_its_study_was_run(serve, browser, notebook, temporary):
    page = opened(browser, serve("app", notebook))
    example = page.get_by_label("or example")
    example.select_option(index=1)
    page.get_by_label("show where the network looked").check()
    classify(page, 1)
    near = page.get_by_role("heading", name="Training scans nearest to it")
    near.scroll_into_view_if_needed()
    shoot(page, "app-notebook")
    assert page.get_by_role("heading", name="Where the network looked").count() == 1
    page.get_by_label("overlay").select_option(label="evidence")
    expect(page.get_by_text("Red or orange speaks for the answer")).to_be_visible(timeout=WAIT_MS)
    page.get_by_text("Red or orange speaks for the answer").scroll_into_view_if_needed()
    shoot(page, "app-evidence")
    page.get_by_role("button", name="turn it with the mouse").click()
    expect(page.locator("canvas").first).to_be_visible(timeout=WAIT_MS)
    page.wait_for_timeout(3000)
    shoot(page, "app-evidence-scene")
    page.close()


@pytest.mark.realdata
def test_a_real_head_without_its_neck_gets_an_answer_or_a_reason(serve, browser, form, realdata, temporary):
    page = opened(browser, serve("app", form))
    give(page, realdata / "t1w_head" / "t1_crop.nii.gz")
    classify(page, 1)
    assert page.get_by_text("nothing about a patient").count() >= 1
    page.close()
