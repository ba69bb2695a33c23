"""One process of a training on several devices; torchrun starts it, see `adlib.training.launch`."""

from __future__ import annotations

import sys
from pathlib import Path

from adlib.study.params import load_params
from adlib.training.runs import train_study

if __name__ == "__main__":
    train_study(load_params(Path(sys.argv[1])), sys.argv[2])
