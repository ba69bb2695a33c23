"""Oddities of real disks put at random into every layout: all is accounted for, and the scans stay what they are."""

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from test_field_inputs import FORK, MADE, image, one_of, read

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".hdr", ".img", ".png", ".jpg", ".dcm", ".mnc")


def _linked(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _bytes(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


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
    "broken sidecar": lambda beside, n: _bytes(beside.with_name(f"{n}_T1w.json"), b'{"EchoTime": 0.003,}'),
}


def images_under(root):
    """Image files by their names, as `find` has them, but for those in hidden folders."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (str(Path(folder) / name) for name in files if name.lower().endswith(SUFFIXES))


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(MADE),
    st.lists(st.tuples(st.sampled_from(sorted(ODDITIES)), st.integers(0, 9)), max_size=8),
)
def test_any_oddities_are_accounted_for(kind, oddities):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "data"
        chosen = one_of(kind, root)
        before = read(kind, root, **chosen)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        for number, (name, place) in enumerate(oddities):
            ODDITIES[name](files[place % len(files)], number)
        listed = read(kind, root, **chosen)
        same = listed.set_index("scan_id").loc[before["scan_id"]]
        assert same["diagnosis"].tolist() == before["diagnosis"].tolist() == ["CN"]
        assert same["excluded"].isna().all() and same["sha256"].tolist() == before["sha256"].tolist()
        paths = listed["path"].tolist()
        assert len(paths) == len(set(paths))
        assert set(images_under(root)) - {str(path) for path in files} <= set(paths)
        others = listed.drop(index=listed.index[listed["scan_id"].isin(before["scan_id"])])
        assert kind == "folders" or others["excluded"].notna().all()
