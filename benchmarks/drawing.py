"""How long a finished study took to draw its figures from stored results, by cell of its executed notebooks.

    python benchmarks/drawing.py outputs/phantom

A cell that draws also reads what it draws and, for curves with bands, resamples it: all of that counts. Prints every
cell, slowest first; the last line holds the sum against the goal, and the exit code is 1 where it is missed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import nbformat

GOAL_SECONDS = 60.0
NAME = re.compile(r'figures\.save\(.*, f?"(0\d_\w+)')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a finished study")
    folder = parser.parse_args().study / "notebooks"
    drawn = [pair for path in sorted(folder.glob("*.ipynb")) for pair in drawing_cells(path)]
    if not drawn:
        raise SystemExit(f"expected executed notebooks that draw in {folder}, found none")
    for name, seconds in sorted(drawn, key=lambda pair: -pair[1]):
        print(f"{name:24} {seconds:6.1f} s")
    total = sum(seconds for _, seconds in drawn)
    print(f"{len(drawn)} cells drew in {total:.1f} s (goal below {GOAL_SECONDS:.0f} s)")
    return int(total >= GOAL_SECONDS)


def drawing_cells(path: Path) -> list[tuple[str, float]]:
    """Figure, or the beginning of the names of several, and seconds of each cell that saves one."""
    cells = nbformat.read(path, as_version=4).cells
    saving = [cell for cell in cells if cell.cell_type == "code" and "figures.save(" in cell.source]
    return [(NAME.search(cell.source)[1], cell.metadata.papermill.duration) for cell in saving]


if __name__ == "__main__":
    sys.exit(main())
