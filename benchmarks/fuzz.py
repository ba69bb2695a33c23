"""Throw damaged files at the readers: each must be read, or refused in words, and nothing else.

    python benchmarks/fuzz.py [--seconds 60] [--target nifti] [--seed 1] [--keep FOLDER]

Takes a good file of each kind, damages it in ways drawn at random (bytes flipped, cut, doubled or made extreme; for
text, tokens swapped for hostile ones) and reads it. Any exception but `StudyError`, want of memory beyond
`ROOM_BYTES`, or a reading that takes over `SLOW_SECONDS`, is a finding; the file is kept. Prints a line for each
target; the exit code is 1 where there is a finding.
"""

import argparse
import gzip
import io
import logging
import resource
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from dicom_writer import write_series

from adlib.sources.scanfile import open_scan
from adlib.study.params import load_params
from adlib.study.records import FEATURES, StudyError, read_json, read_table
from adlib.study.user_tables import read_user_table

SLOW = "took"
SLOW_SECONDS, ROOM_BYTES = 20.0, 2 * 2**30
HOSTILE = (
    b"-1", b"1e999", b"nan", b"[", b"{", b'"', b"\x00", b"\t", b"\n", b"../../x", b"!!python/object:os.system",
    b"&a [*a]", b"\xff\xfe", b"9" * 400, b"null", b": :", b"${HOME}", b"%s%n", "\u202e".encode(), b"",
)  # fmt: skip
EXTREME = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\x01")


@dataclass(frozen=True)
class Target:
    """A reader, a good file for it, and whether damage keeps to text."""

    suffix: str
    good: Callable[[], bytes]
    read: Callable[[Path], object]
    text: bool = False


def nifti() -> bytes:
    rng = np.random.default_rng(0)
    return nib.Nifti1Image(rng.integers(0, 900, (9, 8, 7)).astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0])).to_bytes()


def mgh() -> bytes:
    rng = np.random.default_rng(0)
    return nib.MGHImage(rng.integers(0, 900, (9, 8, 7)).astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0])).to_bytes()


def dicom_zip() -> bytes:
    rng, packed = np.random.default_rng(0), io.BytesIO()
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        volume = rng.integers(0, 900, (44, 44, 44)).astype(np.int16)
        for file in sorted(write_series(volume, np.diag([2.0, 2.0, 2.0, 1.0]), Path(place), "T1w MPRAGE").iterdir()):
            archive.write(file, file.name)
    return packed.getvalue()


def params_text() -> bytes:
    return (Path(__file__).parents[1] / "params" / "phantom.yaml").read_bytes()


TARGETS = {
    "nifti": Target(".nii", nifti, open_scan),
    "nifti_gz": Target(".nii.gz", lambda: gzip.compress(nifti(), mtime=0), open_scan),
    "mgh": Target(".mgh", mgh, open_scan),
    "dicom_zip": Target(".zip", dicom_zip, open_scan),
    "params": Target(".yaml", params_text, load_params, text=True),
    "user_table": Target(
        ".csv", lambda: b"participant_id,diagnosis,age\nsub-01,CN,71\nsub-02,AD,80\n", read_user_table, text=True
    ),
    "features": Target(
        ".tsv", lambda: b"participant_id\tsession_id\tscan_id\tqc_verdict\nsub-1\tses-1\ta\tpass\n",
        lambda path: read_table(path, FEATURES), text=True,
    ),
    "json": Target(".json", lambda: b'{"key": [1, 2.5, "x"], "n": null}', read_json, text=True),
}  # fmt: skip


def damaged(content: bytes, rng: np.random.Generator, text: bool) -> bytes:
    """One to four random changes."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at, length = (int(v) for v in (rng.integers(0, len(data) + 1), rng.integers(1, 9)))
        kind = rng.integers(0, 6)
        if text and rng.random() < 0.6:
            data[at : at + length * int(rng.integers(0, 2))] = HOSTILE[rng.integers(len(HOSTILE))]
        elif kind == 0:
            del data[at:]
        elif kind == 1:
            data[at : at + length] = rng.bytes(length)
        elif kind == 2:
            data[at : at + length] = EXTREME[rng.integers(len(EXTREME))] * length
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[: 40 * length]
        else:
            header = int(rng.integers(0, min(348, len(data)) + 1))
            data[header : header + length] = EXTREME[rng.integers(len(EXTREME))] * length
    return bytes(data)


def trial(target: Target, path: Path) -> str | None:
    """Read a damaged file; what went wrong, or None where it was read or refused in words.

    What is slow is read once more: a busy computer can stop the clock of any reading, but not twice of the same.
    """
    fault = attempt(target, path)
    return attempt(target, path) if fault and fault.startswith(SLOW) else fault


def attempt(target: Target, path: Path) -> str | None:
    started = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)
    except StudyError as error:
        return None if str(error).strip() else "refused without a word"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    passed = time.monotonic() - started
    return f"{SLOW} {passed:.0f} s" if passed > SLOW_SECONDS else None


def fuzz(name: str, folder: Path, seed: int, seconds: float = 1e9, trials: int = 10**9) -> tuple[int, dict[str, Path]]:
    """Damage and read until time or trials are over; how many were read, and each kind of finding with its file."""
    target, rng, findings, done = TARGETS[name], np.random.default_rng([seed, len(name)]), {}, 0
    good, end = target.good(), time.monotonic() + seconds
    path = folder / f"{name}{target.suffix}"
    while done < trials and time.monotonic() < end:
        path.write_bytes(damaged(good, rng, target.text))
        if (fault := trial(target, path)) and fault[:80] not in findings:
            findings[fault[:80]] = path.rename(folder / f"{name}_{len(findings)}{target.suffix}")
        done += 1
    return done, findings


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder that receives the files that were findings")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + ROOM_BYTES,) * 2)
    folder, found = args.keep or Path(tempfile.mkdtemp()), 0
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.target or TARGETS:
        done, findings = fuzz(name, folder, args.seed, args.seconds)
        found += len(findings)
        print(f"{name:12} {done:7} damaged files, {len(findings)} findings", flush=True)
        for fault, path in findings.items():
            print(f"    {fault}  ({path})")
    print(f"{found} findings (goal 0)")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
