"""The stored records of a finished study, read once, as plain data for the pages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open

from adlib.report.privacy import Ids
from adlib.study.params import StudyParams
from adlib.study.records import AUDIT, FEATURES, FIGURES, LISTING, MANIFEST, SPLITS, StudyError, read_json, read_table

FLOW = ("step", "scans", "participants")
NETWORK = "resnet50"
SANITY = "attribution/sanity.json"


@dataclass(frozen=True)
class Study:
    """What a finished study has stored.

    Attributes
    ----------
    params : StudyParams
    metrics, history : dict
        ``metrics.json`` and ``provenance.json``.
    sanity : dict
        ``attribution/sanity.json``, the checks of the attribution maps; empty where there are none.
    card : dict
        What the weights file says of itself.
    manifest, audit, flow, splits, features, figures : DataFrame
        The tables of these names.
    ids : Ids
        What no page may hold.
    """

    params: StudyParams
    metrics: dict[str, Any]
    history: dict[str, Any]
    sanity: dict[str, Any]
    card: dict[str, Any]
    manifest: pd.DataFrame
    audit: pd.DataFrame
    flow: pd.DataFrame
    splits: pd.DataFrame
    features: pd.DataFrame
    figures: pd.DataFrame
    ids: Ids

    @property
    def folder(self) -> Path:
        return self.params.folder

    @property
    def simulated(self) -> bool:
        """Whether the heads are made; nothing then is about people."""
        return self.params.source.kind == "phantom"

    @property
    def chance(self) -> float:
        """Balanced accuracy of guessing."""
        return 1 / len(self.params.classes)

    def entry(self, run: str, metric: str, label: str | None = None, level: str = "subject") -> dict[str, Any] | None:
        """The score of a run; None where it was not taken."""
        wanted = (run, level, metric, label)
        found = (e for e in self.metrics["entries"] if (e["run"], e["level"], e["metric"], e.get("class")) == wanted)
        return next(found, None)

    def runs(self) -> list[str]:
        """The runs that were scored, without the differences between them, in the order of the scores."""
        return list(dict.fromkeys(e["run"] for e in self.metrics["entries"] if " - " not in e["run"]))


def read_study(params: StudyParams) -> Study:
    """Read what the five steps stored.

    Raises
    ------
    StudyError
        If a record is missing or cannot be read.
    """
    folder = params.folder
    manifest = read_table(folder / "manifest.tsv", MANIFEST)
    listing = read_table(folder / "listing.tsv", LISTING)
    metrics = read_json(folder / "metrics.json")
    if metrics.get("study") != params.study or not isinstance(metrics.get("entries"), list):
        raise StudyError(
            f"{folder / 'metrics.json'} holds no scores of study {params.study!r}; run 04_evaluation again"
        )
    return Study(
        params=params,
        metrics=metrics,
        history=read_json(folder / "provenance.json"),
        sanity=read_json(folder / SANITY) if (folder / SANITY).is_file() else {},
        card=read_card(folder / "model.safetensors"),
        manifest=manifest,
        audit=read_table(folder / "audit.tsv", AUDIT),
        flow=_read_flow(folder / "flow.tsv"),
        splits=read_table(folder / "splits.tsv", SPLITS),
        features=read_table(folder / "features.tsv", FEATURES),
        figures=read_table(folder / "figures" / "figures.tsv", FIGURES),
        ids=Ids.of(manifest, listing),
    )


def read_card(path: Path) -> dict[str, Any]:
    """The card in the header of a weights file, without the weights.

    Raises
    ------
    StudyError
        If there is no such file or no card in it.
    """
    try:
        with safe_open(path, framework="numpy") as weights:
            header = weights.metadata() or {}
        return json.loads(next(text for name, text in header.items() if name.startswith("adlib-")))
    except (OSError, SafetensorError, StopIteration, ValueError) as error:
        raise StudyError(
            f"{path} carries no readable model card ({type(error).__name__}); run 03_training_resnet50 again"
        ) from None


def _read_flow(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="\t")
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read ({error}); run 01_data_audit again") from None
    if missing := [name for name in FLOW if name not in table]:
        raise StudyError(f"{path} lacks columns {missing}; run 01_data_audit again")
    return table[list(FLOW)]
