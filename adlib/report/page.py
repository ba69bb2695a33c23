"""Write the report of a finished study: one HTML page, model card, datasheet and checklists."""

from __future__ import annotations

from pathlib import Path

import yaml

from adlib.report import cards, tables, text
from adlib.report.content import Study, read_study
from adlib.study.params import StudyParams
from adlib.study.records import write_text
from adlib.study.steps import STEPS

FOLDER = "report"
FILES = {
    "model-card.md": "Model card",
    "datasheet.md": "Datasheet of the cohort",
    "claim.md": "CLAIM checklist",
    "tripod-ai.md": "TRIPOD+AI checklist",
}


def write_report(params: StudyParams) -> Path:
    """Write the page, the cards and the checklists of a finished study to ``outputs/<study>/report/``.

    Everything is rendered and checked for ids of people before the first file is written; a file whose text is
    unchanged is not written again.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    path
        ``index.html``.

    Raises
    ------
    StudyError
        If a record is missing or cannot be read, or a page contains a participant or scan id.
    """
    study = read_study(params)
    pages = {
        "index.html": index(study),
        "model-card.md": cards.model_card(study),
        "datasheet.md": cards.datasheet(study),
        "claim.md": text.checklist(study, "claim"),
        "tripod-ai.md": text.checklist(study, "tripod-ai"),
    }
    folder = params.folder / FOLDER
    for name, page in pages.items():
        study.ids.check(page, f"{FOLDER}/{name}")
    for name, page in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != page:
            write_text(page, path)
    return folder / "index.html"


def index(study: Study) -> str:
    """HTML of the report page, which requires no network and no script.

    Parameters
    ----------
    study : Study

    Returns
    -------
    str
    """
    summary = text.summary(study)
    notebooks = {tables.step_title(step.name): f"notebooks/{step.name}.html" for step in STEPS}
    return text.render(
        "index.html.j2",
        title=summary["title"],
        warning=summary["warning"],
        abstract={name: summary[name] for name in ("Question", "Methods", "Results", "Conclusion")},
        cohort=[tables.cohort(study), tables.split(study), tables.flow(study)],
        excluded=tables.excluded(study),
        acquisition=tables.acquisition(study),
        audit=tables.audit(study),
        methods=text.methods(study),
        scores=[tables.runs(study), tables.controls(study), tables.differences(study)],
        network=[
            tables.confusion(study),
            tables.by_class(study),
            tables.by_level(study),
            tables.subgroups(study),
            tables.overall(study),
            tables.attribution_checks(study),
        ],
        figures=tables.figures(study),
        figures_left_out=tables.figures_left_out(study),
        limitations=text.limitations(study),
        accepted=tables.accepted(study),
        provenance=tables.provenance(study),
        differences=study.differences,
        changed_cells={tables.step_title(name): cells for name, cells in study.changed_cells.items()},
        packages=tables.packages(study),
        params=yaml.safe_dump(tables.public_params(study.params_file), sort_keys=False),
        files=FILES,
        notebooks={name: f"../{page}" for name, page in notebooks.items() if (study.folder / page).is_file()},
    )
