"""What the network runs on, in which precision, and on how many devices at once."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from adlib.parallel.threads import keep_memory
from adlib.study.params import StudyParams


def pick_device(name: str) -> torch.device:
    """The device of the exec params; ``auto`` takes CUDA or MPS where there is one."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def takes_bf16(precision: str, device: torch.device) -> bool:
    """Whether the forward pass runs in bfloat16; ``auto`` does where the device need not emulate it.

    A processor without such instructions takes about twenty times as long in bfloat16 as in float32.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def is_worker() -> bool:
    """Whether this process is one of several that torchrun started to train together."""
    return torch.distributed.is_torchelastic_launched()


def make_fabric(params: StudyParams) -> Fabric:
    """Lightning Fabric on the study's device: one process or, in a process of torchrun, one of several."""
    device = pick_device(params.exec.device)
    together = {}
    if is_worker():
        together = {"strategy": DDPStrategy(broadcast_buffers=False), "num_nodes": params.exec.nodes}
    if device.type == "cpu":
        keep_memory()
    precision = "bf16-mixed" if takes_bf16(params.train.precision, device) else "32-true"
    devices = params.exec.devices if is_worker() else 1
    fabric = Fabric(accelerator=device.type, devices=devices, precision=precision, **together)
    fabric.launch()
    return fabric
