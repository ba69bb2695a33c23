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
        description="One split, cross-validation by participant, each site tested by the others, or the named sites "
        "tested by all others.",
    )
    folds: int = Field(5, ge=2, description="Number of folds for kfold.")
    repeats: int = Field(1, ge=1, description="How often holdout or kfold is repeated with other random splits.")
    balance_sites: bool = Field(
        False, description="Spread sites evenly over tested and trained participants too, where they are large enough."
    )
    test_sites: tuple[str, ...] = Field((), description="Sites that are tested for external: another cohort's.")
    test_fraction: float = Field(0.3, gt=0, lt=1, description="Share of participants held out for holdout.")
    validation_fraction: float = Field(
        0.12, gt=0, lt=1, description="Share of the rest that draws the validation curve and fits the temperature."
    )


class TrainParams(Section):
    """How the ResNet50 is fitted."""

    weights: str = Field(
        "imagenet",
        description="imagenet (random where it cannot be had), random, path:FILE (safetensors or a state dict), or "
        "adlib:FILE (a model of this project whose input is the study's own).",
    )
    frozen_stages: int = Field(
        0, ge=0, le=4, description="Leave the stem and so many of the four stages as they were loaded."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of features dropped before the last layer.")
    covariates: tuple[Literal["age", "sex"], ...] = Field(
        (), description="What the last layer is told beside the image; unknown values count as the mean."
    )
    epochs: int = Field(12, ge=1, description="Passes over the training participants.")
    batch_size: int = Field(32, ge=2, description="Slices per step, over all devices.")
    micro_batches: int = Field(
        1, ge=1, description="Parts of a step that are computed one by one, or each on a device, and then added up."
    )
    learning_rate: float = Field(0.001, gt=0, description="Peak of the one-cycle schedule.")
    warmup: float = Field(0.25, gt=0, lt=1, description="Share of all steps before the peak of the schedule.")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Cross-entropy label smoothing.")
    mixup: float = Field(
        0.0, ge=0, description="Mix pairs of slices and their labels by a share drawn from Beta(a, a); 0: not."
    )
    balance: Literal["weights", "sampling", "none"] = Field(
        "weights", description="Against unequal classes: weigh the loss, or draw the classes' participants evenly."
    )
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of a moving average of the weights, which then answers; 0: none.",
    )
    patience: int = Field(
        0,
        ge=0,
        description="Stop after so many epochs without a better balanced accuracy of validation participants, and take "
        "the best epoch; 0: the last epoch is used.",
    )
    auxiliary_weight: float = Field(
        0.5, ge=0, description="Weight of telling age and volumes beside the class; 0 switches it off."
    )
    augment: Literal["none", "light", "mri"] = Field(
        "light",
        description="light: small affine, flip, gain, noise; mri: also bias field, gamma, motion, ghosts (TorchIO).",
    )
    seed: int | None = Field(
        None, ge=0, description="Seed of first weights, order and augmentation; empty: the study's seed."
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Autocast type of the forward pass; auto takes bf16 where the device has instructions for it.",
    )
    members: int = Field(1, ge=1, description="Networks per fold, from other seeds, whose answers are averaged.")
    controls: tuple[Control, ...] = Field(
        ("shuffled_labels",),
        description="Extra trainings: labels dealt out, slices split without regard to participants, brain cut out, "
        "brain as a silhouette, scanner metadata told beside the image.",
    )

    @property
    def weights_file(self) -> Path | None:
        """The file that `weights` names; None where it names none."""
        kind, colon, name = self.weights.partition(":")
        if kind not in ("path", "adlib") or not colon:
            return None
        return Path(name) / "model.safetensors" if Path(name).is_dir() else Path(name)
