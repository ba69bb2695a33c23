"""Balance of age, sex and site between the parts of a split."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, kruskal
from scipy.stats.contingency import expected_freq

from adlib.study.records import Schema
from adlib.training.split_table import PARTS

BALANCE = Schema(
    "balance",
    {"fold": int, "fact": str, "value": str, **dict.fromkeys(PARTS, str)},
    {"smd_validation": float, "smd_test": float, "test_name": str, "p": float, "least_expected": float},
    ("fold", "fact", "value"),
)


def balance_table(splits: pd.DataFrame, scans: pd.DataFrame) -> pd.DataFrame:
    """Compare age, sex and site, as of the first session, between the parts of each fold.

    Parameters
    ----------
    splits : DataFrame
        Schema `records.SPLITS`.
    scans : DataFrame
        Schema `records.MANIFEST`.

    Returns
    -------
    DataFrame
        Schema `BALANCE`: for each part the mean and standard deviation of age (years) or the participants of each sex
        and site; standardised differences from the training part, of which 0.1 is small (Austin 2009,
        doi:10.1002/sim.3697); and the p value over all parts of the test of Kruskal and Wallis (1952,
        doi:10.1080/01621459.1952.10483441) or chi-square, the latter with the least expected count, below 5 of which
        it is rough (Cochran 1954, doi:10.2307/3001616). Facts without two values are left out.
    """
    first = scans.sort_values("session_id").drop_duplicates("participant_id").set_index("participant_id")
    first = first.assign(sex=first["sex"].astype("string").str.upper().str[0])
    rows = []
    for fold, table in splits.groupby("fold"):
        part = table.set_index("participant_id")["split"]
        for fact in ("age", "sex", "site"):
            values = first.loc[part.index, fact].dropna()
            if values.nunique() > 1 and part[values.index].nunique() > 1:
                compare = _compare_ages if fact == "age" else _compare_counts
                rows += [{"fold": fold, "fact": fact} | row for row in compare(values, part[values.index])]
    return pd.DataFrame(rows, columns=list(BALANCE.columns))


def _compare_ages(ages: pd.Series, part: pd.Series) -> list[dict[str, Any]]:
    p = kruskal(*(group for _, group in ages.groupby(part))).pvalue
    tested = {"value": "mean (SD)", "test_name": "Kruskal-Wallis", "p": p}
    return [tested | _by_part(ages, part, "{mean:.1f} ({sd:.1f})", ddof=1)]


def _compare_counts(values: pd.Series, part: pd.Series) -> list[dict[str, Any]]:
    counts = pd.crosstab(values, part)
    p, least = chi2_contingency(counts, correction=False).pvalue, expected_freq(counts).min()
    tested = {"test_name": "chi-square", "p": p, "least_expected": least}
    return [
        {"value": value} | tested | _by_part((values == value).astype(float), part, "{n:.0f} ({percent:.0f} %)", ddof=0)
        for value in counts.index
    ]


def _by_part(values: pd.Series, part: pd.Series, form: str, ddof: int) -> dict[str, Any]:
    """Each part as text, and its standardised difference from training."""
    groups = values.groupby(part)
    parts = pd.DataFrame({"n": groups.sum(), "mean": groups.mean(), "sd": groups.std(ddof=ddof)}).reindex(list(PARTS))
    parts["percent"] = 100 * parts["mean"]
    texts = {name: "nobody" if np.isnan(row["mean"]) else form.format(**row) for name, row in parts.iterrows()}
    spread = np.sqrt((parts["sd"] ** 2 + parts.at["train", "sd"] ** 2) / 2)
    difference = (parts["mean"] - parts.at["train", "mean"]) / spread
    return texts | {f"smd_{name}": difference[name] for name in PARTS[1:]}
