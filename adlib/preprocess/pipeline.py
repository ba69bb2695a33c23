"""From a raw T1w head to MNI152 space: the one pipeline that notebooks, prediction and the cohort run all use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np

from adlib.imaging import atlas
from adlib.imaging.header import orientation_notes
from adlib.imaging.volume import block_mean, resample, voxel_sizes
from adlib.parallel.threads import give_back_memory
from adlib.preprocess import bias, brain, normalise
from adlib.preprocess import quality as qc
from adlib.preprocess import volumes as features
from adlib.preprocess.coarse_search import brain_centre
from adlib.preprocess.demons import to_shape
from adlib.preprocess.external import external_mask
from adlib.preprocess.raw_quality import scan_values
from adlib.preprocess.registration import register, rigid_part
from adlib.preprocess.scan_checks import checked_volume
from adlib.preprocess.tissues import segment
from adlib.study.params import PreprocessParams
from adlib.study.records import StudyError


@dataclass(frozen=True)
class Preprocessed:
    """A scan in MNI152 space.

    Attributes
    ----------
    name : str
    t1w : (X, Y, Z) float32
        Bias-corrected, normalised intensities; 0 outside the brain.
    mask : (X, Y, Z) bool
        Brain with its fluid.
    tissues : (X, Y, Z, 3) float32 or None
        Fractions of GM, WM and CSF; None where read back and not kept.
    native : (X, Y, Z) float32 or None
        The head as it came, resampled to the grid, before correction and extraction; None as above.
    affine : (4, 4) float64
        Voxel indices of the grid to MNI152, RAS mm.
    scan_to_mni : (4, 4) float64
        Scan world, RAS mm, to MNI152 mm.
    features : dict of str to float
        Volumes in ml of the person's own head, see `features.volumes`.
    qc : dict of str to float
        See `qc.LIMITS`.
    verdict : str
        pass, check or fail.
    reasons : tuple of str
        Why the verdict is not pass.
    steps : tuple of str
        What was done, in order, and what was skipped and why.
    """

    name: str
    t1w: np.ndarray
    mask: np.ndarray
    tissues: np.ndarray | None
    native: np.ndarray | None
    affine: np.ndarray
    scan_to_mni: np.ndarray
    features: dict[str, float]
    qc: dict[str, float]
    verdict: str
    reasons: tuple[str, ...]
    steps: tuple[str, ...]


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
        What to call the scan in messages.
    registered : bool
        The scan already lies in MNI152 space; its volumes are then those of the template's size.

    Returns
    -------
    Preprocessed

    Raises
    ------
    StudyError
        If the scan is unusable: not 3-D, not finite, impossible geometry, no brain in it, not T1-weighted.
    """
    volume, affine = checked_volume(image, name)
    notes = orientation_notes(image, name)
    if registered and params.registration == "rigid":
        raise StudyError(
            f"{name}: preprocess.registration is rigid, but the source has taken the head's own size away already; set "
            "affine or deformable"
        )
    base = atlas.template(params.resolution_mm)
    scan_to_mni, how = _pose(volume, affine, name, registered)
    give_back_memory()
    head, covered = _on_template(volume, affine, scan_to_mni, base)
    steps = [
        "; ".join((f"orientation: {''.join(nib.aff2axcodes(image.affine))} to RAS", *notes)),
        how,
        f"resampling: {_mm(voxel_sizes(affine))} to {params.resolution_mm:g} mm, trilinear",
    ]
    given = brain.is_extracted(volume, affine, scan_to_mni)
    to_skull = not given and params.brain_extraction == "template"
    mask = base.mask if to_skull else _found_mask(volume, affine, scan_to_mni, base, params, name, given) & covered
    if given:
        steps.append("brain extraction skipped: input is already brain-extracted")
    elif not to_skull:
        steps.append(f"brain extraction: {params.brain_extraction}")
    own = scan_values(volume, affine, scan_to_mni)
    del volume  # a fine scan takes as much memory as all that follows
    corrected = _corrected(head, mask, base, params, steps)
    if to_skull:
        mask = brain.refined_mask(corrected, base) & covered
        steps.append("brain extraction: the template's mask, refined by intensity and grown to the inner skull")
    tissues = segment(corrected, mask, base)
    steps.append("segmentation: Gaussian mixture of three tissues and their mixed voxels, with weak spatial priors")
    t1w = _normalised(corrected, mask, tissues, params, steps)
    values = qc.measure(qc.Scan(own, scan_to_mni, corrected, mask, covered, tissues, registered), base)
    steps.extend(qc.left_out(values))
    judged, reasons = qc.verdict(values)
    sizes = features.volumes(tissues, mask, scan_to_mni, params.resolution_mm, whole_head=to_skull)
    result = Preprocessed(
        name, t1w, mask, tissues, head, base.affine, scan_to_mni, sizes, values, judged, reasons, tuple(steps)
    )
    return result if params.registration == "affine" else _refitted(result, params.registration, base)


def preprocess_maps(grey: nib.Nifti1Image, white: nib.Nifti1Image, params: PreprocessParams, name: str) -> Preprocessed:
    """Take grey- and white-matter maps that lie in MNI152 space already: resample, fill up with CSF, measure.

    Parameters
    ----------
    grey, white : nibabel image
        Tissue fractions or, from voxel-based morphometry, modulated densities.
    params : PreprocessParams
    name : str
        What to call the scan in messages.

    Returns
    -------
    Preprocessed
        Its ``t1w`` is the grey-matter map, normalised inside the template's brain.

    Raises
    ------
    StudyError
        If a map is unusable, or `params` ask for what only a T1w head can have.
    """
    if params.registration != "affine" or params.normalise != "brain_zscore":
        raise StudyError(
            f"{name}: tissue maps lie in MNI152 space and are no T1w; set preprocess.registration to affine and "
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
    t1w = normalise.apply(maps[0], base.mask, *normalise.brain_zscore(maps[0], base.mask))
    sizes = features.volumes(tissues, base.mask, np.eye(4), params.resolution_mm)
    kept = {part: sizes[part] for part in ("gm_ml", "wm_ml", "temporal_ml")}
    inside = base.mask & covered
    values = {
        "qc_similarity": float(np.corrcoef(maps[0][inside], base.gm[inside])[0, 1]),
        "qc_coverage": float(inside.sum() / base.mask.sum()),
    }
    judged, reasons = qc.verdict(values)
    steps = ("tissue maps in MNI152 space as they came: registration, bias correction and segmentation skipped",)
    return Preprocessed(
        name, t1w, base.mask, tissues, maps[0], base.affine, np.eye(4), kept, values, judged, reasons, steps
    )


def _pose(volume: np.ndarray, affine: np.ndarray, name: str, registered: bool) -> tuple[np.ndarray, str]:
    """Scan world to MNI152 (4, 4), and how it was found."""
    if registered:
        return np.eye(4), "registration skipped: the source says that the scan lies in MNI152 space"
    found = register(volume, affine, name)
    explained = f"{found.explained:.0%} of intensity variance explained"
    return found.scan_to_mni, f"registration: affine, 12 degrees of freedom, {explained}"


def _refitted(scan: Preprocessed, registration: str, base: atlas.Template) -> Preprocessed:
    """Give out the images of an affinely registered scan in its own size, or in the template's shape."""
    if registration == "rigid":
        scan_to_mni = rigid_part(scan.scan_to_mni, brain_centre())
        onto = scan.scan_to_mni @ np.linalg.inv(scan_to_mni)
        step = "images given out in MNI152 orientation at the head's own size (rigid), resampled a second time"
    else:
        scan_to_mni, onto = scan.scan_to_mni, to_shape(scan.tissues, base)
        step = "images given out in the template's shape (diffeomorphic demons on tissues), resampled a second time"

    def moved(part: np.ndarray) -> np.ndarray:
        return resample(part.astype(np.float32), base.affine, base.mask.shape, base.affine, onto)

    share = moved(scan.mask)  # of each voxel, that comes from inside the brain: its edge shall not fade into nothing
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


def _found_mask(
    volume: np.ndarray,
    affine: np.ndarray,
    scan_to_mni: np.ndarray,
    base: atlas.Template,
    params: PreprocessParams,
    name: str,
    given: bool,
) -> np.ndarray:
    """The brain of a scan that comes extracted, or that another program finds, on the template's grid."""
    if given:
        return brain.given_mask(volume, affine, scan_to_mni, base)
    return brain.carried_mask(external_mask(volume, affine, params.brain_extraction, name), affine, scan_to_mni, base)


def _corrected(
    head: np.ndarray, mask: np.ndarray, base: atlas.Template, params: PreprocessParams, steps: list[str]
) -> np.ndarray:
    if not params.bias_correction:
        steps.append("bias correction skipped: switched off in params")
        return head
    steps.append("bias correction: N4 inside the brain")
    return head / bias.bias_field(head, mask, base.affine)


def _normalised(
    corrected: np.ndarray, mask: np.ndarray, tissues: np.ndarray, params: PreprocessParams, steps: list[str]
) -> np.ndarray:
    if params.normalise in ("white_matter_peak", "landmarks"):
        offset, scale = normalise.white_matter_peak(corrected, tissues[..., 1])
        later = "; slices go on to the landmarks of the training scans" if params.normalise == "landmarks" else ""
        steps.append(f"normalisation: white matter at {scale:.4g} becomes 1{later}")
    else:
        offset, scale = normalise.brain_zscore(corrected, mask)
        steps.append(f"normalisation: brain mean {offset:.4g} and standard deviation {scale:.4g} become 0 and 1")
    t1w = normalise.apply(corrected, mask, offset, scale)
    if params.normalise == "landmarks":
        normalise.check_rising(normalise.percentiles(t1w, mask), "the scan")
    return t1w


def _mm(edges: np.ndarray) -> str:
    return " × ".join(f"{edge:.3g}" for edge in edges)
