"""What a finished study has to say, written from its stored records alone."""

from __future__ import annotations

from pathlib import Path

from adlib.report import cards, checklists, page
from adlib.report.content import read_study
from adlib.study.params import StudyParams
from adlib.study.records import write_text

FOLDER = "report"


def write_report(params: StudyParams) -> Path:
    """Write the page, the cards and the checklists of a finished study to ``outputs/<study>/report/``.

    Everything is rendered and checked for names of people before the first file is written; a file whose text is
    already there stays as it is.

    Returns
    -------
    path
        ``index.html``.

    Raises
    ------
    StudyError
        If a record is missing or cannot be read, or a page contains a participant or scan.
    """
    study = read_study(params)
    pages = {
        "index.html": page.index(study),
        "model-card.md": cards.model_card(study),
        "datasheet.md": cards.datasheet(study),
        "claim.md": checklists.claim(study),
        "tripod-ai.md": checklists.tripod_ai(study),
    }
    folder = params.folder / FOLDER
    for name, text in pages.items():
        study.ids.check(text, f"{FOLDER}/{name}")
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(text, path)
    return folder / "index.html"
