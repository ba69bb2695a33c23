"""The stored records of a finished study, read once for all pages of its report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open

from adlib.report.privacy import Ids
from adlib.study.metrics import CHECK, NETWORK, get_score, metrics_table, tidy
from adlib.study.params import StudyParams
from adlib.study.records import AUDIT, FEATURES, FIGURES, LISTING, MANIFEST, SPLITS, StudyError, read_json, read_table
from adlib.study.train_params import TrainParams

FLOW = ("step", "scans", "participants")
CITATIONS = {"ResNet50": " (He et al. 2016, doi:10.1109/CVPR.2016.90)"}
SANITY = "attribution/sanity.json"


@dataclass(frozen=True)
class Study:
    """What a finished study has stored.

    Attributes
    ----------
    params : StudyParams
    metrics, provenance : dict
        ``metrics.json`` and ``provenance.json``.
    scores : DataFrame
        See `adlib.study.metrics.metrics_table`.
    sanity : DataFrame
        check, of, metric, point, low, high and n of the checks of the attribution maps; empty without them.
    card : dict
        Header of the model file.
    manifest, audit, flow, splits, features, figures : DataFrame
        The tables of these names.
    ids : Ids
        Ids that no page may contain.
    """

    params: StudyParams
    metrics: dict[str, Any]
    scores: pd.DataFrame
    provenance: dict[str, Any]
    sanity: pd.DataFrame
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
        """Whether the heads are simulated, so that nothing is about people."""
        return self.params.source.kind == "phantom"

    @property
    def chance(self) -> float:
        """Balanced accuracy of guessing."""
        return 1 / len(self.params.classes)

    @property
    def participants(self) -> int:
        return self.manifest["participant_id"].nunique()

    @property
    def tested(self) -> int:
        """Number of test participants behind the network's score."""
        score = self.score("balanced_accuracy")
        return 0 if score is None else int(score["n"])

    @property
    def train(self) -> TrainParams:
        """Settings of the training."""
        return self.params.train

    @property
    def network(self) -> str:
        return "ResNet50"

    @property
    def cited(self) -> str:
        """The network with its reference."""
        return f"{self.network}{CITATIONS.get(self.network, '')}"

    @property
    def has_subgroups(self) -> bool:
        return bool(self.metrics.get("subgroups"))

    @property
    def initial_weights(self) -> str:
        """Origin of the weights before training, without the folder of a file."""
        origin = str(self.card.get("weights_origin", "unknown")).split(" in ")[0]
        return "a weights file" if "/" in origin else origin

    def score(
        self, metric: str, label: str = "", *, run: str = NETWORK, level: str = "subject"
    ) -> pd.Series[Any] | None:
        """One row of the scores; None where it was not computed."""
        return get_score(self.scores, run, metric, label, level)

    def runs(self) -> list[str]:
        """The scored runs in the order of the scores, without the differences between them."""
        return [run for run in self.scores["run"].unique() if " - " not in run]


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
        scores=metrics_table(metrics),
        provenance=read_json(folder / "provenance.json"),
        sanity=tidy(read_json(folder / SANITY)["entries"] if (folder / SANITY).is_file() else [], CHECK),
        card=read_card(folder / "model.safetensors"),
        manifest=manifest,
        audit=read_table(folder / "audit.tsv", AUDIT).fillna(""),
        flow=_read_flow(folder / "flow.tsv"),
        splits=read_table(folder / "splits.tsv", SPLITS),
        features=read_table(folder / "features.tsv", FEATURES),
        figures=_read_figures(folder / "figures" / "figures.tsv"),
        ids=Ids.of(manifest, listing),
    )


def read_card(path: Path) -> dict[str, Any]:
    """The card in the header of a model file, without the weights.

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
            f"{path} has no readable model card ({type(error).__name__}); run 03_training_resnet50 again"
        ) from None


def _read_figures(path: Path) -> pd.DataFrame:
    """The register of figures, with the optional statement of what each shows of people."""
    return read_table(path, FIGURES).reindex(columns=[*FIGURES.columns, "shows"]).fillna({"shows": ""})


def _read_flow(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="\t")
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read ({error}); run 01_data_audit again") from None
    if missing := [name for name in FLOW if name not in table]:
        raise StudyError(f"{path} lacks columns {missing}; run 01_data_audit again")
    return table[list(FLOW)]
