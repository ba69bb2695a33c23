"""Groups of participants by sex, age, site and scanner."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd


def participant_groups(manifest: pd.DataFrame, age_bands: tuple[float, ...]) -> pd.DataFrame:
    """Group names of each participant, by the facts of the first session.

    Parameters
    ----------
    manifest : DataFrame
        As `records.MANIFEST`.
    age_bands : tuple of float
        Rising ages that divide bands, years.

    Returns
    -------
    DataFrame
        Index participant_id; columns sex, age, site, manufacturer, field strength (text, missing where unknown), and
        only those in which participants differ.
    """
    first = manifest.sort_values(["participant_id", "session_id"]).drop_duplicates("participant_id")
    first = first.set_index("participant_id")
    groups = pd.DataFrame(
        {
            "sex": first["sex"].astype("string").str.upper().str[0],
            "age": _bands(first["age"], age_bands),
            "site": first["site"].astype("string"),
            "manufacturer": first["manufacturer"].astype("string").str.strip(),
            "field strength": first["field_strength_T"].map("{:g} T".format, na_action="ignore").astype("string"),
        }
    )
    return groups.loc[:, groups.nunique() > 1]


def _bands(age: pd.Series, edges: tuple[float, ...]) -> pd.Series:
    names = [f"under {edges[0]:g}", *(f"{low:g} to under {high:g}" for low, high in pairwise(edges))]
    names.append(f"{edges[-1]:g} and over")
    return pd.cut(age, [-np.inf, *edges, np.inf], right=False, labels=names, ordered=True)


def subgroups(pooled: pd.DataFrame, groups: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of each group of each column; age bands rise.

    Parameters
    ----------
    pooled : DataFrame
        Participants, from `adlib.training.pooling.pool_level`.
    groups : DataFrame
        From `participant_groups`.

    Yields
    ------
    name : str
        Such as ``sex F``.
    rows : DataFrame
        Of `pooled`; never empty.
    """
    for column in groups:
        group = pooled["participant_id"].map(groups[column])
        order = groups[column].cat.categories if column == "age" else sorted(group.dropna().unique())
        for name in order:
            inside = (group == name).to_numpy(bool, na_value=False)
            if inside.any():
                yield f"{column} {name}", pooled[inside]
