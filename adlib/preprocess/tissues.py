"""Tissue segmentation: Gaussians of three tissues and of voxels mixed of two, with spatial priors."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from adlib.study.records import StudyError

SAMPLE = 40_000  # voxels that the mixture is fitted on
PRIOR_SHARE = 0.9  # weight of the network's shares against a flat prior
ITERATIONS = 40
CHUNK = 200_000  # voxels at a time
LEVELS = 1024  # intensities at which densities are tabulated
SPREAD_FLOOR = 0.02  # of the distance between white matter and fluid
PAIRS = ((0, 1), (2, 0), (2, 1))  # mixed voxels, the darker tissue first: GM/WM, CSF/GM, CSF/WM


@dataclass(frozen=True)
class _Mixture:
    """Model of the intensities.

    Attributes
    ----------
    means : (3,) float64
        Of pure GM, WM and CSF.
    spread : float
        Standard deviation of all three: the noise of the scan.
    weights : (6,) float64
        Frequency of the three pure classes and the three of `PAIRS` relative to their priors.
    """

    means: np.ndarray
    spread: float
    weights: np.ndarray


def segment(volume: np.ndarray, mask: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Fractions of grey matter, white matter and fluid in every voxel of the brain.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        Bias-corrected intensities.
    mask : (X, Y, Z) bool
    expected : (2, X, Y, Z) float32
        Expected shares of GM and WM, as from `anatomy`; the rest is CSF.

    Returns
    -------
    (X, Y, Z, 3) float32
        GM, WM, CSF; they sum to 1 inside the mask and are 0 outside.

    Raises
    ------
    StudyError
        If the mask is nearly empty or the brain shows no tissue contrast.

    References
    ----------
    Ashburner & Friston 2005, doi:10.1016/j.neuroimage.2005.02.018 (mixtures with spatial priors);
    Santago & Gage 1993, doi:10.1109/42.251109, and Shattuck et al. 2001, doi:10.1006/nimg.2000.0730 (the density of
    voxels mixed of two tissues in unknown shares, with one noise for all tissues).
    """
    values = volume[mask]
    if values.size < 1000 or not values.std(dtype=np.float64) > 0:
        raise StudyError(f"the brain mask holds {values.size} voxels without contrast; check its figures")
    where = np.flatnonzero(mask)
    low, high = np.percentile(values, (0.05, 99.95))
    levels = np.linspace(low, high, LEVELS)
    bins = np.clip(np.rint((values - levels[0]) / (levels[1] - levels[0])), 0, LEVELS - 1).astype(np.int16)
    sample = slice(None, None, max(1, values.size // SAMPLE))
    mixture = _fit(levels, bins[sample], _priors(expected, where[sample]))
    tissues = np.zeros((*volume.shape, 3), dtype=np.float32)
    for start in range(0, values.size, CHUNK):
        part = slice(start, start + CHUNK)
        tissues.reshape(-1, 3)[where[part]] = _fractions(levels, bins[part], _priors(expected, where[part]), mixture)
    return tissues


def _priors(expected: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Chances of GM, WM and CSF at N voxels, (3, N) float32."""
    grey, white = expected.reshape(2, -1)[:, where]
    shares = np.stack([grey, white, np.clip(1 - grey - white, 0, 1)])
    return np.float32(PRIOR_SHARE) * shares + np.float32((1 - PRIOR_SHARE) / 3)


def _fit(levels: np.ndarray, bins: np.ndarray, priors: np.ndarray) -> _Mixture:
    """Expectation maximisation on a sample, started from the medians where the priors are highest."""
    values, chances = levels[bins], _class_priors(priors).astype(np.float64)
    starts = [np.median(values[p >= np.quantile(p, 0.9)]) for p in priors]
    starts[2] = min(starts[2], np.quantile(values, 0.05))
    mixture = _Mixture(np.array(starts), float(values.std() / 4), np.ones(6))
    for _ in range(ITERATIONS):
        mixture = _improved(mixture, levels, bins, values, chances)
    grey, white, fluid = mixture.means
    if not fluid < grey < white:
        raise StudyError(
            f"tissue intensities are CSF {fluid:.3g}, GM {grey:.3g}, WM {white:.3g}; expected to rise in that "
            "order, as in a T1-weighted scan"
        )
    return mixture


def _improved(
    mixture: _Mixture, levels: np.ndarray, bins: np.ndarray, values: np.ndarray, chances: np.ndarray
) -> _Mixture:
    """One step of expectation maximisation; the pure classes alone move means and spread."""
    belongs = chances * mixture.weights[:, None] * _densities(levels, mixture)[:, bins]
    belongs /= belongs.sum(axis=0) + 1e-300
    pure = belongs[:3]
    means = pure @ values / (pure.sum(axis=1) + 1e-9)
    spread = np.sqrt((pure * (values - means[:, None]) ** 2).sum() / (pure.sum() + 1e-9))
    total = (chances * mixture.weights[:, None]).sum(axis=0)
    weights = belongs.sum(axis=1) / (chances / total).sum(axis=1)
    floor = SPREAD_FLOOR * abs(means[1] - means[2])
    return _Mixture(means, float(max(spread, floor)), weights / weights.sum())


def _class_priors(priors: np.ndarray) -> np.ndarray:
    """Chances (6, N) that a voxel is pure or mixed, as of two draws from the tissues' chances (3, N)."""
    return np.stack([*(p * p for p in priors), *(2 * priors[a] * priors[b] for a, b in PAIRS)])


def _densities(levels: np.ndarray, mixture: _Mixture) -> np.ndarray:
    """Density of each class at each level, (6, LEVELS): Gaussians, and Gaussians spread evenly between two means."""
    means = mixture.means
    scaled = (levels - means[:, None]) / mixture.spread
    pure = np.exp(-0.5 * scaled**2) / (mixture.spread * np.sqrt(2 * np.pi))
    mixed = [(ndtr(scaled[a]) - ndtr(scaled[b])) / (means[b] - means[a]) for a, b in PAIRS]
    return np.concatenate([pure, np.maximum(mixed, 0)]) + 1e-12 / np.ptp(levels)


def _fractions(levels: np.ndarray, bins: np.ndarray, priors: np.ndarray, mixture: _Mixture) -> np.ndarray:
    """Expected shares (N, 3) of the tissues; a mixed voxel is split by its intensity between the two means."""
    weighted = (mixture.weights[:, None] * _densities(levels, mixture)).astype(np.float32)
    densities = [row[bins] * chance for row, chance in zip(weighted, _class_priors(priors), strict=True)]
    tissues = list(densities[:3])
    for (a, b), density in zip(PAIRS, densities[3:], strict=True):
        share = np.clip((levels - mixture.means[a]) / (mixture.means[b] - mixture.means[a]), 0, 1)
        brighter = share.astype(np.float32)[bins] * density
        tissues[b] = tissues[b] + brighter
        tissues[a] = tissues[a] + density - brighter
    stacked = np.stack(tissues, axis=-1)
    return stacked / stacked.sum(axis=-1, keepdims=True)
