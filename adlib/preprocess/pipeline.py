"""From a raw T1w head to MNI152 space: the one pipeline that notebooks, prediction and the cohort run all use."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from adlib import atlas
from adlib.compute import map_scans
from adlib.params import PreprocessParams, StudyParams
from adlib.preprocess import bias, brain, features, normalise, qc, store
from adlib.preprocess.checks import checked_volume
from adlib.preprocess.register import register
from adlib.preprocess.segment import segment
from adlib.records import FEATURES, StudyError, digest, read_json, write_json, write_table
from adlib.volume import block_mean, resample, voxel_sizes


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
    tissues : (X, Y, Z, 3) float32
        Fractions of GM, WM and CSF.
    native : (X, Y, Z) float32
        The head as it came, resampled to the grid, before correction and extraction.
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
    tissues: np.ndarray
    native: np.ndarray
    affine: np.ndarray
    scan_to_mni: np.ndarray
    features: dict[str, float]
    qc: dict[str, float]
    verdict: str
    reasons: tuple[str, ...]
    steps: tuple[str, ...]


def preprocess_image(image: nib.Nifti1Image, params: PreprocessParams, name: str) -> Preprocessed:
    """Register, correct, extract, segment, normalise and measure one scan.

    Parameters
    ----------
    image : nibabel image
        A T1w head or an extracted brain, any orientation, voxel size and field of view.
    params : PreprocessParams
    name : str
        What to call the scan in messages.

    Returns
    -------
    Preprocessed

    Raises
    ------
    StudyError
        If the scan is unusable: not 3-D, not finite, impossible geometry, no brain in it, not T1-weighted.
    """
    volume, affine = checked_volume(image, name)
    base = atlas.template(params.resolution_mm)
    found = register(volume, affine, name)
    head, covered = _on_template(volume, affine, found.scan_to_mni, base)
    steps = [
        f"orientation: {''.join(nib.aff2axcodes(image.affine))} to RAS",
        f"registration: affine, 12 degrees of freedom, {found.explained:.0%} of intensity variance explained",
        f"resampling: {_mm(voxel_sizes(affine))} to {params.resolution_mm:g} mm, once, trilinear",
    ]
    given = brain.is_extracted(volume, affine, found.scan_to_mni)
    mask = brain.given_mask(volume, affine, found.scan_to_mni, base) if given else base.mask
    corrected = _corrected(head, mask, base, params, steps)
    if given:
        steps.append("brain extraction skipped: input is already brain-extracted")
    else:
        mask = brain.refined_mask(corrected, base) & covered
        steps.append("brain extraction: the template's mask, refined by intensity")
    tissues = segment(corrected, mask, base)
    steps.append("segmentation: Gaussian mixture of three tissues with weak spatial priors")
    t1w = _normalised(corrected, mask, tissues, params, steps)
    values = qc.measure(corrected, mask, tissues, covered, found.scan_to_mni, base)
    judged, reasons = qc.verdict(values)
    sizes = features.volumes(tissues, mask, found.scan_to_mni, params.resolution_mm)
    return Preprocessed(
        name, t1w, mask, tissues, head, base.affine, found.scan_to_mni, sizes, values, judged, reasons, tuple(steps)
    )


def preprocess_scan(scan: dict[str, Any], derivatives: Path, params: PreprocessParams, code: str = "") -> dict:
    """Preprocess one scan of a manifest to files, unless that was done before.

    Parameters
    ----------
    scan : dict
        A manifest row: participant_id, session_id, scan_id, path, sha256.
    derivatives : path
    params : PreprocessParams
    code : str
        Digest of the code that does it; part of the key under which results are kept.

    Returns
    -------
    dict
        The scan's sidecar: features, qc, verdict, reasons, steps, key, Sources, outputs. A scan that cannot be
        processed has the verdict ``fail`` and no outputs; it never stops a cohort.
    """
    names = store.file_names(scan, derivatives)
    key = scan_key(scan, params, code)
    stored = store.stored_sidecar(names, key)
    if stored is not None:
        return stored
    names["sidecar"].unlink(missing_ok=True)
    try:
        result = preprocess_image(_load(scan["path"]), params, str(scan["scan_id"]))
    except StudyError as error:
        return store.write_sidecar(names, scan, key, {}, _failure(str(error)))
    except Exception as error:
        last = traceback.format_exception_only(error)[-1].strip()
        return store.write_sidecar(names, scan, key, {}, _failure(f"unexpected {last}"))
    outputs = store.write_images(names, result)
    kept = ("features", "qc", "verdict", "reasons", "steps", "scan_to_mni")
    facts = {part: getattr(result, part) for part in kept} | {"scan_to_mni": result.scan_to_mni.tolist()}
    return store.write_sidecar(names, scan, key, outputs, facts)


def preprocess_cohort(manifest: pd.DataFrame, params: StudyParams, code: str = "") -> pd.DataFrame:
    """Preprocess every scan of a manifest and write the table of features.

    Parameters
    ----------
    manifest : DataFrame
        By `records.MANIFEST`.
    params : StudyParams
        ``params.folder`` receives ``derivatives/`` and ``features.tsv``.
    code : str
        Digest of the code that does it.

    Returns
    -------
    DataFrame
        By `records.FEATURES`, with a column for each feature and QC value, in the order of the manifest; scans that
        failed keep their row, with the reasons and empty values.
    """
    root = params.folder / "derivatives"
    write_json(_dataset_description(), root / "dataset_description.json")
    work = partial(preprocess_scan, derivatives=root, params=params.preprocess, code=code)
    scans = manifest[["participant_id", "session_id", "scan_id", "path", "sha256"]].to_dict("records")
    sidecars = map_scans(work, scans, workers=params.exec.workers, label="preprocessing")
    rows = [_row(scan, sidecar) for scan, sidecar in zip(scans, sidecars, strict=True)]
    return write_table(pd.DataFrame(rows), params.folder / "features.tsv", FEATURES)


def load_preprocessed(scan: dict[str, Any], derivatives: Path) -> Preprocessed:
    """Read back what `preprocess_scan` wrote.

    Parameters
    ----------
    scan : dict
        A manifest or features row: participant_id, session_id, scan_id.
    derivatives : path

    Returns
    -------
    Preprocessed
        To the precision of the stored images: 16 bits for t1w, 8 bits for tissues and native.

    Raises
    ------
    StudyError
        If the scan was not processed, failed, or its files changed since.
    """
    names = store.file_names(scan, derivatives)
    content = read_json(names["sidecar"])
    if not content["outputs"]:
        raise StudyError(f"{scan['scan_id']} has no images: {'; '.join(content['reasons'])}")
    return Preprocessed(
        name=str(scan["scan_id"]),
        scan_to_mni=np.array(content["scan_to_mni"]),
        features=content["features"],
        qc=content["qc"],
        verdict=content["verdict"],
        reasons=tuple(content["reasons"]),
        steps=tuple(content["steps"]),
        **store.read_images(names, content),
    )


def scan_key(scan: dict[str, Any], params: PreprocessParams, code: str) -> str:
    """The name of a result: which source bytes, which parameters, which code."""
    return digest({"source": scan["sha256"], "params": params.model_dump(mode="json"), "code": code})


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
    return head / bias.bias_field(head, mask, base.affine)


def _normalised(
    corrected: np.ndarray, mask: np.ndarray, tissues: np.ndarray, params: PreprocessParams, steps: list[str]
) -> np.ndarray:
    if params.normalise == "white_matter_peak":
        offset, scale = normalise.white_matter_peak(corrected, tissues[..., 1])
        steps.append(f"normalisation: white matter at {scale:.4g} becomes 1")
    else:
        offset, scale = normalise.brain_zscore(corrected, mask)
        steps.append(f"normalisation: brain mean {offset:.4g} and standard deviation {scale:.4g} become 0 and 1")
    return normalise.apply(corrected, mask, offset, scale)


def _load(path: Path | str) -> nib.Nifti1Image:
    try:
        return nib.load(path)
    except FileNotFoundError:
        raise StudyError(f"{path} does not exist; check the manifest and run the audit again") from None
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
        raise StudyError(f"{path} cannot be read as an image ({error}); fetch or convert it again") from None


def _failure(reason: str) -> dict[str, Any]:
    return {"features": {}, "qc": {}, "verdict": "fail", "reasons": [reason], "steps": [], "scan_to_mni": None}


def _row(scan: dict[str, Any], sidecar: dict[str, Any]) -> dict[str, Any]:
    who = {name: scan[name] for name in ("participant_id", "session_id", "scan_id")}
    judged = {"qc_verdict": sidecar["verdict"], "qc_reasons": "; ".join(sidecar["reasons"]) or None}
    return {**who, **judged, **sidecar["features"], **sidecar["qc"]}


def _dataset_description() -> dict[str, Any]:
    return {
        "Name": "adlib preprocessing",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "adlib", "Description": "adlib.preprocess.pipeline"}],
    }


def _mm(edges: np.ndarray) -> str:
    return " × ".join(f"{edge:.3g}" for edge in edges)
