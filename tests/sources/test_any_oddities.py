"""Oddities of real disks put at random into every layout: all is accounted for, and the scans stay what they are."""

import gzip
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_field_inputs import EVERY, FORK, image, one_of, read

SUFFIXES = (".nii", ".mgz", ".mgh", ".hdr", ".img", ".png", ".jpg", ".dcm", ".ima", ".mnc", ".gii", ".nrrd")
WHOLE = nib.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)).to_bytes()


def _linked(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _bytes(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _half(path):
    image(path, kind=nib.Nifti1Pair)
    path.with_suffix(".hdr" if path.suffix == ".img" else ".img").unlink()


# Each is added next to a file of the dataset, with a unique number.
ODDITIES = {
    "shadow": lambda beside, n: _bytes(beside.with_name(f"._{n}{beside.name}"), FORK),
    "finder": lambda beside, n: _bytes(beside.with_name(f".DS_Store{n}"), b"\0" * 100),
    "hidden folder": lambda beside, n: image(beside.parent / f".trash{n}" / "sub-09_T1w.nii.gz"),
    "link without content": lambda beside, n: _linked(beside.with_name(f"{n}_bold.nii.gz"), ".git/annex/objects/x"),
    "link of a table": lambda beside, n: _linked(beside.with_name(f"{n}.csv"), ".git/annex/objects/y"),
    "pointer": lambda beside, n: _bytes(beside.with_name(f"{n}_T2w.nii.gz"), b"/annex/objects/MD5E-s9--0.nii.gz"),
    "linked folder": lambda beside, n: _linked(beside.with_name(f"loop{n}"), beside.parent),
    "second download": lambda beside, n: _bytes(beside.with_name(f"T1w.nii ({n}).gz"), b"\x1f\x8b"),
    "unfinished": lambda beside, n: _bytes(beside.with_name(f"T1w{n}.nii.gz.crdownload"), b"\x1f\x8b"),
    "empty image": lambda beside, n: _bytes(beside.with_name(f"{n}_FLAIR.nii.gz"), b""),
    "other contrast": lambda beside, n: image(beside.with_name(f"sub-0{n}_T2w.nii.gz"), n),
    "derivative": lambda beside, n: image(beside.parent / "derivatives" / f"sub-0{n}_space-MNI_T1w.nii.gz", n),
    "picture": lambda beside, n: _bytes(beside.with_name(f"view{n}.png"), b"\x89PNG"),
    "lock file": lambda beside, n: _bytes(beside.with_name(f"~$people{n}.xlsx"), b"\0" * 165),
    "empty table": lambda beside, n: _bytes(beside.with_name(f"{n}.csv"), b""),
    "ragged table": lambda beside, n: _bytes(beside.with_name(f"ragged{n}.csv"), b"a,b\n1,2,3\n4\n"),
    "binary table": lambda beside, n: _bytes(beside.with_name(f"binary{n}.csv"), bytes(range(256))),
    "unrelated table": lambda beside, n: _bytes(beside.with_name(f"visits{n}.csv"), b"Subject,WEIGHT\n1,70\n"),
    "text": lambda beside, n: _bytes(beside.with_name(f"README{n}.md"), "Größe".encode("latin-1")),
    "windows": lambda beside, n: _bytes(beside.with_name(f"Thumbs{n}.db"), bytes(99)),
    "desktop": lambda beside, n: _bytes(beside.with_name(f"desktop{n}.ini"), "[x]".encode("utf-16")),
    "lock of a table": lambda beside, n: _bytes(beside.with_name(f".~lock.{n}.csv#"), b",user,"),
    "folder of a Mac": lambda beside, n: _bytes(beside.parent / "__MACOSX" / f"._{n}_T1w.nii.gz", FORK),
    "link to no folder": lambda beside, n: _linked(beside.with_name(f"gone{n}"), "/nowhere/at/all"),
    "link to itself": lambda beside, n: _linked(beside.with_name(f"{n}_T2w.nii.gz"), f"{n}_T2w.nii.gz"),
    "pipe": lambda beside, n: os.mkfifo(beside.with_name(f"pipe{n}.nii.gz")),
    "half of a pair": lambda beside, n: _half(beside.with_name(f"half{n}.img")),
    "other half of a pair": lambda beside, n: _half(beside.with_name(f"half{n}.hdr")),
    "gz that is not": lambda beside, n: _bytes(beside.with_name(f"plain{n}_T2w.nii.gz"), WHOLE),
    "nii that is gz": lambda beside, n: _bytes(beside.with_name(f"packed{n}_T2w.nii"), gzip.compress(WHOLE)),
    "page of an error": lambda beside, n: _bytes(beside.with_name(f"{n}_T2w.nii.gz"), b"<html>404</html>"),
    "index of a CD": lambda beside, n: _bytes(beside.with_name(f"DICOMDIR{n}"), bytes(128) + b"DICM" + bytes(50)),
    "list as sidecar": lambda beside, n: _bytes(beside.with_name(f"{n}_T1w.json"), b"[1, 2]"),
    "UTF-16": lambda beside, n: _bytes(beside.with_name(f"{n}.tsv"), "Subject\tWEIGHT\n1\t70".encode("utf-16")),
    "UTF-16 unmarked": lambda beside, n: _bytes(beside.with_name(f"{n}.csv"), "Subject,x\n1,7".encode("utf-16-le")),
    "broken workbook": lambda beside, n: _bytes(beside.with_name(f"{n}.xlsx"), b"PK\x05\x06" + bytes(18)),
    "Latin-1 name": lambda beside, n: _bytes(
        Path(os.fsdecode(os.fsencode(beside.parent) + f"/M\xfcller{n}_T2w.nii.gz".encode("latin-1"))), b"x"
    ),
    "long name": lambda beside, n: _bytes(beside.with_name(f"{'x' * 230}{n}_T2w.nii.gz"), b"x"),
    "folder named as image": lambda beside, n: image(beside.with_name(f"sub-0{n}.nii.gz") / "inner_T2w.nii", n),
    "backup": lambda beside, n: _bytes(beside.with_name(f"{n}_T1w.nii.gz~"), WHOLE),
    "older copy": lambda beside, n: _bytes(beside.with_name(f"{n}_T1w.nii.gz.bak"), WHOLE),
    "surface": lambda beside, n: _bytes(beside.with_name(f"{n}.surf.gii"), b"<xml/>"),
    "other format": lambda beside, n: _bytes(beside.with_name(f"{n}_T1w.nrrd"), b"NRRD0004"),
    "recycled": lambda beside, n: image(beside.parent / "$RECYCLE.BIN" / f"{n}_T2w.nii.gz", n),
    "broken sidecar": lambda beside, n: _bytes(beside.with_name(f"{n}_T1w.json"), b'{"EchoTime": 0.003,}'),
}


def images_under(root):
    """Image files by their names, but for those in hidden folders."""
    named = " -o ".join(f"-iname *{suffix}*" for suffix in SUFFIXES).split()
    found = ["find", root, "(", *named, ")", "-not", "-type", "d", "-not", "-path", f"{root}*/.*/*"]
    listed = subprocess.run(found, capture_output=True, check=True).stdout
    return set(listed.decode(errors="backslashreplace").splitlines())


@cache
def alone(kind):
    """Scan, digest and label of a kind's dataset without oddities."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "data"
        return read(kind, root, **one_of(kind, root))[["scan_id", "sha256", "diagnosis"]]


def check(kind, oddities):
    with tempfile.TemporaryDirectory() as folder:
        root, before = Path(folder).resolve() / "data", alone(kind)
        chosen = one_of(kind, root)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        for number, (name, place) in enumerate(oddities):
            ODDITIES[name](files[place % len(files)], number)
        listed = read(kind, root, **chosen)
        same = listed.set_index("scan_id").loc[before["scan_id"]]
        assert same["diagnosis"].tolist() == before["diagnosis"].tolist() == ["CN"]
        assert same["excluded"].isna().all() and same["sha256"].tolist() == before["sha256"].tolist()
        others = listed.drop(index=listed.index[listed["scan_id"].isin(before["scan_id"])])
        assert kind == "folders" or others["excluded"].notna().all()
        scan = {str(path) for path in files}
        assert sorted(set(others["path"]) - scan) == sorted(images_under(root) - scan)
        assert not others["path"].duplicated().any()


mixtures = given(
    st.sampled_from(EVERY), st.lists(st.tuples(st.sampled_from(sorted(ODDITIES)), st.integers(0, 9)), max_size=8)
)


@settings(max_examples=20, deadline=None)
@mixtures
def test_any_oddities_are_accounted_for(kind, oddities):
    check(kind, oddities)


@pytest.mark.studies
@settings(max_examples=200, deadline=None)
@mixtures
def test_two_hundred_mixtures_are_accounted_for(kind, oddities):
    check(kind, oddities)


@pytest.mark.parametrize("kind", EVERY)
def test_the_listing_of_find_is_ours(kind):
    assert len(ODDITIES) > 30
    check(kind, [(name, number // 2) for number, name in enumerate(sorted(ODDITIES))])
