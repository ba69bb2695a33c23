"""Preprocessing of one scan, from a raw T1w head to MNI152 space; notebooks, prediction and the cohort run share it."""

from dataclasses import replace

import nibabel as nib
import numpy as np

from adlib.imaging import atlas
from adlib.imaging.nifti import without_padding
from adlib.imaging.volume import block_mean, orientation_notes, resample, to_canonical, voxel_sizes, world_box
from adlib.parallel.threads import give_back_memory
from adlib.preprocess import brain, intensity, quality
from adlib.preprocess.anatomy import find_anatomy, onto_template
from adlib.preprocess.contrast import check_contrast, check_texture
from adlib.preprocess.derivatives import Preprocessed
from adlib.preprocess.registration import register, rigid_part
from adlib.preprocess.tissues import segment
from adlib.preprocess.volumes import of_head_size, region_volumes, tissue_volumes
from adlib.study.params import PreprocessParams
from adlib.study.records import StudyError, is_passing

VOXEL_MM = (0.2, 8.0)
EXTENT_MM = (80.0, 700.0)
MAX_VOXELS = 300e6


def preprocess_image(
    image: nib.Nifti1Image, params: PreprocessParams, name: str, *, registered: bool = False
) -> Preprocessed:
    """Register, correct, extract, segment, normalise and measure one scan.

    Parameters
    ----------
    image : nibabel image
        A T1w head or an extracted brain, any orientation, voxel size and field of view.
    params : PreprocessParams
    name : str
        Name of the scan in messages.
    registered : bool
        The scan is in MNI152 space already; its volumes are then those of a head of the template's size.

    Returns
    -------
    Preprocessed

    Raises
    ------
    StudyError
        If the scan is unusable: not 3-D, not finite, impossible geometry, no brain in it, not T1-weighted.
    """
    volume, affine = checked_volume(image, name)
    check_texture(volume, name)
    volume = brain.background_to_lowest(volume)
    notes = orientation_notes(image, name)
    if registered and params.registration == "rigid":
        raise StudyError(
            f"{name}: preprocess.registration is rigid, but the scan is in MNI152 space without its head's own size; "
            "set affine"
        )
    base = atlas.template(params.resolution_mm)
    fit = register(volume, affine, name, registered=registered)
    check_contrast(*fit.contrast, name)
    scan_to_mni = fit.scan_to_mni
    how = "skipped: by its source, the scan is in MNI152 space" if registered else "affine, 12 degrees of freedom"
    give_back_memory()
    head, covered = _on_template(volume, affine, scan_to_mni, base)
    steps = [
        "; ".join((f"orientation: {''.join(nib.aff2axcodes(image.affine))} to RAS", *notes)),
        f"registration: {how}; tissue explains {fit.tissue:.0%} of the brain's intensity variance",
        f"resampling: {_mm(voxel_sizes(affine))} to {params.resolution_mm:g} mm, trilinear",
    ]
    anatomy = find_anatomy(volume, affine, scan_to_mni)
    inside = onto_template(1 - anatomy.shares[0], base)
    mask, step = brain.extract_brain(volume, affine, scan_to_mni, head, inside, base, params.brain_extraction, name)
    steps.append(step)
    raw = quality.raw_quality(volume, affine, scan_to_mni) | {"qc_order": min(fit.contrast)}
    del volume, inside  # a fine scan takes as much memory as all that follows
    mask &= covered
    corrected = _corrected(head, mask, base, params, steps)
    expected = np.stack([onto_template(share, base) for share in anatomy.shares[1:3]])
    tissues = segment(corrected, mask, expected)
    steps.append("segmentation: Gaussian mixture of three tissues and their mixed voxels, with priors by the U-Net")
    t1w = _normalised(corrected, mask, tissues, params, steps)
    qc = quality.measure_quality(raw, scan_to_mni, corrected, mask, covered, tissues, base, registered=registered)
    steps.extend(reason for measure, reason in quality.SKIPPED.items() if measure not in qc)
    features = tissue_volumes(tissues, scan_to_mni, params.resolution_mm) | region_volumes(anatomy, scan_to_mni)
    features |= of_head_size(features)
    verdict, reasons = quality.verdict(qc)
    result = Preprocessed(
        name, t1w, mask, tissues, head, base.affine, scan_to_mni, features, qc, verdict, reasons, tuple(steps)
    )
    return result if params.registration == "affine" else _at_own_size(result, base)


def preprocess_maps(grey: nib.Nifti1Image, white: nib.Nifti1Image, params: PreprocessParams, name: str) -> Preprocessed:
    """Resample grey- and white-matter maps in MNI152 space, take CSF as the rest of the brain, and measure.

    Parameters
    ----------
    grey, white : nibabel image
        Tissue fractions or, from voxel-based morphometry, modulated densities.
    params : PreprocessParams
    name : str
        Name of the scan in messages.

    Returns
    -------
    Preprocessed
        Its ``t1w`` is the grey-matter map, normalised inside the template's brain.

    Raises
    ------
    StudyError
        If a map is unusable, or `params` ask for steps that need a T1w head.
    """
    if params.registration != "affine" or params.normalise != "brain_zscore":
        raise StudyError(
            f"{name}: tissue maps are in MNI152 space and are not T1w; set preprocess.registration to affine and "
            "preprocess.normalise to brain_zscore"
        )
    base = atlas.template(params.resolution_mm)
    maps, covered = [], base.mask
    for image in (grey, white):
        moved, inside = _on_template(*checked_volume(image, name), np.eye(4), base)
        maps.append(np.clip(moved, 0, None) * base.mask)
        covered = covered & inside
    fluid = np.clip(1 - maps[0] - maps[1], 0, 1) * base.mask
    tissues = np.stack([*maps, fluid], axis=-1).astype(np.float32)
    t1w = intensity.normalise(maps[0], base.mask, *intensity.brain_zscore(maps[0], base.mask))
    sizes = tissue_volumes(tissues, np.eye(4), params.resolution_mm)
    features = {part: sizes[part] for part in ("gm_ml", "wm_ml", "temporal_ml")}
    inside = base.mask & covered
    qc = {
        "qc_similarity": float(np.corrcoef(maps[0][inside], base.gm[inside])[0, 1]),
        "qc_coverage": float(inside.sum() / base.mask.sum()),
    }
    verdict, reasons = quality.verdict(qc)
    steps = ("tissue maps in MNI152 space: registration, bias correction and segmentation skipped",)
    return Preprocessed(
        name, t1w, base.mask, tissues, maps[0], base.affine, np.eye(4), features, qc, verdict, reasons, steps
    )


def checked_volume(image: nib.Nifti1Image, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Intensities and affine of a usable 3-D scan, in canonical orientation.

    Parameters
    ----------
    image : nibabel image
        Three-dimensional, or four-dimensional with a single volume.
    name : str
        Name of the scan in messages.

    Returns
    -------
    volume : (X, Y, Z) float32
        Intensities as stored, scaled by the header's slope and intercept; axes nearest to RAS.
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
    return to_canonical(without_padding(volume), affine)


def _checked_shape(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) == 1:
        raise StudyError(
            f"{name}: expected one 3-D volume, got shape {shape}; give one whole scan, no slice, no series"
        )
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise StudyError(f"{name}: {shape} is more than {MAX_VOXELS:.0f} voxels; resample it to 0.5 mm first")
    return shape


def _checked_affine(affine: np.ndarray | None, shape: tuple[int, ...], name: str) -> np.ndarray:
    if affine is None or not np.isfinite(affine).all():
        raise StudyError(f"{name}: the header holds no finite affine ({affine}); convert the scan from DICOM again")
    affine = np.asarray(affine, dtype=float)
    edges = voxel_sizes(affine)
    if np.any(edges == 0) or abs(np.linalg.det(affine[:3, :3] / np.where(edges > 0, edges, 1))) < 0.1:
        raise StudyError(
            f"{name}: the affine is singular (voxel edges {_mm(edges)} mm); its sform or qform is broken, "
            "convert the scan from DICOM again"
        )
    if edges.min() < VOXEL_MM[0] or edges.max() > VOXEL_MM[1]:
        raise StudyError(
            f"{name}: voxel edges are {_mm(edges)} mm, expected {VOXEL_MM[0]} to {VOXEL_MM[1]} mm; "
            "check the units in the header (xyzt_units)"
        )
    low, high = world_box(shape, affine)
    extent = high - low + edges.min()
    if extent.min() < EXTENT_MM[0] or extent.max() > EXTENT_MM[1]:
        raise StudyError(
            f"{name}: the field of view is {_mm(extent)} mm (shape {shape}, voxels {_mm(edges)} mm), "
            f"expected {EXTENT_MM[0]:.0f} to {EXTENT_MM[1]:.0f} mm along each axis; a whole head is needed"
        )
    return affine


def _intensities(image: nib.Nifti1Image, name: str) -> np.ndarray:
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind not in "biuf":
        raise StudyError(f"{name}: voxels are of type {kind}, expected one real number each")
    try:
        with np.errstate(over="ignore"):  # overflow becomes infinite and is refused
            return image.get_fdata(dtype=np.float32, caching="unchanged")
    except Exception as error:  # nibabel's readers raise many kinds
        if is_passing(error):
            raise
        raise StudyError(f"{name}: the voxels cannot be read ({error}); the file is damaged, fetch it again") from None


def _check_intensities(volume: np.ndarray, name: str) -> None:
    wrong = int(volume.size - np.isfinite(volume).sum())
    if wrong:
        raise StudyError(
            f"{name}: {wrong} of {volume.size} voxels are NaN or infinite; repair the scan (also its scl_slope and "
            "scl_inter, where the stored numbers are finite) or exclude it"
        )
    low, high = np.percentile(volume[::2, ::2, ::2], (0.5, 99.5))
    if not high > low:
        raise StudyError(f"{name}: the volume is constant ({low:g}) except for stray voxels; the scan holds no image")


def _at_own_size(scan: Preprocessed, base: atlas.Template) -> Preprocessed:
    """Resample the images of an affinely registered scan to its own size."""
    scan_to_mni = rigid_part(scan.scan_to_mni)
    onto = scan.scan_to_mni @ np.linalg.inv(scan_to_mni)
    step = "images resampled a second time, to MNI152 orientation at the head's own size (rigid)"

    def moved(part: np.ndarray) -> np.ndarray:
        return resample(part.astype(np.float32), base.affine, base.mask.shape, base.affine, onto)

    share = moved(scan.mask)  # of each voxel that comes from the brain; dividing by it keeps the edge from fading
    mask = share > 0.5
    inside = mask / np.maximum(share, 0.5)
    tissues = np.stack([moved(part) * inside for part in np.moveaxis(scan.tissues, -1, 0)], axis=-1)
    t1w, native = moved(scan.t1w) * inside, moved(scan.native)
    moves = {"t1w": t1w, "mask": mask, "tissues": tissues, "native": native, "scan_to_mni": scan_to_mni}
    return replace(scan, **moves, steps=(*scan.steps, step))


def _on_template(
    volume: np.ndarray, affine: np.ndarray, scan_to_mni: np.ndarray, base: atlas.Template
) -> tuple[np.ndarray, np.ndarray]:
    """The scan on the template's grid, from 0 up, and where the grid lies inside its field of view."""
    small, grid = block_mean(volume, affine, voxel_sizes(base.affine).max())
    lowest = float(small.min())
    moved = resample(small, grid, base.mask.shape, base.affine, np.linalg.inv(scan_to_mni), outside=lowest - 1)
    covered = moved >= lowest
    return np.maximum(moved - np.float32(lowest), 0), covered


def _corrected(
    head: np.ndarray, mask: np.ndarray, base: atlas.Template, params: PreprocessParams, steps: list[str]
) -> np.ndarray:
    if not params.bias_correction:
        steps.append("bias correction skipped: switched off in params")
        return head
    steps.append("bias correction: N4 inside the brain")
    return head / intensity.bias_field(head, mask, base.affine)


def _normalised(
    corrected: np.ndarray, mask: np.ndarray, tissues: np.ndarray, params: PreprocessParams, steps: list[str]
) -> np.ndarray:
    if params.normalise in ("white_matter_peak", "landmarks"):
        offset, scale = intensity.white_matter_peak(corrected, tissues[..., 1])
        later = "; slices are mapped to the landmarks of the training scans" if params.normalise == "landmarks" else ""
        steps.append(f"normalisation: white matter at {scale:.4g} becomes 1{later}")
    else:
        offset, scale = intensity.brain_zscore(corrected, mask)
        steps.append(f"normalisation: brain mean {offset:.4g} and standard deviation {scale:.4g} become 0 and 1")
    t1w = intensity.normalise(corrected, mask, offset, scale)
    if params.normalise == "landmarks":
        intensity.check_landmarks(np.array(intensity.brain_percentiles(t1w, mask)), "the scan")
    return t1w


def _mm(edges: np.ndarray) -> str:
    return " × ".join(f"{edge:.3g}" for edge in edges)
