"""RO-Crate metadata of a study's folder: its files, the run that made them, and the terms they fall under."""

from __future__ import annotations

import mimetypes
from typing import Any

from adlib.report.content import Study
from adlib.study.records import TABLES, file_digest

CRATE = "ro-crate-metadata.json"
PROFILE = "https://w3id.org/ro/crate/1.2"
RUN_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
RECORDS = ("params.yaml", "metrics.json", "provenance.json", "model.safetensors", *TABLES)
KINDS = {".parquet": "application/vnd.apache.parquet", ".safetensors": "application/octet-stream",
         ".tsv": "text/tab-separated-values", ".yaml": "application/yaml", ".md": "text/markdown"}  # fmt: skip


def crate(study: Study, pages: list[str]) -> dict[str, Any]:
    """JSON-LD of ``ro-crate-metadata.json``: a Process Run Crate of the study.

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
    record = study.provenance
    files = [_file(study, name) for name in RECORDS if (study.params.folder / name).is_file()]
    files += [_typed(name) for name in pages]
    parts = [{"@id": file["@id"]} for file in files]
    own = "BSD 3-Clause: the heads are simulated." if study.simulated else "Not stated in the records of the study."
    terms = {
        "@id": "#terms",
        "@type": "CreativeWork",
        "name": "Terms",
        "description": study.about["data_access"] or own,
    }
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"adlib study {study.params.study}",
        "description": f"Classification of {', '.join(study.params.classes)} from T1w brain MRI: records and report.",
        "datePublished": record.get("finished") or "unknown",
        "license": {"@id": "#terms"},
        "conformsTo": {"@id": RUN_PROFILE},
        "hasPart": parts,
        "mentions": {"@id": "#run"},
    }
    version = record.get("git_sha") or "unknown"
    software = {"@id": "#adlib", "@type": "SoftwareApplication", "name": "adlib", "softwareVersion": version}
    run = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": "run_all.py",
        "instrument": {"@id": "#adlib"},
        "startTime": record.get("started"),
        "endTime": record.get("finished"),
        "object": {"@id": "params.yaml"},
        "result": [part for part in parts if part["@id"] != "params.yaml"],
    }
    about = {
        "@id": CRATE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": PROFILE},
        "about": {"@id": "./"},
    }
    return {"@context": f"{PROFILE}/context", "@graph": [about, root, terms, software, run, *files]}


def _typed(name: str) -> dict[str, Any]:
    suffix = name[name.rindex(".") :]
    kind = KINDS.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return {"@id": name, "@type": "File", "name": name, "encodingFormat": kind}


def _file(study: Study, name: str) -> dict[str, Any]:
    path = study.params.folder / name
    return _typed(name) | {"contentSize": path.stat().st_size, "sha256": file_digest(path)}
