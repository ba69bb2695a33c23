"""Tables of splits that pass between studies, by participant or by keyed hash of the participant."""

import hmac
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from adlib.sources.participant_table import loose
from adlib.study.params import SplitParams
from adlib.study.records import SPLITS, Schema, StudyError, some, write_table
from adlib.study.user_tables import read_user_table, table_columns

PARTS = ("train", "validation", "test")
HASH = "participant_hash"
HASHED_SPLITS = Schema("hashed splits", {HASH: str, "fold": int, "split": str}, {}, (HASH, "fold"))
_MIN_SALT = 16


def write_splits(splits: pd.DataFrame, salt: Path | None, folder: Path) -> pd.DataFrame:
    """Write ``splits.tsv`` and, with a salt, ``splits_hashed.tsv``: tables for the protocol given.

    The hash is HMAC-SHA256 (RFC 2104) of the participant's name without prefix, separators, leading zeros and case,
    with the content of the salt as key; rows are in the order of the hashes.

    Parameters
    ----------
    splits : DataFrame
        Schema `records.SPLITS`.
    salt : path or None
    folder : path

    Returns
    -------
    DataFrame
        The table as written to ``splits.tsv``.

    Raises
    ------
    StudyError
        If the salt is missing or short, or two participants have one name in the hash.
    """
    hashed = folder / "splits_hashed.tsv"
    hashed.unlink(missing_ok=True)
    if salt is not None:
        hashes = {name: token for token, name in by_hash(splits["participant_id"].unique(), salt).items()}
        table = splits[["fold", "split"]].assign(**{HASH: splits["participant_id"].map(hashes)})
        write_table(table.sort_values(["fold", HASH]), hashed, HASHED_SPLITS)
    return write_table(splits, folder / "splits.tsv", SPLITS)


def read_given(params: SplitParams, manifest: pd.DataFrame, linked: dict[str, str]) -> pd.DataFrame:
    """Read the parts that ``splits.table`` or, without one, the manifest's column given_split assigns.

    The table has the columns participant_id or `HASH`, split (one of `PARTS`) and optionally fold; several rows of a
    participant, as in a table of scans, must agree. Participants are matched as in the tables of sources, without
    prefix, separators, leading zeros and case.

    Parameters
    ----------
    params : SplitParams
    manifest : DataFrame
        Schema `records.MANIFEST`.
    linked : dict of str to str
        The first of the participants linked to each; one row decides for all of them.

    Returns
    -------
    (participants, folds) DataFrame of str
        Parts by the first of linked participants, of those in the table; columns are the table's folds.

    Raises
    ------
    StudyError
        With names and lines, if a part is none of `PARTS`, a participant is not of the study, or participants who are
        one or linked are on two sides.
    """
    key, path = "participant_id", params.table
    if path is None:
        path = Path("manifest.tsv, as splits.table is empty")
        table = manifest.rename(columns={"given_split": "split"}).reindex(columns=[key, "split"])
        table.index = pd.RangeIndex(2, len(table) + 2)
    else:
        key = HASH if HASH in table_columns(path) else key
        table = read_user_table(path, required=(key, "split"))
    names = manifest["participant_id"].unique()
    people = by_hash(names, params.salt) if key == HASH else _by_token(names, loose)
    token = table[key].fillna("").map(str.lower if key == HASH else loose)
    fold = pd.to_numeric(table["fold"], errors="coerce") if "fold" in table else 0
    person = token.map(people).map(lambda name: linked.get(name, name))
    table = table.assign(name=table[key], person=person, fold=fold, split=table["split"].str.lower())
    _refuse(table, ~table["split"].isin(PARTS), path, f"split is none of {', '.join(PARTS)}")
    _refuse(table, table["fold"].isna(), path, "fold is no number")
    _refuse(table, table["person"].isna(), path, "participants are not of this study; remove the rows")
    sides = table.groupby(["fold", "person"])["split"].transform("nunique")
    _refuse(table, sides > 1, path, "one or linked people are on two sides")
    return table.drop_duplicates(["fold", "person"]).pivot(index="person", columns="fold", values="split")


def by_hash(names: Iterable[str], salt: Path | None) -> dict[str, str]:
    """Participants by the keyed hash of their name, see `write_splits`.

    Parameters
    ----------
    names : iterable of str
    salt : path or None

    Returns
    -------
    dict of str to str

    Raises
    ------
    StudyError
        If the salt is missing or short, or two participants have one name in the hash.
    """
    return _by_token(names, _hasher(salt))


def _refuse(table: pd.DataFrame, wrong: pd.Series, path: Path, what: str) -> None:
    lines = [f"line {line}: {row['name']} ({row['split']})" for line, row in table[wrong].iterrows()]
    if lines:
        raise StudyError(f"{path}: {what}: {some(lines)}")


def _by_token(names: Iterable[str], token: Callable[[str], str]) -> dict[str, str]:
    """Names by what stands for them in a table; each for one name only."""
    found: dict[str, str] = {}
    for name in names:
        first = found.setdefault(token(name), name)
        if first != name:
            raise StudyError(f"the participants {first} and {name} differ only in zeros or case; rename one")
    return found


def _hasher(salt: Path | None) -> Callable[[str], str]:
    if salt is None:
        raise StudyError("participants are to be matched by hashes; name the file of their secret in splits.salt")
    key = salt.read_bytes().strip() if salt.is_file() else b""
    if len(key) < _MIN_SALT:
        raise StudyError(
            f"splits.salt {salt} has {len(key)} bytes, at least {_MIN_SALT} are needed; make it by "
            f"`openssl rand -hex 32 > {salt}`, and keep it as confidential as the participants' names"
        )
    return lambda name: hmac.digest(key, loose(name).encode(), "sha256").hex()
