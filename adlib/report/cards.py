"""The model card, in the layout of the Hugging Face hub, and the datasheet of the cohort, as Markdown."""

from __future__ import annotations

from typing import Any

import yaml

from adlib.report import results, text
from adlib.report.content import NETWORK, Study
from adlib.report.methods import SOURCES, methods
from adlib.report.page import render
from adlib.report.words import listed, metric_title
from adlib.study.records import TISSUE_MAPS

INDEXED = (
    ("balanced_accuracy", None), ("accuracy", None), ("f1", "macro"), ("roc_auc", "macro"), ("roc_auc_binary", None),
    ("brier", None), ("log_loss", None), ("calibration_error", None),
)  # fmt: skip


def model_card(study: Study, released: list[dict[str, Any]] | None = None) -> str:
    """YAML front matter with a model index, then the card (Mitchell et al. 2019, doi:10.1145/3287560.3287596).

    Parameters
    ----------
    study : Study
    released : list of dict, optional
        Scores by participant of the rounded weights that the card goes with; the index then holds them.
    """
    return render(
        "model-card.md.j2",
        front=yaml.safe_dump(front_matter(study, released), sort_keys=False, allow_unicode=True),
        first=_trained_on(study),
        title=f"ResNet50 of study {study.params.study}",
        classes=listed(study.params.classes),
        answer=_answer(study),
        takes_heads=_takes_heads(study),
        training=_cohort_counts(study),
        methods=methods(study),
        tables=[results.runs(study), results.control_rows(study), results.confusion(study), results.by_class(study)],
        results=text.results(study),
        conclusion=text.conclusion(study),
        limitations=text.limitations(study),
        provenance=results.provenance(study),
        card=study.card,
        released=results.released(released) if released else None,
    )


def front_matter(study: Study, released: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """What the hub reads: licence, tags and the scores of test participants.

    A model of a real cohort falls under the terms of its data, so its licence is ``other``.
    """
    licence = {"license": "bsd-3-clause"}
    if not study.simulated:
        licence = {"license": "other", "license_name": "terms-of-the-training-cohort"}
    made = ["simulated-data"] if study.simulated else []
    entries = released or [entry for entry in (study.entry(NETWORK, *name) for name in INDEXED) if entry]
    metrics = [_indexed(entry) for entry in entries]
    result = {
        "task": {"type": "image-classification", "name": f"{listed(study.params.classes)} from T1w brain MRI"},
        "dataset": {"name": f"{study.params.study} cohort", "type": study.params.source.kind, "split": "test"},
        "metrics": [metric for metric in metrics if metric["value"] is not None],
    }
    return licence | {
        "library_name": "adlib",
        "pipeline_tag": "image-classification",
        "tags": ["mri", "brain", "t1w", "alzheimer", "resnet50", "research-only", *made],
        "model-index": [{"name": f"adlib-{study.params.study}", "results": [result]}],
    }


def _indexed(entry: dict[str, Any]) -> dict[str, Any]:
    found = {
        "type": entry["metric"],
        "name": f"{metric_title(entry['metric'], entry.get('class'))}, test participants",
        "value": None if entry["point"] is None else round(entry["point"], 4),
    }
    if entry["ci95"] and None not in entry["ci95"]:
        found["args"] = {"ci95": [round(bound, 4) for bound in entry["ci95"]], "n": entry["n"]}
    return found


def datasheet(study: Study) -> str:
    """Questions and answers about the cohort (Gebru et al. 2021, doi:10.1145/3458723)."""
    return render(
        "datasheet.md.j2",
        warning=text.warning(study),
        simulated=study.simulated,
        study=study.params.study,
        source=SOURCES.get(study.params.source.kind, study.params.source.kind),
        labels=" ".join(methods(study)["Cohort and labels"]),
        preprocessing=" ".join(methods(study)["Preprocessing"]),
        tables=[results.cohort(study), results.parts(study), results.flow(study), results.left_out(study)],
        acquisition=results.acquisition(study),
        missing=_missing(study),
        audit=results.audit(study),
        accepted=results.accepted(study),
        split=" ".join(methods(study)["Split"]),
    )


def _trained_on(study: Study) -> str:
    if study.card.get("simulated", study.simulated):
        return (
            "**Trained on simulated images.** The model has never seen a real brain; its answers say nothing about a "
            "patient."
        )
    return "**Research only.** The model must not be used for the diagnosis or care of a person."


def _takes_heads(study: Study) -> bool:
    return not study.params.input.flat and TISSUE_MAPS not in study.card.get("spaces", [])


def _answer(study: Study) -> str:
    size, covariates = study.params.input.size, [name for name, *_ in study.card.get("covariates", [])]
    beside = f", and {listed(covariates)}" if covariates else ""
    if study.params.input.flat:
        return f"ready-made 2-D slices of {size} by {size} pixels{beside}; the model cannot take a whole head"
    source = "a scan" if _takes_heads(study) else "grey-matter maps (the model cannot take a T1w head)"
    return f"slices of {size} by {size} pixels that adlib cuts from {source} in MNI152 space{beside}"


def _cohort_counts(study: Study) -> str:
    counts = study.card.get("cohort", {}).get("participants", {})
    return listed(f"{counts[name]} {name}" for name in study.params.classes if name in counts)


def _missing(study: Study) -> list[tuple[str, str]]:
    """How many scans lack a fact."""
    columns = {"age": "Age", "sex": "Sex", "site": "Site", "field_strength_T": "Field strength"}
    whole = len(study.manifest)
    return [
        (title, f"{int(study.manifest[column].isna().sum())} of {whole} scans") for column, title in columns.items()
    ]
