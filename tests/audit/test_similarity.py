"""Images of one head are known again, whatever they are called; those of different heads are kept apart."""

import errno
import zipfile

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import adjusted_rand_score

from adlib.audit.run import AuditStop, enforce, run_audit
from adlib.audit.similarity import near_duplicates, pixel_facts, recover_groups, thumbnail
from adlib.sources.reading import list_source
from adlib.study.exec_params import HERE
from adlib.study.params import AuditParams
from adlib.study.records import StudyError, TryAgain
from adlib.study.source_params import FoldersSource

CLASSES = ("CN", "AD")


def heads(count, slices=1, seed=0, size=64):
    """Slices (count * slices, size, size) uint8 of made heads: a shared anatomy, a detail of each head, a shape."""
    rng = np.random.default_rng(seed)
    shared = ndimage.gaussian_filter(np.random.default_rng(99).normal(size=(slices, size, size)), (2, 4, 4))
    grid = np.indices((size, size)) - (size - 1) / 2
    images = []
    for _ in range(count):
        own = ndimage.gaussian_filter(rng.normal(size=(slices, size, size)), (3 if slices > 1 else 0, 2, 2))
        radii = size * rng.uniform(0.28, 0.34, 2)
        inside = (grid[0] / radii[0]) ** 2 + (grid[1] / radii[1]) ** 2 < 1
        texture = shared / shared.std() + own / own.std()
        images.append(np.where(inside, np.clip(130 + 28 * texture, 30, 255), 0).astype(np.uint8))
    return np.concatenate(images)


def thumbnails(images):
    return np.stack([thumbnail(image.astype(np.float32))[None] for image in images])


def save(images, folder):
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:03d}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    return [str(path) for path in paths]


def listing(paths, **columns):
    table = pd.DataFrame({"scan_id": [f"s{k:03d}" for k in range(len(paths))], "path": paths})
    table["sha256"] = [f"{k:064d}" for k in range(len(paths))]
    table["diagnosis"] = [CLASSES[k % 2] for k in range(len(paths))]
    return table.assign(session_id="ses-01", age=70.0, shape="64x64", **columns)


def audited(table, pixels, **limits):
    return run_audit(table, CLASSES, AuditParams(min_participants_per_class=2, **limits), 1, pixels)


def checks_of(audit, severity):
    return set(audit.findings.loc[audit.findings["severity"] == severity, "check"])


COPIES = {
    "mirrored left-right": lambda image: image[::-1],
    "mirrored up-down": lambda image: image[:, ::-1],
    "turned by half": lambda image: image[::-1, ::-1],
    "shifted": lambda image: np.roll(image, (3, -2), (0, 1)),
    "padded": lambda image: np.pad(image, ((5, 20), (10, 0))),
    "rescaled values": lambda image: (0.6 * image + 20).astype(np.uint8),
    "noisy": lambda image: np.clip(image + np.random.default_rng(0).normal(0, 3, image.shape), 0, 255).astype(np.uint8),
    "mirrored and shifted": lambda image: np.roll(image[::-1], (-2, 3), (0, 1)),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_alone_are_near_duplicates(name):
    for seed in range(10):
        images = list(heads(30, seed=seed))
        pairs = near_duplicates(thumbnails([*images, COPIES[name](images[7])]), 0.95)
        assert pairs[["first", "second"]].to_numpy().tolist() == [[7, 30]]
        if name in ("mirrored left-right", "mirrored up-down", "turned by half"):
            assert pairs["how"].iloc[0] == name


def test_a_copied_stack_of_ten_slices_is_found(tmp_path):
    images = heads(30, 10)
    paths = save(images, tmp_path)
    scans = ["|".join(paths[k : k + 10]) for k in range(0, 300, 10)]
    copied = "|".join(save((0.8 * images[70:80]).astype(np.uint8), tmp_path / "copy"))
    facts = pixel_facts(listing([*scans, copied]))
    pairs = near_duplicates(np.stack(list(facts["thumbnail"])), 0.95)
    assert pairs[["first", "second"]].to_numpy().tolist() == [[7, 30]]


@pytest.mark.parametrize("seed", range(5))
def test_slices_of_one_head_are_grouped(seed):
    images = heads(12, 16, seed)
    order = np.random.default_rng(seed).permutation(len(images))
    labels, separate = recover_groups(thumbnails(images[order]), 0.95, seed)
    assert separate
    assert adjusted_rand_score(order // 16, labels) >= 0.95


@pytest.mark.parametrize("seed", range(5))
def test_unrelated_heads_are_not_joined(seed):
    labels, separate = recover_groups(thumbnails(heads(80, seed=seed)), 0.95, seed)
    assert not separate
    assert len(set(labels)) == 80


def test_pixel_digest_ignores_file_type_and_header(tmp_path):
    data = np.random.default_rng(0).integers(1, 900, (20, 22, 18)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    other = nib.Nifti1Image(data.astype(np.float32), np.eye(4))
    other.header["descrip"] = b"something else"
    nib.save(other, tmp_path / "b.nii.gz")
    nib.save(nib.Nifti1Image(data + 1, np.eye(4)), tmp_path / "c.nii")
    paths = [str(tmp_path / name) for name in ("a.nii", "b.nii.gz", "c.nii")]
    facts = pixel_facts(pd.DataFrame({"path": paths}), pool=HERE)
    assert facts["pixels_sha256"].duplicated(keep=False).tolist() == [True, True, False]
    assert facts["thumbnail"].iloc[0].shape == (1, 20, 20, 20)


def test_unreadable_scans_have_empty_facts(tmp_path):
    (tmp_path / "bad.nii").write_bytes(b"no image")
    (tmp_path / "cut.nii").write_bytes(nib.Nifti1Image(np.zeros((9, 9, 9)), np.eye(4)).to_bytes()[:900])
    values = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "nan.nii")
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.float32), np.eye(4)), tmp_path / "flat.nii")
    table = pd.DataFrame({"path": [str(tmp_path / n) for n in ("bad.nii", "cut.nii", "nan.nii", "flat.nii", "x.nii")]})
    facts = pixel_facts(table.assign(excluded=[None] * 4 + ["left out"]).set_index(pd.Index(list("abcde"))), pool=HERE)
    assert facts.index.tolist() == list("abcde")
    assert facts["fault"].notna().tolist() == [True, True, False, False, False]
    assert facts["nan_share"].iloc[2] == pytest.approx(1 / 729)
    assert facts["constant"].fillna("").tolist() == ["", "", False, True, ""]
    assert facts["thumbnail"].notna().tolist() == [False, False, True, False, False]


def test_copies_across_participants_stop(tmp_path):
    images = list(heads(12))
    images += [images[0], images[1][::-1], images[2][::-1]]
    paths = save(images, tmp_path / "x")
    people = [f"sub-{k:02d}" for k in range(12)]
    table = listing(paths, participant_id=[*people, "sub-90", "sub-91", "sub-02"])
    audit = audited(table, pixel_facts(table, pool=HERE))
    assert {"same-pixels", "near-duplicate"} <= checks_of(audit, "stop")
    assert "mirrored-scan" in checks_of(audit, "warn")
    named = audit.findings.set_index("check")["subject"]
    assert named["same-pixels"] == "s000, s012"
    assert named["near-duplicate"] == "s001 = s013"
    assert named["mirrored-scan"] == "s002 = s014"


def test_clean_pictures_have_no_finding_about_pixels(tmp_path):
    paths = save(heads(30), tmp_path / "x")
    table = listing(paths, participant_id=[f"sub-{k:02d}" for k in range(30)])
    audit = audited(table, pixel_facts(table, pool=HERE))
    assert checks_of(audit, "stop") | checks_of(audit, "warn") == set()


def test_constant_images_are_excluded_and_nan_reported(tmp_path):
    images = list(heads(20))
    images[3] = np.full((64, 64), 7, np.uint8)
    table = listing(save(images, tmp_path / "x"), participant_id=[f"sub-{k:02d}" for k in range(20)])
    audit = audited(table, pixel_facts(table, pool=HERE).assign(nan_share=lambda facts: np.arange(20) == 5))
    assert {"constant", "nan-values"} <= checks_of(audit, "warn")
    assert "s003" not in set(audit.manifest["scan_id"])
    assert audit.flow["scans"].tolist()[-1] == 19


def test_unknown_participants_are_recovered_and_stop(tmp_path):
    images = heads(12, 16)
    split = ["train" if k % 16 < 12 else "test" for k in range(len(images))]
    diagnosis = [CLASSES[k // 16 % 2] for k in range(len(images))]
    table = listing(save(images, tmp_path / "x"), given_split=split).assign(diagnosis=diagnosis)
    audit = audited(table, pixel_facts(table, pool=HERE))
    assert checks_of(audit, "stop") == {"participants-unknown", "given-split-leaks"}
    with pytest.raises(AuditStop, match="participants-unknown"):
        enforce(audit.findings)
    assert set(audit.manifest["participant_source"]) == {"recovered by similarity"}
    assert audit.manifest["participant_id"].str.fullmatch(r"grp-\d{4}").all()
    value = audit.findings.set_index("check").loc["given-split-leaks", "value"]
    assert value.startswith("12 of 12 (100 %) groups in several parts; 48 of 48 (100 %) test scans")
    enforce(
        audited(table, pixel_facts(table, pool=HERE), accept=("participants-unknown", "given-split-leaks")).findings
    )


def test_unknown_participants_without_pixels():
    table = listing([f"/d/{k}.png" for k in range(20)])
    audit = run_audit(table, CLASSES, AuditParams(min_participants_per_class=2), 1)
    assert {"groups-unclear", "pixels-unchecked"} <= set(audit.findings["check"])
    assert audit.manifest["participant_id"].nunique() == 20


def test_pixels_of_another_listing_are_refused():
    table = listing([f"/d/{k}.png" for k in range(20)], participant_id="sub-1")
    with pytest.raises(StudyError, match="not those of the 20 scans"):
        audited(table, pd.DataFrame(index=range(3)))


def test_unknown_id_in_accept_is_refused():
    with pytest.raises(StudyError, match="did you mean 'same-image'"):
        audited(listing(["/d/0.png"]), None, accept=("same-imgae",))


@pytest.mark.realdata
def test_slices_as_shipped_leak(realdata, tmp_path):
    """The 6,400 axial slices of OASIS-1: 200 people, every one of them in both parts; no table of people is given."""
    shipped = realdata / "oasis1_axial_slices"
    with zipfile.ZipFile(shipped / "oasis1_axial_slices.zip") as archive:
        archive.extractall(tmp_path)
    listed = list_source(
        FoldersSource(kind="folders", root=tmp_path, contents="images", parts=("train", "test")), tmp_path
    )
    truth = pd.read_csv(shipped / "subjects.csv").set_index("path")["subject"]
    params = AuditParams(min_participants_per_class=2)
    audit = run_audit(
        listed, tuple(sorted(truth.str.rsplit("_", n=1).str[0].unique())), params, 20, pixel_facts(listed)
    )
    assert {"participants-unknown", "given-split-leaks"} <= checks_of(audit, "stop")
    names = audit.manifest["path"].map(lambda path: path.removeprefix(f"{tmp_path}/"))
    groups = audit.manifest["participant_id"]
    assert adjusted_rand_score(truth.loc[names].to_numpy(), groups) >= 0.95
    value = audit.findings.set_index("check").loc["given-split-leaks", "value"]
    assert value.startswith("200 of 200 (100 %) groups")


def test_system_error_stops_the_audit(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(9, 9, 9)), np.eye(4)), path)
    listed = pd.DataFrame({"path": [str(path), str(tmp_path / "away.nii.gz")], "excluded": None})
    with pytest.raises(TryAgain, match=r"away.nii.gz cannot be read .*run again, or exclude the scan"):
        pixel_facts(listed, pool=HERE)

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("adlib.audit.similarity.load", broken)
    with pytest.raises(TryAgain, match=r"a.nii.gz cannot be read \(.*Input/output error"):
        pixel_facts(listed[:1], pool=HERE)
