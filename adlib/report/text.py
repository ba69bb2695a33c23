"""Sentences of a report, rendered from ``templates/``: summary, methods, limitations, checklists."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from adlib.evaluation.explain.attribution import TITLES
from adlib.report import tables
from adlib.report.content import Study, read_yaml
from adlib.study.metrics import NETWORK, run_of

SMALL = 30  # test participants of a class below which its scores are very uncertain
COMMON = ("params", "network", "cited", "simulated", "initial_weights", "own_parts")  # of the study, in every text


@lru_cache
def templates() -> Environment:
    """The templates; values in HTML are escaped."""
    environment = Environment(
        loader=PackageLoader("adlib.report"),
        autoescape=select_autoescape(("html.j2",), default=False, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (tables.bounded, tables.counted, tables.in_words, tables.listed, tables.percent, tables.written)
    environment.filters |= {function.__name__: function for function in filters} | {"plain": "{:g}".format}
    environment.globals |= {"summary_of": summary, "methods_of": methods, "limitations_of": limitations}
    environment.globals |= {"tables": tables, "run_of": run_of, "pairs": _pairs, "zip": zip}
    environment.globals["choices"] = read_yaml("choices") | {"attribution": TITLES}
    return environment


def render(name: str, **values: Any) -> str:
    """Fill the template of that name.

    Parameters
    ----------
    name : str
        File name in ``templates/``.
    **values
        Variables of the template.

    Returns
    -------
    str
    """
    return templates().get_template(name).render(**values)


def summary(study: Study) -> dict[str, str]:
    """Title, warning and the four parts of the abstract, by name.

    The conclusion follows fixed rules, from the interval of the network and of its difference to the best baseline.

    Parameters
    ----------
    study : Study

    Returns
    -------
    dict of str to str
    """
    best, score = tables.best_baseline(study), study.score("balanced_accuracy")
    gap = study.score("balanced_accuracy_difference", run=f"{NETWORK} - {best}") if best else None
    return _sections(
        "summary.j2",
        study,
        best=best,
        gap=gap,
        better_than_chance=tables.bounded(score) and score["low"] > study.chance,
        above_chance=tables.above_chance(study),
    )


def methods(study: Study) -> dict[str, str]:
    """What was done, by heading, in the order of the steps.

    Parameters
    ----------
    study : Study

    Returns
    -------
    dict of str to str
    """
    return _sections("methods.j2", study)


def limitations(study: Study) -> list[str]:
    """Limits of the conclusions, from methods and results.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
    """
    tested = study.splits[study.splits["split"] == "test"]["diagnosis"].value_counts()
    missing = sorted({"shuffled_labels", "background"} - set(study.runs()))
    text = _render(
        "limitations.j2",
        study,
        few=[f"{name} ({tested.get(name, 0)})" for name in study.params.classes if tested.get(name, 0) < SMALL],
        small=SMALL,
        not_run=[run_of(name).title for name in missing],
        above_chance=tables.above_chance(study),
    )
    return [_joined(item) for item in re.split(r"(?m)^- ", text)[1:]]


def checklist(study: Study, name: str) -> str:
    """A reporting guideline, ``claim``, ``tripod-ai`` or ``stard-ai``, filled from the records, as Markdown.

    Parameters
    ----------
    study : Study
    name : str
        ``claim``, ``tripod-ai`` or ``stard-ai``.

    Returns
    -------
    str

    References
    ----------
    CLAIM: Mongan et al. 2020, doi:10.1148/ryai.2020200029; update 2024, doi:10.1148/ryai.240300.
    TRIPOD+AI: Collins et al. 2024, doi:10.1136/bmj-2023-078378.
    STARD-AI: Sounderajah et al. 2025, doi:10.1038/s41591-025-03953-8.
    """
    controls = [run_of(run).title for run in study.controls]
    scores = tables.attribution_scores(study).items()
    checks = [f"{title[0].lower()}{title[1:]} {tables.in_words(score)}" for title, score in scores]
    answers = _sections("checklist-answers.j2", study, controls=controls, attribution_checks=checks)
    return render("checklist.md.j2", study=study, answers=answers, **read_yaml(name))


def _sections(name: str, study: Study, **values: Any) -> dict[str, str]:
    """Sections of a template by heading, each a single line."""
    parts = re.split(r"(?m)^## (.+)$", _render(name, study, **values))[1:]
    return dict(zip(parts[::2], map(_joined, parts[1::2]), strict=True))


def _render(name: str, study: Study, **values: Any) -> str:
    common = {attribute: getattr(study, attribute) for attribute in COMMON}
    return render(name, study=study, train=study.params.train, **common, **values)


def _joined(text: str) -> str:
    return re.sub(r"[ \n]+", " ", text).strip()


def _pairs(mapping: Mapping[str, str], verb: str) -> list[str]:
    return [f"{key} {verb} {value}" for key, value in mapping.items()]
