"""Geometry of image arrays: orientation, resampling, slices; pure functions on arrays and affines.

World coordinates are RAS millimetres throughout, as in nibabel.
"""

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy import ndimage

from adlib.study.records import StudyError

NORMAL_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}
_APART_MM = 1.0  # two affines of one header that lie closer than this at every corner are the same but for rounding
_SLAB = 32  # planes that are sampled at a time, so that only what they need of a large volume is copied
_INTERPOLATORS = {"nearest": sitk.sitkNearestNeighbor, "linear": sitk.sitkLinear, "cubic": sitk.sitkBSplineResampler}


def to_canonical(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip and permute the axes so that they run, as nearly as they can, to the right, anterior and superior.

    Parameters
    ----------
    volume : (X, Y, Z) array
    affine : (4, 4) array
        Voxel indices to world, RAS mm.

    Returns
    -------
    volume : (X', Y', Z') array
        A view where possible; no value is changed.
    affine : (4, 4) float64
    """
    orientation = io_orientation(affine)
    return apply_orientation(volume, orientation), affine @ inv_ornt_aff(orientation, volume.shape)


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
    shifts = nib.affines.apply_affine(sform - qform, _corners((*image.shape, 1, 1)))
    apart = float(np.linalg.norm(shifts, axis=1).max())
    if apart < _APART_MM:
        return ()
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise StudyError(
            f"{name}: the header's sform ({_codes(sform)}) and qform ({_codes(qform)}) are mirror images, so which "
            "side is left is unknown; convert the scan from DICOM again, or set the wrong one's code to 0"
        )
    return (
        f"the header's sform (code {codes[0]}) and qform (code {codes[1]}) are {apart:.0f} mm apart: the sform is used",
    )


def _codes(affine: np.ndarray) -> str:
    return "".join(code or "?" for code in nib.aff2axcodes(affine))


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Voxel edges along the three array axes.

    Parameters
    ----------
    affine : (4, 4) array

    Returns
    -------
    (3,) float64
        In mm.
    """
    return np.sqrt((np.asarray(affine, dtype=float)[:3, :3] ** 2).sum(axis=0))


def voxel_ml(affine: np.ndarray) -> float:
    """Volume of one voxel in ml.

    Parameters
    ----------
    affine : (4, 4) array
        Voxel indices to mm.
    """
    return float(abs(np.linalg.det(np.asarray(affine, dtype=float)[:3, :3])) / 1000)


def world_box(shape: tuple[int, ...], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest world coordinates of the voxel centres.

    Parameters
    ----------
    shape : tuple of int
    affine : (4, 4) array

    Returns
    -------
    low, high : (3,) float64
        In mm.
    """
    world = nib.affines.apply_affine(affine, _corners(shape))
    return world.min(axis=0), world.max(axis=0)


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    """Voxel indices (8, 3) of the corners of a grid."""
    return np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]])).reshape(3, -1).T


def block_mean(volume: np.ndarray, affine: np.ndarray, edge_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Average whole blocks of voxels so that no block is larger than `edge_mm` along any axis.

    Parameters
    ----------
    volume : (X, Y, Z) array
    affine : (4, 4) array
    edge_mm : float
        Largest block edge, mm; axes whose voxels exceed half of it are left alone.

    Returns
    -------
    volume : (X // fx, Y // fy, Z // fz) float32
        Remaining planes at the far ends are dropped. May share memory with the input where nothing is averaged.
    affine : (4, 4) float64
    """
    factors = np.maximum(1, np.floor(edge_mm / voxel_sizes(affine) + 0.05).astype(int))
    factors = np.minimum(factors, volume.shape)
    kept = np.array(volume.shape) // factors
    blocks = volume[tuple(slice(n) for n in kept * factors)]
    for axis, factor in enumerate(factors):
        if factor > 1:
            starts = [blocks[(slice(None),) * axis + (slice(start, None, factor),)] for start in range(factor)]
            blocks = starts[0].astype(np.float32)
            for part in starts[1:]:
                blocks += part
            blocks /= np.float32(factor)
    scaled = np.array(affine, dtype=float) @ np.diag([*factors, 1.0])
    scaled[:3, 3] = nib.affines.apply_affine(affine, (factors - 1) / 2)
    return np.asarray(blocks, dtype=np.float32), scaled


def ring(mask: np.ndarray, reach_mm: tuple[float, float], affine: np.ndarray) -> np.ndarray:
    """Voxels whose distance from a mask, between voxel centres, lies above one reach and not above another.

    By SimpleITK rather than scipy, whose distance transform takes several times the memory.

    Parameters
    ----------
    mask : (X, Y, Z) bool
    reach_mm : tuple of float
        The lower and the upper distance, mm.
    affine : (4, 4) array

    Returns
    -------
    (X, Y, Z) bool

    References
    ----------
    Maurer et al. 2003, doi:10.1109/TPAMI.2003.1177156 (distance transform).
    """
    near, far = reach_mm
    box, result = bounding_box(mask, far / voxel_sizes(affine)), np.zeros_like(mask)
    away = sitk.SignedMaurerDistanceMap(to_sitk(mask[box], affine), squaredDistance=False, useImageSpacing=True)
    distances = sitk.GetArrayViewFromImage(away).T
    result[box] = (distances > near) & (distances <= far)
    return result


def bounding_box(mask: np.ndarray, spare: np.ndarray) -> tuple[slice, ...]:
    """The box of a mask with a margin along each axis, clipped to the grid.

    Parameters
    ----------
    mask : (X, Y, Z) bool
    spare : (3,) array
        Margin in voxels, rounded up.

    Returns
    -------
    tuple of slice
        Empty slices for an empty mask.
    """
    where = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    spare = np.ceil(spare).astype(int)
    return tuple(
        slice(max(w.min() - s, 0), w.max() + s + 1) if len(w) else slice(0) for w, s in zip(where, spare, strict=True)
    )


def to_sitk(volume: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """A SimpleITK image whose physical space is the RAS world of `affine`; bool becomes uint8, other types stay.

    Parameters
    ----------
    volume : (X, Y, Z) array
    affine : (4, 4) array
        Voxel indices to RAS mm; without shear.
    """
    array = volume.view(np.uint8) if volume.dtype == bool else volume
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    edges = voxel_sizes(affine)
    image.SetSpacing(edges.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / edges).ravel().tolist())
    return image


def from_sitk(image: sitk.Image) -> np.ndarray:
    """The (X, Y, Z) array of a SimpleITK image, C order.

    Parameters
    ----------
    image : SimpleITK.Image
    """
    return np.ascontiguousarray(sitk.GetArrayViewFromImage(image).T)


def resample(
    volume: np.ndarray,
    affine: np.ndarray,
    shape: tuple[int, ...],
    onto: np.ndarray,
    world: np.ndarray | sitk.Transform | None = None,
    how: str = "linear",
    outside: float = 0.0,
) -> np.ndarray:
    """Sample a volume on another grid, through an affine or another map between the two worlds.

    Parameters
    ----------
    volume : (X, Y, Z) array
    affine : (4, 4) array
        Voxel indices of `volume` to its world, RAS mm.
    shape : tuple of 3 int
        Shape of the new grid.
    onto : (4, 4) array
        Voxel indices of the new grid to its own world, RAS mm.
    world : (4, 4) array or SimpleITK transform, optional
        World of the new grid to world of `volume`; the identity if left out.
    how : str
        nearest, linear or cubic (a B-spline, which may overshoot).
    outside : float
        Value beyond the volume's edge.

    Returns
    -------
    shape array
        Of the volume's type (uint8 for bool).
    """
    if shape[2] > _SLAB:
        slabs = []
        for start in range(0, shape[2], _SLAB):
            part = np.array(onto, dtype=float)
            part[:3, 3] = nib.affines.apply_affine(onto, [0, 0, start])
            height = min(_SLAB, shape[2] - start)
            slabs.append(resample(volume, affine, (*shape[:2], height), part, world, how, outside))
        return np.concatenate(slabs, axis=2)
    transform = np.eye(4) if world is None else world
    if not isinstance(transform, sitk.Transform):
        if how != "cubic":
            volume, affine = _needed(volume, affine, shape, transform @ onto)
        transform = sitk.AffineTransform(transform[:3, :3].ravel().tolist(), transform[:3, 3].tolist())
    edges = voxel_sizes(onto)
    direction = (onto[:3, :3] / edges).ravel().tolist()
    grid = (onto[:3, 3].tolist(), edges.tolist(), direction)
    size, interpolator = [int(n) for n in shape], _INTERPOLATORS[how]
    return from_sitk(sitk.Resample(to_sitk(volume, affine), size, transform, interpolator, *grid, float(outside)))


def _needed(
    volume: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], onto: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The box of a volume that a grid (its voxels to the volume's world) reaches, with two voxels of margin."""
    low, high = world_box(shape, np.linalg.inv(affine) @ onto)
    first = np.clip(np.floor(low).astype(int) - 2, 0, np.array(volume.shape) - 1)
    last = np.clip(np.ceil(high).astype(int) + 3, first + 1, volume.shape)
    moved = np.array(affine, dtype=float)
    moved[:3, 3] = nib.affines.apply_affine(affine, first)
    return volume[tuple(slice(a, b) for a, b in zip(first, last, strict=True))], moved


def extract_slice(volume: np.ndarray, affine: np.ndarray, plane: str, position_mm: float) -> np.ndarray:
    """One slice, turned for display.

    Superior is up in coronal and sagittal slices, anterior is up in axial ones. The patient's left is on the image's
    left in coronal and axial slices (neurological convention); anterior is on the right in sagittal ones.

    Parameters
    ----------
    volume : (X, Y, Z) array
    affine : (4, 4) array
        Voxel indices to world, RAS mm; any orientation.
    plane : str
        sagittal, coronal or axial.
    position_mm : float
        World coordinate along the plane's normal; the nearest slice is taken.

    Returns
    -------
    (rows, columns) float32
        Row 0 is the top of the image.

    Raises
    ------
    StudyError
        If the plane is unknown or the position lies outside the volume.
    """
    volume, affine = to_canonical(volume, affine)
    if plane not in NORMAL_AXIS:
        raise StudyError(f"unknown plane {plane!r}; there are {', '.join(NORMAL_AXIS)}")
    axis = NORMAL_AXIS[plane]
    index = round((position_mm - affine[axis, 3]) / affine[axis, axis])
    if not 0 <= index < volume.shape[axis]:
        low, high = world_box(volume.shape, affine)
        raise StudyError(
            f"{plane} slice at {position_mm:g} mm lies outside the volume, which runs "
            f"from {low[axis]:.0f} to {high[axis]:.0f} mm; choose positions within it"
        )
    return np.ascontiguousarray(np.take(volume, index, axis=axis).T[::-1], dtype=np.float32)


def fit_square(image: np.ndarray, size: int, zoom: float | tuple[float, float] = 1.0) -> np.ndarray:
    """Crop or zero-pad a slice about its centre to a square; resample first only where a zoom is given.

    Parameters
    ----------
    image : (rows, columns) array
    size : int
        Edge of the result, pixels.
    zoom : float or pair of float
        Pixels of the result for each pixel of `image`, by rows and columns; with the ratio of the pixel edges the
        result has square pixels and true proportions.

    Returns
    -------
    (size, size) float32

    Raises
    ------
    StudyError
        If the image is not 2-D.
    """
    if image.ndim != 2:
        raise StudyError(f"expected a 2-D slice, got an array of shape {image.shape}")
    image = np.asarray(image, dtype=np.float32)
    if not np.allclose(zoom, 1.0):
        image = ndimage.zoom(image, zoom, order=1, grid_mode=True, mode="grid-constant")
    square = np.zeros((size, size), dtype=np.float32)
    source, target = zip(*(_overlap(length, size) for length in image.shape), strict=True)
    square[target] = image[source]
    return square


def _overlap(length: int, size: int) -> tuple[slice, slice]:
    """Where an axis of `length` is read and where it is written in one of `size`, centres together."""
    shift = (size - length) // 2
    first, last = max(0, -shift), min(length, size - shift)
    return slice(first, last), slice(first + shift, last + shift)
