"""Intracranial space, tissues, hippocampi and lateral ventricles of a registered head, by 3-D U-Nets.

One sees the whole head, one the inner part of one hemisphere, one the surroundings of one hippocampus; the right side
is seen mirrored.

References
----------
Çiçek et al. 2016, doi:10.1007/978-3-319-46723-8_49 (3-D U-Net).
"""

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from adlib.imaging.atlas import Template
from adlib.imaging.volume import block_mean, resample, voxel_ml
from adlib.study.records import StudyError

WEIGHTS = Path(__file__).with_name("anatomy.safetensors")  # by benchmarks/anatomy_network.py
DIGEST = "d659927df5a16768f8081f00ffe2ec53bbcdf80f603d978e011b4b71fad7f745"  # SHA-256 of the weights
TISSUES = ("background", "gm", "wm", "csf")
SIDE_PARTS = ("elsewhere", "hippocampus", "amygdala", "ventricle")
INNER_PARTS = SIDE_PARTS[:3]
INTRACRANIAL = 0.67  # least share of a voxel; half of it would add 10 % to the fluid of real heads
FLOOR = 0.02  # a share below it counts for nothing: all voxels without a region together would add 8 % to a hippocampus
BRIGHT = 95.0  # percentile of the intensities that becomes 1


@dataclass(frozen=True)
class Grid:
    """A box of MNI152 space.

    Attributes
    ----------
    corner_mm : tuple of float
        Place of the first voxel, RAS.
    shape : tuple of int
        Divisible by 2 for each level of the network but one.
    edge_mm : float
        Of a voxel.
    """

    corner_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    edge_mm: float = 2.0

    def affine(self, *, mirrored: bool = False) -> np.ndarray:
        """Voxel indices to MNI152, RAS mm, (4, 4).

        Parameters
        ----------
        mirrored : bool
            At the midline.
        """
        grid = nib.affines.from_matvec(np.diag([self.edge_mm] * 3), self.corner_mm)
        return np.diag([-1.0, 1.0, 1.0, 1.0]) @ grid if mirrored else grid


HEAD = Grid((-80.0, -116.0, -74.0), (80, 104, 88))
SIDE = Grid((-58.0, -86.0, -44.0), (32, 68, 48))  # the left one
INNER = Grid((-48.0, -50.0, -42.0), (32, 40, 36), 1.5)


class UNet(nn.Module):
    """A U-Net with instance normalisation.

    Parameters
    ----------
    widths : tuple of int
        Channels of each level.
    outputs : int
    """

    def __init__(self, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        levels = zip((1, *widths[:-1]), widths, strict=True)
        self.down = nn.ModuleList(_block(i, o, 1 if k == 0 else 2) for k, (i, o) in enumerate(levels))
        self.narrow = nn.ModuleList(nn.Conv3d(b, a, 1, bias=False) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_block(2 * a, a, 1) for a in widths[:-1])
        self.last = nn.Conv3d(widths[0], outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of each class.

        Parameters
        ----------
        x : (N, 1, X, Y, Z) tensor

        Returns
        -------
        (N, outputs, X, Y, Z) tensor
        """
        levels = []
        for block in self.down:
            x = block(x)
            levels.append(x)
        for level, narrow, block in zip(levels[-2::-1], self.narrow[::-1], self.up[::-1], strict=True):
            x = functional.interpolate(narrow(x), size=level.shape[2:], mode="trilinear", align_corners=False)
            x = block(torch.cat([level, x], 1))
        return self.last(x)


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    def step(channels: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv3d(channels, outputs, 3, stride, 1, bias=False)
        return [convolution, nn.GroupNorm(outputs, outputs), nn.LeakyReLU(0.01)]

    return nn.Sequential(*step(inputs, stride), *step(outputs, 1))


class Networks(nn.Module):
    """The networks of the head, of one side and of the surroundings of one hippocampus."""

    def __init__(self) -> None:
        super().__init__()
        self.head = UNet((8, 20, 40, 80), len(TISSUES))
        self.side = UNet((12, 24, 48), len(SIDE_PARTS))
        self.inner = UNet((32, 32, 64), len(INNER_PARTS))


@dataclass(frozen=True)
class Anatomy:
    """What the networks find in a head.

    Attributes
    ----------
    shares : (4, 80, 104, 88) float32
        Of each of `TISSUES` in every voxel of `HEAD`; they sum to 1.
    regions : dict of str to float
        ``hippocampus_left``, ..., ``ventricle_right``: ml of MNI152 space.
    """

    shares: np.ndarray
    regions: dict[str, float]


def find_anatomy(volume: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray) -> Anatomy:
    """Tissues and regions of a registered scan.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        The scan in canonical orientation, in any unit; skull and scalp may be absent.
    affine : (4, 4) array
        Voxel indices to world, RAS mm.
    scan_to_mni : (4, 4) array
        World to world, mm.

    Returns
    -------
    Anatomy
        The intracranial space is found also where brain extraction took fluid away.
    """
    to_scan, lowest = np.linalg.inv(scan_to_mni), volume.min()

    def shares(network: UNet, box: Grid, sides: tuple[bool, ...]) -> np.ndarray:
        small, grid = block_mean(volume, affine, box.edge_mm)
        grids = [box.affine(mirrored=mirrored) for mirrored in sides]
        boxes = [resample(small, grid, box.shape, onto, to_scan, outside=lowest) for onto in grids]
        with torch.inference_mode():
            images = torch.from_numpy(np.stack([scaled(part - lowest) for part in boxes]))
            return network(images[:, None]).softmax(1).numpy()

    networks, both = packaged_networks(), (False, True)
    volumes = side_volumes(shares(networks.side, SIDE, both), SIDE)
    volumes[:, :-1] = side_volumes(shares(networks.inner, INNER, both), INNER)
    names = [f"{region}_{side}" for side in ("left", "right") for region in SIDE_PARTS[1:]]
    regions = {name: float(volume) for name, volume in zip(names, volumes.ravel(), strict=True)}
    return Anatomy(shares(networks.head, HEAD, (False,))[0], regions)


def onto_template(share: np.ndarray, base: Template) -> np.ndarray:
    """A share of each voxel of `HEAD` on the template's grid.

    Parameters
    ----------
    share : (80, 104, 88) float32
    base : Template

    Returns
    -------
    (X, Y, Z) float32
        0 beyond `HEAD`.
    """
    return resample(share, HEAD.affine(), base.mask.shape, base.affine)


def side_volumes(parts: np.ndarray, box: Grid) -> np.ndarray:
    """Volume of each region on its side of the midline.

    Parameters
    ----------
    parts : (N, C, X, Y, Z) float32
        Shares of the classes of each voxel of `box`, the background first.
    box : Grid

    Returns
    -------
    (N, C - 1) float64
        ml.
    """
    x = box.corner_mm[0] + box.edge_mm * np.arange(box.shape[0])
    own = np.where(x < 0, 1.0, 0.0) + np.where(x == 0, 0.5, 0.0)
    return np.where(parts > FLOOR, parts, 0)[:, 1:].sum(axis=(3, 4), dtype=np.float64) @ own * voxel_ml(box.affine())


def scaled(image: np.ndarray) -> np.ndarray:
    """Divide by the `BRIGHT` percentile of what lies above 0 in the middle.

    Parameters
    ----------
    image : (X, Y, Z) float32

    Returns
    -------
    (X, Y, Z) float32
    """
    middle = image[tuple(slice(n // 7, -(n // 7)) for n in image.shape)]
    return image / np.float32(np.percentile(middle[middle > 0], BRIGHT) if (middle > 0).any() else 1.0)


def load_networks(path: Path) -> Networks:
    """Networks with the weights of a file.

    Parameters
    ----------
    path : path
        Safetensors of `Networks`, 16 bit.

    Returns
    -------
    Networks
        On the processor, for inference.
    """
    networks = Networks()
    networks.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return networks.eval()


@cache
def packaged_networks() -> Networks:
    """The networks of `WEIGHTS`.

    Raises
    ------
    StudyError
        If the file is not that of `DIGEST`.
    """
    if not WEIGHTS.is_file() or sha256(WEIGHTS.read_bytes()).hexdigest() != DIGEST:
        raise StudyError(f"{WEIGHTS} is missing or not the one that belongs to this version; install adlib again")
    return load_networks(WEIGHTS)
