"""Saving and registering figures."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from IPython.core.formatters import DisplayFormatter
from matplotlib.layout_engine import ConstrainedLayoutEngine

from adlib.figures import register
from adlib.figures.plot_cohort import plot_flow
from adlib.study.execution import write_html
from adlib.study.records import FIGURES, StudyError, read_table

pytestmark = pytest.mark.usefixtures("look")


@pytest.fixture
def figures(tmp_path):
    return register.FigureRegister(SimpleNamespace(folder=tmp_path), "01_data_audit")


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr(register, "display", shown.append)
    return shown


def test_saved_figure_is_registered_displayed_and_closed(figures, displayed):
    before = plt.get_fignums()
    for caption in ("first", "second"):
        figures.save(plt.subplots()[0], "01_x", sources=["a.tsv", "b.tsv"], caption=caption)
    table = read_table(figures.folder / "figures.tsv", FIGURES).drop(columns="sha256")
    assert table.to_dict("records") == [
        {"name": "01_x", "notebook": "01_data_audit", "sources": "a.tsv, b.tsv", "caption": "second"}
    ]
    assert (figures.folder / "01_x.png").stat().st_size > 0
    assert (figures.folder / "01_x.svg").read_text().startswith("<?xml")
    assert plt.get_fignums() == before and len(displayed) == 2


def test_shows_is_stored_only_when_given(figures):
    figures.save(plt.subplots()[0], "01_a", sources=["t"], caption="c", shows="cohort")
    figures.save(plt.subplots()[0], "01_b", sources=["t"], caption="c")
    table = read_table(figures.folder / "figures.tsv", FIGURES)
    assert table["shows"].fillna("").tolist() == ["cohort", ""]


def test_name_must_start_with_the_number_of_the_notebook(figures):
    with pytest.raises(StudyError, match="starts with '01_' is expected"):
        figures.save(plt.subplots()[0], "mine", sources=["t"], caption="c")


def test_same_figure_has_the_same_bytes(figures):
    flow = pd.DataFrame({"step": ["listed", "with a diagnosis"], "scans": [12, 9], "participants": [6, 5]})
    for name in ("01_a", "01_b"):
        figures.save(plot_flow(flow), name, sources=["t"], caption="c")
    for suffix in ("png", "svg"):
        first, second = ((figures.folder / f"{name}.{suffix}").read_bytes() for name in ("01_a", "01_b"))
        assert first == second


def test_figure_is_laid_out_once_for_both_files(figures, monkeypatch):
    laid_out, lay_out = [], ConstrainedLayoutEngine.execute
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda *args: laid_out.append(lay_out(*args)))
    figures.save(plt.subplots()[0], "01_x", sources=["t"], caption="c")
    assert len(laid_out) == 1


def test_caption_is_the_text_alternative_on_the_page(figures, displayed, tmp_path):
    caption = 'Share of "CN" < 1'
    figures.save(plt.subplots()[0], "01_x", sources=["t"], caption=caption)
    data, metadata = DisplayFormatter().format(displayed[0])
    output = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    cell = nbformat.v4.new_code_cell("1", outputs=[output])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "x.ipynb")
    (image,) = BeautifulSoup(write_html(tmp_path / "x.ipynb").read_text(), "html.parser").select("img")
    assert image["alt"] == caption and image["src"].startswith("data:image/png;base64,")
