"""Train the networks of `adlib.preprocess.anatomy` on real heads with regions by DLMUSE; judge them on heads left out.

    python benchmarks/anatomy_network.py folds    # the networks three times, each time without a third of the heads
    python benchmarks/anatomy_network.py final    # all heads; writes the weights

Reads ``t1w_elderly`` in the folder that ADLIB_REALDATA names. Some heads are simulated, and some sides are those of the
template. Each step draws a head, mirrors it or not, warps it (rotation, scale, smooth displacement, hippocampus and
ventricles shrunk or grown), and draws its contrast, bias field, resolution, noise, and whether skull and scalp are
there. Checkpoints in ``outputs/anatomy`` are gone on from.

References
----------
Billot et al. 2023, doi:10.1016/j.media.2023.102789 (training on randomised contrast and shape).
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from adlib.imaging import atlas
from adlib.imaging.volume import resample, to_canonical
from adlib.phantom.cohort import SCANNERS, draw_cohort
from adlib.phantom.head import MEASURED, Subject, image_head
from adlib.preprocess.anatomy import (
    FLOOR,
    HEAD,
    INNER,
    SIDE,
    WEIGHTS,
    Grid,
    Networks,
    UNet,
    packaged_networks,
    scaled,
    side_volumes,
)
from adlib.preprocess.pipeline import checked_volume
from adlib.preprocess.registration import register
from adlib.sources.scanfile import open_scan
from adlib.study.source_params import PhantomSource

LABELS = {  # of DLMUSE; what is not named is grey matter
    "gm": (),
    "wm": (35, 40, 41, 44, 45, 61, 62, 69, *range(81, 96)),
    "csf": (1, 4, 11, 46),
    "hippocampus": (47, 48),
    "amygdala": (31, 32),
    "ventricle": (49, 50, 51, 52),
}
ALLEN = {"hippocampus": range(105, 108), "amygdala": range(16, 26), "ventricle": range(57, 61)}
CLASSES = ("CN", "MCI", "LMCI", "AD")
GM, WM, CSF, HIPPOCAMPUS, AMYGDALA, VENTRICLE = range(6)
GREY, FLUID = [GM, HIPPOCAMPUS, AMYGDALA], [CSF, VENTRICLE]
FOLDS = 3
STEPS = {"head": 1000, "side": 5000, "inner": 9000}
GRIDS = {"head": HEAD, "side": SIDE, "inner": INNER}
OTHERS = {"head": ("phantom", 0.25), "side": ("template", 0.1), "inner": ("template", 0.1)}  # also drawn, and its share
SIZED = "inner"  # the network whose loss holds the sizes of the parts, too
PHANTOMS, SEED = 8, 4001  # simulated heads, and their seed
FIELD_MM = 50.0  # between the knots of a bias field
FILLED = 0.2  # share of the drawn heads whose fluid is filled with tissue
RATE, DECAY, AVERAGED = 2e-3, 1e-4, 0.995
EVEN_UNTIL = 0.6  # of the steps: until then rare classes weigh more, less and less
OUTPUTS = Path("outputs/anatomy")
# Of ventricles and of either hippocampus: how often, and from which to which logarithm. The heads are of old people;
# ventricles of the young are a quarter as large.
SHRINKAGE = ((0.7, -0.5, 1.8), (0.6, -0.6, 0.4), (0.6, -0.6, 0.4))
SHRUNK = (0.16, 0.36)  # logarithms of the sizes that a head is judged by
HALF = torch.tensor([(n - 1) / 2 * HEAD.edge_mm for n in HEAD.shape])  # mm from the centre of `HEAD` to its ends
CENTRE = torch.tensor(HEAD.corner_mm) + HALF


@dataclass(frozen=True)
class Head:
    """A registered head.

    `both`: intensities and shares of `LABELS` (7, X, Y, Z) on `HEAD`; `flows`: of `flow_out_of` (9, X, Y, Z) there;
    `native`: as `both`, on the grid of the scan; `into`: from MNI152, mm, to places in `native` from -1 to 1.
    """

    both: torch.Tensor
    flows: torch.Tensor
    native: torch.Tensor
    into: torch.Tensor


def _places(grid: Grid) -> torch.Tensor:
    """Voxel centres (X, Y, Z, 3), mm from the centre of `HEAD`."""
    axes = [torch.arange(n) * grid.edge_mm + start for n, start in zip(grid.shape, grid.corner_mm, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) - CENTRE


PLACES = {name: _places(grid) for name, grid in GRIDS.items()}


def read_heads(root: Path) -> dict[str, Head]:
    """Registered heads by name, each also mirrored as ``name mirrored``; kept on disk."""
    heads = {}
    for path in sorted((root / "t1w_elderly").glob("*_T1.nii.gz")):
        name = path.name.split("_")[0]
        kept = _kept(name, lambda path=path, name=name: _labelled_head(path, name))
        heads[name], heads[f"{name} mirrored"] = _both_ways(**kept)
    return heads


def read_phantoms() -> dict[str, Head]:
    """Registered simulated heads of all classes; their regions are not labelled."""
    source = PhantomSource(kind="phantom", participants_per_class=PHANTOMS // len(CLASSES), followup_fraction=0.0)
    rows = draw_cohort(source, CLASSES, SEED).to_dict("records")
    return {
        f"phantom {k}": _on_head(_kept(f"phantom-{k}", lambda row=row: _phantom_head(row))["both"][0])
        for k, row in enumerate(rows)
    }


def _kept(name: str, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    path = OUTPUTS / f"{name}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **build())
    return {key: torch.from_numpy(part.astype(np.float32)) for key, part in np.load(path).items()}


def _both_ways(both: torch.Tensor, native: torch.Tensor, into: torch.Tensor) -> tuple[Head, Head]:
    """A head and its mirror image."""
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    return Head(both[0], _flows(both[0]), native, into), Head(both[1], _flows(both[1]), native, into @ mirror)


def read_template(root: Path) -> Head:
    """The average brain of young adults, with regions of the Allen Human Reference Atlas (CC BY 4.0).

    Around its hippocampi there is no fluid, unlike in the heads of old people.
    """
    base, labelled = atlas.template(1.0), nib.load(root / "atlas" / "AllenAtlas.nii.gz")
    labels, own = to_canonical(np.asarray(labelled.dataobj).astype(np.float32), labelled.affine)
    maps = dict(zip(("gm", "wm", "csf"), (base.gm, base.wm, base.csf), strict=True))
    parts = [resample(part, base.affine, HEAD.shape, HEAD.affine()) for part in (base.t1, *maps.values())]
    regions = [resample(np.isin(labels, ALLEN[k]).astype(np.float32), own, HEAD.shape, HEAD.affine()) for k in ALLEN]
    rest = 1 - np.clip(sum(regions), 0, 1)
    stacked = np.stack([scaled(parts[0]), *(part * rest for part in parts[1:]), *regions]).astype(np.float32)
    return _on_head(torch.from_numpy(stacked))


def _on_head(both: torch.Tensor) -> Head:
    return Head(both, _flows(both), both, torch.from_numpy(_places_in(HEAD.affine(), HEAD.shape)).float())


def _places_in(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """From world to places in an array that go from -1 to 1, (4, 4)."""
    halves = (np.array(shape) - 1) / 2
    return nib.affines.from_matvec(np.diag(1 / halves), [-1.0, -1.0, -1.0]) @ np.linalg.inv(affine)


def _flows(both: torch.Tensor) -> torch.Tensor:
    left = (PLACES["head"] + CENTRE)[..., 0] < 0
    hippocampi = both[1 + HIPPOCAMPUS]
    parts = (both[1 + VENTRICLE], hippocampi * left, hippocampi * ~left)
    return torch.cat([flow_out_of(part) for part in parts]).half()


def flow_out_of(part: torch.Tensor) -> torch.Tensor:
    """Displacements (3, X, Y, Z), mm, whose divergence is 1 in a part and even elsewhere.

    They are the gradient of a potential (Karaçali & Davatzikos 2006, doi:10.1109/TMI.2006.882141). Where an image is
    sampled s times as far along them, the part shrinks to about exp(-s) of its size.
    """
    waves = torch.meshgrid(*(2 * torch.pi * torch.fft.fftfreq(n, HEAD.edge_mm) for n in part.shape), indexing="ij")
    square = sum(wave**2 for wave in waves)
    square[0, 0, 0] = torch.inf
    potential = -torch.fft.fftn(part) / square
    return torch.stack([torch.fft.ifftn(1j * wave * potential).real for wave in waves])


def _labelled_head(path: Path, name: str) -> dict[str, np.ndarray]:
    """What `Head` holds but for the flows; `both` also of the mirror image, (2, 7, X, Y, Z)."""
    volume, affine = checked_volume(open_scan(path).image, name)
    labelled = nib.load(str(path).replace("_T1.", "_T1_DLMUSE."))
    labels, own = to_canonical(np.asarray(labelled.dataobj).astype(np.float32), labelled.affine)
    kinds = {kind: np.isin(labels, numbers) for kind, numbers in LABELS.items()}
    kinds["gm"] = (labels > 0) & ~np.any(list(kinds.values()), axis=0)
    shares = [resample(kinds[kind].astype(np.float32), own, volume.shape, affine) for kind in LABELS]
    native, to_scan = np.stack([scaled(volume - volume.min()), *shares]), _to_scan(volume, affine, name)
    into = _places_in(affine, volume.shape) @ to_scan
    return {"both": _on_grid(native, affine, to_scan), "native": native.astype(np.float16), "into": into}


def _phantom_head(row: dict[str, Any]) -> dict[str, np.ndarray]:
    scanner = next(scanner for scanner in SCANNERS if scanner.site == row["site"])
    numbers = (row[name] for name in ("severity", "brain_age", "to_mni", "shape_seed", "scan_seed"))
    severity, age, to_mni, *seeds = numbers
    volume, affine, _, fractions = image_head(Subject(severity, age, np.array(to_mni), *seeds), scanner, 1.0)
    shares = [fractions[MEASURED.index(name)] for name in ("gm", "wm", "csf")]
    parts = np.stack([volume - volume.min(), *shares, *np.zeros((3, *volume.shape))]).astype(np.float32)
    return {"both": _on_grid(parts, affine, _to_scan(parts[0], affine, "phantom"))}


def _to_scan(volume: np.ndarray, affine: np.ndarray, name: str) -> np.ndarray:
    return np.linalg.inv(register(volume, affine, name).scan_to_mni)


def _on_grid(parts: np.ndarray, affine: np.ndarray, to_scan: np.ndarray) -> np.ndarray:
    """A head and its mirror image on `HEAD`, (2, 7, X, Y, Z) float16, bright tissue at about 1."""
    grids = [HEAD.affine(mirrored=mirrored) for mirrored in (False, True)]
    both = np.stack([[resample(part, affine, HEAD.shape, grid, to_scan) for part in parts] for grid in grids])
    both[:, 0] = [scaled(image) for image in both[:, 0]]
    return both.astype(np.float16)


def draw(rng: np.random.Generator, head: Head, which: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A head of another shape, size, contrast and quality on a grid, and the shares of its classes (C, X, Y, Z)."""
    image, shares = _warped(rng, head, which)
    shares = shares.clamp(0, 1)
    if which != "head" and rng.random() < FILLED:
        image, shares = _filled(rng, image, shares)
    image = torch.from_numpy(scaled(_imaged(rng, image, shares, GRIDS[which].edge_mm).numpy()))
    return image, classes(shares, which)


def classes(shares: torch.Tensor, which: str) -> torch.Tensor:
    """Shares of the classes of a network, (C, X, Y, Z), from those of `LABELS`, (6, X, Y, Z)."""
    tissues = torch.stack([shares[GREY].sum(0), shares[WM], shares[FLUID].sum(0)])
    parts = {"head": tissues, "side": shares[HIPPOCAMPUS:], "inner": shares[HIPPOCAMPUS:VENTRICLE]}[which].clamp(0, 1)
    return torch.cat([(1 - parts.sum(0, keepdim=True)).clamp(0, 1), parts])


def _filled(rng: np.random.Generator, image: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fluid brought to the intensity of tissue, as where horns are closed; then it is labelled as white matter."""
    fluid = shares[FLUID].sum(0)
    means = [(shares[k] * image).sum() / shares[k].sum().clamp(min=1) for k in (GM, WM)]
    level, amount = means[0] + float(rng.uniform(0.3, 1)) * (means[1] - means[0]), float(rng.uniform(0.6, 1))
    if amount > 0.8:
        shares = shares.clone()
        shares[WM] += fluid
        shares[FLUID] = 0
    return image + amount * fluid * (level - image), shares


def _warped(rng: np.random.Generator, head: Head, which: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and shares (6, X, Y, Z) sampled at displaced points."""
    turn = np.eye(3)
    for k, angle in enumerate(np.radians(rng.normal(0, 6, 3))):
        i, j = [axis for axis in range(3) if axis != k]
        about = np.eye(3)
        about[[i, j], [i, j]], about[i, j], about[j, i] = np.cos(angle), -np.sin(angle), np.sin(angle)
        turn = turn @ about
    turn = turn * np.exp(rng.normal(0, 0.06, 3))
    places = PLACES[which]
    points = places @ torch.from_numpy(turn.T.astype(np.float32)) + torch.from_numpy(rng.normal(0, 3, 3)).float()
    spread, every_mm = rng.uniform(0, 3.5), 30
    knots = tuple(max(2, round(n * GRIDS[which].edge_mm / every_mm)) for n in places.shape[:3])
    points = points + torch.stack([_smooth(rng, knots, spread, places.shape[:3]) for _ in range(3)], -1)
    flows = flows_at(head, points)
    for part, (often, least, most) in enumerate(SHRINKAGE):
        if rng.random() < often:
            points = points + rng.uniform(least, most) * flows[part]
    moved = sampled(head, points)
    return moved[0], moved[1:]


def flows_at(head: Head, points: torch.Tensor) -> torch.Tensor:
    """Flows out of ventricles, left and right hippocampus, (3, X, Y, Z, 3), mm, at points as in `sampled`."""
    flows = functional.grid_sample(head.flows[None].float(), (points / HALF).flip(-1)[None], align_corners=True)[0]
    return flows.unflatten(0, (3, 3)).movedim(1, -1)


def sampled(head: Head, points: torch.Tensor) -> torch.Tensor:
    """Intensities and shares of a head (7, X, Y, Z) at points (X, Y, Z, 3), mm from the centre of `HEAD`."""
    places = (points + CENTRE) @ head.into[:3, :3].T + head.into[:3, 3]
    return functional.grid_sample(head.native[None], places.flip(-1)[None], align_corners=True)[0]


def _smooth(rng: np.random.Generator, knots: tuple[int, ...], spread: float, shape: tuple[int, ...]) -> torch.Tensor:
    """A smooth random field (X, Y, Z)."""
    field = torch.from_numpy(rng.normal(0, spread, (1, 1, *knots))).float()
    return functional.interpolate(field, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0]


def _blurred(image: torch.Tensor, sd: float, axes: tuple[int, ...] = (0, 1, 2)) -> torch.Tensor:
    reach = int(np.ceil(3 * sd))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sd**2))
    result = image[None, None]
    for axis in axes:
        shape, padding = [1, 1, 1], [0, 0, 0]
        shape[axis], padding[axis] = 2 * reach + 1, reach
        result = functional.conv3d(result, (kernel / kernel.sum()).reshape(1, 1, *shape), padding=padding)
    return result[0, 0]


def _imaged(rng: np.random.Generator, image: torch.Tensor, shares: torch.Tensor, edge_mm: float) -> torch.Tensor:
    """Another contrast, bias field, resolution and noise; often without skull and scalp."""
    inside = shares.sum(0).clamp(0, 1)
    if rng.random() < 0.4:
        image = image + _other_contrast(rng, image, shares)
    white = (shares[WM] * image).sum() / shares[WM].sum().clamp(min=1)
    image = (image / white.clamp(min=1e-6)).clamp(min=0) ** float(np.exp(rng.normal(0, 0.2)))
    if rng.random() < 0.5:
        image = image * _extraction(rng, inside, shares, edge_mm)
    elif rng.random() < 0.3:
        image = torch.where(inside > 0.1, image, image * float(rng.uniform(0.3, 1.6)))
    knots = tuple(max(2, round(n * edge_mm / FIELD_MM)) for n in image.shape)
    image = image * torch.exp(_smooth(rng, knots, rng.uniform(0, 0.25), image.shape))
    if rng.random() < 0.4:
        image = _blurred(image, rng.uniform(0.4, 1.6) / edge_mm)
    if rng.random() < 0.15:
        image = _blurred(image, rng.uniform(1.0, 2.4) / edge_mm, (int(rng.integers(3)),))
    noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
    return image + float(rng.uniform(0, 0.06)) * noise * (image > 0)


def _other_contrast(rng: np.random.Generator, image: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """What moves the mean of each tissue elsewhere, in the order of T1-weighted scans."""
    tissues = torch.stack([shares[GREY].sum(0), shares[WM], shares[FLUID].sum(0)])
    means = (tissues * image).sum((1, 2, 3)) / tissues.sum((1, 2, 3)).clamp(min=1)
    grey = rng.uniform(0.5, 0.85)
    target = torch.tensor([grey, 1.0, rng.uniform(0.05, 0.45) * grey]) * means[1]
    return ((target - means).reshape(3, 1, 1, 1) * tissues).sum(0)


def _extraction(rng: np.random.Generator, inside: torch.Tensor, shares: torch.Tensor, edge_mm: float) -> torch.Tensor:
    """A brain mask of some program: loose or tight, with or without the fluid around the brain."""
    mask = (_blurred(inside, rng.uniform(0.6, 3.0) / edge_mm) > rng.uniform(0.2, 0.7)).float()
    if rng.random() < 0.5:
        tissue = shares[[*GREY, WM, VENTRICLE]].sum(0)
        near = functional.max_pool3d(tissue[None, None], 3, 1, 1)[0, 0]
        mask = mask * (_blurred(near, 1.6 / edge_mm) > rng.uniform(0.3, 0.6))
    return mask


def loss_of(logits: torch.Tensor, shares: torch.Tensor, even: float) -> torch.Tensor:
    """Cross-entropy and one minus the mean soft Dice.

    With `even` at 1 a class weighs the inverse root of its frequency, without which small parts are not found for long;
    with 0 all voxels weigh the same, without which small parts are found too large.
    """
    logs, axes = functional.log_softmax(logits.float(), 1), (0, 2, 3, 4)
    weights = shares.mean(axes).clamp(min=1e-4) ** (-0.5 * even)
    entropy = -((shares * logs).sum(axes) * weights).sum() / (shares.sum(axes) * weights).sum()
    found = logs.exp()
    overlap = 2 * (found * shares).sum(axes) / ((found**2).sum(axes) + (shares**2).sum(axes)).clamp(min=1)
    return entropy + 1 - overlap.mean()


def size_error(logits: torch.Tensor, shares: torch.Tensor, edge_mm: float) -> torch.Tensor:
    """Mean absolute logarithm of the found size of each part over the true one; a tenth of a millilitre is nothing."""
    found = logits.float().softmax(1)
    small = 100 / edge_mm**3
    sizes = [torch.where(part > FLOOR, part, 0)[:, 1:].sum((2, 3, 4)) + small for part in (found, shares)]
    return (sizes[0].log() - sizes[1].log()).abs().mean()


def train(heads: dict[str, Head], network: UNet, which: str, seed: int, folder: Path) -> UNet:
    """Train one network from the last checkpoint of a folder; returns the running average of its weights."""
    steps, checkpoint, begun = STEPS[which], folder / f"{which}.pt", 0
    (kind, share), real = OTHERS[which], [name for name in sorted(heads) if name.startswith("Subj")]
    others = [name for name in sorted(heads) if name.startswith(kind)]
    network = network.to(memory_format=torch.channels_last_3d)
    averaged = deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    kept = {"network": network, "averaged": averaged, "optimiser": optimiser}
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        begun = state.pop("step")
        for name, part in kept.items():
            part.load_state_dict(state[name])
    losses = []
    for step in range(begun, steps):
        rng = np.random.default_rng([seed, step])
        optimiser.param_groups[0]["lr"] = float(RATE * min(1, (step + 1) / 50) * (1 + np.cos(np.pi * step / steps)) / 2)
        names = others if rng.random() < share else real
        with torch.no_grad():
            images, shares = (part[None] for part in draw(rng, heads[names[rng.integers(len(names))]], which))
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            logits = network(images[:, None].to(memory_format=torch.channels_last_3d))
        loss = loss_of(logits, shares, max(0.0, 1 - step / (EVEN_UNTIL * steps)))
        if which == SIZED:
            loss = loss + size_error(logits, shares, GRIDS[which].edge_mm)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        with torch.no_grad():
            for one, other in zip(averaged.parameters(), network.parameters(), strict=True):
                one.lerp_(other, 1 - min(AVERAGED, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(f"{folder.name} {which} step {step + 1} of {steps}: loss {np.mean(losses[-100:]):.3f}", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save({name: part.state_dict() for name, part in kept.items()} | {"step": step + 1}, checkpoint)
    return averaged.eval()


def train_networks(heads: dict[str, Head], seed: int, path: Path, trained: Sequence[str]) -> Networks:
    """Train networks and write their weights in 16 bit, with those of the package for one that is not trained."""
    torch.manual_seed(seed)
    networks = Networks()
    for which in GRIDS:
        new, old = getattr(networks, which), getattr(packaged_networks(), which)
        setattr(networks, which, train(heads, new, which, seed, OUTPUTS / path.stem) if which in trained else old)
    save_file({name: value.half().contiguous() for name, value in networks.state_dict().items()}, path)
    return networks.eval()


def judge(networks: Networks, head: Head) -> str:
    """Overlap of the intracranial space, sizes over the true ones, and found and true ml of the left side's regions.

    `recovered` is the share that is found of a shrinkage of the left hippocampus along the flow that training uses.
    """
    image, shares = head.both[0], head.both[1:]
    with torch.inference_mode():
        found = networks.head(torch.from_numpy(scaled(image.numpy()))[None, None]).softmax(1)[0]
    inside, true = 1 - found[0] > 0.5, shares.sum(0) > 0.5
    values = {
        "Dice": 2 * (inside & true).sum() / (inside.sum() + true.sum()),
        "ICV": (1 - found[0]).sum() / shares.sum(),
    }
    for name, share, kinds in zip(("GM", "WM", "CSF"), found[1:], (GREY, [WM], FLUID), strict=True):
        values[name] = share.sum() / shares[kinds].sum()
    places = PLACES["inner"]
    inner, wanted = sizes_at(networks.inner, head, places, "inner")
    for shrinkage in SHRUNK:
        smaller, less = sizes_at(networks.inner, head, places + shrinkage * flows_at(head, places)[1], "inner")
        values[f"recovered {shrinkage}"] = (1 - smaller[0] / inner[0]) / (1 - less[0] / wanted[0])
    ventricle = [sizes[-1] for sizes in sizes_at(networks.side, head, PLACES["side"], "side")]
    sizes = {"hippocampus": (inner[0], wanted[0]), "amygdala": (inner[1], wanted[1]), "ventricle": ventricle}
    return "  ".join(
        [*(f"{k} {float(v):.3f}" for k, v in values.items()), *(f"{k} {a:.2f}/{b:.2f}" for k, (a, b) in sizes.items())]
    )


def sizes_at(network: UNet, head: Head, points: torch.Tensor, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Found and true ml of the parts of a network in a head sampled at `points`."""
    crop = sampled(head, points)
    with torch.inference_mode():
        parts = network(torch.from_numpy(scaled(crop[0].numpy()))[None, None]).softmax(1).numpy()
    true = classes(crop[1:], which)[None].numpy()
    return side_volumes(parts, GRIDS[which])[0], side_volumes(true, GRIDS[which])[0]


def main() -> int:
    """Train and judge, or train on all heads and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("folds", "final"))
    parser.add_argument("--networks", nargs="+", choices=tuple(GRIDS), default=tuple(GRIDS), help="to train")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="file that final writes; that of the package")
    options = parser.parse_args()
    root = os.environ.get("ADLIB_REALDATA")
    if not root:
        print("error: ADLIB_REALDATA names no folder of real heads", file=sys.stderr)
        return 1
    heads = read_heads(Path(root))
    people = sorted({name.split()[0] for name in heads})
    heads["template"] = read_template(Path(root))
    if "head" in options.networks:
        heads |= read_phantoms()
    if options.command == "final":
        train_networks(heads, FOLDS, options.weights, options.networks)
        print("SHA-256, DIGEST of adlib/preprocess/anatomy.py:", sha256(options.weights.read_bytes()).hexdigest())
        return 0
    for fold in range(FOLDS):
        left = people[fold::FOLDS]
        others = {name: head for name, head in heads.items() if name.split()[0] not in left}
        networks = train_networks(others, fold, OUTPUTS / f"fold-{fold}.safetensors", options.networks)
        for name in sorted(heads):
            if name.split()[0] in left:
                print(name, judge(networks, heads[name]), sep="  ", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
