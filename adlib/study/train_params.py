"""How the study is split, and how its network is fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from adlib.study.source_params import Section

Control = Literal["shuffled_labels", "slice_split", "background", "binarised", "metadata_added"]


class SplitParams(Section):
    """Who is trained on and who is tested: always whole participants."""

    protocol: Literal["holdout", "kfold", "leave_one_site_out", "external"] = Field(
        "holdout",
        description="Split protocol: one holdout split, k-fold cross-validation by participant, "
        "leave-one-site-out, or external test sites.",
    )
    folds: int = Field(5, ge=2, description="Number of folds for kfold.")
    repeats: int = Field(1, ge=1, description="Number of repetitions of holdout or kfold with other random splits.")
    balance_sites: bool = Field(
        False, description="Stratification by site in addition to diagnosis, where sites are large enough."
    )
    test_sites: tuple[str, ...] = Field((), description="Test sites for external, such as those of another cohort.")
    test_fraction: float = Field(0.3, gt=0, lt=1, description="Fraction of test participants for holdout.")
    validation_fraction: float = Field(
        0.12,
        gt=0,
        lt=1,
        description="Fraction of the remaining participants used for validation curves and calibration.",
    )


class TrainParams(Section):
    """How the ResNet50 is fitted."""

    weights: str = Field(
        "random",
        description="Initial weights: random, imagenet (torchvision's, downloaded once), path:FILE (safetensors or a "
        "state dict), or adlib:FILE (a model of this project with the same input).",
    )
    frozen_stages: int = Field(0, ge=0, le=4, description="Number of frozen ResNet stages, including the stem.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate before the last layer.")
    covariates: tuple[Literal["age", "sex"], ...] = Field(
        (), description="Covariates concatenated to the image features; missing values are replaced by the mean."
    )
    epochs: int = Field(12, ge=1, description="Number of epochs.")
    batch_size: int = Field(32, ge=2, description="Slices per optimiser step, over all devices.")
    micro_batches: int = Field(
        1, ge=1, description="Number of gradient-accumulation parts of a step, which devices share."
    )
    learning_rate: float = Field(0.001, gt=0, description="Maximum learning rate of the one-cycle schedule.")
    warmup: float = Field(0.25, gt=0, lt=1, description="Fraction of all steps before the maximum learning rate.")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Label smoothing of the cross-entropy.")
    mixup: float = Field(0.0, ge=0, description="Alpha of mixup's Beta distribution; 0 disables it.")
    balance: Literal["weights", "sampling", "none"] = Field(
        "weights", description="Class balancing: class weights in the loss, balanced sampling of participants, or none."
    )
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of the exponential moving average of the weights (EMA); 0 disables it.",
    )
    patience: int = Field(
        0,
        ge=0,
        description="Early stopping: epochs without better balanced accuracy of validation participants; 0 "
        "disables it.",
    )
    auxiliary_weight: float = Field(
        0.5, ge=0, description="Loss weight of the auxiliary regression of age and volumes; 0 disables it."
    )
    augment: Literal["none", "light", "mri"] = Field(
        "light",
        description="Augmentation: light (small affine, flip, gain, noise); mri adds bias field, gamma, motion "
        "and ghosting (TorchIO).",
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="Random seed of initial weights, sampling and augmentation; empty for that of the study.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Autocast precision; auto uses bf16 where the device supports it.",
    )
    members: int = Field(
        1, ge=1, description="Number of networks per fold whose probabilities are averaged (ensemble)."
    )
    controls: tuple[Control, ...] = Field(
        ("shuffled_labels",),
        description="Control trainings: permuted labels, slice-level split (leakage), background only, "
        "binarised brain, acquisition metadata as covariates.",
    )

    @property
    def weights_file(self) -> Path | None:
        """The file that `weights` names; None where it names none."""
        kind, colon, name = self.weights.partition(":")
        if kind not in ("path", "adlib") or not colon:
            return None
        return Path(name) / "model.safetensors" if Path(name).is_dir() else Path(name)
