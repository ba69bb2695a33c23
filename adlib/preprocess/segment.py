"""Tissue segmentation: a Gaussian mixture of intensities with weak spatial priors and partial volume."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from sklearn.mixture import GaussianMixture

from adlib.atlas import Template
from adlib.records import StudyError
from adlib.volume import voxel_sizes

SAMPLE = 40_000  # voxels the mixture is fitted on
PRIOR_SMOOTHING_MM = 4.0
PRIOR_SHARE = 0.5  # weight of the template's maps against a flat prior: strong priors do worse than none


def segment(volume: np.ndarray, mask: np.ndarray, base: Template) -> np.ndarray:
    """Fractions of grey matter, white matter and fluid in every voxel of the brain.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        Bias-corrected intensities on the template's grid.
    mask : (X, Y, Z) bool
    base : Template
        Its tissue maps are the priors.

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
    Shattuck et al. 2001, doi:10.1006/nimg.2000.0730 (mixed voxels between two classes).
    """
    values = volume[mask].astype(np.float64)
    if values.size < 1000 or not values.std() > 0:
        raise StudyError(f"the brain mask holds {values.size} voxels without contrast; look at its picture")
    priors = _priors(base)[mask]
    mixture = _fit(values, priors)
    fractions = _fractions(values, priors, mixture)
    tissues = np.zeros((*volume.shape, 3), dtype=np.float32)
    tissues[mask] = fractions
    return tissues


def _priors(base: Template) -> np.ndarray:
    sigma = PRIOR_SMOOTHING_MM / voxel_sizes(base.affine)
    maps = [ndimage.gaussian_filter(m, sigma) for m in (base.gm, base.wm, base.csf)]
    priors = np.stack(maps, axis=-1)
    priors = (priors + 1e-3) / (priors + 1e-3).sum(axis=-1, keepdims=True)
    return PRIOR_SHARE * priors + (1 - PRIOR_SHARE) / 3


def _fit(values: np.ndarray, priors: np.ndarray) -> GaussianMixture:
    """Three Gaussians in the order GM, WM, CSF, started from the medians where the priors are surest."""
    starts = [np.median(values[priors[:, k] >= np.quantile(priors[:, k], 0.9)]) for k in range(3)]
    starts[2] = min(starts[2], np.quantile(values, 0.05))
    sample = values[:: max(1, values.size // SAMPLE), None]
    spread = np.full((3, 1, 1), 16 / sample.var())
    mixture = GaussianMixture(
        3, weights_init=[0.45, 0.4, 0.15], means_init=np.array(starts)[:, None], precisions_init=spread, random_state=0
    )
    mixture.fit(sample)
    grey, white, fluid = mixture.means_[:, 0]
    if not fluid < grey < white:
        raise StudyError(
            f"tissue levels came out as CSF {fluid:.3g}, GM {grey:.3g}, WM {white:.3g}; expected them to rise in that "
            "order, as in a T1-weighted scan"
        )
    return mixture


def _fractions(values: np.ndarray, priors: np.ndarray, mixture: GaussianMixture) -> np.ndarray:
    density = priors * mixture.predict_proba(values[:, None])
    return density / density.sum(axis=1, keepdims=True)
