"""Affine registration to MNI152 by other tools, each as its users call it; a module is loaded only where it is used.

The fixed image is the template that adlib carries, brain only, at 1 mm: the one that needs no download. Every function
takes the scan's file and gives the found affine, MNI152 mm to scan mm, (4, 4), RAS.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PACKAGES = {"ANTsPy N4 + SyNQuick[a]": "ants", "SimpleITK Mattes": "SimpleITK", "greedy NMI": "picsl_greedy"}


def prepare(folder: Path) -> None:
    """Write the template, and the region within 6 mm of its brain, as files to be read by the tools."""
    from adlib.imaging.atlas import template

    base = template(1.0)
    near = ndimage.binary_dilation(base.mask, iterations=6).astype(np.uint8)
    nib.save(nib.Nifti1Image(base.t1, base.affine), folder / "template.nii.gz")
    nib.save(nib.Nifti1Image(near, base.affine), folder / "near.nii.gz")


def t1_linear(scan: Path, folder: Path) -> np.ndarray:
    """Clinica's t1-linear recipe (Wen et al. 2020, doi:10.1016/j.media.2020.101694): N4, then ANTs' quick affine."""
    import ants

    fixed = ants_template(folder)
    corrected = ants.n4_bias_field_correction(ants.image_read(str(scan)), spline_param=600)
    found = ants.registration(fixed, corrected, type_of_transform="antsRegistrationSyNQuick[a]", random_seed=1)
    ants.image_write(found["warpedmovout"], str(folder / "ants.nii.gz"))
    return _from_itk(sitk.ReadTransform(found["fwdtransforms"][-1]))


def mattes(scan: Path, folder: Path) -> np.ndarray:
    """Mattes mutual information by regular-step descent from 8 to 2 mm, centres of the grids together first."""
    fixed, moving = sitk_template(folder), sitk.ReadImage(str(scan), sitk.sitkFloat32)
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([8, 4, 2])
    method.SetSmoothingSigmasPerLevel([4, 2, 1])
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return _from_itk(start)


def greedy(scan: Path, folder: Path) -> np.ndarray:
    """greedy with normalised mutual information about the template's brain, centres of the grids together first."""
    from picsl_greedy import Greedy3D

    moving = sitk.ReadImage(str(scan), sitk.sitkFloat32)
    tool = Greedy3D()
    tool.execute(
        "-V 0 -threads 1 -a -dof 12 -m NMI -n 100x50x10 -ia-image-centers -gm near -i fixed moving -o affine",
        fixed=sitk_template(folder),
        near=sitk_template(folder, "near"),
        moving=moving,
        affine=None,
    )
    return np.asarray(tool["affine"], dtype=float)


@cache
def sitk_template(folder: Path, name: str = "template") -> sitk.Image:
    return sitk.ReadImage(str(folder / f"{name}.nii.gz"), sitk.sitkFloat32)


@cache
def ants_template(folder: Path):
    import ants

    return ants.image_read(str(folder / "template.nii.gz"))


def _from_itk(transform: sitk.Transform) -> np.ndarray:
    """The RAS matrix (4, 4) of an ITK affine between LPS worlds."""
    points = np.vstack([np.zeros(3), np.eye(3)])
    moved = np.array([transform.TransformPoint(point.tolist()) for point in points])
    return LPS @ nib.affines.from_matvec((moved[1:] - moved[0]).T, moved[0]) @ LPS
