"""One simulated T1w head: anatomy, atrophy and ageing as smooth invertible warps, and a simulated acquisition."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import fft, ndimage

from adlib.imaging import atlas

FIELD_MM = 3.0
TISSUES = ("gm", "wm", "csf", "bone", "marrow", "scalp", "muscle", "fluid")
MEASURED = ("gm", "wm", "csf", "hippocampus", "ventricles", "temporal")

# Logarithmic volume change per unit of severity (a mean AD patient has severity 1) and per decade of age. The sizes are
# fitted so that the cohort's brain-to-intracranial ratio meets OASIS-1 (Marcus et al. 2007,
# doi:10.1162/jocn.2007.19.9.1498); the ordering follows Karacali & Davatzikos 2006, doi:10.1109/TMI.2006.873221.
_RATES = {
    "disease": {"gm": -0.11, "wm": -0.05, "temporal": -0.28, "hippocampus": -0.58, "ventricles": 0.90},
    "ageing": {"gm": -0.13, "wm": -0.045, "temporal": -0.13, "hippocampus": -0.07, "ventricles": 0.70},
}
REFERENCE_AGE = 45.0


@dataclass(frozen=True)
class Anatomy:
    """The average head on a padded MNI152 grid.

    Attributes
    ----------
    tissues : (8, X, Y, Z) float32
        Fractions in the order of `TISSUES`.
    measured : (6, X, Y, Z) float32
        Fractions whose true volumes are reported, in the order of `MEASURED`.
    residual : (X, Y, Z) float32
        The template's T1 less a mixture of tissues.
    away_mm : (X, Y, Z) uint8
        Distance from the nearest voxel with anything in it, mm, rounded down, at most 255.
    affine : (4, 4) float64
        Voxel indices to MNI152 mm.
    """

    tissues: np.ndarray
    measured: np.ndarray
    residual: np.ndarray
    away_mm: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Scanner:
    """T1w acquisition of a site. Intensities are relative to white matter."""

    site: str
    manufacturer: str
    model: str
    field_strength_T: float
    voxel_scale: tuple[float, float, float]
    orientation: str
    contrast: dict[str, float]
    bias: float
    noise: float


@dataclass(frozen=True)
class Subject:
    """Parameters of one head at one session.

    Attributes
    ----------
    severity : float
        Disease severity; 0 none, 1 a mean AD patient.
    brain_age : float
        Age in years that the ageing warp realises.
    to_mni : (4, 4) float64
        Scanner millimetres to MNI152 millimetres before the warp.
    shape_seed, scan_seed : int
        Seeds of the lasting anatomy and of the one acquisition.
    """

    severity: float
    brain_age: float
    to_mni: np.ndarray
    shape_seed: int
    scan_seed: int


@cache
def anatomy(resolution_mm: float) -> Anatomy:
    """Build the average head: brain from the MNI152 maps, skull, scalp, face and neck as shells around it.

    Parameters
    ----------
    resolution_mm : float
        Voxel edge in mm, 1 to 10.
    """
    base = atlas.template(resolution_mm)
    pad = [(round(a / resolution_mm), round(b / resolution_mm)) for a, b in ((14, 14), (14, 14), (46, 10))]
    padded = {name: np.pad(getattr(base, name), pad) for name in ("gm", "wm", "mask", "t1")}
    affine = base.affine.copy()
    affine[:3, 3] -= [before * resolution_mm for before, _ in pad]
    gm, wm, csf, intracranial = _sharpened(padded["gm"], padded["wm"], padded["mask"], resolution_mm)
    shells = _shells(intracranial, affine, resolution_mm)
    tissues = np.stack([gm, wm, csf, *shells]).astype(np.float32)
    regions = {name: np.pad(atlas.region(name, resolution_mm), pad) for name in atlas.REGIONS}
    hippocampus = (gm + wm) * (regions["hippocampus_left"] | regions["hippocampus_right"])
    measured = np.stack(
        [gm, wm, csf, hippocampus, csf * regions["ventricles"], (gm + wm) * regions["temporal_lobes"]]
    ).astype(np.float32)
    mixture = 0.70 * gm + 0.95 * wm + 0.3 * csf
    residual = ((padded["t1"] - mixture) * padded["mask"]).astype(np.float32)
    residual = ndimage.gaussian_filter(residual, 1) * 0.5
    empty = ~(tissues.any(axis=0) | (residual != 0))
    away_mm = np.minimum(ndimage.distance_transform_edt(empty, sampling=resolution_mm), 255).astype(np.uint8)
    return Anatomy(tissues, measured, residual, away_mm, affine)


def _sharpened(gm: np.ndarray, wm: np.ndarray, mask: np.ndarray, resolution_mm: float) -> tuple[np.ndarray, ...]:
    """Turn group probabilities into the crisper fractions of one brain inside a subarachnoid space of 2.5 mm."""
    closed = ndimage.binary_closing(mask, iterations=round(6 / resolution_mm))
    outside = ndimage.distance_transform_edt(~closed, sampling=resolution_mm)
    intracranial = outside <= 2.5
    fluid = np.clip(1 - gm - wm, 0, 1)
    powers = np.stack([gm, wm, fluid]) ** 1.6
    fractions = powers / powers.sum(0) * intracranial
    return *fractions, intracranial


def _shells(intracranial: np.ndarray, affine: np.ndarray, resolution_mm: float) -> list[np.ndarray]:
    """Bone, marrow, scalp, muscle and eye fluid as (X, Y, Z) bool, in the order of `TISSUES`."""
    x, y, z = atlas.coordinates(intracranial.shape, affine)
    distance = ndimage.distance_transform_edt(~intracranial, sampling=resolution_mm)
    neck = (x / 58) ** 2 + ((y + 22) / 62) ** 2 < 1
    face = (x / 62) ** 2 + ((y - 38) / 58) ** 2 + ((z + 62) / 62) ** 2 < 1
    body = (distance < 13) | (neck & (z < -45)) | face
    depth = ndimage.distance_transform_edt(np.pad(body, 1, mode="edge"), sampling=resolution_mm)[1:-1, 1:-1, 1:-1]
    outside = body & ~intracranial
    eyes = (np.abs(x) - 32) ** 2 + (y - 64) ** 2 + (z + 36) ** 2 < 12**2
    airway = (x / 10) ** 2 + ((y - 35) / 22) ** 2 + ((z + 66) / 26) ** 2 < 1
    skull = outside & (distance < 7)
    marrow = skull & (distance > 2) & (distance < 5)
    scalp = outside & ~skull & (depth < 4.5)
    fluid = outside & ~skull & ~scalp & eyes
    muscle = outside & ~(skull | scalp | fluid | airway)
    return [skull & ~marrow, marrow, scalp, muscle, fluid]


@cache
def velocity(process: str) -> np.ndarray:
    """Velocity field whose divergence is the prescribed local volume change.

    Irrotational solution of the Poisson equation with reflecting walls by discrete cosine transform; atrophy is
    prescribed as in Khanal et al. 2016 (doi:10.1016/j.neuroimage.2016.03.061). Fluid outside the ventricles takes up
    what the tissue nearby loses, so that the intracranial volume stays as it is.

    Parameters
    ----------
    process : str
        ``disease`` (per unit of severity) or ``ageing`` (per decade).

    Returns
    -------
    (3, X, Y, Z) float32
        Millimetres per unit, of the pull-back map (subject to template), on the field grid.
    """
    gm, wm, csf, hippocampus, ventricles, temporal = anatomy(FIELD_MM).measured
    rest = np.clip(temporal - hippocampus, 0, None)
    cortex = np.clip(gm - rest - hippocampus, 0, None)
    rates = _RATES[process]
    growth = rates["gm"] * cortex + rates["wm"] * wm
    growth = growth + (rates["temporal"] * rest + rates["hippocampus"] * hippocampus + rates["ventricles"] * ventricles)
    sulci = np.clip(csf - ventricles, 0, None)
    nearby = [ndimage.gaussian_filter(a, 15 / FIELD_MM) for a in (growth, sulci)]
    growth = growth - sulci * nearby[0] / np.maximum(nearby[1], 1e-3)
    growth -= sulci * growth.sum() / sulci.sum()
    return _gradient_of_poisson(-growth)


def warp(subject: Subject) -> np.ndarray:
    """Displacement on the field grid, from the subject's space to the template's.

    Disease, ageing and random shape add up as one stationary velocity field, whose exponential by scaling and squaring
    is invertible.

    Parameters
    ----------
    subject : Subject

    Returns
    -------
    (3, X, Y, Z) float32
        In mm.

    References
    ----------
    Arsigny et al. 2006, doi:10.1007/11866565_113.
    """
    rng = np.random.default_rng(subject.shape_seed)
    decades = (subject.brain_age - REFERENCE_AGE) / 10
    field = subject.severity * velocity("disease") + decades * velocity("ageing")
    for scale_mm, sd_mm in ((24.0, 1.5), (10.0, 0.3)):
        field = field + _smooth_noise(rng, field.shape[1:], scale_mm, sd_mm)
    return _flow(field)


def image_head(subject: Subject, scanner: Scanner, voxel_mm: float) -> tuple[np.ndarray, np.ndarray, dict, np.ndarray]:
    """Image one head with one scanner.

    Parameters
    ----------
    subject : Subject
    scanner : Scanner
    voxel_mm : float
        Nominal voxel edge; the scanner scales it along each axis.

    Returns
    -------
    volume : (X, Y, Z) int16
        In RAS order; the caller turns it to the scanner's orientation.
    affine : (4, 4) float64
        Voxel indices to scanner millimetres.
    truth : dict
        Volumes in ml (`MEASURED`, icv) and ``scan_to_mni``, the affine (4, 4) that fits the true map best.
    fractions : (6, X, Y, Z) float32
        Of each voxel, in the order of `MEASURED`: what the volumes are the sums of.
    """
    rng = np.random.default_rng(subject.scan_seed)
    head = anatomy(2.0 if voxel_mm >= 1.5 else 1.0)
    edges = voxel_mm * np.array(scanner.voxel_scale)
    shape = tuple(np.ceil(np.array([190.0, 230.0, 236.0]) / edges).astype(int))
    affine = np.diag([*edges, 1.0])
    centre = np.linalg.inv(subject.to_mni) @ [0, -18, -4, 1]
    affine[:3, 3] = centre[:3] - edges * (np.array(shape) - 1) / 2
    world = atlas.coordinates(shape, affine)
    near, template_mm = _pulled_back(subject, world, head)
    voxels = torch.from_numpy(_voxels(template_mm, head))
    channels = np.concatenate([_ideal(head, subject, scanner)[None], head.measured])
    sampled = np.zeros((len(channels), *shape), np.float32)
    sampled[:, near] = _sample(torch.from_numpy(channels), voxels).numpy()
    volume = _acquire(sampled[0], scanner, rng)
    truth = _truth(sampled[1:], world, near, template_mm, float(np.prod(edges)))
    return volume, affine, truth, sampled[1:]


def _pulled_back(subject: Subject, world: np.ndarray, head: Anatomy) -> tuple[np.ndarray, np.ndarray]:
    """Which of the subject's points (3, X, Y, Z) may lie in the head, and the template coordinates (3, N) of these, mm.

    A sample reaches one voxel's diagonal; looking up the nearest voxel errs by half of it.
    """
    linear, field = subject.to_mni.astype(np.float32), warp(subject)
    straight = np.tensordot(linear[:3, :3], world, axes=1) + linear[:3, 3].reshape(3, 1, 1, 1)
    reach = np.sqrt((field**2).sum(axis=0).max()) + 1.5 * np.sqrt(3) * head.affine[0, 0]
    nearest = np.rint(_voxels(straight, head)).astype(np.int32)
    x, y, z = (np.clip(index, 0, n - 1) for index, n in zip(nearest, head.away_mm.shape, strict=True))
    near = head.away_mm[x, y, z] <= reach
    straight = straight[:, near]
    moved = _sample(torch.from_numpy(field), torch.from_numpy(_voxels(straight, anatomy(FIELD_MM))), "border")
    return near, straight + moved.numpy()


def _voxels(points: np.ndarray, head: Anatomy) -> np.ndarray:
    """Voxel coordinates of points (3, ...) in mm of MNI152 space on the grid of a head."""
    offset = head.affine[:3, 3].astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
    return (points - offset) / np.float32(head.affine[0, 0])


def _ideal(head: Anatomy, subject: Subject, scanner: Scanner) -> np.ndarray:
    """The template's head in the scanner's contrast with the subject's texture, before bias and noise."""
    weights = np.array([scanner.contrast[name] for name in TISSUES], dtype=np.float32)
    weights *= 1 + 0.04 * np.random.default_rng(subject.shape_seed + 1).standard_normal(len(TISSUES))
    ideal = np.tensordot(weights, head.tissues, axes=1) + head.residual
    texture = np.random.default_rng(subject.shape_seed + 2).standard_normal(ideal.shape, dtype=np.float32)
    texture = ndimage.gaussian_filter(texture, 1.2)
    ideal *= 1 + 0.05 * (texture / texture.std())
    return ideal


def _acquire(ideal: np.ndarray, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Bias field, Rician noise (Gudbjartsson & Patz 1995, doi:10.1002/mrm.1910340618) and scaling to integers."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in ideal.shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    a = rng.uniform(-1, 1, 6).astype(np.float32)
    bias = a[0] * x + a[1] * y + a[2] * z + a[3] * x * y + a[4] * (y * y - 0.3) + a[5] * (z * z - 0.3)
    bias = np.exp(scanner.bias * bias / np.abs(a).sum() * 2)
    real = ideal * bias + scanner.noise * rng.standard_normal(ideal.shape, dtype=np.float32)
    imaginary = scanner.noise * rng.standard_normal(ideal.shape, dtype=np.float32)
    gain = rng.uniform(500, 1500)
    return np.clip(np.hypot(real, imaginary) * gain, 0, 32767).astype(np.int16)


def _truth(
    measured: np.ndarray, world: np.ndarray, near: np.ndarray, template_mm: np.ndarray, voxel_mm3: float
) -> dict:
    volumes = {
        f"{name}_ml": float(m.sum(dtype=np.float64)) * voxel_mm3 / 1000
        for name, m in zip(MEASURED, measured, strict=True)
    }
    volumes["icv_ml"] = volumes["gm_ml"] + volumes["wm_ml"] + volumes["csf_ml"]
    volumes["nbv"] = (volumes["gm_ml"] + volumes["wm_ml"]) / volumes["icv_ml"]
    inside = measured[:3].sum(0) > 0.5
    onto = template_mm[:, inside[near]]
    points = world[:, inside][:, ::7].astype(np.float64)
    homogeneous = np.vstack([points, np.ones(points.shape[1])])
    fit, *_ = np.linalg.lstsq(homogeneous.T, onto[:, ::7].T.astype(np.float64), rcond=None)
    volumes["scan_to_mni"] = np.vstack([fit.T, [0, 0, 0, 1]]).tolist()
    return volumes


def _gradient_of_poisson(source: np.ndarray) -> np.ndarray:
    """Irrotational field (3, X, Y, Z) float32 whose divergence is `source` (X, Y, Z), with reflecting walls."""
    waves = [np.pi * np.arange(n) / n for n in source.shape]
    eigen = np.asarray(sum(np.meshgrid(*[2 * np.cos(w) - 2 for w in waves], indexing="ij"))) / FIELD_MM**2
    eigen[0, 0, 0] = 1.0
    spectrum = fft.dctn(source, type=2) / eigen
    spectrum[0, 0, 0] = 0.0
    potential = fft.idctn(spectrum, type=2)
    return np.stack(np.gradient(potential, FIELD_MM)).astype(np.float32)


def _flow(velocity: np.ndarray) -> np.ndarray:
    """Displacement (3, X, Y, Z) float32 mm after one unit of time in a velocity field, by scaling and squaring."""
    steps = 4
    displacement = torch.from_numpy(velocity.astype(np.float32) / 2**steps)
    identity = torch.from_numpy(np.indices(velocity.shape[1:], dtype=np.float32))
    for _ in range(steps):
        displacement = displacement + _sample(displacement, identity + displacement / FIELD_MM, "border")
    return displacement.numpy()


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale_mm: float, sd_mm: float) -> np.ndarray:
    """Random displacement (3, *shape) float32 of a given scale, drawn on a grid of half that scale and interpolated."""
    coarse = [int(np.ceil(n * FIELD_MM / (scale_mm / 2))) + 1 for n in shape]
    noise = rng.standard_normal((3, *coarse), dtype=np.float32)
    noise = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 2, 2, 2)))
    noise = torch.nn.functional.interpolate(noise[None], size=shape, mode="trilinear", align_corners=True)[0]
    return noise.numpy() * (sd_mm / float(noise.std()))


def _sample(channels: torch.Tensor, voxels: torch.Tensor, padding: str = "zeros") -> torch.Tensor:
    """Trilinear samples of (C, X, Y, Z) channels at (3, ...) voxel coordinates."""
    sizes = torch.tensor(channels.shape[1:], dtype=torch.float32).view(3, *[1] * (voxels.ndim - 1))
    unit = 2 * voxels / (sizes - 1) - 1
    grid = unit.flip(0).movedim(0, -1).reshape(1, *[1] * (4 - voxels.ndim), *voxels.shape[1:], 3)
    sampled = torch.nn.functional.grid_sample(channels[None], grid, padding_mode=padding, align_corners=True)
    return sampled.reshape(-1, *voxels.shape[1:])
