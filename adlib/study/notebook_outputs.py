"""Strip outputs from the study's notebooks when JupyterLab saves them."""

from __future__ import annotations

from typing import Any


def strip_outputs(model: dict[str, Any], path: str, **_: Any) -> None:
    """Remove outputs and execution counts from a notebook of ``notebooks/`` before it is written.

    A pre-save hook of Jupyter Server: `FileContentsManager.pre_save_hook`. The open page keeps its outputs; the file
    has none, so that no picture of a scan enters version control.

    Parameters
    ----------
    model : dict
        Contents model, changed in place.
    path : str
        Path of the file relative to the server's root.
    """
    if model["type"] != "notebook" or not path.strip("/").startswith("notebooks/"):
        return
    for cell in model["content"]["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
