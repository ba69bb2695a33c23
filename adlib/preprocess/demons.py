"""Deformable registration: the differences in shape that an affine leaves, by diffeomorphic demons of SimpleITK."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from adlib.imaging.atlas import Template
from adlib.imaging.volume import block_mean, to_sitk, voxel_sizes

WORK_MM = 2.0  # voxel edge at which heads are registered, where their grid is finer
GREY = 0.6  # of white matter, in the picture that is registered: the same for every scanner
LEVELS = (2, 1)  # coarse to fine
ITERATIONS = 20
SMOOTHING_MM = 1.5  # sd of the blur of the displacement after each step


def picture(grey: np.ndarray, white: np.ndarray) -> np.ndarray:
    """One image out of tissue fractions (X, Y, Z) float32, free of bias, noise and the scanner's contrast."""
    return np.float32(GREY) * grey + white


def displacement(fixed: np.ndarray, moving: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Find where each point of one picture lies in another that is aligned but for its shape.

    Parameters
    ----------
    fixed, moving : (X, Y, Z) float32
        From `picture`, on one grid.
    affine : (4, 4) array
        Voxel indices to world, RAS mm; without shear.

    Returns
    -------
    (X, Y, Z, 3) float32
        Millimetres to add to a point of `fixed` to come to its place in `moving`.

    References
    ----------
    Vercauteren et al. 2009, doi:10.1016/j.neuroimage.2008.10.040.
    """
    still, loose = to_sitk(fixed, affine), to_sitk(moving, affine)
    field = None
    for shrink in LEVELS:
        pair = [_coarser(image, shrink) for image in (still, loose)]
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(ITERATIONS)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations([SMOOTHING_MM / edge for edge in pair[0].GetSpacing()])
        field = demons.Execute(*pair) if field is None else demons.Execute(*pair, sitk.Resample(field, pair[0]))
    return sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3).astype(np.float32)


def to_shape(tissues: np.ndarray, base: Template) -> sitk.Transform:
    """Where each point of the template lies in an affinely registered head, as a SimpleITK transform.

    Parameters
    ----------
    tissues : (X, Y, Z, 3) float32
        GM, WM, CSF fractions of the head on the template's grid.
    base : Template
    """
    fixed, grid = block_mean(picture(base.gm, base.wm), base.affine, WORK_MM)
    field = displacement(fixed, block_mean(picture(tissues[..., 0], tissues[..., 1]), base.affine, WORK_MM)[0], grid)
    image = sitk.GetImageFromArray(field.transpose(2, 1, 0, 3).astype(np.float64), isVector=True)
    image.CopyInformation(to_sitk(fixed, grid))
    return sitk.DisplacementFieldTransform(image)


def jacobian(field: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """By how much a displacement field (X, Y, Z, 3) in mm stretches volume at each voxel, (X, Y, Z) float32."""
    edges = voxel_sizes(affine)
    slopes = np.stack([np.stack(np.gradient(field[..., k], *edges), axis=-1) for k in range(3)], axis=-2)
    return np.linalg.det(slopes + np.eye(3)).astype(np.float32)


def _coarser(image: sitk.Image, shrink: int) -> sitk.Image:
    if shrink == 1:
        return image
    blur = [0.5 * shrink * edge for edge in image.GetSpacing()]
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, blur), [shrink] * 3)
