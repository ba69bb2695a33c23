"""OASIS-1's coronal slab, read from 2-D slices or cut from a preprocessed scan: one grid, one scale of intensity.

Slices 90 to 99 of the atlas in which OASIS-1 publishes its registered images (T88, 1 mm, 176 x 208 x 176) pass through
the hippocampi. Their columns run from the right of the head to the left. OASIS-1 cuts every brain out with one mask,
that of the atlas, which `slab_mask.npz` holds; a scan is cut with the same. Where its own brain mask is smaller it is
filled, and what interpolation takes from its noise is added again: both change a network's answer more than the pose.

References
----------
Marcus et al. 2007, doi:10.1162/jocn.2007.19.9.1498.
Buckner et al. 2004, doi:10.1016/j.neuroimage.2004.06.018 (the atlas).
"""

import re
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from adlib.imaging.volume import resample
from adlib.preprocess.intensity import white_matter_mode
from adlib.sources.image_files import SEPARATOR, read_plane
from adlib.study.records import StudyError

# Column, slice and row (from below) of the atlas to MNI152, RAS mm. `benchmarks/slab_space.py` measures it: the affines
# that match preprocessed brains of seven people to their own slices, averaged over people under 60 and people over 60,
# then over both. The affines of single brains lie 0.9 to 2.0 mm from it (root mean square over the slab), that of the
# mean of all slabs to the template 1.2 mm.
ATLAS_TO_MNI = np.array(
    [
        [-1.0305, 0.0038, 0.0319, 86.5572],
        [0.0169, 1.0302, 0.0135, -126.6565],
        [0.0281, -0.0577, 1.0463, -74.8834],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
SHAPE = (176, 10, 176)
FIRST = 90
MASK = Path(__file__).with_name("slab_mask.npz")
EDGE = 0.25  # of white matter: what the pictures show at the edge of the mask, outside the brain
NOISE = 0.027  # standard deviation in white matter, the median of the pictures of people of 60 years or more
FIELD = 148  # columns and rows about the centre that hold every brain of the atlas
_INDEX = re.compile(r"\.(\d+)\.\w+$")


def read_slab(path: str) -> np.ndarray:
    """Read the slices of one scan that lie in OASIS-1's atlas.

    Parameters
    ----------
    path : str
        The ten image files, joined by ``|``, in any order; names end in the index of the slice, as in ``.90.png``.

    Returns
    -------
    (176, 10, 176) float32
        Columns from right to left, slices to the front, rows upwards; white matter at 1, background 0.

    Raises
    ------
    StudyError
        If a slice is missing, of another shape, cannot be read, or the slab holds no brain.
    """
    names = {int(match[1]): name for name in path.split(SEPARATOR) if (match := _INDEX.search(name))}
    expected = range(FIRST, FIRST + SHAPE[1])
    if sorted(names) != list(expected):
        raise StudyError(
            f"expected slices with the indices {FIRST} to {expected[-1]}, as in OAS1_0001_MR1.{FIRST}.png, got "
            f"{sorted(names) or path}"
        )
    slab = [read_plane(Path(names[index])) for index in expected]
    wrong = {plane.shape for plane in slab} - {(SHAPE[0], SHAPE[2])}
    if wrong:
        raise StudyError(f"{names[FIRST]} and its neighbours have {wrong.pop()} pixels, expected {SHAPE[0], SHAPE[2]}")
    return _scaled(np.stack(slab, axis=1), names[FIRST])


def cut_slab(t1w: np.ndarray, affine: np.ndarray, name: str) -> np.ndarray:
    """Cut the slab out of a preprocessed scan, as `read_slab` reads it.

    Parameters
    ----------
    t1w : (X, Y, Z) float32
        Bias-corrected intensities from 0 up (``preprocess.normalise: white_matter_peak``) in MNI152 space, 0 outside
        the brain.
    affine : (4, 4) float64
        Voxel indices to MNI152 mm.
    name : str
        Name of the scan in messages.

    Returns
    -------
    (176, 10, 176) float32

    Raises
    ------
    StudyError
        If the intensities do not begin at 0, or the slab holds no brain.
    """
    if t1w.min() < 0:
        raise StudyError(f"{name} has negative intensities; set preprocess.normalise to white_matter_peak")
    onto = np.eye(4)
    onto[1, 3] = FIRST
    with np.load(MASK) as stored:
        mask = stored["mask"]
    slab = _scaled(resample(t1w, affine, SHAPE, onto, ATLAS_TO_MNI) * mask, name)
    missing = np.sqrt(max(NOISE**2 - _noise(slab) ** 2, 0))
    noise = np.random.default_rng(0).normal(0, missing, slab.shape)  # the same in every run
    noisy = np.maximum(np.where(slab > 0, slab, EDGE) + noise, 0.001)
    return _scaled(noisy.astype(np.float32) * mask, name)


def _noise(slab: np.ndarray) -> float:
    """Standard deviation of white noise in white matter, from the median difference from the surroundings."""
    white = ndimage.gaussian_filter(slab, (1.5, 0, 1.5)) > 0.93
    fine = np.abs(slab - ndimage.gaussian_filter(slab, (1, 0, 1)))[white]
    return 1.7 * float(np.median(fine)) if fine.size else NOISE  # 1.7: normal distribution, share left by the filter


def slab_grid() -> np.ndarray:
    """Affine of a slab without its rotation of 2 degrees, so that a slice lies at one position, that of its centre.

    Returns
    -------
    (4, 4) float64
        Column, slice from 0, and row to MNI152, RAS mm.
    """
    grid, centre = np.diag(np.diag(ATLAS_TO_MNI)), (np.array(SHAPE) - 1) / 2
    grid[:3, 3] = apply_affine(ATLAS_TO_MNI, centre + np.array([0, FIRST, 0])) - np.diag(grid)[:3] * centre
    return grid


def _scaled(slab: np.ndarray, name: str) -> np.ndarray:
    brain = slab[slab > 0]
    if brain.size < slab.size // 20:
        raise StudyError(f"{name}: the coronal slab holds no brain; check the registration and the brain mask")
    return slab / np.float32(white_matter_mode(brain))
