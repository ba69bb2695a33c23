"""Notebooks of the study are saved without outputs, other notebooks as they are."""

import pytest

from adlib.study.notebook_outputs import strip_outputs


@pytest.mark.parametrize(("path", "kept"), [("notebooks/01_data_audit.ipynb", False), ("outputs/mine.ipynb", True)])
def test_outputs_are_stripped_from_the_notebooks_of_the_study(path, kept):
    cells = [{"cell_type": "code", "outputs": ["picture"], "execution_count": 3}, {"cell_type": "markdown"}]
    strip_outputs({"type": "notebook", "content": {"cells": cells}}, path)
    assert (cells[0]["outputs"], cells[0]["execution_count"]) == ((["picture"], 3) if kept else ([], None))
    assert cells[1] == {"cell_type": "markdown"}
