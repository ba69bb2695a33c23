"""The part of the form that receives files: chosen, dropped, or a whole folder, in parts of a few megabytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

TEMPLATES = Path(__file__).with_name("templates")


class DropZone(anywidget.AnyWidget):
    """Buttons and an area for files, whose bytes never enter the state of the widget.

    Parameters
    ----------
    received : callable
        Called with a list of ``name``, ``size`` and ``content`` of each file; one beyond `most` has no content.
    accept : list of str
        Suffixes.
    most : int
        Bytes of all files together.
    """

    _esm = TEMPLATES / "drop_zone.js"
    _css = TEMPLATES / "form.css"
    accept: traitlets.List[str] = traitlets.List().tag(sync=True)
    most = traitlets.Int().tag(sync=True)
    progress = traitlets.Unicode().tag(sync=True)

    def __init__(self, received: Callable[[list[dict[str, Any]]], None], accept: list[str], most: int) -> None:
        super().__init__(accept=accept, most=most)
        self._received = received
        self._files: list[dict[str, Any]] = []
        self.on_msg(self._take)

    def _take(self, _: Any, message: dict[str, Any], buffers: list[memoryview]) -> None:
        """Start with the names, append a part to a file and ask for the next, or hand all files over."""
        if "files" in message:
            self._files = [{**file, "content": bytearray()} for file in message["files"]]
        elif "number" in message:
            self._files[message["number"]]["content"] += buffers[0]
            self.send({})
        else:
            files, self._files = self._files, []
            self._received(files)
