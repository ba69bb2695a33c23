"""``python -m adlib.pretrain --out DIR --heads N --images N`` samples heads and pretrains a ResNet50 on them."""

from __future__ import annotations

import argparse
from pathlib import Path

from adlib.exec_params import Pool
from adlib.pretrain.fit import Settings, pretrain
from adlib.pretrain.planes import read_shards, write_shards


def main() -> None:
    """Sample what is lacking, train what is left to train."""
    parser = argparse.ArgumentParser(prog="python -m adlib.pretrain", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="receives heads/, checkpoint.pt, pretrained.safetensors"
    )
    parser.add_argument("--heads", type=int, default=2500, help="simulated heads")
    parser.add_argument("--images", type=int, default=Settings.images, help="images seen in training")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate heads; 0 takes every core")
    options = parser.parse_args()
    write_shards(options.out / "heads", options.heads, options.seed, pool=Pool(workers=options.workers))
    planes, facts = read_shards(options.out / "heads", options.heads)
    print(pretrain(planes, facts, options.out, Settings(images=options.images, seed=options.seed)))


if __name__ == "__main__":
    main()
