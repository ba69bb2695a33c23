"""What the network runs on, and in which precision."""

from __future__ import annotations

import torch


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
