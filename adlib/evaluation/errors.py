"""The tested participants that the network is most sure and most wrong about."""

import numpy as np
import pandas as pd

from adlib.study.params import StudyParams
from adlib.study.records import FEATURES, read_table
from adlib.training.slices import load_slices


def may_show_participants(params: StudyParams) -> bool:
    """Whether figures of single participants may be drawn: of simulated heads, or where the params allow it.

    The terms of ADNI and others forbid passing on data of single participants, raw or derived.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    bool
    """
    return params.simulated or params.evaluate.show_participants


def most_confident_errors(pooled: pd.DataFrame, classes: tuple[str, ...], count: int) -> pd.DataFrame:
    """Misclassified participants by falling probability of the predicted class; ties by name.

    Parameters
    ----------
    pooled : DataFrame
        Participants, from `adlib.training.pooling.pool_level`.
    classes : tuple of str
    count : int
        Largest number of rows.

    Returns
    -------
    DataFrame
        participant_id, truth, answer (the predicted class), probability (of that class).
    """
    p = pooled[[f"p_{name}" for name in classes]].to_numpy(float)
    answer = np.array(classes)[p.argmax(1)]
    table = pooled[["participant_id", "truth"]].assign(answer=answer, probability=p.max(1))
    wrong = table[table["answer"] != table["truth"]]
    return wrong.sort_values(["probability", "participant_id"], ascending=[False, True]).head(count)


def study_failures(params: StudyParams, pooled: pd.DataFrame, count: int = 8) -> tuple[pd.DataFrame, np.ndarray]:
    """The confident errors of a study with a slice of each.

    Parameters
    ----------
    params : StudyParams
    pooled : DataFrame
        Tested participants of the network, as from `adlib.training.pooling.pool_level`.
    count : int
        Largest number of participants.

    Returns
    -------
    table : DataFrame
        As from `most_confident_errors`, with scan_id (first session), qc_verdict and qc_reasons.
    images : (n, size, size) float32
        The middle channel of the middle slice of each.
    """
    slices, rows = load_slices(params)
    rows = rows.sort_values(["participant_id", "session_id", "scan_id", "slice"])
    rows = rows[rows["scan_id"].isin(rows.drop_duplicates("participant_id")["scan_id"])]
    middle = rows[rows.groupby("scan_id").cumcount() == rows.groupby("scan_id")["row"].transform("size") // 2]
    features = read_table(params.folder / "features.tsv", FEATURES)
    table = most_confident_errors(pooled, params.classes, count)
    table = table.merge(middle[["participant_id", "scan_id", "row"]], on="participant_id")
    table = table.merge(features[["scan_id", "qc_verdict", "qc_reasons"]], on="scan_id")
    return table, np.asarray(slices[table.pop("row").to_numpy(), 1], dtype=np.float32)
