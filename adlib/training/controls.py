"""Control trainings: those that must fall to chance, a leaking split, the silhouette, and scanner metadata."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adlib.audit.acquisition import acquisition_encoder, acquisition_facts
from adlib.imaging.atlas import template
from adlib.imaging.volume import resample
from adlib.parallel.mapping import map_scans
from adlib.preprocess.derivatives import load_preprocessed
from adlib.preprocess.registration import rigid_part
from adlib.study.params import InputParams, StudyParams
from adlib.study.records import MANIFEST, TISSUE_MAPS, StudyError, read_table
from adlib.training.folds import Fold
from adlib.training.slices import scan_slices

BRIGHT = 99.0  # percentile of the background that becomes 1


def control_fold(run: str, fold: Fold, params: StudyParams) -> Fold:
    """The fold of a control, made from that of the network.

    Parameters
    ----------
    run : str
        A key of `CONTROLS`.
    fold : Fold
    params : StudyParams

    Raises
    ------
    StudyError
        If the study's images do not allow the control.
    """
    return replace(CONTROLS[run](fold, params), run=run)


def _shuffled_labels(fold: Fold, params: StudyParams) -> Fold:
    """Diagnosis, target and auxiliary values are another participant's, in all parts of the split.

    A score above chance then means leakage. Labels are permuted over participants, so class sizes stay, and all scans
    of a participant get the same label.
    """
    people = fold.table["participant_id"]
    first = pd.Series(np.arange(len(people))).groupby(people.to_numpy()).first()
    permuted = pd.Series(np.random.default_rng(params.seed).permutation(first.to_numpy()), index=first.index)
    rows = people.map(permuted).to_numpy()
    table = fold.table.assign(diagnosis=fold.table["diagnosis"].to_numpy()[rows])
    return replace(fold, table=table, targets=fold.targets[rows], auxiliary=fold.auxiliary[rows])


def _slice_split(fold: Fold, params: StudyParams) -> Fold:
    """A leaking split: slices are assigned to the parts without regard to participants.

    Yagis et al. 2021, doi:10.1038/s41598-021-01681-w. The parts keep their sizes. One slice of each tested participant
    stays in the test part, so that this split and the honest one can be compared on the same participants.
    """
    rng = np.random.default_rng([params.seed, fold.number])
    split = fold.table["split"].to_numpy().copy()
    tested = pd.Series(rng.permutation(fold.rows("test")))
    stays = tested.groupby(fold.table["participant_id"].to_numpy()[tested]).first()
    moved = np.setdiff1d(np.arange(len(split)), stays)
    split[moved] = rng.permutation(split[moved])
    return replace(fold, table=fold.table.assign(split=split))


def _binarised(fold: Fold, params: StudyParams) -> Fold:
    """The silhouette of the brain alone: 1 inside, 0 outside (Tinauer et al. 2025, arXiv:2501.15831)."""
    return replace(fold, slices=(np.asarray(fold.slices) != 0).astype(np.float16))


def _background(fold: Fold, params: StudyParams) -> Fold:
    """The head without the brain: the prediction from scanner, skull and field of view alone.

    No other trace of atrophy may remain. The head is shown in its original size, since a fit to the template's
    tissue scales and shears the skull of a shrunk brain, and the hole is the template's brain, larger than a person's
    and the same in all scans, since the outline of an individual brain mask reflects atrophy too.
    """
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST).set_index("scan_id", drop=False)
    scans = manifest.loc[fold.table["scan_id"].unique()]
    if params.input.flat or (scans["space"] == TISSUE_MAPS).any():
        raise StudyError("train.controls names background, which needs 3-D heads; leave it out")
    cut = partial(_background_of, input_params=params.input, derivatives=params.folder / "derivatives")
    arrays = map_scans(cut, scans.to_dict("records"), pool=params.pool, label="cutting backgrounds")
    by_scan = dict(zip(scans["scan_id"], arrays, strict=True))
    pairs = zip(fold.table["scan_id"], fold.table["slice"], strict=True)
    return replace(fold, slices=np.stack([by_scan[scan][k] for scan, k in pairs]).astype(np.float16))


def _background_of(scan: dict[str, Any], input_params: InputParams, derivatives: Path) -> np.ndarray:
    done = load_preprocessed(scan, derivatives)
    base = template(abs(float(done.affine[0, 0])))
    to_rigid = done.scan_to_mni @ np.linalg.inv(rigid_part(done.scan_to_mni))
    head = resample(done.native, done.affine, base.mask.shape, base.affine, to_rigid)
    outside = head * ~base.mask
    if not (outside > 0).any():
        raise StudyError(f"{scan['scan_id']} has nothing outside the brain; the control background needs whole heads")
    outside /= np.percentile(outside[outside > 0], BRIGHT)
    whole = input_params.size / max(outside.shape)  # so that the head is seen to its edges
    return scan_slices(outside, base.affine, input_params, zoom=min(whole, 1.0))


def _metadata_added(fold: Fold, params: StudyParams) -> Fold:
    """Phase, sequence, scanner and voxels as covariates: how much they would add."""
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST).set_index("scan_id")
    facts = acquisition_facts(manifest)
    if not facts.shape[1]:
        raise StudyError("train.controls names metadata_added, but no acquisition fact varies among the scans")
    train = fold.table["scan_id"].iloc[fold.rows("train")].unique()
    encoder = acquisition_encoder().set_output(transform="default").fit(facts.loc[train])
    added = np.asarray(encoder.transform(facts.loc[fold.table["scan_id"]]), np.float32)
    return replace(fold, covariates=np.concatenate([fold.covariates, added], axis=1))


CONTROLS: dict[str, Callable[[Fold, StudyParams], Fold]] = {
    "shuffled_labels": _shuffled_labels,
    "slice_split": _slice_split,
    "background": _background,
    "binarised": _binarised,
    "metadata_added": _metadata_added,
}
