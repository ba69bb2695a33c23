"""Checks of scans: labels, copies, participants, a split as shipped, sequence, geometry, values, and the cohort.

`confounds` checks facts that predict the label. Preprocessing checks the image itself, which it registers to a T1w
template.
"""

import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from adlib.audit.advice import Finding, findings_of, share
from adlib.audit.similarity import near_duplicates, recover_groups
from adlib.sources.image_files import MAPS, REFORMATTED, SEPARATOR, unlike_timing
from adlib.sources.sequence import Sequence, sequence_of, sequence_of_file
from adlib.study.params import AuditParams

_RECOVERED = "recovered by similarity"
_NEAR_ML = 50  # of intracranial volume: within it, differences between two people are about equally frequent
_MIN_SLICES = 40  # as for DICOM: below it, a localiser or a 2-D clinical series
_MAX_ANISOTROPY = 2.5  # 3-D T1w of ADNI and OASIS-1 have 1.25 to 1.3; 5 mm clinical slices have 5
_VIEW_MM = (100.0, 400.0)  # an adult brain alone measures about 130 mm across at least
_EDGES = ["voxel_x_mm", "voxel_y_mm", "voxel_z_mm"]
_IMBALANCE = 4.0


def check_labels(scans: pd.DataFrame) -> list[Finding]:
    """Find scans, image ids and visits with several diagnoses, and ids of several scans.

    A contradiction is reported once, at the most specific level: scan, image, visit.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.
    """
    findings = []
    for check, column in (("scan-two-labels", "scan_id"), ("image-two-labels", "image_id")):
        wrong = _contradicted(scans, [column])
        findings += findings_of(check, "stop", wrong[column], f"{wrong[column].nunique()} ids", "1 label each")
        scans = scans.drop(index=wrong.index)
    visits = _contradicted(scans[scans["participant_source"] != _RECOVERED], ["participant_id", "session_id"])
    names = visits["participant_id"] + " " + visits["session_id"]
    findings += findings_of("visit-two-labels", "stop", names, f"{names.nunique()} visits", "1 label each")
    repeated = scans[scans.duplicated("scan_id")]
    findings += findings_of("scan-repeated", "warn", repeated["scan_id"], f"{len(repeated)} rows")
    images = scans.drop_duplicates("scan_id").dropna(subset="image_id")
    images = images[images.duplicated("image_id", keep=False)]
    return findings + findings_of("image-repeated", "warn", images["image_id"])


def _contradicted(scans: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    scans = scans.dropna(subset=keys)
    return scans[scans.groupby(keys)["diagnosis"].transform("nunique") > 1]


def check_copies(scans: pd.DataFrame, pixels: pd.DataFrame, params: AuditParams) -> list[Finding]:
    """Find copies of images: equal files, equal pixels, and near-equal ones, also mirrored or shifted.

    Copies across participants or diagnoses stop the study; copies of one participant only count twice. Each pair is
    reported once, by its strongest sign; ids with several diagnoses are not reported again.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.
    pixels : DataFrame
        See `similarity.pixel_facts`, with a row for each of `scans`.
    params : AuditParams
    """
    scans = scans.drop(index=_contradicted(scans, ["image_id"]).index)
    scans = scans[~scans["scan_id"].isin(_contradicted(scans, ["scan_id"])["scan_id"])].drop_duplicates("scan_id")
    pixels = pixels.loc[scans.index]
    findings = _twins("same-image", scans, scans["sha256"])
    new = ~scans["sha256"].duplicated() | scans["sha256"].isna()
    findings += _twins("same-pixels", scans[new], pixels.loc[new, "pixels_sha256"])
    new &= ~pixels["pixels_sha256"].duplicated() & pixels["thumbnail"].notna()
    return findings + _near(scans[new], pixels.loc[new, "thumbnail"], params.near_duplicate)


def _twins(check: str, scans: pd.DataFrame, key: pd.Series) -> list[Finding]:
    twins = scans[key.notna() & key.duplicated(keep=False)]
    key = key[twins.index]
    crossing = (twins.groupby(key)[["participant_id", "diagnosis"]].nunique() > 1).any(axis=1)
    if crossing.any():
        twins = twins[key.isin(crossing.index[crossing])]
    severity = "stop" if crossing.any() else "warn"
    people = twins["participant_id"].groupby(key[twins.index]).unique()
    return findings_of(check, severity, twins["scan_id"], limit="1 name for each image", linked=people)


def _near(scans: pd.DataFrame, thumbnails: pd.Series, limit: float) -> list[Finding]:
    found = []
    for rows in _same_shape(thumbnails):
        pairs = near_duplicates(np.stack(list(thumbnails.iloc[rows])), limit)
        found.append(pairs.assign(first=rows[pairs["first"]], second=rows[pairs["second"]]))
    if not found:
        return []
    pairs = pd.concat(found, ignore_index=True)
    first, second = (scans.iloc[pairs[side]].reset_index() for side in ("first", "second"))
    crossing = (first["participant_id"] != second["participant_id"]) | (first["diagnosis"] != second["diagnosis"])
    mirrored = ~crossing & (pairs["how"] != "as it is")
    names = first["scan_id"] + " = " + second["scan_id"]
    people = pd.Series(list(zip(first["participant_id"], second["participant_id"], strict=True)), dtype=object)
    findings = []
    for check, severity, chosen in (
        ("near-duplicate", "stop", crossing),
        ("near-duplicate", "info", ~crossing & ~mirrored),
        ("mirrored-scan", "warn", mirrored),
    ):
        kinds = ", ".join(f"{n} pairs {how}" for how, n in pairs.loc[chosen, "how"].value_counts().items())
        limited = f"correlation below {limit:g}"
        findings += findings_of(check, severity, names[chosen], kinds, limited, people[chosen])
    return findings


def _same_shape(thumbnails: pd.Series) -> list[np.ndarray]:
    shapes = thumbnails.map(np.shape)
    return [np.flatnonzero(shapes == shape) for shape in dict.fromkeys(shapes)]


def check_cohorts(scans: pd.DataFrame) -> list[Finding]:
    """Find participants of several cohorts, and cohorts whose labels are from other sources.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`; nothing is checked without the column cohort.
    """
    if "cohort" not in scans:
        return []
    cohorts = scans.groupby("participant_id")["cohort"].unique()
    shared = cohorts[cohorts.map(len) > 1]
    names = shared.index + " (" + shared.map(", ".join) + ")"
    findings = findings_of("person-in-cohorts", "stop", names, f"{len(names)} participants", "1 cohort each")
    rules = scans.groupby("cohort")["label_source"].agg(lambda column: ", ".join(sorted(column.dropna().unique())))
    if rules.nunique() > 1:
        value = "; ".join(f"{name}: {rule or 'not stated'}" for name, rule in rules.items())
        findings += findings_of("label-policies", "warn", list(rules.index), value, "1 rule")
    return findings


def check_people(scans: pd.DataFrame) -> list[Finding]:
    """Find participants who may be one person with two ids: of equal sex, age and intracranial volume at a visit.

    Releases of one study number their participants anew, and images of one visit differ between them, so that neither
    ids nor pixels need to agree. The finding has the number of pairs expected by chance.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.MANIFEST`; nothing is checked without the columns sex, age (years) and icv_ml.
    """
    same = ["sex", "age", "icv_ml"]
    if not set(same) <= set(scans.columns):
        return []
    facts = scans[["participant_id", *same]].dropna().round({"age": 1, "icv_ml": 0}).drop_duplicates()
    alike = facts[facts.duplicated(same, keep=False)]
    people = alike.groupby(same)["participant_id"].unique()
    names = people.map(" = ".join)
    value = f"{len(names)} visits with two or more ids; {_by_chance(facts):.1f} expected by chance"
    return findings_of("same-person", "warn", names, value, "number expected by chance", people)


def _by_chance(facts: pd.DataFrame) -> float:
    """Expected pairs of equal volume among those of equal sex and age, from the number that differ by a little."""
    near = 0
    for _, people in facts.drop_duplicates(["participant_id", "age"]).groupby(["sex", "age"]):
        volumes = np.sort(people["icv_ml"].to_numpy())
        above, equal = (np.searchsorted(volumes, volumes + step, "right") for step in (_NEAR_ML, 0))
        near += (above - equal).sum()
    return near / (2 * _NEAR_ML)


def assign_participants(
    scans: pd.DataFrame, pixels: pd.DataFrame, params: AuditParams, seed: int
) -> tuple[pd.DataFrame, list[Finding]]:
    """Assign scans without a participant to groups of images of one head.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.
    pixels : DataFrame
        See `similarity.pixel_facts`, with a row for each of `scans`; a scan without a thumbnail becomes a participant.
    params : AuditParams
    seed : int

    Returns
    -------
    scans : DataFrame
        participant_id ``grp-0001`` and on, and participant_source where the participant was unknown.
    findings : list of dict
    """
    unknown = scans.index[scans["participant_id"].isna()]
    if unknown.empty:
        return scans, []
    group = pd.Series(-1, index=unknown)
    clear = False
    thumbnails = pixels.loc[unknown, "thumbnail"].dropna()
    for rows in _same_shape(thumbnails):
        labels, separate = recover_groups(np.stack(list(thumbnails.iloc[rows])), params.near_duplicate, seed)
        group[thumbnails.index[rows]] = group.max() + 1 + labels
        clear |= separate
    alone = group[group < 0].index
    group[alone] = group.max() + 1 + np.arange(len(alone))
    sizes = group.value_counts()
    scans = scans.copy()
    scans.loc[unknown, "participant_id"] = [f"grp-{code:04d}" for code in group.factorize()[0] + 1]
    recovered = clear | group.isin(sizes.index[sizes > 1])
    scans.loc[unknown, "participant_source"] = np.where(recovered, _RECOVERED, "unknown: each image by itself")
    findings = findings_of("participants-unknown", "stop", scans.loc[unknown, "scan_id"])
    images = ["images without a participant"]
    value = f"{len(sizes)} groups of {sizes.min()} to {sizes.max()} images (median {sizes.median():g})"
    findings += findings_of("participants-recovered", "info", images, value, "any")
    if not clear:
        findings += findings_of("groups-unclear", "warn", images, value, "distinct heads")
    labels = scans.loc[unknown].groupby("participant_id")["diagnosis"].nunique()
    mixed = labels.index[labels > 1]
    return scans, findings + findings_of("group-two-labels", "warn", mixed, f"{share(len(mixed), len(labels))} groups")


def check_given_split(scans: pd.DataFrame) -> list[Finding]:
    """Find participants in several parts of the split as shipped, and the test scans that leak.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.
    """
    split = scans.dropna(subset="given_split")
    parts = split.groupby("participant_id")["given_split"].nunique()
    across = parts.index[parts > 1]
    trained = split.loc[split["given_split"] == "train", "participant_id"]
    tested = split[split["given_split"] == "test"]
    leaked = int(tested["participant_id"].isin(trained).sum())
    people = "groups" if (split["participant_source"] == _RECOVERED).any() else "participants"
    value = f"{share(len(across), len(parts))} {people} in several parts"
    value += f"; {share(leaked, len(tested))} test scans of participants in the training set" if len(tested) else ""
    return findings_of("given-split-leaks", "stop", across, value)


def check_sequence(scans: pd.DataFrame) -> tuple[list[Finding], pd.DataFrame]:
    """Find scans that are not T1w by name, series description or timing; exclude them unless most scans are such.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.

    Returns
    -------
    findings : list of dict
    kept : DataFrame
        All scans where the finding stops the study.
    """
    reasons = scans.apply(_unlike_t1w, axis=1)
    other = scans[reasons != ""]
    unstated = scans[(reasons == "") & ~scans.apply(_named_t1w, axis=1)]
    severity = "stop" if 2 * len(other) > len(scans) else "warn"
    counts = ", ".join(f"{n} x {reason}" for reason, n in reasons[other.index].value_counts()[:5].items())
    findings = findings_of("sequence-not-t1w", severity, other["scan_id"], f"{share(len(other), len(scans))}: {counts}")
    findings += findings_of("sequence-unstated", "info", unstated["scan_id"])
    return findings, scans if severity == "stop" else scans.drop(index=other.index)


def _unlike_t1w(scan: pd.Series) -> str:
    """The surest sign that a scan is not T1w, empty where there is none."""
    modality = _text(scan["modality"])
    if modality and modality.upper() not in ("MR", "MRI"):
        return f"modality {modality}"
    kinds = {part.strip().upper() for part in re.split(r"[/\\,]", _text(scan["image_type"]))}
    if derived := kinds & ((REFORMATTED - {"MPR"}) | MAPS):
        return f"image type {'/'.join(sorted(derived))}"
    if by_timing := unlike_timing(scan):
        return by_timing
    for kind, named in (("series", _described(scan)), ("file", _filed(scan))):
        if named.other:
            return f"{kind} named '{named.other}'"
        if named.t1w and named.agent:
            return f"contrast agent: {kind} named '{named.agent}'"
    return ""


def _described(scan: pd.Series) -> Sequence:
    return sequence_of(_text(scan["series_description"]))


def _filed(scan: pd.Series) -> Sequence:
    return sequence_of_file(scan["path"].split(SEPARATOR)[0])


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _named_t1w(scan: pd.Series) -> bool:
    return bool(_described(scan).t1w or pd.notna(scan["echo_time_ms"]) or _filed(scan).t1w)


def check_geometry(scans: pd.DataFrame, pixels: pd.DataFrame) -> tuple[list[Finding], pd.DataFrame]:
    """Find implausible headers and values; exclude constant images.

    2-D images and joined slices have no spatial header and skip the checks of it. A fault that makes a scan unusable
    stops the study where more than half of the scans have it.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.
    pixels : DataFrame
        See `similarity.pixel_facts`; indexed as `scans`.

    Returns
    -------
    findings : list of dict
    kept : DataFrame
    """
    sizes = scans["shape"].str.extract(r"^(\d+)x(\d+)(?:x(\d+))?(?:x(\d+))?").astype(float).fillna(1)
    sizes.columns = ["nx", "ny", "nz", "nt"]
    volume = ~(scans["path"].str.contains(SEPARATOR, regex=False) | (sizes["nz"] == 1))
    facts = scans.assign(**sizes, volume=volume, affine_fault=scans.get("affine_fault"))
    wrong = {name: check(facts) for name, check in _HEADER_CHECKS.items()}
    wrong["unreadable"] |= pixels["fault"].notna()
    wrong |= {"nan-values": pixels["nan_share"] > 0, "constant": pixels["constant"].eq(True)}
    findings = []
    for check, rows in wrong.items():
        severity = "stop" if check in _UNUSABLE and 2 * rows.sum() > len(scans) else "warn"
        findings += findings_of(check, severity, scans.loc[rows, "scan_id"], f"{share(rows.sum(), len(scans))} scans")
    return findings, scans[~wrong["constant"]]


def _odd_view(facts: pd.DataFrame) -> pd.Series:
    view = facts[["nx", "ny", "nz"]].to_numpy() * facts[_EDGES]
    stated = facts["volume"] & facts["shape"].notna() & facts[_EDGES].notna().all(axis=1)
    return stated & ((view.min(axis=1) < _VIEW_MM[0]) | (view.max(axis=1) > _VIEW_MM[1]))


_HEADER_CHECKS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "unreadable": lambda f: f["shape"].isna(),
    "not-3d": lambda f: f["volume"] & (f["nt"] > 1),
    "few-slices": lambda f: f["volume"] & f["shape"].notna() & (f[["nx", "ny", "nz"]].min(axis=1) < _MIN_SLICES),
    "anisotropic": lambda f: f["volume"] & (f[_EDGES].max(axis=1) > _MAX_ANISOTROPY * f[_EDGES].min(axis=1)),
    "field-of-view": _odd_view,
    "affine": lambda f: f["volume"] & f["affine_fault"].isin(["singular", "missing"]),
    "orientation-unstated": lambda f: f["volume"] & f["affine_fault"].eq("unstated"),
    "dtype": lambda f: f["dtype"].fillna("").str.contains("complex|rgb", case=False),
}
_UNUSABLE = ("not-3d", "affine", "dtype")


def check_cohort(scans: pd.DataFrame, classes: tuple[str, ...], params: AuditParams) -> list[Finding]:
    """Count participants by class, follow-ups, changes of diagnosis and missing ages.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.MANIFEST`.
    classes : tuple of str
    params : AuditParams
    """
    people = scans.groupby("diagnosis")["participant_id"].nunique().reindex(classes, fill_value=0)
    least = params.min_participants_per_class
    findings = []
    for name, count in people.items():
        severity = "stop" if count < least else "info"
        findings += findings_of("participants", severity, [name], str(count), f">= {least}")
    ratio = people.max() / max(people.min(), 1)
    if ratio > _IMBALANCE:
        findings += findings_of("imbalance", "warn", ["classes"], f"{ratio:.1f} : 1", f"{_IMBALANCE:g} : 1")
    visits = scans.groupby("participant_id")[["session_id", "diagnosis"]].nunique()
    several = visits[visits["session_id"] > 1]
    changed = several[several["diagnosis"] > 1]
    findings += findings_of("followups", "info", several.index, f"{len(several)} participants", "any")
    findings += findings_of("label-changes", "info", changed.index, f"{len(changed)} participants", "any")
    return findings + findings_of("age-missing", "warn", scans.loc[scans["age"].isna(), "scan_id"])
