"""OASIS-1 tissue maps from voxel-based morphometry, fetched by nilearn: a real cohort with one command."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from nilearn.datasets import fetch_oasis_vbm

from adlib.parallel.mapping import map_scans
from adlib.sources.oasis_tables import visit_facts
from adlib.sources.planes import SEPARATOR, joined_facts
from adlib.study.exec_params import EVERY_CORE, Pool
from adlib.study.records import TISSUE_MAPS, StudyError
from adlib.study.source_params import OasisVbmSource


def read_manifest(source: OasisVbmSource, _folder: Path | None = None, *, pool: Pool = EVERY_CORE) -> pd.DataFrame:
    """List the grey- and white-matter maps of every participant; they lie in MNI152 space.

    Raises
    ------
    StudyError
        If the maps are not on disk and cannot be fetched.

    References
    ----------
    Marcus et al. 2007, doi:10.1162/jocn.2007.19.9.1498; maps by nilearn (doi:10.5281/zenodo.8397156).
    """
    try:
        fetched = fetch_oasis_vbm(n_subjects=source.participants, data_dir=source.data_dir, verbose=0)
    except Exception as error:  # the fetcher raises whatever its network library raises
        where = source.data_dir or "nilearn's data folder"
        raise StudyError(
            f"the OASIS maps are not in {where} and cannot be fetched ({type(error).__name__}: {error}); "
            "fetch them where there is a network (about 800 MB) and set source.data_dir"
        ) from None
    table = fetched.ext_vars.set_index("id")
    rows = []
    for grey, white in zip(fetched.gray_matter_maps, fetched.white_matter_maps, strict=True):
        session = Path(grey).parent.name
        participant, _, visit = session.partition("_MR")
        bare = participant.replace("_", "")
        rows.append(
            {
                "participant_id": f"sub-{bare}",
                "session_id": f"ses-MR{visit}",
                "scan_id": f"sub-{bare}_ses-MR{visit}_T1w",
                "path": f"{grey}{SEPARATOR}{white}",
                "space": TISSUE_MAPS,
                "site": "OASIS",
                **visit_facts(table.loc[session], source.cdr_labels),
            }
        )
    facts = map_scans(joined_facts, [row["path"] for row in rows], pool=pool, label="reading headers")
    return pd.DataFrame([found | row for row, found in zip(rows, facts, strict=True)])
