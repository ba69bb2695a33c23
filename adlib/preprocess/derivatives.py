"""A preprocessed scan and its files, by BIDS-Derivatives names; the JSON sidecar is written last."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from adlib.imaging.atlas import SPACE, mni_image
from adlib.study.records import StudyError, atomic_path, digest, file_digest, read_json, write_json, write_text

LABELS = ("GM", "WM", "CSF")
SEAL = "content_sha256"  # of the rest of a sidecar
OPTIONAL = ("head", "tissues")  # images that are stored by choice, see `derivatives.keep`
TOOLS = ("nibabel", "nilearn", "numpy", "scikit-learn", "scipy", "SimpleITK")
LARGEST = {np.dtype(np.int16): 32000, np.dtype(np.uint8): 255}


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
        Fractions of GM, WM and CSF; None where they were not stored.
    native : (X, Y, Z) float32 or None
        The head resampled to the grid, before bias correction and brain extraction; None as above.
    affine : (4, 4) float64
        Voxel indices of the grid to MNI152, RAS mm.
    scan_to_mni : (4, 4) float64
        Scan world, RAS mm, to MNI152 mm.
    features : dict of str to float
        Volumes in ml, in the scan's own space, see `volumes.measure_volumes`.
    qc : dict of str to float
        See `quality.LIMITS`.
    verdict : str
        pass, check or fail.
    reasons : tuple of str
        Why the verdict is not pass.
    steps : tuple of str
        Processing steps in order, and those skipped, with the reason.
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


def file_names(scan: dict[str, Any], derivatives: Path) -> dict[str, Path]:
    """Paths of a scan's files: t1w, head, mask, tissues, transform, sidecar.

    Parameters
    ----------
    scan : dict
        A manifest row: participant_id, session_id, scan_id.
    derivatives : path
        Root of the derivatives.

    Returns
    -------
    dict of str to path
    """
    stem = str(scan["scan_id"]).removesuffix("_T1w")
    folder = Path(derivatives) / str(scan["participant_id"]) / str(scan["session_id"]) / "anat"
    names = {
        "t1w": f"space-{SPACE}_desc-preproc_T1w.nii.gz",
        "head": f"space-{SPACE}_desc-head_T1w.nii.gz",
        "mask": f"space-{SPACE}_desc-brain_mask.nii.gz",
        "tissues": f"space-{SPACE}_probseg.nii.gz",
        "transform": f"from-T1w_to-{SPACE}_mode-image_xfm.txt",
        "sidecar": f"space-{SPACE}_desc-preproc_T1w.json",
    }
    return {part: folder / f"{stem}_{name}" for part, name in names.items()}


def write_images(names: dict[str, Path], result: Preprocessed, keep: tuple[str, ...] = OPTIONAL) -> dict[str, str]:
    """Write the images and the transform of a scan.

    The T1w is stored in 16 bits, the head and the tissue fractions in 8, each with a scale factor.

    Parameters
    ----------
    names : dict of str to path
        From `file_names`.
    result : Preprocessed
    keep : tuple of str
        Images of `OPTIONAL` to write; older files of the others are deleted.

    Returns
    -------
    dict of str to str
        SHA-256 of each file.
    """
    span = float(np.abs(result.t1w).max()) or 1.0
    bright = float(result.native.max()) or 1.0
    _write_image(names["t1w"], result.t1w, result.affine, np.int16, span)
    _write_image(names["mask"], result.mask, result.affine, np.uint8, 255.0)
    if "head" in keep:
        _write_image(names["head"], result.native, result.affine, np.uint8, bright)
    if "tissues" in keep:
        _write_image(names["tissues"], result.tissues, result.affine, np.uint8, 1.0)
    rows = "\n".join(" ".join(f"{value:.9f}" for value in row) for row in result.scan_to_mni)
    write_text(f"# scan world (RAS mm) to {SPACE} (RAS mm), row by row\n{rows}\n", names["transform"])
    left_out = {"sidecar", *OPTIONAL} - set(keep)
    for part in left_out - {"sidecar"}:
        names[part].unlink(missing_ok=True)
    return {part: file_digest(path) for part, path in names.items() if part not in left_out}


def write_sidecar(
    names: dict[str, Path], scan: dict[str, Any], key: str, outputs: dict[str, str], facts: dict[str, Any]
) -> dict[str, Any]:
    """Write the sidecar, which marks a scan as done.

    Parameters
    ----------
    names : dict of str to path
        From `file_names`.
    scan : dict
        A manifest row.
    key : str
        Digest of the source, the params and the code.
    outputs : dict of str to str
        From `write_images`; empty for a scan that failed.
    facts : dict
        Features, QC values, verdict and other results.

    Returns
    -------
    dict
        The content of the sidecar.
    """
    content = {
        "Sources": [str(scan["path"])],
        "source_sha256": str(scan["sha256"]),
        "key": key,
        "outputs": {names[part].name: sha for part, sha in outputs.items()},
        "tools": {tool: version(tool) for tool in TOOLS},
        "SpatialReference": SPACE,
        "labels": list(LABELS),
        **facts,
    }
    return _write_sealed(content, names["sidecar"])


def stored_sidecar(names: dict[str, Path], key: str, keep: tuple[str, ...] = OPTIONAL) -> dict[str, Any] | None:
    """Sidecar of a finished scan.

    Parameters
    ----------
    names : dict of str to path
        From `file_names`.
    key : str
        Digest of the source, the params and the code.
    keep : tuple of str
        Images of `OPTIONAL` that are needed; the files of the others are deleted.

    Returns
    -------
    dict or None
        None where the scan is not done, its key is another, its files were changed or an image of `keep` is missing.
    """
    if not names["sidecar"].is_file():
        return None
    try:
        content = _read_sidecar(names)
        _check_outputs(names, content, names)
    except StudyError:
        return None
    outputs = content["outputs"]
    if content["key"] != key or (outputs and any(names[part].name not in outputs for part in keep)):
        return None
    for part in set(OPTIONAL) - set(keep):
        if outputs.pop(names[part].name, None):  # the sidecar comes first, so that it never lists a file that is gone
            _write_sealed(content, names["sidecar"])
            names[part].unlink(missing_ok=True)
    return _read_sidecar(names)


def load_preprocessed(scan: dict[str, Any], derivatives: Path, parts: tuple[str, ...] = OPTIONAL) -> Preprocessed:
    """Read a preprocessed scan.

    Parameters
    ----------
    scan : dict
        A manifest or features row: participant_id, session_id, scan_id.
    derivatives : path
    parts : tuple of str
        Images of `OPTIONAL` to read in addition to t1w and mask.

    Returns
    -------
    Preprocessed
        To the precision of the stored images: 16 bits for t1w, 8 bits for tissues and native, which are None where
        they are not in `parts` or were not stored.

    Raises
    ------
    StudyError
        If the scan was not processed, failed, or its files changed since.
    """
    names = file_names(scan, derivatives)
    content = _read_sidecar(names)
    if not content["outputs"]:
        raise StudyError(f"{scan['scan_id']} has no images: {'; '.join(content['reasons'])}")
    _check_outputs(names, content, ("t1w", "mask", *parts))
    t1w = nib.load(names["t1w"])
    images = {part: nib.load(names[part]) for part in parts if names[part].name in content["outputs"]}
    optional = {part: image.get_fdata(dtype=np.float32) for part, image in images.items()}
    return Preprocessed(
        name=str(scan["scan_id"]),
        t1w=t1w.get_fdata(dtype=np.float32),
        mask=np.asarray(nib.load(names["mask"]).dataobj) > 0,
        tissues=optional.get("tissues"),
        native=optional.get("head"),
        affine=t1w.affine,
        scan_to_mni=np.array(content["scan_to_mni"]),
        features=content["features"],
        qc=content["qc"],
        verdict=content["verdict"],
        reasons=tuple(content["reasons"]),
        steps=tuple(content["steps"]),
    )


def as_stored(t1w: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The t1w as `load_preprocessed` reads it after `write_images`.

    Parameters
    ----------
    t1w : (X, Y, Z) float32
    affine : (4, 4) array
        Voxel indices to MNI152, RAS mm.

    Returns
    -------
    (X, Y, Z) float32
        To the precision of 16 bits.
    """
    image = _coded(t1w, affine, np.int16, float(np.abs(t1w).max()) or 1.0)
    return nib.Nifti1Image.from_bytes(image.to_bytes()).get_fdata(dtype=np.float32)


def _read_sidecar(names: dict[str, Path]) -> dict[str, Any]:
    content = read_json(names["sidecar"])
    if not isinstance(content, dict) or content.get(SEAL) != _seal(content):
        raise StudyError(f"{names['sidecar']} was changed since it was written; run the preprocessing step again")
    return content


def _write_sealed(content: dict[str, Any], path: Path) -> dict[str, Any]:
    write_json(content | {SEAL: _seal(content)}, path)
    return read_json(path)


def _seal(content: dict[str, Any]) -> str:
    return digest({name: value for name, value in content.items() if name != SEAL})


def _check_outputs(names: dict[str, Path], content: dict[str, Any], parts: Iterable[str]) -> None:
    """Raise a `StudyError` if a file of a scan is missing or differs from the checksum in its sidecar."""
    for path in (names[part] for part in parts):
        expected = content["outputs"].get(path.name)
        if expected is None:
            continue
        if not path.is_file():
            raise StudyError(f"{path} is missing; run the preprocessing step again")
        if file_digest(path) != expected:
            raise StudyError(f"{path} differs from its checksum in {names['sidecar'].name}; run preprocessing again")


def _write_image(path: Path, array: np.ndarray, affine: np.ndarray, kind: type, top: float) -> None:
    with atomic_path(path) as temporary:
        nib.save(_coded(array, affine, kind, top), temporary)


def _coded(array: np.ndarray, affine: np.ndarray, kind: type, top: float) -> nib.Nifti1Image:
    largest = LARGEST[np.dtype(kind)]
    factor = np.float32(1 if array.dtype == bool else largest / top)
    codes: np.ndarray = np.empty(array.shape, dtype=kind, order="F")
    for k in range(array.shape[-1]):  # plane by plane, without a second copy in full precision
        codes[..., k] = np.rint(array[..., k] * factor)
    image = mni_image(codes, affine)
    image.header.set_slope_inter(top / largest, 0)
    return image
