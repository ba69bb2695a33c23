"""One process of a training on several devices; torchrun starts it, see `adlib.launch`."""

from __future__ import annotations

import sys
from pathlib import Path

from adlib.params import load_params
from adlib.train import train_study

if __name__ == "__main__":
    train_study(load_params(Path(sys.argv[1])), sys.argv[2])
