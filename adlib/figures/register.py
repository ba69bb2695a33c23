"""Saving figures of a notebook and registering them in ``figures.tsv``."""

from collections.abc import Sequence
from typing import Literal

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Image, display
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from adlib.figures.theme import apply_theme
from adlib.study.params import StudyParams
from adlib.study.records import FIGURES, StudyError, atomic_path, file_digest, read_table, write_table

FIXED = {"figure.constrained_layout.use": False, "figure.autolayout": False}  # or each file is laid out again


class FigureRegister:
    """The figures that one notebook draws for a study.

    Parameters
    ----------
    params : StudyParams
    notebook : str
        Name of the notebook without suffix, ``04_evaluation``.
    """

    def __init__(self, params: StudyParams, notebook: str) -> None:
        self.folder, self.notebook = params.folder / "figures", notebook
        apply_theme()

    def save(
        self,
        figure: Figure,
        name: str,
        *,
        sources: Sequence[str],
        caption: str,
        shows: Literal["cohort", "points", "scans"] | None = None,
    ) -> None:
        """Write `<name>.png` and `<name>.svg`, register them in ``figures.tsv`` and display the figure.

        Parameters
        ----------
        figure : matplotlib Figure
        name : str
            File name without suffix; it starts with the notebook's number, ``04_``, so that a rerun of the notebook
            replaces it.
        sources : list of str
            Stored files that the figure is drawn from.
        caption : str
            What a reader should see in it; also the text alternative of the displayed image.
        shows : {"cohort", "points", "scans"}, optional
            What a figure of your own shows of people: the cohort as a whole, one mark for each scan or participant, or
            images or values of single scans. Reports of real cohorts include the first kind only; a figure that does
            not say what it shows counts as the last.

        Raises
        ------
        StudyError
            If the name does not start with the notebook's number.
        """
        number = self.notebook.split("_")[0]
        if not name.startswith(f"{number}_"):
            raise StudyError(f"figure {name!r}: a name that starts with '{number}_' is expected in {self.notebook}")
        with plt.rc_context(FIXED):
            box = _lay_out(figure)
            for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                with atomic_path(self.folder / f"{name}.{suffix}") as temporary:
                    figure.savefig(temporary, metadata=metadata, bbox_inches=box)
        picture = self.folder / f"{name}.png"
        row = {"name": name, "notebook": self.notebook, "sources": ", ".join(sources), "caption": caption}
        self._register(row | {"sha256": file_digest(picture)} | ({"shows": shows} if shows else {}))
        plt.close(figure)
        display(Image(picture, width=round(box.width * plt.rcParams["figure.dpi"]), alt=caption))

    def _register(self, row: dict[str, str]) -> None:
        path = self.folder / "figures.tsv"
        known = read_table(path, FIGURES) if path.is_file() else pd.DataFrame(columns=list(FIGURES.columns))
        table = pd.concat([known[known["name"] != row["name"]], pd.DataFrame([row])], ignore_index=True)
        write_table(table.dropna(axis=1, how="all").sort_values("name"), path, FIGURES)


def _lay_out(figure: Figure) -> Bbox:
    """Lay the figure out, once for all its files; the box around all that it shows, in inches."""
    if (dpi := plt.rcParams["savefig.dpi"]) != "figure":
        figure.set_dpi(dpi)
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine(None)
    return figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])
