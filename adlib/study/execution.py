"""Execute a notebook with papermill in this very Python, make it a page without network, and strip its outputs."""

import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import papermill
from jinja2 import FileSystemLoader
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import load_notebook_node

from adlib.study.records import AUDITED, DASHBOARD, StudyError, write_text

logging.getLogger("papermill").addHandler(logging.NullHandler())  # NotebookFailure reports failures
_PLAIN_ERRORS = ("StudyError", "AuditStop")  # raised in a notebook, they are shown without a traceback


class NotebookFailure(StudyError):
    """A notebook stopped with an error.

    Attributes
    ----------
    kind : str
        Class name of the error raised in the notebook.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class LastLine:
    """A text stream that remembers only its last line: what a progress bar shows now.

    Parameters
    ----------
    tell : callable
        Called with each line that has the address of a dashboard or a warning of the audit, as soon as there is one.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.text, self.tell = "", tell

    def write(self, text: str) -> int:
        """Keep the last line that is not blank, and pass on the address of Dask's dashboard and the audit's warnings.

        Parameters
        ----------
        text : str
            Part of the output.

        Returns
        -------
        int
            Number of characters.
        """
        lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
        for line in lines:
            if line.startswith((DASHBOARD, AUDITED)):
                self.tell(line)
        self.text = lines[-1] if lines else self.text
        return len(text)

    def flush(self) -> None:
        """Do nothing: the stream has no buffer."""


def execute(notebook: Path, executed: Path, params_file: Path, root: Path, progress: LastLine) -> None:
    """Execute `notebook` with working folder `root` and write it, outputs included, and its HTML page.

    Parameters
    ----------
    notebook : path
        Must have a cell tagged ``parameters`` that sets ``params_file``.
    executed : path
        Where the executed notebook goes, cell by cell; the HTML page goes to the same folder.
    params_file : path
        Handed to the notebook.
    root : path
        Repository root, from which the notebook imports ``adlib``.
    progress : LastLine
        Receives what the notebook writes to standard output and error.

    Raises
    ------
    NotebookFailure
        If a cell raises an error or the kernel dies; the message names the cell.
    StudyError
        If the notebook does not take ``params_file``.
    """
    if "params_file" not in papermill.inspect_notebook(str(notebook)):
        raise StudyError(f"{notebook} has no cell tagged 'parameters' that sets params_file; add one")
    executed.parent.mkdir(parents=True, exist_ok=True)
    executed.with_suffix(".html").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="adlib-", ignore_cleanup_errors=True) as runtime:
        try:
            papermill.execute_notebook(
                str(notebook),
                str(executed),
                parameters={"params_file": str(params_file)},
                kernel_name="python3",
                cwd=str(root),
                progress_bar=False,
                start_timeout=180,
                stdout_file=progress,
                stderr_file=progress,
                kernel_manager_class=_kernel_class(root, Path(runtime)),
                shutdown_kernel="immediate",
            )
        except PapermillExecutionError as error:
            raise NotebookFailure(_failure(error, notebook, executed), error.ename) from None
        except RuntimeError as error:
            if type(error).__name__ != "DeadKernelError":  # of nbclient, which papermill runs
                raise
            raise NotebookFailure(_death(notebook, executed), "DeadKernelError") from None
    write_html(executed)


def write_html(executed: Path) -> Path:
    """Write an executed notebook as one HTML file that holds all its images and needs no network.

    Widgets need scripts from the network, so their text, image or HTML is shown instead. Of a progress bar only its end
    is shown.

    Parameters
    ----------
    executed : path
        The notebook with its outputs.

    Returns
    -------
    path
        ``executed`` with the suffix ``.html``.
    """
    content = load_notebook_node(str(executed))
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    exporter = HTMLExporter(
        embed_images=True,
        extra_loaders=[FileSystemLoader(Path(__file__).parent)],
        template_file="offline.html.j2",
    )
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)
    page, _ = exporter.from_notebook_node(content, {"metadata": {"name": executed.stem}})
    return write_text(page, executed.with_suffix(".html"))


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


def _kernel_class(root: Path, runtime: Path) -> type[AsyncKernelManager]:
    """A kernel of this Python that ignores the user's kernels and start-up files, and talks by local sockets."""
    spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
        env={
            "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
            "PYTHONHASHSEED": "0",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "IPYTHONDIR": str(runtime),
        },
    )

    class OwnKernel(AsyncKernelManager):
        kernel_spec = spec

        def __init__(self, **options: object) -> None:
            super().__init__(
                transport="ipc" if os.name == "posix" else "tcp",
                connection_file=str(runtime / "kernel.json"),
                **options,
            )

    return OwnKernel


def _failure(error: PapermillExecutionError, notebook: Path, executed: Path) -> str:
    if error.ename in _PLAIN_ERRORS:
        return error.evalue
    last = (str(error.evalue).strip().splitlines() or [""])[-1]
    return (
        f"{notebook} failed in cell In [{error.exec_count}]: {_first_line(error.source)}\n"
        f"  {error.ename}: {last}\n"
        f"  the partly executed notebook with the traceback is {executed}"
    )


def _death(notebook: Path, executed: Path) -> str:
    cells = [cell for cell in load_notebook_node(str(executed)).cells if cell.cell_type == "code"]
    begun = [cell for cell in cells if cell.metadata.get("papermill", {}).get("status") != "pending"]
    where = f"in cell In [{len(begun)}]: {_first_line(begun[-1].source)}" if begun else "at its start"
    return (
        f"{notebook}: the kernel died {where}\n"
        f"  most often for want of memory; try --set exec.workers=1\n"
        f"  the partly executed notebook is {executed}"
    )


def _first_line(source: str) -> str:
    return next((line.strip() for line in source.splitlines() if line.strip() and line.strip()[0] != "#"), "")
