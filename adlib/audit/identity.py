"""Checks of identity: copies of images, contradictory labels, participants, and leakage in a split as shipped."""

from __future__ import annotations

import numpy as np
import pandas as pd

from adlib.audit.findings import Finding, finding, named, share
from adlib.audit.similarity import Groups, near_duplicates, recover_groups
from adlib.study.params import AuditParams

_RECOVERED = "recovered by similarity"
_ALONE = "unknown: each image by itself"
_NEAR_ML = 50  # of intracranial volume: within it, differences between two people are about equally frequent


def check_labels(scans: pd.DataFrame) -> list[Finding]:
    """Find scans, image ids and visits with several diagnoses, and ids of several scans.

    A contradiction is reported once, at the most specific level: scan, image, visit.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.
    """
    found = []
    for check, column in (("scan-two-labels", "scan_id"), ("image-two-labels", "image_id")):
        wrong = _contradicted(scans, [column])
        if len(wrong):
            found.append(finding(check, "stop", named(wrong[column]), f"{wrong[column].nunique()} ids", "1 label each"))
        scans = scans.drop(index=wrong.index)
    visits = _contradicted(scans[scans["participant_source"] != _RECOVERED], ["participant_id", "session_id"])
    if len(visits):
        names = visits["participant_id"] + " " + visits["session_id"]
        found.append(finding("visit-two-labels", "stop", named(names), f"{names.nunique()} visits", "1 label each"))
    repeated = scans[scans.duplicated("scan_id")]
    if len(repeated):
        found.append(finding("scan-repeated", "warn", named(repeated["scan_id"]), f"{len(repeated)} rows"))
    images = scans.drop_duplicates("scan_id").dropna(subset="image_id")
    images = images[images.duplicated("image_id", keep=False)]
    if len(images):
        found.append(finding("image-repeated", "warn", named(images["image_id"]), f"{len(images)} scans"))
    return found


def _contradicted(scans: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    scans = scans.dropna(subset=keys)
    return scans[scans.groupby(keys)["diagnosis"].transform("nunique") > 1]


def check_copies(scans: pd.DataFrame, pixels: pd.DataFrame | None, params: AuditParams) -> list[Finding]:
    """Find copies of images: equal files, equal pixels, and near-equal ones, also mirrored or shifted.

    Copies across participants or diagnoses stop the study; copies of one participant only count twice. Each pair is
    reported once, by its strongest sign; ids with several diagnoses are not reported again.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.
    pixels : DataFrame or None
        See `similarity.pixel_facts`, indexed as `scans`.
    params : AuditParams
    """
    scans = scans.drop(index=_contradicted(scans, ["image_id"]).index)
    scans = scans[~scans["scan_id"].isin(_contradicted(scans, ["scan_id"])["scan_id"])].drop_duplicates("scan_id")
    found = [_twins("same-image", scans, scans["sha256"])]
    if pixels is None:
        found.append(finding("pixels-unchecked", "info", "all scans", f"{len(scans)} scans"))
        return [one for one in found if one]
    pixels = pixels.loc[scans.index]
    new = ~scans["sha256"].duplicated() | scans["sha256"].isna()
    found.append(_twins("same-pixels", scans[new], pixels.loc[new, "pixels_sha256"]))
    new &= ~pixels["pixels_sha256"].duplicated() & pixels["thumbnail"].notna()
    found += _near(scans[new], pixels.loc[new, "thumbnail"], params)
    return [one for one in found if one]


def _twins(check: str, scans: pd.DataFrame, key: pd.Series) -> Finding | None:
    twins = scans[key.notna() & key.duplicated(keep=False)]
    if twins.empty:
        return None
    key = key[twins.index]
    people, labels = (twins.groupby(key)[name].nunique() for name in ("participant_id", "diagnosis"))
    crossing = (people > 1) | (labels > 1)
    if crossing.any():
        twins = twins[key.isin(crossing.index[crossing])]
    severity = "stop" if crossing.any() else "warn"
    return finding(check, severity, named(twins["scan_id"]), f"{len(twins)} scans", "1 name for each image")


def _near(scans: pd.DataFrame, thumbnails: pd.Series, params: AuditParams) -> list[Finding]:
    pairs = _similar_pairs(thumbnails, params.near_duplicate)
    if pairs.empty:
        return []
    people, labels, names = (scans[name].to_numpy() for name in ("participant_id", "diagnosis", "scan_id"))
    first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()
    crossing = (people[first] != people[second]) | (labels[first] != labels[second])
    mirrored = ~crossing & (pairs["how"] != "as it is").to_numpy()
    limit = f"correlation below {params.near_duplicate:g}"
    found = []
    for check, severity, chosen in (
        ("near-duplicate", "stop", crossing),
        ("near-duplicate", "info", ~crossing & ~mirrored),
        ("mirrored-scan", "warn", mirrored),
    ):
        if chosen.any():
            who = [f"{a} = {b}" for a, b in zip(names[first[chosen]], names[second[chosen]], strict=True)]
            kinds = [f"{n} pairs {how}" for how, n in pairs.loc[chosen, "how"].value_counts().items()]
            found.append(finding(check, severity, named(who), ", ".join(kinds), limit))
    return found


def check_people(scans: pd.DataFrame) -> list[Finding]:
    """Find participants who may be one person with two ids: of equal sex, age and intracranial volume at a visit.

    Releases of one study number their participants anew, and images of one visit differ between them, so that neither
    ids nor pixels need to agree. The finding has the number of pairs expected by chance.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.MANIFEST`; nothing is checked without the columns sex, age (years) and icv_ml.
    """
    if not {"sex", "age", "icv_ml"} <= set(scans.columns):
        return []
    facts = scans[["participant_id", "sex", "age", "icv_ml"]].dropna()
    facts = facts.round({"age": 1, "icv_ml": 0}).drop_duplicates()
    alike = facts[facts.duplicated(["sex", "age", "icv_ml"], keep=False)]
    if alike.empty:
        return []
    names = alike.groupby(["sex", "age", "icv_ml"])["participant_id"].agg(" = ".join)
    value = f"{len(names)} visits with two or more ids; {_by_chance(facts):.1f} expected by chance"
    return [finding("same-person", "warn", named(names), value, "number expected by chance")]


def _by_chance(facts: pd.DataFrame) -> float:
    """Expected pairs of equal volume among those of equal sex and age, from the number that differ by a little."""
    near = 0
    for _, people in facts.drop_duplicates(["participant_id", "age"]).groupby(["sex", "age"]):
        volumes = np.sort(people["icv_ml"].to_numpy())
        near += (
            np.searchsorted(volumes, volumes + _NEAR_ML, "right") - np.searchsorted(volumes, volumes, "right")
        ).sum()
    return near / (2 * _NEAR_ML)


def _similar_pairs(thumbnails: pd.Series, limit: float) -> pd.DataFrame:
    """`similarity.near_duplicates` among thumbnails of equal shape; first and second are row numbers of the series."""
    pairs = [pd.DataFrame({"first": [], "second": [], "how": [], "similarity": []})]
    for rows in _same_shape(thumbnails):
        found = near_duplicates(np.stack(list(thumbnails.iloc[rows])), limit)
        pairs.append(found.assign(first=rows[found["first"]], second=rows[found["second"]]))
    pairs = [one for one in pairs if len(one)] or pairs[:1]
    return pd.concat(pairs, ignore_index=True).astype({"first": int, "second": int})


def _same_shape(thumbnails: pd.Series) -> list[np.ndarray]:
    shapes = thumbnails.map(np.shape)
    return [np.flatnonzero(shapes == shape) for shape in dict.fromkeys(shapes)]


def assign_participants(
    scans: pd.DataFrame, pixels: pd.DataFrame | None, params: AuditParams, seed: int
) -> tuple[pd.DataFrame, list[Finding]]:
    """Assign scans without a participant to groups of images of one head.

    Parameters
    ----------
    scans : DataFrame
        Schema `records.LISTING`.
    pixels : DataFrame or None
        See `similarity.pixel_facts`, indexed as `scans`; without it each image becomes one participant.
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
    found = [finding("participants-unknown", "stop", named(scans.loc[unknown, "scan_id"]), f"{len(unknown)} scans")]
    group = pd.Series(-1, index=unknown)
    clear = False
    if pixels is not None:
        thumbnails = pixels.loc[unknown, "thumbnail"].dropna()
        for rows in _same_shape(thumbnails):
            groups = _grouped(thumbnails.iloc[rows], params, seed)
            group[thumbnails.index[rows]] = group.max() + 1 + groups.label
            clear |= groups.clear
    alone = group[group < 0].index
    group[alone] = group.max() + 1 + np.arange(len(alone))
    sizes = group.value_counts()
    value = f"{len(sizes)} groups of {sizes.min()} to {sizes.max()} images (median {sizes.median():g})"
    found.append(finding("participants-recovered", "info", "images without a participant", value, "any"))
    if not clear:
        found.append(finding("groups-unclear", "warn", "images without a participant", value, "distinct heads"))
    scans = scans.copy()
    codes = group.factorize()[0] + 1
    scans.loc[unknown, "participant_id"] = [f"grp-{code:04d}" for code in codes]
    source = np.where(group.isin(sizes.index[sizes > 1]), _RECOVERED, _RECOVERED if clear else _ALONE)
    scans.loc[unknown, "participant_source"] = source
    return scans, found + _mixed_groups(scans.loc[unknown])


def _grouped(thumbnails: pd.Series, params: AuditParams, seed: int) -> Groups:
    stack = np.stack(list(thumbnails))
    return recover_groups(stack, seed, near_duplicates(stack, params.near_duplicate))


def _mixed_groups(scans: pd.DataFrame) -> list[Finding]:
    labels = scans.groupby("participant_id")["diagnosis"].nunique()
    mixed = labels.index[labels > 1]
    if mixed.empty:
        return []
    return [finding("group-two-labels", "warn", named(mixed), share(len(mixed), len(labels)) + " groups")]


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
    if across.empty:
        return []
    trained = split.loc[split["given_split"] == "train", "participant_id"].unique()
    tested = split[split["given_split"] == "test"]
    leaked = int(tested["participant_id"].isin(trained).sum())
    people = "groups" if (split["participant_source"] == _RECOVERED).any() else "participants"
    value = f"{share(len(across), len(parts))} {people} in several parts"
    value += f"; {share(leaked, len(tested))} test scans of participants in the training set" if len(tested) else ""
    return [finding("given-split-leaks", "stop", named(across), value)]
