"""Is it a T1-weighted image? White matter is above grey matter and grey matter above fluid, deep inside the brain."""

import numpy as np

from adlib.study.records import StudyError

BRIGHT = 0.3  # of the 98th percentile: what is compared in the search for labels
EQUAL_SHARE = 0.4  # of neighbouring bright voxels with one value; real scans of 8 bits reach 0.09
WHITE_OVER_GREY = (0.1, 0.6)  # difference over white matter; 12 real T1w: 0.19 to 0.39, FLAIR made of them at most 0.05
GREY_OVER_FLUID = 0.05  # the same 12: 0.28 to 0.74


def check_texture(volume: np.ndarray, name: str) -> None:
    """Refuse a map of labels, whose neighbouring voxels have one value.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        The scan, not resampled.
    name : str
        Name of the scan in messages.

    Raises
    ------
    StudyError
        If most neighbours are equal along each axis.
    """
    bright = volume > volume.min() + BRIGHT * (np.percentile(volume[::2, ::2, ::2], 98) - volume.min())
    shares = []
    for axis in range(3):
        ahead, behind = ((slice(None),) * axis + (part,) for part in (slice(1, None), slice(-1)))
        both = bright[ahead] & bright[behind]
        pairs = np.count_nonzero(both)
        both &= volume[ahead] == volume[behind]
        shares.append(np.count_nonzero(both) / pairs if pairs else 1.0)
    if min(shares) > EQUAL_SHARE:
        raise StudyError(
            f"{name}: {min(shares):.0%} of neighbouring voxels have one value; a map of labels or of tissues, not a "
            "T1-weighted scan; give the scan that it was made from"
        )


def check_contrast(white: float, fluid: float, name: str) -> None:
    """Refuse an image that is not T1-weighted, by the kind that it resembles.

    Parameters
    ----------
    white, fluid : float
        From `Registration.contrast`.
    name : str
        Name of the scan in messages.

    Raises
    ------
    StudyError
        If white matter, grey matter and fluid do not have the order and distances of a T1-weighted scan.
    """
    low, high = WHITE_OVER_GREY
    if low <= white <= high and fluid >= GREY_OVER_FLUID:
        return
    if white > high:
        kind = "a map of white matter"
    elif white >= low:
        kind = "a scan without dark fluid"
    elif fluid < GREY_OVER_FLUID:
        kind = "a T2- or proton-density-weighted scan"
    else:
        kind = "a FLAIR or proton-density-weighted scan, or a map of grey matter"
    raise StudyError(
        f"{name}: not T1-weighted: relative to white matter, grey matter is {white:.2f} darker (expected {low} to "
        f"{high}) and fluid another {fluid:.2f} (expected {GREY_OVER_FLUID} or more), as in {kind}"
    )
