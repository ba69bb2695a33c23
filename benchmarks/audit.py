"""Time and memory of listing and auditing the headers and metadata of 100, 1,000 and 10,000 scans in BIDS layout.

    python benchmarks/audit.py [--scans 100 1000 10000] [--workers 2]

Prints a table; its last line holds the figures against the goals, and the exit code is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from apart import apart

SECONDS, MEGABYTES, GROWTH = 120.0, 1000.0, 1.5
CLASSES = ("CN", "MCI", "LMCI", "AD")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    print(f"{'scans':>7} {'listing s':>10} {'audit s':>9} {'peak MB':>9} {'ms a scan':>10}")
    spent, peaks = [], []
    for count in args.scans:
        with tempfile.TemporaryDirectory(prefix="adlib-audit-") as folder:
            write_dataset(Path(folder), count)
            (listing, audit), peak = apart(measure, Path(folder), args.workers)
        spent.append(listing + audit)
        peaks.append(peak)
        print(f"{count:7d} {listing:10.1f} {audit:9.1f} {peak:9.0f} {1000 * spent[-1] / count:10.2f}", flush=True)
    growth = spent[-1] / spent[-2] / (args.scans[-1] / args.scans[-2]) if len(spent) > 1 else 1.0
    met = spent[-1] <= SECONDS and max(peaks) <= MEGABYTES and growth <= GROWTH
    print(
        f"{args.scans[-1]} scans: {spent[-1]:.1f} s (goal {SECONDS:.0f}), {max(peaks):.0f} MB (goal {MEGABYTES:.0f}), "
        f"time a scan {growth:.2f} times that of {args.scans[-2 if len(spent) > 1 else -1]} scans (goal {GROWTH}): "
        f"{'met' if met else 'MISSED'}"
    )
    return 0 if met else 1


def write_dataset(root: Path, count: int) -> None:
    """A BIDS dataset of `count` participants; the images are tiny and differ in one value."""
    rng = np.random.default_rng(0)
    (root / "dataset_description.json").write_text('{"Name": "made", "BIDSVersion": "1.9.0"}')
    lines = ["participant_id\tdiagnosis\tage\tsex\tsite\tphase"]
    for number in range(count):
        name = f"sub-{number:05d}"
        folder = root / name / "ses-01" / "anat"
        folder.mkdir(parents=True)
        image = nib.Nifti1Image(np.full((4, 4, 4), number, np.int32), np.diag([40.0, 45.0, 45.0, 1.0]))
        nib.save(image, folder / f"{name}_ses-01_T1w.nii.gz")
        sidecar = {
            "Manufacturer": str(rng.choice(["Alpha", "Beta"])),
            "ManufacturersModelName": str(rng.choice(["One", "Two", "Three"])),
            "MagneticFieldStrength": float(rng.choice([1.5, 3.0])),
            "SeriesDescription": str(rng.choice(["MPRAGE", "IR-FSPGR"])),
            "EchoTime": 0.003,
            "RepetitionTime": 2.3,
            "InversionTime": 0.9,
        }
        (folder / f"{name}_ses-01_T1w.json").write_text(json.dumps(sidecar))
        site, phase = rng.integers(40), rng.choice(["ADNI1", "ADNI2", "ADNI3"])
        person = (CLASSES[number % 4], f"{rng.normal(74, 7):.1f}", rng.choice(["F", "M"]), f"s{site}", phase)
        lines.append("\t".join((name, *person)))
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")


def measure(root: Path, workers: int) -> tuple[float, float]:
    """Seconds to list and seconds to audit.

    The imports stand here because workers import this script anew, and would hold what they do not need.
    """
    from adlib.audit.run import run_audit
    from adlib.sources.reading import list_source
    from adlib.study.exec_params import Pool
    from adlib.study.params import AuditParams
    from adlib.study.source_params import BidsSource

    start = time.perf_counter()
    listed = list_source(BidsSource(kind="bids", root=root), root, pool=Pool(workers=workers))
    middle = time.perf_counter()
    run_audit(listed, CLASSES, AuditParams(), seed=1)
    return middle - start, time.perf_counter() - middle


if __name__ == "__main__":
    sys.exit(main())
