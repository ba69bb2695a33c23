"""One frozen model per step; a yaml with an unknown key is refused with a suggestion."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from adlib.study.exec_params import ExecParams, Pool
from adlib.study.records import SAME_PERSON, StudyError
from adlib.study.source_params import KINDS, SEVERAL, CohortsSource, Section, Source

Control = Literal["shuffled_labels", "slice_split", "background", "binarised", "metadata_added"]
SLAB = "coronal_2d"  # 2-D slices with a place in MNI152 space
Display = Literal["neurological", "radiological"]
Plane = Literal["coronal", "axial", "sagittal", "three_planes", "coronal_2d", "three_planes_2d", "images_2d"]


class AuditParams(Section):
    """Limits of the audit; a finding of severity stop ends the run."""

    accept: tuple[str, ...] = ()
    """IDs of accepted stop findings."""
    min_participants_per_class: int = Field(10, ge=2)
    """Minimum number of participants per class; fewer stop the study."""
    min_age: float = Field(0.0, ge=0)
    """Minimum age of a participant at a scan, years; 0 includes all and unknown ages."""
    metadata_auc_stop: float = Field(0.95, ge=0.5, le=1)
    """Metadata-only ROC AUC, macro or of one pair of classes, above which the study stops."""
    near_duplicate: float = Field(0.95, ge=0.9, le=1)
    """Correlation of high-pass filtered images above which two scans are near duplicates."""


class PreprocessParams(Section):
    """From a raw head to MNI152 space."""

    resolution_mm: float = Field(1.0, ge=1, le=3)
    """Voxel size of the MNI152 output grid, mm."""
    registration: Literal["affine", "rigid"] = "affine"
    """Registration to MNI152; volumes and quality metrics are always measured after the affine fit."""
    bias_correction: bool = True
    """N4 bias field correction."""
    brain_extraction: Literal["network", "synthstrip", "hd-bet"] = "network"
    """Brain-extraction method; synthstrip (`mri_synthstrip`) and hd-bet (`hd-bet`) must be installed."""
    normalise: Literal["brain_zscore", "white_matter_peak", "landmarks"] = "brain_zscore"
    """Intensity normalisation inside the brain; landmarks (Nyúl) are fitted on the training scans of each fold and
    stored in the model."""


class DerivativesParams(Section):
    """What stays of a preprocessed scan."""

    keep: tuple[Literal["head", "tissues"], ...] = ("head", "tissues")
    """Images stored in addition to the brain and its mask: head (quality-control figures, control `background`) and
    tissues (tissue probability maps, grey-matter baseline)."""


class InputParams(Section):
    """What the network sees of a scan."""

    plane: Plane = "coronal"
    """Plane of the slices; three_planes uses one axial, one coronal and one sagittal slice as channels,
    three_planes_2d the same from 2-D slices, coronal_2d cuts the 2-D slices of OASIS-1's coronal slab at positions,
    images_2d takes every 2-D image."""
    positions_mm: tuple[float, ...] = (-32.0, -20.0, -8.0)
    """Slice centres in MNI152 space along the plane's normal, mm; z, y and x for three_planes."""
    channel_spacing_mm: float = Field(4.0, gt=0)
    """Distance between the three channels of a slice, mm."""
    size: int = Field(96, ge=32, le=512)
    """Height and width of the network input, pixels."""
    pooling: Literal["mean", "maximum", "vote", "attention"] = "mean"
    """Aggregation of slices to scans: mean probability, maximum evidence per class, majority vote, or trained
    attention weights."""

    @property
    def flat(self) -> bool:
        """Whether a scan comes as 2-D images, so that there is no volume to preprocess."""
        return self.plane.endswith("_2d")

    @property
    def takes_heads(self) -> bool:
        """Whether its slices can be cut out of a 3-D scan."""
        return not self.flat or self.plane == SLAB


class SplitParams(Section):
    """Who is trained on and who is tested: always whole participants."""

    protocol: Literal["holdout", "kfold", "leave_out", "external", "given"] = "holdout"
    """Split protocol: one holdout split, k-fold cross-validation by participant, each value of a column left out
    once, named values of it as external test set, or a given split."""
    leave_out: str = "site"
    """Column of the manifest for leave_out and external, such as site, phase or one of source.columns."""
    table: Path | None = None
    """Table for given: participant_id or participant_hash, split (train, validation, test) and optionally fold,
    such as another study's splits.tsv; empty for the parts of the source's folders."""
    salt: Path | None = None
    """File with the secret of keyed hashes of participants, in splits_hashed.tsv and the model card, for the study
    that writes them and those that take them."""
    groups: tuple[str, ...] = (SAME_PERSON,)
    """Columns of the manifest, such as family, whose equal values link participants, who are kept on one side;
    same_person is of those that the audit takes for one person."""
    folds: int = Field(5, ge=2)
    """Number of folds for kfold."""
    repeats: int = Field(1, ge=1)
    """Number of repetitions of holdout or kfold with other random splits."""
    balance_sites: bool = False
    """Stratification by site in addition to diagnosis, where sites are large enough."""
    test_sites: tuple[str, ...] = ()
    """Test sites, or values of splits.leave_out, for external, such as those of another cohort."""
    test_fraction: float = Field(0.3, gt=0, lt=1)
    """Fraction of test participants for holdout."""
    validation_fraction: float = Field(0.12, gt=0, lt=1)
    """Fraction of the remaining participants used for validation curves and calibration; an ensemble uses all of
    them, see train.members."""


class TrainParams(Section):
    """How the ResNet50 is fitted."""

    weights: str = "random"
    """Initial weights: random, imagenet (torchvision's, downloaded once), path:FILE (safetensors or a state dict),
    or adlib:FILE (a model of this project with the same input)."""
    frozen_stages: int = Field(0, ge=0, le=4)
    """Number of frozen ResNet stages, including the stem."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate before the last layer."""
    covariates: tuple[Literal["age", "sex"], ...] = ()
    """Covariates concatenated to the image features; missing values are replaced by the mean."""
    epochs: int = Field(12, ge=1)
    """Number of epochs."""
    batch_size: int = Field(32, ge=2)
    """Slices per optimiser step, over all devices."""
    micro_batches: int = Field(1, ge=1)
    """Number of gradient-accumulation parts of a step, which devices share."""
    learning_rate: float = Field(0.001, gt=0)
    """Maximum learning rate of the one-cycle schedule."""
    warmup: float = Field(0.25, gt=0, lt=1)
    """Fraction of all steps before the maximum learning rate."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW weight decay."""
    loss: Literal["cross_entropy", "ordinal"] = "cross_entropy"
    """Loss of the classes: cross-entropy, or cross-entropy of the cumulative probabilities, which respects the order of
    the classes."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Label smoothing of the loss."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup's Beta distribution; 0 disables it."""
    balance: Literal["weights", "sampling", "none"] = "weights"
    """Class balancing: class weights in the loss, balanced sampling of participants, or none."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay of the exponential moving average of the weights (EMA); 0 disables it."""
    patience: int = Field(0, ge=0)
    """Early stopping: epochs without better balanced accuracy of validation participants; 0 disables it."""
    auxiliary_weight: float = Field(0.5, ge=0)
    """Loss weight of the auxiliary regression of age and volumes; 0 disables it."""
    augment: Literal["none", "light", "mri"] = "light"
    """Augmentation: light (small affine, flip, gain, noise); mri adds bias field, gamma, motion and ghosting
    (TorchIO)."""
    seed: int | None = Field(None, ge=0)
    """Random seed of initial weights, sampling and augmentation; empty for that of the study."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Autocast precision; auto uses bf16 where the device supports it."""
    members: int = Field(1, ge=1)
    """Number of networks per fold whose probabilities are averaged (ensemble). Each leaves out another part of the
    participants that are not tested, unless a given split names validation participants; controls train one."""
    controls: tuple[Control, ...] = ("shuffled_labels",)
    """Control trainings: permuted labels, slice-level split (leakage), background only, binarised brain,
    acquisition metadata as covariates."""

    @property
    def weights_file(self) -> Path | None:
        """The file that `weights` names; None where it names none."""
        kind, colon, name = self.weights.partition(":")
        if kind not in ("path", "adlib") or not colon:
            return None
        return Path(name) / "model.safetensors" if Path(name).is_dir() else Path(name)


class EvaluateParams(Section):
    """Scores and their intervals."""

    bootstrap: int = Field(2000, ge=100)
    """Number of bootstrap resamples of participants."""
    binary: dict[str, tuple[str, ...]] = Field({"negative": ("CN",), "positive": ("AD",)})
    """Classes of the binary comparison."""
    prevalence: float | None = Field(None, gt=0, lt=1)
    """Prevalence of the positive side of the binary comparison for predictive values; empty for that of the test
    participants."""
    coverage: float = Field(0.9, ge=0.5, lt=1)
    """Nominal coverage of the conformal prediction sets."""
    age_bands: tuple[float, ...] = Field((65.0, 75.0, 85.0), min_length=1)
    """Increasing limits of the age groups, years."""
    subgroup_minimum: int = Field(10, ge=2)
    """Minimum number of test participants of a scored subgroup; half of it on each side for an AUC."""
    show_participants: bool = False
    """Figures of single test participants of real cohorts, where the terms of the data allow them."""
    attribution: Literal["integrated_gradients", "gradient_shap", "grad_cam", "occlusion"] = "gradient_shap"
    """Attribution method."""
    attribution_scans: int = Field(40, ge=1)
    """Number of test scans with attribution maps."""


class AboutParams(Section):
    """What no record of a run can say; stated in report, checklists and datasheet."""

    ethics: str = ""
    """Ethics approval and consent, or why none was needed."""
    funding: str = ""
    """Sources of funding and the role of funders."""
    conflicts: str = ""
    """Conflicts of interest and commercial interests."""
    registration: str = ""
    """Registry and number of the study, and where its protocol can be read."""
    data_access: str = ""
    """Where the data come from, how others get them, and under which terms."""


class ClassifyParams(Section):
    """The interactive classifier."""

    show_training: bool = False
    """Nearest training scans of real cohorts with their IDs; simulated ones are always shown."""
    max_upload_mb: int = Field(1024, ge=1)
    """Maximum total size of waiting uploads, MiB."""
    max_scans: int = Field(20, ge=1)
    """Maximum number of scans per classification."""
    timeout_s: int = Field(300, ge=1)
    """Timeout per scan, seconds."""
    memory_mb: int = Field(2048, ge=64)
    """Memory limit per scan, MiB."""


class StudyParams(Section):
    """A whole study, as one yaml file."""

    study: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name of the study and of its folder, outputs/<study>."""
    classes: tuple[str, ...] = Field(("CN", "MCI", "LMCI", "AD"), min_length=2)
    """Diagnoses in ascending order of severity."""
    seed: int = Field(20, ge=0)
    """Random seed."""
    display: Display = "neurological"
    """Side of the left of the head in pictures: neurological, on the left; radiological, on the right."""
    source: Source = CohortsSource()
    sources: dict[str, Source] = Field({})
    """Mapping of cohort names (letters and digits) to sections as `source` takes them, in its place."""
    audit: AuditParams = AuditParams()
    preprocess: PreprocessParams = PreprocessParams()
    derivatives: DerivativesParams = DerivativesParams()
    input: InputParams = InputParams()
    splits: SplitParams = SplitParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()
    about: AboutParams = AboutParams()
    classify: ClassifyParams = ClassifyParams()
    exec: ExecParams = ExecParams()

    @property
    def folder(self) -> Path:
        """Folder of everything that the study makes."""
        return self.exec.outputs / self.study

    @property
    def training_seed(self) -> int:
        """Seed of the networks' training: `train.seed` or, where it is empty, the study's."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def pool(self) -> Pool:
        """The processes that do per-scan work, for `parallel.mapping.map_scans`."""
        roots = (getattr(source, "root", None) for source in self.cohorts.values())
        return Pool(**dict(self.exec), data=tuple(filter(None, roots)))

    @property
    def cohorts(self) -> dict[str, Source]:
        """Sources by the name of their cohort; a single one has no name."""
        return self.sources or {"": self.source}

    @property
    def simulated(self) -> bool:
        """Whether all scans are simulated, so that nothing is about people."""
        return all(source.kind == "phantom" for source in self.cohorts.values())

    @model_validator(mode="after")
    def _consistent(self) -> StudyParams:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes repeat: {list(self.classes)}")
        if (self.source.kind == SEVERAL) != bool(self.sources):
            raise ValueError("give source, or sources with a name for each cohort")
        for name, source in self.cohorts.items():
            if self.sources and not (name.isascii() and name.isalnum() and source.kind != SEVERAL):
                raise ValueError(f"sources.{name} must be a source, under a name of letters and digits")
            if source.kind == "phantom" and len(source.severity_mean) != len(self.classes):
                count = len(source.severity_mean)
                raise ValueError(f"severity_mean has {count} values for {len(self.classes)} classes")
        unknown = {name for names in self.evaluate.binary.values() for name in names} - set(self.classes)
        if unknown:
            raise ValueError(f"evaluate.binary names {sorted(unknown)}, not among classes {list(self.classes)}")
        if list(self.evaluate.age_bands) != sorted(set(self.evaluate.age_bands)):
            raise ValueError(f"evaluate.age_bands must rise, got {list(self.evaluate.age_bands)}")
        if self.input.plane == "three_planes" and len(self.input.positions_mm) != 3:
            raise ValueError(f"three_planes takes three input.positions_mm (z, y, x), got {self.input.positions_mm}")
        if self.train.mixup and self.input.pooling == "attention":
            raise ValueError("train.mixup mixes single slices; with input.pooling attention set it to 0")
        if "background" in self.train.controls and "head" not in self.derivatives.keep:
            raise ValueError("the control background cuts the brain out of heads; add head to derivatives.keep")
        together = self.exec.devices * self.exec.nodes
        if self.train.micro_batches % together:
            raise ValueError(
                f"{together} devices share train.micro_batches, which is {self.train.micro_batches}; "
                f"set a multiple of {together}"
            )
        if set(self.evaluate.binary) != {"negative", "positive"}:
            raise ValueError("evaluate.binary takes the two keys negative and positive")
        return self


def load_params(path: Path | str, settings: tuple[str, ...] = ()) -> StudyParams:
    """Read a study's yaml, apply `key.sub=value` settings, and validate.

    Parameters
    ----------
    path : path
        Yaml file; `${NAME}` in it is replaced from the environment.
    settings : tuple of str
        Overrides such as ``train.epochs=3``; the value is read as yaml.

    Raises
    ------
    StudyError
        If the file is missing, is not yaml, or holds an unknown key or a wrong value.
    """
    content = _content_of(Path(path))
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise StudyError(f"--set takes key=value, as in train.epochs=3; got {setting!r}")
        _set(content, name, _from_yaml(value, f"--set {setting}"))
    return validate_params(content, str(path))


def _content_of(path: Path) -> dict[str, Any]:
    if not path.is_file():
        existing = sorted(str(p) for p in path.parent.glob("*.yaml")) or "none in that folder"
        raise StudyError(f"params file {path} does not exist; there are: {existing}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is not readable yaml: {error}") from None
    content = _from_yaml(os.path.expandvars(text), str(path))
    if not isinstance(content, dict):
        raise StudyError(f"{path} holds {type(content).__name__}, expected keys such as 'study:' and 'source:'")
    return content


def open_study(params_file: Path | str, **settings: Any) -> StudyParams:
    """Load a study in a notebook.

    A relative `params_file` is looked up in the working folder and in those above it (for a notebook opened in
    ``notebooks/``); that folder becomes the working folder, so that relative paths in the yaml hold.

    Parameters
    ----------
    params_file : path
    **settings
        Values of single keys, as with ``run_all.py --set``: ``open_study(params_file, **{"train.epochs": 3})``.

    Returns
    -------
    StudyParams

    Raises
    ------
    StudyError
        If the file is missing, is not yaml, or a key or value is invalid.
    """
    for root in (Path.cwd(), *Path.cwd().parents):
        if (root / params_file).is_file():
            os.chdir(root)
            break
    content = _content_of(Path(params_file))
    for name, value in settings.items():
        _set(content, name, value)
    return validate_params(content, str(params_file))


def validate_params(content: dict[str, Any], where: str) -> StudyParams:
    """Make `StudyParams` of plain yaml content, with every fault named.

    Parameters
    ----------
    content : dict
    where : str
        Name of the file, for the error.

    Raises
    ------
    StudyError
        With one line per fault.
    """
    try:
        return StudyParams.model_validate_json(json.dumps(content, default=str))
    except TypeError as error:
        raise StudyError(f"{where} has a key that is not a word: {error}") from None
    except ValidationError as error:
        lines = [_fault(item) for item in error.errors()]
        raise StudyError(f"{where} is not a valid study:\n  " + "\n  ".join(lines)) from None


def dump_params(params: StudyParams) -> str:
    """Yaml text from which `load_params` makes an equal study, defaults written out.

    Parameters
    ----------
    params : StudyParams
    """
    return yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False)


def _from_yaml(text: str, where: str) -> Any:
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise StudyError(f"{where} has an alias (*name); write out what it stands for")
        return yaml.safe_load(text)
    except RecursionError:
        raise StudyError(f"{where} is not readable yaml: it is nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:
        raise StudyError(f"{where} is not readable yaml: {error}") from None


def _set(content: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise StudyError(f"{name}: {parent!r} is a value, not a section")
    content[last] = value


def _fault(item: ErrorDetails) -> str:
    location = [str(part) for part in item["loc"]]
    kind = {"source": 1, "sources": 2}.get(next(iter(location), ""), len(location))  # its place in the location
    name = ".".join(location[:kind] + location[kind + 1 :]) or "the study"
    if item["type"] != "extra_forbidden":
        return f"{name}: {item['msg']} (got {item['input']!r:.80})"
    model: Any = KINDS.get(location[kind], CohortsSource) if kind < len(location) else StudyParams
    for part in location[:-1] if model is StudyParams else ():
        model = model.model_fields[part].annotation
    close = difflib.get_close_matches(location[-1], model.model_fields, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"expected one of: {', '.join(model.model_fields)}"
    return f"{name}: unknown key; {hint}"
