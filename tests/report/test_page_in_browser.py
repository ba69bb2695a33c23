"""The report opened in a browser, on a phone and on a desk: it asks for nothing, fits, and is accessible.

``ADLIB_PAGE`` may name the page of a finished study, which is looked at as well.
"""

import os
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import CHROMIUM, chromium
from finished_study import make_finished
from PIL import Image

from adlib.report.compare import compare
from adlib.report.pages import write_report
from adlib.study.records import read_json, write_json

WIDTHS = {"phone": 390, "desk": 1280}
PAGES = ["phantom", "people", "compare", *filter(None, [os.environ.get("ADLIB_PAGE")])]
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
PLAIN = ".scroll, .wide { background: none !important }"  # axe does not judge letters on a gradient
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def finished(folder, params_file, *sets):
    """A finished study whose figures are wider than a phone and whose audit has a line that is hard to break."""
    params = make_finished(folder, params_file, *sets)
    for path in (params.folder / "figures").glob("*.png"):
        Image.new("RGB", (1000, 300), "navy").save(path)
    history = read_json(params.folder / "provenance.json") | {"platform": "x86_64" * 40}
    write_json(history, params.folder / "provenance.json")
    return params


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Path of each page by name."""
    folder = tmp_path_factory.mktemp("pages")
    phantom = finished(folder / "a", "params/phantom.yaml")
    people = finished(folder / "b", "params/oasis2_slices.yaml")
    other = finished(folder / "c", "params/phantom.yaml", "train.epochs=3")
    return {
        "phantom": write_report(phantom),
        "people": write_report(people),
        "compare": compare(phantom.folder, other.folder, folder)[0],
    }


def faults(browser, path, width):
    """Whatever is wrong with a page, in words."""
    found = []
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.on("console", lambda message: found.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: found.append(f"script: {error}"))
    page.on("request", lambda asked: found.append(f"request: {asked.url}") if _foreign(asked.url, path) else None)
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    broken = page.evaluate("[...document.images].filter(one => !one.naturalWidth).map(one => one.alt)")
    found += [f"image: {alt}" for alt in broken]
    needed = page.evaluate("document.documentElement.scrollWidth")
    found += [f"overflow: {needed} pixels"] if needed > width else []
    found += _axe(page, {"runOnly": WCAG})["violations"]
    page.add_style_tag(content=PLAIN)
    page.set_viewport_size({"width": WIDTHS["desk"], "height": 844})  # nor those cut off by an edge
    contrast = _axe(page, {"runOnly": {"type": "rule", "values": ["color-contrast"]}})
    found += contrast["violations"] + contrast["incomplete"]
    page.close()
    return found


def _foreign(url, path):
    return not url.startswith("data:") and url != path.as_uri()


def _axe(page, options):
    response = Axe().run(page, options=options).response
    assert response["passes"]
    kinds = ("violations", "incomplete")
    return {kind: [f"{one['id']}: {one['nodes'][0]['html']}" for one in response[kind]] for kind in kinds}


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_page_has_no_fault_in_a_browser(browser, pages, name, width):
    assert faults(browser, pages.get(name) or Path(name).resolve(), width) == []


def test_wide_figures_scroll_on_a_phone(browser, tmp_path):
    params = finished(tmp_path, "params/phantom.yaml")
    Image.new("RGB", (200, 100), "navy").save(params.folder / "figures" / "04_forest.png")
    page = browser.new_page(viewport={"width": WIDTHS["phone"], "height": 844})
    page.goto(write_report(params).as_uri())
    shown = "name => [...document.getElementById(name).querySelectorAll('.wide, img')].map(one => one.clientWidth)"
    box, image = page.evaluate(shown, "01_cohort")
    assert box < WIDTHS["phone"] and image == 576
    assert page.evaluate(shown, "04_forest")[1] == 200
    moved = "one => { one.scrollLeft = 1000; return one.scrollLeft }"
    assert page.eval_on_selector("[id='01_cohort'] .wide", moved) == image - box
    page.close()
