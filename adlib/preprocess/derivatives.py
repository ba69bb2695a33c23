"""The files that preprocessing leaves for each scan, by BIDS-Derivatives names; a JSON sidecar is written last."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from adlib.imaging.atlas import SPACE
from adlib.study.records import StudyError, atomic_path, digest, file_digest, read_json, write_json, write_text

LABELS = ("GM", "WM", "CSF")
SEAL = "content_sha256"  # of all else that a sidecar says
OPTIONAL = ("head", "tissues")  # parts of a result that need not be kept
TOOLS = ("nibabel", "nilearn", "numpy", "scikit-learn", "scipy", "SimpleITK")
LARGEST = {np.dtype(np.int16): 32000, np.dtype(np.uint8): 255}


def file_names(scan: dict[str, Any], derivatives: Path) -> dict[str, Path]:
    """Where the parts of a scan's result lie: t1w, head, mask, tissues, transform, sidecar.

    Parameters
    ----------
    scan : dict
        A manifest row: participant_id, session_id, scan_id.
    derivatives : path
        Root of the derivatives.
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


def write_images(names: dict[str, Path], result: Any, keep: tuple[str, ...] = OPTIONAL) -> dict[str, str]:
    """Write the images and the transform of a `Preprocessed`; return the SHA-256 of each, by part.

    The T1w is stored in 16 bits, the head and the tissue fractions in 8, each with a scale factor. Of `OPTIONAL` parts
    only those in `keep` are written, and older files of the others deleted.
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


def write_sidecar(names: dict[str, Path], scan: dict[str, Any], key: str, outputs: dict[str, str], facts: dict) -> dict:
    """Write the sidecar, which marks a scan as done; return its content."""
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


def read_sidecar(names: dict[str, Path]) -> dict[str, Any]:
    """What a scan's sidecar says.

    Raises
    ------
    StudyError
        If it is missing, or is not what was written.
    """
    content = read_json(names["sidecar"])
    if not isinstance(content, dict) or content.get(SEAL) != _seal(content):
        raise StudyError(f"{names['sidecar']} is not what was written; run the preprocessing step again")
    return content


def _write_sealed(content: dict[str, Any], path: Path) -> dict[str, Any]:
    write_json(content | {SEAL: _seal(content)}, path)
    return read_json(path)


def _seal(content: dict[str, Any]) -> str:
    return digest({name: value for name, value in content.items() if name != SEAL})


def stored_sidecar(names: dict[str, Path], key: str, keep: tuple[str, ...] = OPTIONAL) -> dict | None:
    """The sidecar of a finished scan if its key is the given one and its files are still what it says; else None.

    Where a part of `keep` was not stored it is None, too; a part that is stored and not in `keep` is deleted.
    """
    if not names["sidecar"].is_file():
        return None
    try:
        content = read_sidecar(names)
        check_outputs(names, content)
    except StudyError:
        return None
    outputs = content["outputs"]
    if content["key"] != key or (outputs and any(names[part].name not in outputs for part in keep)):
        return None
    return _without(names, content, [part for part in OPTIONAL if part not in keep and names[part].name in outputs])


def _without(names: dict[str, Path], content: dict, parts: list[str]) -> dict:
    """The sidecar without some parts, whose files are deleted once it says so."""
    if parts:
        gone = {names[part].name for part in parts}
        content["outputs"] = {name: sha for name, sha in content["outputs"].items() if name not in gone}
        content = _write_sealed(content, names["sidecar"])
    for part in parts:
        names[part].unlink(missing_ok=True)
    return content


def check_outputs(names: dict[str, Path], content: dict, parts: tuple[str, ...] | None = None) -> None:
    """Hold the files of a scan against the sums in its sidecar.

    Raises
    ------
    StudyError
        If a file is missing or was changed since it was written.
    """
    for path in (names[part] for part in parts or names):
        expected = content["outputs"].get(path.name)
        if expected is None:
            continue
        if not path.is_file():
            raise StudyError(f"{path} is missing; run the preprocessing step again")
        if file_digest(path) != expected:
            raise StudyError(f"{path} is not what {names['sidecar'].name} says was written; run preprocessing again")


def read_images(
    names: dict[str, Path], content: dict, parts: tuple[str, ...] = OPTIONAL
) -> dict[str, np.ndarray | None]:
    """Read t1w, mask and `parts` and the affine of their grid, after checking their sums; None where not kept."""
    check_outputs(names, content, ("t1w", "mask", *parts))
    t1w = nib.load(names["t1w"])
    kept = {part: nib.load(names[part]) for part in parts if names[part].name in content["outputs"]}
    optional = {part: image.get_fdata(dtype=np.float32) for part, image in kept.items()}
    return {
        "t1w": t1w.get_fdata(dtype=np.float32),
        "native": optional.get("head"),
        "mask": np.asarray(nib.load(names["mask"]).dataobj) > 0,
        "tissues": optional.get("tissues"),
        "affine": t1w.affine,
    }


def read_t1w(names: dict[str, Path], content: dict) -> tuple[np.ndarray, np.ndarray]:
    """Only the t1w, float32, and the affine of its grid, after checking its sum."""
    check_outputs(names, content, ("t1w",))
    image = nib.load(names["t1w"])
    return image.get_fdata(dtype=np.float32), image.affine


def as_stored(t1w: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """What `read_images` gives of this t1w after `write_images`: float32 to the precision of 16 bits."""
    image = _coded(t1w, affine, np.int16, float(np.abs(t1w).max()) or 1.0)
    return nib.Nifti1Image.from_bytes(image.to_bytes()).get_fdata(dtype=np.float32)


def _write_image(path: Path, array: np.ndarray, affine: np.ndarray, kind: type, top: float) -> None:
    with atomic_path(path) as temporary:
        nib.save(_coded(array, affine, kind, top), temporary)


def _coded(array: np.ndarray, affine: np.ndarray, kind: type, top: float) -> nib.Nifti1Image:
    largest = LARGEST[np.dtype(kind)]
    factor = np.float32(1 if array.dtype == bool else largest / top)
    codes = np.empty(array.shape, dtype=kind, order="F")
    for k in range(array.shape[-1]):  # plane by plane, so that no second copy in full precision is made
        codes[..., k] = np.rint(array[..., k] * factor)
    image = nib.Nifti1Image(codes, affine)
    image.header.set_slope_inter(top / largest, 0)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    return image
