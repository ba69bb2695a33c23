"""Orientation in NIfTI headers: sform and qform that are missing, broken or contradictory."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from adlib.study.records import StudyError

_APART_MM = 1.0  # two affines of one header that lie closer than this at every corner are the same but for rounding


def orientation_notes(image: nib.spatialimages.SpatialImage, name: str) -> tuple[str, ...]:
    """Notes on the position and orientation in a NIfTI header.

    A header holds two affines. Where both are in force nibabel, FSL and SPM all take the sform, and so does this
    package. Turned or shifted against each other they still show the same head; mirrored against each other they
    disagree on which side is left, which no registration to a symmetric template can settle.

    Parameters
    ----------
    image : nibabel image
    name : str
        Name of the scan in messages.

    Returns
    -------
    tuple of str
        Empty where the header is consistent.

    Raises
    ------
    StudyError
        If sform and qform are mirrored against each other.
    """
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        return ()
    codes = int(header["sform_code"]), int(header["qform_code"])
    if codes == (0, 0):
        return ("the header states no orientation: the axes are taken as right-left, back-front, bottom-top",)
    try:
        sform, qform = (form(coded=True)[0] for form in (header.get_sform, header.get_qform))
    except (ValueError, nib.spatialimages.HeaderDataError):
        return ("the header's qform is broken: the sform is used",) if codes[0] else ()
    if sform is None or qform is None or not np.isfinite([sform, qform]).all():
        return ()
    apart = _farthest(sform - qform, image.shape)
    if apart < _APART_MM:
        return ()
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise StudyError(
            f"{name}: the header's sform ({_codes(sform)}) and qform ({_codes(qform)}) are mirror images, so which "
            "side is left is unknown; convert the scan from DICOM again, or set the wrong one's code to 0"
        )
    return (f"the header's sform (code {codes[0]}) and qform (code {codes[1]}) lie up to {apart:.0f} mm apart: the "
            "sform is used",)  # fmt: skip


def _farthest(difference: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far two affines (4, 4), given their difference, take a corner of the grid apart, mm."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in (*shape, 1, 1)[:3]])).reshape(3, -1)
    return float(np.linalg.norm(difference[:3, :3] @ corners + difference[:3, 3:], axis=0).max())


def _codes(affine: np.ndarray) -> str:
    return "".join(code or "?" for code in nib.aff2axcodes(affine))
