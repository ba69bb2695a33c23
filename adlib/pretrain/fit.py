"""A ResNet50 learns to tell what is known of simulated heads; its training can be stopped and gone on with."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from adlib.device import takes_bf16
from adlib.model import Network, read_state
from adlib.pretrain.looks import images
from adlib.pretrain.products import use_products
from adlib.pretrain.targets import VOLUMES, Targets, make_targets
from adlib.records import StudyError, atomic_path, digest
from adlib.threads import keep_memory, one_thread

FORMAT = "adlib-pretrained-1"
CLIP_NORM = 5.0
BETA = 0.5
CHECKED = 64  # heads kept unseen, on which progress is measured
WEIGHTS, CHECKPOINT = "pretrained.safetensors", "checkpoint.pt"


@dataclass(frozen=True)
class Settings:
    """How the pretraining runs.

    Attributes
    ----------
    images : int
        How many images are seen, each of the three slices of a head as channels.
    batch, seed : int
    learning_rate, weight_decay : float
        Of AdamW.
    size : int
        Edge of the images, pixels.
    warmup : int
        Steps until the learning rate is reached.
    decay : float
        Share of the steps at the end over which it falls to zero; before, it is constant (arXiv:2405.18392).
    every : int
        Steps from checkpoint to checkpoint.
    """

    images: int = 36_864
    batch: int = 64
    seed: int = 20
    learning_rate: float = 0.001
    weight_decay: float = 0.05
    size: int = 64
    warmup: int = 50
    decay: float = 0.2
    every: int = 50

    @property
    def steps(self) -> int:
        return max(self.images // self.batch, 1)

    @property
    def falls_from(self) -> int:
        """The first step of the decay."""
        return self.steps - round(self.decay * self.steps)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        left = (self.steps - step) / max(self.steps - self.falls_from, 1)
        return self.learning_rate * min((step + 1) / self.warmup, 1.0, left)

    @property
    def key(self) -> str:
        """What a checkpoint must agree on; how long the training is to last, and its decay, are not part of it."""
        fixed = {name: value for name, value in asdict(self).items() if name not in ("images", "decay", "every")}
        return digest(fixed)


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network, the names of its outputs and their mean and spread over the simulated heads."""

    network: Network
    names: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray


@dataclass
class _State:
    network: Network
    optimizer: torch.optim.Optimizer
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path, key: str) -> None:
        content = {"key": key, "step": self.step, "history": self.history}
        with atomic_path(path) as temporary:
            torch.save(
                content | {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}, temporary
            )

    def load(self, path: Path, settings: Settings, key: str) -> None:
        """Go on from a checkpoint, if there is one.

        Raises
        ------
        StudyError
            If it was made by other settings or on other heads, or lies in a decay that ends elsewhere.
        """
        if not path.is_file():
            return
        stored = torch.load(path, weights_only=True)
        if stored["key"] != key:
            raise StudyError(f"{path} was made by other settings or heads; give another folder or delete it")
        self.step, self.history = stored["step"], stored["history"]
        planned = [(int(row["falls_from"]), int(row["steps"])) for row in self.history[-1:]]
        asked = (settings.falls_from, settings.steps)
        if planned not in ([], [asked]) and self.step > min(asked[0], planned[0][0]):
            raise StudyError(
                f"{path} is at step {self.step} of a training whose learning rate falls from step {planned[0][0]} to "
                f"{planned[0][1]}, asked for {asked[0]} to {asked[1]}; finish it as planned, or give another folder"
            )
        self.network.load_state_dict(stored["network"])
        self.optimizer.load_state_dict(stored["optimizer"])


def pretrain(planes: np.ndarray, facts: np.ndarray, folder: Path, settings: Settings) -> Path:
    """Train on simulated heads; all but the last `CHECKED` of them are learnt from.

    Randomness comes from (seed, step) alone, so that a run resumed from ``checkpoint.pt`` ends with the same weights as
    one that was never interrupted.

    Parameters
    ----------
    planes : (n, 3, 6, H, W) uint8
    facts : (n, 9) float32
        Both from `planes.read_shards`.
    folder : path
        Receives ``checkpoint.pt`` and, at the end, ``pretrained.safetensors``, whose tensors are named as torchvision's
        ResNet50 names them; ``train.weights: path:`` of a study loads its body.
    settings : Settings

    Returns
    -------
    path
        The weights file.

    Raises
    ------
    StudyError
        If there are too few heads, the loss is no longer finite, or a checkpoint belongs to another training.
    """
    if len(planes) < CHECKED + settings.batch:
        raise StudyError(f"{len(planes)} heads are too few; give at least {CHECKED + settings.batch}")
    targets = make_targets(planes, facts, slice(0, len(planes) - CHECKED))
    keep_memory()
    with one_thread():
        state = _start(targets, settings)
        key = digest([settings.key, len(planes), digest(np.asarray(facts, float).tolist())])
        state.load(folder / CHECKPOINT, settings, key)
        while state.step < settings.steps:
            _run(state, planes, targets, settings)
            state.history.append(_checked(state, planes, targets, settings))
            state.save(folder / CHECKPOINT, key)
            print(_line(state.history[-1]), flush=True)
    return save_pretrained(Pretrained(state.network, targets.names, targets.mean, targets.sd), folder / WEIGHTS)


def _start(targets: Targets, settings: Settings) -> _State:
    torch.manual_seed(settings.seed)
    network = Network(len(targets.names)).to(memory_format=torch.channels_last)
    use_products(network)
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    return _State(network, optimizer)


def _run(state: _State, planes: np.ndarray, targets: Targets, settings: Settings) -> None:
    """Train until the next checkpoint."""
    state.network.train()
    learnt = len(planes) - CHECKED
    bf16 = takes_bf16("auto", torch.device("cpu"))
    for step in range(state.step, min(state.step - state.step % settings.every + settings.every, settings.steps)):
        rows = _rows(step, learnt, settings)
        generator = torch.Generator().manual_seed(_seed(settings, 1, step))
        x = images(torch.from_numpy(planes[rows]), settings.size, generator)
        for group in state.optimizer.param_groups:
            group["lr"] = settings.rate(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            told = state.network(x.contiguous(memory_format=torch.channels_last)).float()  # (B, T)
        loss = _loss(told, rows, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(state.network.parameters(), CLIP_NORM)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step = step + 1
    if not torch.isfinite(loss):
        raise StudyError(f"the loss of step {state.step} is not finite; lower learning_rate")


def _seed(settings: Settings, purpose: int, number: int) -> int:
    return int(np.random.default_rng([settings.seed, purpose, number]).integers(2**31))


def _rows(step: int, count: int, settings: Settings) -> np.ndarray:
    """Heads (B,) of a step: a permutation of all of them is used up before the next one is drawn."""
    places = np.arange(step * settings.batch, (step + 1) * settings.batch)
    orders = {turn: np.random.default_rng([settings.seed, 2, turn]).permutation(count) for turn in set(places // count)}
    return np.array([orders[place // count][place % count] for place in places])


def _loss(told: torch.Tensor, rows: np.ndarray, targets: Targets) -> torch.Tensor:
    weight = torch.from_numpy(targets.weight)
    each = nn.functional.smooth_l1_loss(told, torch.from_numpy(targets.values[rows]), beta=BETA, reduction="none")
    return (each * weight).sum(1).mean() / weight.sum()


@torch.inference_mode()
def _checked(state: _State, planes: np.ndarray, targets: Targets, settings: Settings) -> dict[str, float]:
    """Loss and explained variance on unseen heads, in looks that are always the same."""
    rows = np.arange(len(planes) - CHECKED, len(planes))
    generator = torch.Generator().manual_seed(_seed(settings, 3, 0))
    x = images(torch.from_numpy(planes[rows]), settings.size, generator)
    state.network.eval()
    told = state.network(x.contiguous(memory_format=torch.channels_last))
    found = {"step": state.step, "steps": settings.steps, "falls_from": settings.falls_from, "time": time.time()}
    found["loss"] = float(_loss(told, rows, targets))
    truth = targets.values[rows, : len(VOLUMES)]
    unexplained = ((told.numpy()[:, : len(VOLUMES)] - truth) ** 2).mean(0) / truth.var(0)
    return found | {f"r2_{name}": float(1 - value) for name, value in zip(VOLUMES, unexplained, strict=True)}


def _line(row: dict[str, float]) -> str:
    scores = "  ".join(f"{name} {row[f'r2_{name}']:.2f}" for name in VOLUMES)
    return f"step {row['step']}/{row['steps']}  loss {row['loss']:.4f}  R²: {scores}"


def save_pretrained(made: Pretrained, path: Path) -> Path:
    """Write weights and what the outputs mean as one safetensors file."""
    state = {name: value.detach().contiguous() for name, value in made.network.state_dict().items()}
    card = json.dumps({"names": made.names, "mean": made.mean.tolist(), "sd": made.sd.tolist()}, sort_keys=True)
    with atomic_path(path) as temporary:
        save_file(state, temporary, {FORMAT: card})
    return path


def load_pretrained(path: Path) -> Pretrained:
    """Read a file that `save_pretrained` wrote.

    Raises
    ------
    StudyError
        If it is missing, damaged, or another kind of file.
    """
    state, metadata = read_state(path)
    if FORMAT not in metadata:
        raise StudyError(f"{path} has no {FORMAT!r} in its metadata; make one with python -m adlib.pretrain")
    card = json.loads(metadata[FORMAT])
    network = Network(len(card["names"]))
    network.load_state_dict(state)
    return Pretrained(network.eval(), tuple(card["names"]), np.array(card["mean"]), np.array(card["sd"]))
