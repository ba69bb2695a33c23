"""What a scan must be before it is worth processing."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from adlib.imaging.volume import to_canonical, voxel_sizes, world_box
from adlib.study.records import StudyError, is_passing

VOXEL_MM = (0.2, 8.0)
EXTENT_MM = (80.0, 700.0)
MAX_VOXELS = 300e6


def checked_volume(image: nib.Nifti1Image, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The image's intensities and affine in canonical orientation, once it is known to be a usable 3-D scan.

    Parameters
    ----------
    image : nibabel image
        Three-dimensional, or four-dimensional with a single volume.
    name : str
        What to call the scan in messages.

    Returns
    -------
    volume : (X, Y, Z) float32
        Intensities as stored, scaled by the header's slope and intercept; axes as near RAS as they can be.
    affine : (4, 4) float64
        Voxel indices to world, RAS mm.

    Raises
    ------
    StudyError
        If the image is not 3-D, its geometry is impossible, or its intensities are unreadable, not finite, or constant.
    """
    shape = _checked_shape(image.shape, name)
    affine = _checked_affine(image.affine, shape, name)
    volume = _intensities(image, name).reshape(shape)
    _check_intensities(volume, name)
    return to_canonical(volume, affine)


def _checked_shape(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise StudyError(
            f"{name}: expected one 3-D volume, got shape {shape}; choose one volume of the series (a T1w scan has one)"
        )
    if len(shape) < 3 or min(shape) == 1:
        raise StudyError(f"{name}: expected a 3-D volume, got the 2-D shape {shape}; give the whole scan, not a slice")
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise StudyError(f"{name}: {shape} is more than {MAX_VOXELS:.0f} voxels; resample it to 0.5 mm first")
    return shape


def _checked_affine(affine: np.ndarray | None, shape: tuple[int, int, int], name: str) -> np.ndarray:
    if affine is None or not np.isfinite(affine).all():
        raise StudyError(f"{name}: the header holds no finite affine ({affine}); convert the scan from DICOM again")
    affine = np.asarray(affine, dtype=float)
    edges = voxel_sizes(affine)
    if np.any(edges == 0) or abs(np.linalg.det(affine[:3, :3] / np.where(edges > 0, edges, 1))) < 0.1:
        raise StudyError(
            f"{name}: the affine is singular (voxel edges {_mm(edges)}); its sform or qform is broken, "
            "convert the scan from DICOM again"
        )
    if edges.min() < VOXEL_MM[0] or edges.max() > VOXEL_MM[1]:
        raise StudyError(
            f"{name}: voxel edges are {_mm(edges)}, expected {VOXEL_MM[0]} to {VOXEL_MM[1]} mm; "
            "check the units in the header (xyzt_units)"
        )
    low, high = world_box(shape, affine)
    extent = high - low + edges.min()
    if extent.min() < EXTENT_MM[0] or extent.max() > EXTENT_MM[1]:
        raise StudyError(
            f"{name}: the field of view is {_mm(extent)} (shape {shape}, voxels {_mm(edges)}), "
            f"expected {EXTENT_MM[0]:.0f} to {EXTENT_MM[1]:.0f} mm along each axis; a whole head is needed"
        )
    return affine


def _intensities(image: nib.Nifti1Image, name: str) -> np.ndarray:
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind not in "biuf":
        raise StudyError(f"{name}: voxels are of type {kind}, expected one real number each")
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused for it
            return image.get_fdata(dtype=np.float32, caching="unchanged")
    except (OSError, EOFError, ValueError, ArithmeticError) as error:
        if is_passing(error):
            raise
        raise StudyError(f"{name}: the voxels cannot be read ({error}); the file is damaged, fetch it again") from None
    except MemoryError:
        raise
    except Exception as error:
        raise StudyError(f"{name}: the voxels cannot be read ({type(error).__name__}: {error})") from None


def _check_intensities(volume: np.ndarray, name: str) -> None:
    wrong = int(volume.size - np.isfinite(volume).sum())
    if wrong:
        raise StudyError(
            f"{name}: {wrong} of {volume.size} voxels are NaN or infinite; mend the scan (its scl_slope and scl_inter "
            "too, where the stored numbers are finite) or leave it out"
        )
    low, high = np.percentile(volume[::2, ::2, ::2], (0.5, 99.5))
    if not high > low:
        raise StudyError(f"{name}: the volume is constant ({low:g}) but for stray voxels; the scan holds no picture")


def _mm(values: np.ndarray) -> str:
    return " × ".join(f"{value:.3g}" for value in values) + " mm"
