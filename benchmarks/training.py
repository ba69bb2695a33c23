"""The study's training against torchvision's reference recipe and MONAI's trainer, on the same network and slices.

    python benchmarks/training.py [--size 96] [--batch 32] [--steps 6] [--rounds 3]

All three train ResNet50 on made slices with the same batch, size and targets and without augmentation, each in a
process of its own after an epoch to warm up, in turns, so that other work on the machine falls on all alike; the
median over the rounds counts. torchvision's recipe (references/classification, train_one_epoch) and MONAI's
SupervisedTrainer run as they are published: float32 and the default memory layout; on CUDA with the automatic mixed
precision that both offer. MONAI is left out where it is not installed. Then the study's own training goes on for a
few epochs with its augmentations: how much of the time it waits for slices, and how far its memory grows. The last
lines have the figures and their goals, and the exit code is 1 where one is missed.
"""

import argparse
import importlib.util
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from goals import count_missed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet50

from adlib.study.params import StudyParams, load_params
from adlib.training import loop as fit
from adlib.training.devices import make_fabric, takes_bf16
from adlib.training.folds import Fold
from adlib.training.recipe import Recipe

CLASSES = 4
OWN = "adlib"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"size": 96, "batch": 32, "steps": 6, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    runs = {OWN: study_epoch, "torchvision's recipe": torchvision_recipe}
    if importlib.util.find_spec("monai") and importlib.util.find_spec("ignite"):
        runs["MONAI's trainer"] = monai_trainer
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            speeds[name].append(apart(speed, run, args))
    for name, found in speeds.items():
        ratio = np.median(speeds[OWN]) / np.median(found)
        print(f"{name:22s} {np.median(found):8.1f} slices/s   adlib is {ratio:.2f} times as fast", flush=True)
    waits = {kind: apart(waiting, args, kind) for kind in ("light", "mri")}
    for kind, (waited, growth) in waits.items():
        print(f"augmentation {kind:9s} {waited:8.1%} of the time waiting for slices, memory grows by {growth:.1%}")
    fastest = max(np.median(found) for name, found in speeds.items() if name != OWN)
    kind = "bf16" if takes_bf16("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")) else "fp32"
    missed = count_missed(
        (f"speed of adlib ({kind}) over that of the faster peer", float(np.median(speeds[OWN]) / fastest), ">=", 1.7),
        ("share of time waiting for slices, light augmentation", waits["light"][0], "<=", 0.05),
        ("growth of memory", max(growth for _, growth in waits.values()), "<=", 0.05),
    )
    return int(missed > 0)


def speed(run: Callable[..., Callable[[], object]], args: argparse.Namespace) -> float:
    """Slices a second of the second epoch."""
    fold = made_fold(args.size, args.batch * args.steps)
    epoch = run(fold, args)
    epoch()
    start = time.perf_counter()
    epoch()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return len(fold.table) / (time.perf_counter() - start)


def made_fold(size: int, count: int) -> Fold:
    rng = np.random.default_rng(0)
    slices = rng.normal(size=(count, 3, size, size)).astype(np.float16)
    names = [f"sub-{k:04d}" for k in range(count)]
    table = pd.DataFrame(
        {"participant_id": names, "session_id": "ses-01", "scan_id": names, "slice": 0, "split": "train"}
    )
    targets = rng.integers(CLASSES, size=count)
    return Fold("benchmark", 0, 1, slices, table, targets, *[np.zeros((count, 0), np.float32)] * 2)


def study_of(args: argparse.Namespace, augment: str) -> StudyParams:
    sets = ("weights=random", "precision=auto", f"augment={augment}", f"batch_size={args.batch}")
    path = Path(__file__).parents[1] / "params" / "phantom.yaml"
    return load_params(path, tuple(f"train.{setting}" for setting in sets))


def torchvision_recipe(fold: Fold, args: argparse.Namespace) -> Callable[[], None]:
    """One epoch as references/classification of torchvision trains: SGD, momentum 0.9, cross-entropy."""
    device, network, loader = _peer(fold, args)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    criterion, amp = nn.CrossEntropyLoss(), device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=amp)

    def epoch() -> None:
        network.train()
        for image, target in loader:
            image, target = image.to(device), target.to(device)
            with torch.amp.autocast(device.type, enabled=amp):
                loss = criterion(network(image), target)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            loss.item()  # the reference logs it at every step

    return epoch


def monai_trainer(fold: Fold, args: argparse.Namespace) -> Callable[[], None]:
    """One epoch of MONAI's SupervisedTrainer with its defaults."""
    from monai.engines import SupervisedTrainer

    device, network, loader = _peer(fold, args)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def epoch() -> None:
        SupervisedTrainer(
            device=device,
            max_epochs=1,
            train_data_loader=loader,
            network=network,
            optimizer=optimizer,
            loss_function=nn.CrossEntropyLoss(),
            prepare_batch=lambda batch, device, non_blocking, **_: tuple(part.to(device) for part in batch),
            amp=device.type == "cuda",
        ).run()

    return epoch


def _peer(fold: Fold, args: argparse.Namespace) -> tuple[torch.device, nn.Module, DataLoader]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = TensorDataset(torch.from_numpy(fold.slices.astype(np.float32)), torch.from_numpy(fold.targets))
    return device, resnet50(num_classes=CLASSES).to(device), DataLoader(data, args.batch, shuffle=True)


def study_epoch(fold: Fold, args: argparse.Namespace, augment: str = "none") -> Callable[[], tuple[float, float]]:
    """One epoch of the study's own loop; returns its loss and the share of time it waited."""
    params = study_of(args, augment)
    fabric = make_fabric(params)
    fit.repeat_exactly(fabric.device)
    recipe = Recipe()
    network, _ = fit.initial_network(fold, params, recipe)
    network = network.to(fabric.device, memory_format=torch.channels_last)
    progress = fit.start(network, params, recipe, args.steps * 100)
    progress.wrapped = fabric.setup(progress.network, progress.optimizer)
    return lambda: fit.train_epoch(fold, progress, params, recipe, [0, 0, 0, 0], fabric)


def waiting(args: argparse.Namespace, augment: str) -> tuple[float, float]:
    """Share of time spent waiting in later epochs, and growth of peak memory after the second one."""
    run, shares, peaks = study_epoch(made_fold(args.size, args.batch * args.steps), args, augment), [], []
    for _ in range(5):
        shares.append(run()[1])
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return float(np.median(shares[1:])), peaks[-1] / peaks[1] - 1


def apart(function: Callable, *arguments):
    """Call in a fresh process, so that memory and warm-up are the function's own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    sys.exit(main())
