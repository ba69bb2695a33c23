"""Registration of made heads over all orientations, poses, fields of view, samplings and spoils, and whether QC tells.

    python benchmarks/robustness.py [--heads 200] [--first 1000] [--workers 2]

Each head goes through the whole pipeline at 2 mm. Prints the heads that missed; the last line holds the figures against
the goals, and the exit code is 1 where one is missed. Seeds below 1000 are for tuning and are not reported.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from heads import Setting, drawn, make, pose_error

from adlib.parallel.mapping import map_scans
from adlib.preprocess.pipeline import preprocess_image
from adlib.study.exec_params import Pool
from adlib.study.params import PreprocessParams
from adlib.study.records import StudyError

WITHIN_MM, SHARE, SILENT = 2.0, 0.995, 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=200)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    settings = [drawn(seed) for seed in range(args.first, args.first + args.heads)]
    found = map_scans(judged, settings, pool=Pool(workers=args.workers), label="made heads")
    errors = np.array([error for error, _, _ in found])
    passed = np.array([verdict == "pass" for _, verdict, _ in found])
    missed = errors > WITHIN_MM
    for setting, (error, verdict, reasons) in zip(settings, found, strict=True):
        if error > WITHIN_MM:
            print(f"{error:.1f} mm, verdict {verdict} ({'; '.join(reasons)})\n    {setting}")
    print_flags(found)
    share, silent = float((~missed).mean()), int((missed & passed).sum())
    met = share >= SHARE and silent <= SILENT
    print(
        f"{len(settings)} heads from seed {args.first}: {share:.1%} within {WITHIN_MM:g} mm (goal {SHARE:.1%}), median "
        f"{np.median(errors):.2f} mm, largest {errors.max():.2f} mm; {silent} missed without a word from QC "
        f"(goal {SILENT}): {'met' if met else 'MISSED'}"
    )
    return 0 if met else 1


def judged(setting: Setting) -> tuple[float, str, tuple[str, ...]]:
    """Registration error in mm (infinite where the pipeline refused the scan), the verdict of QC and its reasons."""
    head = make(setting)
    try:
        result = preprocess_image(head.image, PreprocessParams(resolution_mm=2.0), f"seed {setting.seed}")
    except StudyError as error:
        return float("inf"), "fail", (str(error),)
    return pose_error(result.scan_to_mni, head.mni_to_scan), result.verdict, result.reasons


def print_flags(found: list[tuple[float, str, tuple[str, ...]]]) -> None:
    """How QC judged the heads that were registered, and why where it did not pass them."""
    good = [(verdict, reasons) for error, verdict, reasons in found if error <= WITHIN_MM]
    counts = {kind: sum(verdict == kind for verdict, _ in good) for kind in ("pass", "check", "fail")}
    named = [reason.split()[0] for _, reasons in good for reason in reasons]
    why = ", ".join(f"{name} {named.count(name)}" for name in sorted(set(named)))
    print(f"registered within {WITHIN_MM:g} mm: {counts}; out of limits: {why or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
