"""Render a study as one HTML page that needs no network and no script."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from adlib.report import explained, results, text
from adlib.report.content import Study
from adlib.report.methods import methods
from adlib.report.words import step_title
from adlib.study.steps import STEPS

FILES = {
    "model-card.md": "Model card",
    "datasheet.md": "Datasheet of the cohort",
    "claim.md": "CLAIM checklist",
    "tripod-ai.md": "TRIPOD+AI checklist",
}


@lru_cache
def templates() -> Environment:
    """The templates beside this file; what goes into HTML is escaped."""
    return Environment(
        loader=PackageLoader("adlib.report"),
        autoescape=select_autoescape(("html.j2",), default=False, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(name: str, **values: Any) -> str:
    """Fill the template of that name."""
    return templates().get_template(name).render(**values)


def index(study: Study) -> str:
    """The report page."""
    return render(
        "index.html.j2",
        title=text.title(study),
        warning=text.warning(study),
        abstract=text.abstract(study),
        cohort=[results.cohort(study), results.parts(study), results.flow(study)],
        left_out=results.left_out(study),
        acquisition=results.acquisition(study),
        audit=results.audit(study),
        methods=methods(study),
        scores=[results.runs(study), results.control_rows(study), results.differences(study)],
        network=[
            results.confusion(study),
            results.by_class(study),
            results.by_level(study),
            results.groups(study),
            results.overall(study),
            explained.checks(study),
        ],
        figures={step_title(name): drawn for name, drawn in results.figures(study, itertools.count(1)).items()},
        figures_left_out=results.figures_left_out(study),
        limitations=text.limitations(study),
        accepted=results.accepted(study),
        provenance=results.provenance(study),
        packages=results.packages(study),
        params=yaml.safe_dump(results.public_params(study.params), sort_keys=False),
        files=FILES,
        notebooks=_notebooks(study),
    )


def _notebooks(study: Study) -> list[tuple[str, str]]:
    """Name and relative address of each executed notebook that is there."""
    pages = [(step.name, f"notebooks/{step.name}.html") for step in STEPS]
    return [(step_title(name), f"../{page}") for name, page in pages if (study.folder / page).is_file()]
