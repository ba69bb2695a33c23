"""Preprocessing of a cohort: each scan of a manifest to its files, once."""

import traceback
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd

from adlib.imaging.nifti import load
from adlib.parallel.mapping import map_scans
from adlib.parallel.threads import give_back_memory
from adlib.preprocess.derivatives import (
    OPTIONAL,
    Preprocessed,
    file_names,
    load_preprocessed,
    stored_sidecar,
    write_images,
    write_sidecar,
)
from adlib.preprocess.intensity import LANDMARKS, brain_percentiles
from adlib.preprocess.pipeline import preprocess_image, preprocess_maps
from adlib.study.code_digest import code_digest
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
    scan: dict[str, Any], derivatives: Path, params: PreprocessParams, code: str = "", keep: tuple[str, ...] = OPTIONAL
) -> dict:
    """Preprocess one scan of a manifest to files, unless they are there.

    Parameters
    ----------
    scan : dict
        A manifest row: participant_id, session_id, scan_id, path, sha256.
    derivatives : path
    params : PreprocessParams
    code : str
        Digest of the preprocessing code; part of the key of the result.
    keep : tuple of str
        Images stored in addition to t1w and mask, as ``derivatives.keep``.

    Returns
    -------
    dict
        The scan's sidecar: features, qc, verdict, reasons, steps, key, Sources, outputs, and the percentiles of the
        normalised brain for `intensity.fit_landmarks`. A scan that cannot be processed has the verdict ``fail`` and no
        outputs; it never stops a cohort. Where the cause is not the scan (an unreadable disk, lack of memory), the
        reason is in ``lost`` too and nothing is stored.
    """
    names, space = file_names(scan, derivatives), scan.get("space") or None
    key = digest({"source": scan["sha256"], "space": space, "params": params.model_dump(mode="json"), "code": code})
    try:
        read = _bytes_of(scan)
        stored = stored_sidecar(names, key, keep)
        if stored is not None and stored["input_sha256"] == read:
            return stored
        names["sidecar"].unlink(missing_ok=True)
        give_back_memory()
        result = _preprocessed(scan, params)
        if _bytes_of(scan) != read:
            raise TryAgain(f"{scan['path']} changed while it was read")
    except Exception as error:
        unexpected = f"unexpected {traceback.format_exception_only(error)[-1].strip()}"
        reason = str(error) if isinstance(error, StudyError) else unexpected
        if is_passing(error):
            return _lost(scan, reason)
        return write_sidecar(names, scan, key, {}, _failure(reason) | {"input_sha256": read})
    outputs = write_images(names, result, keep)
    facts = {part: getattr(result, part) for part in ("features", "qc", "verdict", "reasons", "steps")}
    facts |= {"scan_to_mni": result.scan_to_mni.tolist(), "input_sha256": read}
    facts["brain_percentiles"] = brain_percentiles(result.t1w, result.mask)
    return write_sidecar(names, scan, key, outputs, facts)


def preprocess_cohort(manifest: pd.DataFrame, params: StudyParams) -> pd.DataFrame:
    """Preprocess every scan of a manifest and write the table of features.

    Parameters
    ----------
    manifest : DataFrame
        By `records.MANIFEST`.
    params : StudyParams
        ``params.folder`` receives ``derivatives/`` and ``features.tsv``.

    Returns
    -------
    DataFrame
        By `records.FEATURES`, with a column for each feature and QC value, in the order of the manifest. Scans that
        failed have a row, with reasons and empty values. Scans whose worker died or timed out, or whose file could
        not be read, are listed in `records.LOST` and tried again by the next call.

    Raises
    ------
    StudyError
        If every scan is to be tried again: the cause is then not in the scans.
    """
    root = params.folder / "derivatives"
    _describe(root / "dataset_description.json")
    code = code_digest(__name__)
    work = partial(preprocess_scan, derivatives=root, params=params.preprocess, code=code, keep=params.derivatives.keep)
    scans = manifest[["participant_id", "session_id", "scan_id", "path", "sha256", "space"]].to_dict("records")
    sidecars = map_scans(work, scans, pool=params.pool, label="preprocessing", lost=_lost, isolate=True)
    lost = {scan["scan_id"]: done["lost"] for scan, done in zip(scans, sidecars, strict=True) if "lost" in done}
    if lost and len(lost) == len(scans):
        raise StudyError(
            f"none of the {len(scans)} scans could be preprocessed; the first: {next(iter(lost.values()))}. Solve "
            "this and run again"
        )
    if lost:
        write_json(lost, params.folder / LOST)
    else:
        (params.folder / LOST).unlink(missing_ok=True)
    rows = [_row(scan, sidecar) for scan, sidecar in zip(scans, sidecars, strict=True)]
    return write_table(pd.DataFrame(rows), params.folder / "features.tsv", FEATURES)


def load_complete(scan: dict[str, Any], params: StudyParams) -> Preprocessed:
    """Read a preprocessed scan with all images; those not stored are computed, not written.

    Parameters
    ----------
    scan : dict
        A manifest row.
    params : StudyParams

    Returns
    -------
    Preprocessed

    Raises
    ------
    StudyError
        As `load_preprocessed`.
    """
    stored = load_preprocessed(scan, params.folder / "derivatives")
    return _preprocessed(scan, params.preprocess) if stored.native is None or stored.tissues is None else stored


def _bytes_of(scan: dict[str, Any]) -> str:
    """Digest of the files that a scan is read from."""
    try:
        return digest([file_digest(path) for path in str(scan["path"]).split("|")])
    except FileNotFoundError as error:
        raise TryAgain(f"{error.filename} does not exist; restore it, or run the audit again") from None


def _preprocessed(scan: dict[str, Any], params: PreprocessParams) -> Preprocessed:
    name, space = str(scan["scan_id"]), scan.get("space") or None
    if space == TISSUE_MAPS:
        grey, white = (_load(path) for path in scan["path"].split("|"))
        return preprocess_maps(grey, white, params, name)
    if space not in (None, REGISTERED):
        raise StudyError(f"{name} has space {space!r}, expected {REGISTERED!r}, {TISSUE_MAPS!r} or none")
    return preprocess_image(_load(scan["path"]), params, name, registered=space == REGISTERED)


def _load(path: Path | str) -> nib.Nifti1Image:
    try:
        return load(path)[0]
    except Exception as error:  # nibabel's readers raise many kinds
        if is_passing(error):
            raise
        raise StudyError(f"{path} cannot be read as an image ({error}); fetch or convert it again") from None


def _failure(reason: str) -> dict[str, Any]:
    return {"features": {}, "qc": {}, "verdict": "fail", "reasons": [reason], "steps": [], "scan_to_mni": None}


def _lost(_scan: dict[str, Any], reason: str) -> dict[str, Any]:
    """In place of the sidecar of a scan that the next run tries again; not stored."""
    return _failure(f"not preprocessed: {reason}; the next run tries again") | {"lost": reason}


def _row(scan: dict[str, Any], sidecar: dict[str, Any]) -> dict[str, Any]:
    ids = {name: scan[name] for name in ("participant_id", "session_id", "scan_id")}
    verdict = {"qc_verdict": sidecar["verdict"], "qc_reasons": "; ".join(sidecar["reasons"]) or None}
    levels = sidecar.get("brain_percentiles", [None] * len(LANDMARKS))
    intensities = {f"intensity_p{n}": value for n, value in zip(LANDMARKS, levels, strict=True)}
    return {**ids, **verdict, **sidecar["features"], **sidecar["qc"], **intensities}


def _describe(path: Path) -> None:
    """Write the description of the dataset, unless it is there: a new date would count as a change."""
    content = {
        "Name": "adlib preprocessing",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "adlib", "Description": "adlib.preprocess.cohort_run"}],
    }
    if not path.is_file() or read_json(path) != content:
        write_json(content, path)
