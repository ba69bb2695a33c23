"""Write the report of a finished study: one HTML page, model card, datasheet and checklists.

The model card has the layout of the Hugging Face hub.
"""

import json
import mimetypes
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from adlib.report import tables, text
from adlib.report.content import Study, read_study
from adlib.study.metrics import KEY, tidy
from adlib.study.params import StudyParams
from adlib.study.records import TABLES, TISSUE_MAPS, file_digest, json_text, table_schemas, write_text
from adlib.study.steps import STEPS

FOLDER = "report"
CRATE = "ro-crate-metadata.json"
RECORDS = ("params.yaml", "metrics.json", "provenance.json", "model.safetensors", *TABLES)
MEDIA_TYPES = {".parquet": "application/vnd.apache.parquet", ".safetensors": "application/octet-stream",
               ".tsv": "text/tab-separated-values", ".yaml": "application/yaml", ".md": "text/markdown"}  # fmt: skip
CHECKLISTS = {"claim": "CLAIM checklist", "tripod-ai": "TRIPOD+AI checklist", "stard-ai": "STARD-AI checklist"}
FILES = {
    "model-card.md": "Model card",
    "datasheet.md": "Datasheet of the cohort",
    **{f"{name}.md": title for name, title in CHECKLISTS.items()},
    "tables.schema.json": "JSON schemas of the tables",
}
INDEXED = (
    ("balanced_accuracy", None), ("accuracy", None), ("f1", "macro"), ("roc_auc", "macro"), ("roc_auc_binary", None),
    ("brier", None), ("log_loss", None), ("calibration_error", None),
)  # fmt: skip


def write_report(params: StudyParams) -> Path:
    """Write the page, the cards, the checklists and the schemas of a finished study to ``outputs/<study>/report/``.

    ``ro-crate-metadata.json`` in the study's folder describes its files.

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
        "model-card.md": model_card(study),
        "datasheet.md": datasheet(study),
        **{f"{name}.md": text.checklist(study, name) for name in CHECKLISTS},
        "tables.schema.json": json_text(table_schemas()),
    }
    folder = params.folder / FOLDER
    pages = {f"{FOLDER}/{name}": page for name, page in pages.items()}
    pages[CRATE] = json_text(crate(study, [*pages]))
    for name, page in pages.items():
        study.ids.check(page, name)
    for name, page in pages.items():
        path = params.folder / name
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
    notebooks = {tables.step_title(step.name): f"notebooks/{step.name}.html" for step in STEPS}
    return text.render(
        "index.html.j2",
        study=study,
        changed_cells={tables.step_title(name): cells for name, cells in study.changed_cells.items()},
        params=yaml.safe_dump(tables.public_params(study.params_file), sort_keys=False),
        files=FILES,
        notebooks={name: f"../{page}" for name, page in notebooks.items() if (study.params.folder / page).is_file()},
    )


def model_card(study: Study, released: list[dict[str, Any]] | None = None) -> str:
    """YAML front matter with a model index, then the card (Mitchell et al. 2019, doi:10.1145/3287560.3287596).

    Parameters
    ----------
    study : Study
    released : list of dict, optional
        Scores by participant of the rounded weights that the card goes with; the index then holds them.

    Returns
    -------
    str
        Markdown.
    """
    counts = study.card.get("cohort", {}).get("participants", {})
    return text.render(
        "model-card.md.j2",
        study=study,
        front=yaml.safe_dump(_front_matter(study, released), sort_keys=False, allow_unicode=True),
        simulated=study.card.get("simulated", study.simulated),
        takes_heads=not study.params.input.flat and TISSUE_MAPS not in study.card.get("spaces", []),
        covariates=[name for name, *_ in study.card.get("covariates", [])],
        trained=[f"{counts[name]} {name}" for name in study.params.classes if name in counts],
        released=tables.released(released) if released else None,
    )


def _front_matter(study: Study, released: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Metadata that the hub reads: licence, tags and the scores of test participants.

    A model of a real cohort falls under the terms of its data, so its licence is ``other``.
    """
    licence = {"license": "bsd-3-clause"}
    if not study.simulated:
        licence = {"license": "other", "license_name": "terms-of-the-training-cohort"}
    tags = ["mri", "brain", "t1w", "alzheimer", study.network.lower(), "research-only"]
    if released:
        scores = [score for _, score in tidy(released, KEY).iterrows()]
    else:
        scores = [study.score(metric, label or "") for metric, label in INDEXED]
    result = {
        "task": {"type": "image-classification", "name": f"{tables.listed(study.params.classes)} from T1w brain MRI"},
        "dataset": {"name": f"{study.params.study} cohort", "type": study.params.source.kind, "split": "test"},
        "metrics": [_indexed(score) for score in scores if score is not None and pd.notna(score["point"])],
    }
    return licence | {
        "library_name": "adlib",
        "pipeline_tag": "image-classification",
        "tags": [*tags, "simulated-data"] if study.simulated else tags,
        "model-index": [{"name": f"adlib-{study.params.study}", "results": [result]}],
    }


def _indexed(score: pd.Series) -> dict[str, Any]:
    metric = {
        "type": score["metric"],
        "name": f"{tables.metric_title(score['metric'], score['class'])}, test participants",
        "value": round(float(score["point"]), 4),
    }
    if tables.bounded(score):
        bounds = [round(float(score[bound]), 4) for bound in ("low", "high")]
        metric["args"] = {"ci95": bounds, "n": int(score["n"])}
    return metric


def datasheet(study: Study) -> str:
    """Questions and answers about the cohort (Gebru et al. 2021, doi:10.1145/3458723).

    Parameters
    ----------
    study : Study

    Returns
    -------
    str
        Markdown.
    """
    columns = {"age": "Age", "sex": "Sex", "site": "Site", "field_strength_T": "Field strength"}
    missing = study.manifest[list(columns)].isna().sum()
    counts = {title: f"{missing[name]} of {len(study.manifest)} scans" for name, title in columns.items()}
    return text.render("datasheet.md.j2", study=study, missing=counts)


def crate(study: Study, pages: list[str]) -> dict[str, Any]:
    """JSON-LD of ``ro-crate-metadata.json``: a Process Run Crate with the study's files, its run and its terms.

    Parameters
    ----------
    study : Study
    pages : list of str
        Files of the report, relative to the study's folder, which may not be written yet.

    Returns
    -------
    dict

    References
    ----------
    Soiland-Reyes et al. 2022, doi:10.3233/DS-210053.
    """
    stored = {name: study.params.folder / name for name in RECORDS}
    facts = {
        name: {"contentSize": path.stat().st_size, "sha256": file_digest(path)}
        for name, path in stored.items()
        if path.is_file()
    }
    files = [_described(name) | facts.get(name, {}) for name in (*facts, *pages)]
    parts = [{"@id": file["@id"]} for file in files]
    content = json.loads(text.render("crate.json.j2", params=study.params, provenance=study.provenance, parts=parts))
    return content | {"@graph": content["@graph"] + files}


def _described(name: str) -> dict[str, Any]:
    media = MEDIA_TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return {"@id": name, "@type": "File", "name": name, "encodingFormat": media}
