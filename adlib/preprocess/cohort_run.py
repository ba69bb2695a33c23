"""The pipeline over a cohort: each scan of a manifest to files, once, and back."""

from __future__ import annotations

import traceback
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.spatialimages import HeaderDataError

from adlib.parallel.mapping import map_scans
from adlib.parallel.threads import give_back_memory
from adlib.preprocess import derivatives as store
from adlib.preprocess import normalise
from adlib.preprocess.pipeline import Preprocessed, preprocess_image, preprocess_maps
from adlib.study.params import PreprocessParams, StudyParams
from adlib.study.records import (
    FEATURES,
    LOST,
    REGISTERED,
    TISSUE_MAPS,
    StudyError,
    TryAgain,
    digest,
    file_digest,
    is_passing,
    read_json,
    write_json,
    write_table,
)


def preprocess_scan(
    scan: dict[str, Any],
    derivatives: Path,
    params: PreprocessParams,
    code: str = "",
    keep: tuple[str, ...] = store.OPTIONAL,
) -> dict:
    """Preprocess one scan of a manifest to files, unless that was done before.

    Parameters
    ----------
    scan : dict
        A manifest row: participant_id, session_id, scan_id, path, sha256.
    derivatives : path
    params : PreprocessParams
    code : str
        Digest of the code that does it; part of the key under which results are kept.
    keep : tuple of str
        Images stored beside brain and mask, as ``derivatives.keep``.

    Returns
    -------
    dict
        The scan's sidecar: features, qc, verdict, reasons, steps, key, Sources, outputs, and the percentiles of the
        normalised brain for `normalise.fit_landmarks`. A scan that cannot be processed has the verdict ``fail`` and no
        outputs; it never stops a cohort. Where that is not the scan's fault, such as a file that cannot be read or want
        of memory, the reason stands in ``lost`` too and nothing is stored.
    """
    names, key = store.file_names(scan, derivatives), scan_key(scan, params, code)
    try:
        read = _bytes_of(scan)
        stored = store.stored_sidecar(names, key, keep)
        if stored is not None and stored["input_sha256"] == read:
            return stored
        names["sidecar"].unlink(missing_ok=True)
        give_back_memory()
        result = _preprocessed(scan, params)
        if _bytes_of(scan) != read:
            raise TryAgain(f"{scan['path']} changed while it was read")
    except Exception as error:
        if is_passing(error):
            return _lost(scan, _words(error))
        return store.write_sidecar(names, scan, key, {}, _failure(_words(error)) | {"input_sha256": read})
    outputs = store.write_images(names, result, keep)
    kept = ("features", "qc", "verdict", "reasons", "steps", "scan_to_mni")
    facts = {part: getattr(result, part) for part in kept} | {"scan_to_mni": result.scan_to_mni.tolist()}
    facts["input_sha256"] = read
    facts["brain_percentiles"] = normalise.percentiles(result.t1w, result.mask)
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
        failed keep their row, with the reasons and empty values. Those whose worker died or took too long, or whose
        file could not be read, are tried again by the next call; until then `records.LOST` lists them.

    Raises
    ------
    StudyError
        If every scan is to be tried again: data, programs or computers are at fault, and no scan.
    """
    root = params.folder / "derivatives"
    _describe(root / "dataset_description.json")
    keep = params.derivatives.keep
    work = partial(preprocess_scan, derivatives=root, params=params.preprocess, code=code, keep=keep)
    scans = manifest[["participant_id", "session_id", "scan_id", "path", "sha256", "space"]].to_dict("records")
    sidecars = map_scans(work, scans, pool=params.pool, label="preprocessing", lost=_lost)
    lost = {scan["scan_id"]: done["lost"] for scan, done in zip(scans, sidecars, strict=True) if "lost" in done}
    if lost and len(lost) == len(scans):
        raise StudyError(
            f"none of the {len(scans)} scans could be preprocessed; the first one: {next(iter(lost.values()))}. "
            "See to that and run again"
        )
    _note_lost(lost, params)
    rows = [_row(scan, sidecar) for scan, sidecar in zip(scans, sidecars, strict=True)]
    return write_table(pd.DataFrame(rows), params.folder / "features.tsv", FEATURES)


def load_preprocessed(scan: dict[str, Any], derivatives: Path, parts: tuple[str, ...] = store.OPTIONAL) -> Preprocessed:
    """Read back what `preprocess_scan` wrote.

    Parameters
    ----------
    scan : dict
        A manifest or features row: participant_id, session_id, scan_id.
    derivatives : path
    parts : tuple of str
        What is read beside t1w and mask: head, tissues.

    Returns
    -------
    Preprocessed
        To the precision of the stored images: 16 bits for t1w, 8 bits for tissues and native, which are None where
        `parts` or ``derivatives.keep`` leave them out.

    Raises
    ------
    StudyError
        If the scan was not processed, failed, or its files changed since.
    """
    names, content = _sidecar_of(scan, derivatives)
    return Preprocessed(
        name=str(scan["scan_id"]),
        scan_to_mni=np.array(content["scan_to_mni"]),
        features=content["features"],
        qc=content["qc"],
        verdict=content["verdict"],
        reasons=tuple(content["reasons"]),
        steps=tuple(content["steps"]),
        **store.read_images(names, content, parts),
    )


def load_t1w(scan: dict[str, Any], derivatives: Path) -> tuple[np.ndarray, np.ndarray]:
    """The t1w of `load_preprocessed` and the affine of its grid, without reading the other images."""
    return store.read_t1w(*_sidecar_of(scan, derivatives))


def all_parts(scan: dict[str, Any], params: StudyParams) -> Preprocessed:
    """As `load_preprocessed`, from a manifest row; what was not kept is computed anew and not stored."""
    stored = load_preprocessed(scan, params.folder / "derivatives")
    return _preprocessed(scan, params.preprocess) if stored.native is None or stored.tissues is None else stored


def _sidecar_of(scan: dict[str, Any], derivatives: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    names = store.file_names(scan, derivatives)
    content = store.read_sidecar(names)
    if not content["outputs"]:
        raise StudyError(f"{scan['scan_id']} has no images: {'; '.join(content['reasons'])}")
    return names, content


def _bytes_of(scan: dict[str, Any]) -> str:
    """Digest of the files that a scan is read from."""
    try:
        return digest([file_digest(path) for path in str(scan["path"]).split("|")])
    except FileNotFoundError as error:
        raise TryAgain(f"{error.filename} does not exist; put it back, or run the audit again") from None


def scan_key(scan: dict[str, Any], params: PreprocessParams, code: str) -> str:
    """The name of a result: which source bytes, which parameters, which code."""
    space = scan.get("space") or None
    return digest({"source": scan["sha256"], "space": space, "params": params.model_dump(mode="json"), "code": code})


def _preprocessed(scan: dict[str, Any], params: PreprocessParams) -> Preprocessed:
    name, space = str(scan["scan_id"]), scan.get("space") or None
    if space == TISSUE_MAPS:
        grey, white = (_load(path) for path in scan["path"].split("|"))
        return preprocess_maps(grey, white, params, name)
    if space not in (None, REGISTERED):
        raise StudyError(f"{name} is in the space {space!r}; known are {REGISTERED!r}, {TISSUE_MAPS!r} and none")
    return preprocess_image(_load(scan["path"]), params, name, registered=space == REGISTERED)


def _load(path: Path | str) -> nib.Nifti1Image:
    try:
        return nib.load(path)
    except (nib.filebasedimages.ImageFileError, HeaderDataError, OSError, EOFError, ValueError) as error:
        if is_passing(error):
            raise
        raise StudyError(f"{path} cannot be read as an image ({error}); fetch or convert it again") from None


def _words(error: Exception) -> str:
    """What is said of an error; one that adlib did not raise is told with its kind."""
    last = traceback.format_exception_only(error)[-1].strip()
    return str(error) if isinstance(error, StudyError) else f"unexpected {last}"


def _failure(reason: str) -> dict[str, Any]:
    return {"features": {}, "qc": {}, "verdict": "fail", "reasons": [reason], "steps": [], "scan_to_mni": None}


def _lost(_scan: dict[str, Any], reason: str) -> dict[str, Any]:
    """Stands for the sidecar of a scan that is lost, and is not stored: the next run tries it again."""
    return _failure(f"not preprocessed: {reason}; the next run tries again") | {"lost": reason}


def _note_lost(reasons: dict[str, str], params: StudyParams) -> None:
    if reasons:
        write_json(reasons, params.folder / LOST)
    else:
        (params.folder / LOST).unlink(missing_ok=True)


def _row(scan: dict[str, Any], sidecar: dict[str, Any]) -> dict[str, Any]:
    who = {name: scan[name] for name in ("participant_id", "session_id", "scan_id")}
    judged = {"qc_verdict": sidecar["verdict"], "qc_reasons": "; ".join(sidecar["reasons"]) or None}
    levels = sidecar.get("brain_percentiles", [None] * len(normalise.LANDMARKS))
    own = {f"intensity_p{n}": value for n, value in zip(normalise.LANDMARKS, levels, strict=True)}
    return {**who, **judged, **sidecar["features"], **sidecar["qc"], **own}


def _describe(path: Path) -> None:
    """Write what the folder holds, unless it says so; later steps would take a new date for a change."""
    content = {
        "Name": "adlib preprocessing",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "adlib", "Description": "adlib.preprocess.cohort_run"}],
    }
    if not path.is_file() or read_json(path) != content:
        write_json(content, path)
