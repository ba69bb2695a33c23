"""The stored records of a finished study, read once for all pages of its report."""

import difflib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from adlib.report.privacy import Ids
from adlib.study.code_digest import ROOT
from adlib.study.metrics import CHECK, NETWORK, get_score, metrics_table, run_of, tidy
from adlib.study.params import StudyParams
from adlib.study.records import AUDIT, FIGURES, TABLES, StudyError, read_json, read_table
from adlib.study.steps import STEPS
from adlib.training.model_file import FORMAT
from adlib.training.network import read_state
from adlib.training.recipe import SECTIONS, record_differences, training_record

PARTS = ("network", "loss", "optimizer", "augment")
STORED = ("listing.tsv", "manifest.tsv", "audit.tsv", "flow.tsv", "splits.tsv", "features.tsv", "figures/figures.tsv")
SANITY = "attribution/sanity.json"
PUBLISHED = ("adni", "oasis1", "oasis2", "oasis_slices", "oasis3", "oasis_vbm")  # kinds of source
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Study:
    """What a finished study has stored.

    Attributes
    ----------
    params : StudyParams
        Params with the settings that the training used, where they differ from the file.
    params_file : StudyParams
        Params as ``params.yaml`` has them.
    record : dict
        What was trained, see `adlib.training.recipe.describe`; empty in older studies.
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
    changed_cells : dict of str to str
        Code cells that differ from the committed notebook, by step, in words.
    """

    params: StudyParams
    params_file: StudyParams
    record: dict[str, Any]
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
    changed_cells: dict[str, str]

    @property
    def simulated(self) -> bool:
        """Whether the heads are simulated, so that nothing is about people."""
        return self.params.simulated

    @property
    def public(self) -> bool:
        """Whether the source is a published cohort, whose collection others have described."""
        return self.params.source.kind in PUBLISHED

    @property
    def controls(self) -> list[str]:
        """Names of the controls that were scored."""
        return [run for run in self.runs() if run_of(run).group == "control"]

    @property
    def chance(self) -> float:
        """Balanced accuracy of chance."""
        return 1 / len(self.params.classes)

    @property
    def participants(self) -> int:
        """Number of participants in the manifest."""
        return self.manifest["participant_id"].nunique()

    @property
    def tested(self) -> int:
        """Number of test participants behind the network's score."""
        score = self.score("balanced_accuracy")
        return 0 if score is None else int(score["n"])

    @property
    def own_parts(self) -> dict[str, str]:
        """Parts of the training that adlib does not provide, such as ``focal_loss (notebook 03)``, by part."""
        parts = {part: self.record[part]["name"] for part in PARTS if part in self.record}
        return {part: _part_title(name) for part, name in parts.items() if not name.startswith("adlib.")}

    @property
    def differences(self) -> list[str]:
        """Differences between the training, the params file and the default recipe, in words."""
        return [self.ids.redact(text) for text in difference_texts(self.record, self.params_file)]

    @property
    def network(self) -> str:
        """Title of the network."""
        return self.record.get("network", {}).get("title", "ResNet50")

    @property
    def cited(self) -> str:
        """The network with its reference."""
        own = "network" in self.own_parts or self.network != "ResNet50"
        return self.network if own else f"{self.network} (He et al. 2016, doi:10.1109/CVPR.2016.90)"

    @property
    def initial_weights(self) -> str:
        """Origin of the weights before training, without the folder of a file."""
        origin = str(self.card.get("weights_origin", "unknown")).split(" in ")[0]
        return "a weights file" if "/" in origin else origin

    def score(self, metric: str, label: str = "", *, run: str = NETWORK, level: str = "subject") -> pd.Series | None:
        """One row of the scores of the test participants.

        Parameters
        ----------
        metric : str
            As in ``metrics.json``.
        label : str
            Class, or ``macro``; empty for scores over all classes.
        run : str
            Network, control, baseline, or a difference of two runs.
        level : str
            ``slice``, ``scan`` or ``subject``.

        Returns
        -------
        Series or None
            None if the score is not stored.
        """
        return get_score(self.scores, run, metric, label, level)

    def runs(self) -> list[str]:
        """Names of the scored runs in the order of the scores, without the differences between them.

        Returns
        -------
        list of str
        """
        return [run for run in self.scores["run"].unique() if " - " not in run]


def read_study(params: StudyParams, folder: Path | None = None) -> Study:
    """Read the stored records of a finished study.

    Parameters
    ----------
    params : StudyParams
    folder : path, optional
        Where they are, if not in the folder of the params.

    Returns
    -------
    Study

    Raises
    ------
    StudyError
        If a record is missing or cannot be read.
    """
    folder = folder or params.folder
    stored = {name: read_table(folder / name, TABLES[name]) for name in STORED}
    metrics = read_json(folder / "metrics.json")
    if metrics.get("study") != params.study or not isinstance(metrics.get("entries"), list):
        raise StudyError(f"{folder / 'metrics.json'} has no scores of study {params.study!r}; run 04_evaluation again")
    path = folder / "model.safetensors"
    header = read_state(path)[1]
    try:
        card = json.loads(header[FORMAT])
    except (KeyError, ValueError):
        raise StudyError(f"{path} has no readable model card; run 03_training_resnet50 again") from None
    record = training_record(folder) or card.get("training", {})
    provenance = read_json(folder / "provenance.json")
    return Study(
        params=trained_params(params, record),
        params_file=params,
        record=record,
        metrics=metrics,
        scores=metrics_table(metrics),
        provenance=provenance,
        sanity=tidy(read_json(folder / SANITY)["entries"] if (folder / SANITY).is_file() else [], CHECK),
        card=card,
        audit=_findings(stored["audit.tsv"], metrics),
        figures=stored["figures/figures.tsv"].reindex(columns=[*FIGURES.columns, "shows"]).fillna({"shows": ""}),
        ids=Ids.of(stored["manifest.tsv"], stored["listing.tsv"]),
        **{name: stored[f"{name}.tsv"] for name in ("manifest", "flow", "splits", "features")},
        changed_cells=changed_cells(folder / "notebooks", provenance.get("git_sha") or "HEAD"),
    )


def _findings(audit: pd.DataFrame, metrics: dict[str, Any]) -> pd.DataFrame:
    """Findings of the audit, with those that needed the features of step 02."""
    later = pd.DataFrame(metrics.get("findings", []), columns=list(AUDIT.columns)).fillna({"decision": "go on"})
    return pd.concat([audit, later], ignore_index=True).fillna("")


def trained_params(params: StudyParams, record: dict[str, Any]) -> StudyParams:
    """Params with the settings that the training used, from its record.

    Parameters
    ----------
    params : StudyParams
        As in the params file.
    record : dict
        See `adlib.training.recipe.describe`.

    Returns
    -------
    StudyParams
    """
    stored = {name: json.dumps(record[name]) for name in SECTIONS if name in record}
    sections = {name: type(getattr(params, name)).model_validate_json(text) for name, text in stored.items()}
    if "train" in sections and "runs" in record:
        trained = tuple(run for run in sections["train"].controls if run in record["runs"])
        sections["train"] = sections["train"].model_copy(update={"controls": trained})
    return params.model_copy(update=sections)


def difference_texts(record: dict[str, Any], params: StudyParams) -> list[str]:
    """Differences between a training and the params, in words, without names of sites.

    Parameters
    ----------
    record : dict
        See `adlib.training.recipe.describe`.
    params : StudyParams

    Returns
    -------
    list of str
    """
    texts = []
    for name, (stated, trained) in record_differences(record, params).items():
        if name in PARTS:
            stated, trained = _part_title(stated), _part_title(trained)
        values = "differs" if name == "splits.test_sites" else f"is {trained} instead of {stated}"
        texts.append(f"{name} {values}")
    return texts


def _part_title(name: str) -> str:
    module, _, function = name.partition(":")
    return f"{function} ({'notebook 03' if module == '__main__' else module})"


def changed_cells(executed: Path, commit: str) -> dict[str, str]:
    """Code cells of the executed notebooks that differ from those of the repository, by step, in words.

    Parameters
    ----------
    executed : path
        Folder of the executed notebooks.
    commit : str
        Revision of the repository; without git the notebooks in the working folder are compared.

    Returns
    -------
    dict of str to str
    """
    changes = {}
    for step in STEPS:
        path = executed / f"{step.name}.ipynb"
        if not path.is_file():
            continue
        before, after = _code_cells(_committed(step.notebook, commit)), _code_cells(path.read_text(encoding="utf-8"))
        texts = []
        for kind, i, j, start, stop in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
            if kind == "delete":
                texts.append(f"{j - i} removed after cell {start}")
            elif kind != "equal":
                texts += [f"cell {number}" for number in range(start + 1, stop + 1)]
        if texts:
            changes[step.name] = ", ".join(texts)
    return changes


def _committed(name: str, commit: str) -> str:
    command = ["git", "show", f"{commit}:./{name}"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return (ROOT / name).read_text(encoding="utf-8")


def _code_cells(notebook: str) -> list[str]:
    """Code of a notebook by cell, without the cell of parameters that a run adds."""
    cells = [cell for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code"]
    own = [cell for cell in cells if "injected-parameters" not in cell["metadata"].get("tags", [])]
    return ["".join(cell["source"]).strip() for cell in own]


def read_yaml(name: str) -> dict[str, Any]:
    """A data file of ``templates/``.

    Parameters
    ----------
    name : str
        File name in ``templates/`` without suffix.

    Returns
    -------
    dict
    """
    return yaml.safe_load((TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8"))
