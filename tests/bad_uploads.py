"""Bad uploads: damaged, hostile, of another kind, or merely unusual."""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from dicom_writer import write_series
from made_head import made_head, random_affine

SHAPE, AFFINE = (44, 48, 42), np.diag([4.0, 4, 4, 1])
CLASSIFIED = "classified"
HEADER = 352
VAST = [3, 9999, 9999, 9999, 1, 1, 1, 1]


def packed(files: dict[str, bytes], mode: int = 0, encrypted: bool = False) -> bytes:
    """A zip; `mode` is that of its members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            archive.writestr(member, content)
    content = bytearray(stream.getvalue())
    if encrypted:
        content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def nifti(data: np.ndarray, affine: np.ndarray | None = AFFINE, kind=nib.Nifti1Image, **header) -> bytes:
    """Bytes of a .nii whose header fields are then set to anything."""
    raw = bytearray(kind(data, affine).to_bytes())
    fields = kind.header_class.template_dtype.fields
    for name, value in header.items():
        dtype, offset = fields[name][:2]
        values = np.asarray(value, dtype.base).tobytes()
        raw[offset : offset + len(values)] = values
    return bytes(raw)


def volume() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 900, SHAPE).astype(np.int16)


def head(voxel_mm: float = 3.0, **changed) -> nib.Nifti1Image:
    """A synthetic head of the size of a person's."""
    pose = random_affine(4, scale=0.0)
    pose[:3, :3] *= 0.9  # the template's head is larger
    return made_head(seed=4, pose=pose, voxel_mm=(voxel_mm,) * 3, **changed).image


def damaged() -> dict[str, tuple[str, bytes, str]]:
    """Name, bytes and expected message of files that are no whole image."""
    good = nifti(volume())
    raw = gzip.compress(good)
    flipped = bytearray(raw)
    flipped[len(raw) // 2] ^= 0xFF
    zeros = gzip.compress(good + bytes(40 * 2**20), 1)
    script = b"#!/bin/sh\nrm -rf /\n" * 40
    return {
        "truncated gzip": ("cut.nii.gz", raw[: len(raw) // 2], "cut short"),
        "gzip with a flipped bit": ("flipped.nii.gz", bytes(flipped), "damaged"),
        "gzip of text": ("text.nii.gz", gzip.compress(b"a letter, no scan\n" * 60), "no such header"),
        "gzip bomb behind a small image": ("bomb.nii.gz", zeros, "goes on after"),
        "0 bytes": ("empty.nii", b"", "0 bytes"),
        "a script named .nii": ("run.nii", script, "no such header"),
        "a script named .mgz": ("run.mgz", script, "copy it again"),
        "JPEG named .nii": ("photo.nii", b"\xff\xd8\xff\xe0" * 400, "no such header"),
        "wrong suffix": ("letter.docx", b"PK\x03\x04" * 50, "unknown kind of file"),
        "NIfTI cut short": ("short.nii", good[: len(good) // 2], "copy it again"),
        "64 MiB between header and voxels": ("gap.nii", nifti(volume(), vox_offset=64 * 2**20), "before its voxels"),
        "header that announces 2 TiB": ("vast.nii", nifti(volume(), dim=VAST), "GiB of voxels"),
        "negative dimensions": ("minus.nii", nifti(volume(), dim=[3, -44, 48, 42, 1, 1, 1, 1]), "copy it again"),
        "half of an Analyze pair": ("half.hdr", good[:348], "half of a pair"),
    }  # fmt: skip


def archives(folder: Path) -> dict[str, tuple[str, bytes, str]]:
    """The same of zips."""
    t1 = {file.name: file.read_bytes() for file in write_series(volume(), AFFINE, folder / "t1", "T1 MPRAGE").iterdir()}
    t2 = {
        f"b/{f.name}": f.read_bytes()
        for f in write_series(volume(), AFFINE, folder / "t2", "Ax T2", number=4).iterdir()
    }
    name, content = next(iter(t1.items()))
    ct = {key: value.replace(b"CS\x02\x00MR", b"CS\x02\x00CT") for key, value in t1.items()}
    gap = {key: value for number, (key, value) in enumerate(sorted(t1.items())) if number not in range(18, 20)}
    link = 0o120777
    return {
        "zip bomb": ("bomb.zip", packed({"a.dcm": bytes(60_000_000)}), "DICOM does not; pack it again"),
        "name that climbs out": ("up.zip", packed({"../../up.dcm": b"x"}), "leaves its folder; pack"),
        "absolute name": ("root.zip", packed({"/etc/cron.d/x": b"x"}), "leaves its folder; pack"),
        "Windows name": ("drive.zip", packed({"C:\\x.dcm": b"x"}), "leaves its folder; pack"),
        "link in a zip": ("link.zip", packed({"a.dcm": b"/etc/passwd"}, link), "link or device, no file; pack"),
        "zip in a zip": ("nested.zip", packed({"inner.zip": packed({"a.dcm": b"x"})}), "unpack it and give that file"),
        "NIfTI in a zip": ("volume.zip", packed({"a.nii.gz": b"x"}), "unpack it and give that file"),
        "encrypted zip": ("locked.zip", packed({"a.dcm": b"x"}, encrypted=True), "encrypted"),
        "empty zip": ("nothing.zip", packed({}), "empty zip"),
        "zip of 20,001 files": ("many.zip", packed({f"{n}": b"" for n in range(20_001)}), "at most 20000"),
        "zip of text": ("text.zip", packed({"readme": b"no scan"}), "no DICOM image series"),
        "zip cut short": ("cut.zip", packed(t1)[:5000], "not a readable zip"),
        "one-slice DICOM": ("slice.zip", packed({name: content}), "a 3-D scan has at least"),
        "DICOM with missing slices": ("gap.zip", packed(gap), "slices are missing"),
        "T2w DICOM": ("t2.zip", packed(t2), "named 't2', not T1w"),
        "CT DICOM": ("ct.zip", packed(ct), "not MR"),
        "mixed series": ("mixed.zip", packed(t1 | t2), "expected a T1-weighted"),
    }


def arrays() -> dict[str, tuple[str, bytes, str]]:
    """The same of whole images that hold no T1w volume."""
    values, rng = volume(), np.random.default_rng(0)
    colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"] = values % 255
    mirrored = nib.Nifti1Image(values, AFFINE)
    mirrored.set_qform(np.diag([-4.0, 4, 4, 1]), 1)
    mirrored.set_sform(AFFINE, 1)
    infinite = np.full(SHAPE, np.inf, np.float32)
    return {
        "4-D fMRI": ("bold.nii", nifti(np.stack([values] * 3, -1)), "expected one volume"),
        "RGB": ("colour.nii", nifti(colours), "holds colours"),
        "complex numbers": ("complex.nii", nifti(values.astype(np.complex64)), "one real number"),
        "2-D": ("flat.nii", nifti(values[:, :, 0]), "expected one volume"),
        "one slice": ("thin.nii", nifti(values[:, :, :1]), "expected one volume"),
        "constant": ("constant.nii", nifti(np.full(SHAPE, 7, np.int16)), "one and the same value"),
        "NaN everywhere": ("nan.nii", nifti(np.full(SHAPE, np.nan, np.float32)), "one and the same value"),
        "infinite everywhere": ("inf.nii", nifti(infinite), "one and the same value"),
        "white noise": ("noise.nii", nifti(rng.normal(500, 100, SHAPE).astype(np.float32)), "expected a T1-weighted"),
        "voxels of 0 mm": ("zero.nii", nifti(values, None, pixdim=[1, 0, 0, 0, 1, 1, 1, 1], qform_code=1, sform_code=0),
                           "a whole head is needed"),
        "singular affine": ("singular.nii", nifti(values, srow_x=[4, 0, 0, 0], srow_y=[4, 0, 0, 0]),
                            "cannot be inverted"),
        "affine of NaN": ("nowhere.nii", nifti(values, srow_x=[np.nan, 0, 0, 0]), "cannot be inverted"),
        "voxels of 4 m": ("metres.nii", nifti(values, np.diag([4000.0, 4000, 4000, 1])), "check the units"),
        "field of view of 40 mm": ("small.nii", nifti(values[:10, :10, :10], AFFINE), "a whole head is needed"),
        "sform and qform mirrored": ("mirror.nii", mirrored.to_bytes(), "mirror images"),
    }  # fmt: skip


def heads() -> dict[str, tuple[str, bytes, str]]:
    """Heads and things like heads: what must be refused, and unusual ones that must be classified."""
    plain = head()
    data = np.asarray(plain.dataobj, np.float32)
    holed = data.copy()
    holed[3, 4, 5], holed[4, 4, 5] = np.nan, np.inf
    half = data.copy()
    half[data.shape[0] // 2 :] = 0
    grid = np.indices((60, 60, 60)) - 30
    bone = np.hypot(grid[0], grid[1])
    leg = np.where(bone < 25, 500, 0) + np.where(bone < 9, 400, 0) - np.where(abs(bone - 9) < 1.5, 700, 0)
    turned = plain.as_reoriented(nib.orientations.axcodes2ornt("PIR"))
    mirrored = plain.as_reoriented([[0, -1], [1, 1], [2, 1]])
    negative = nifti(data, plain.affine, pixdim=[1, -3, -3, -3, 1, 1, 1, 1])
    refused = "refused"
    return {
        "T2w-like head": ("t2.nii", head(contrast=(0.7, 0.5, 1.0)).to_bytes(), "as in a T2-"),
        "CT-like head": ("ct.nii", head(contrast=(0.5, 0.49, 0.47), noise=0.05).to_bytes(), refused),
        "knee-like": ("knee.nii", nifti(leg.astype(np.float32), np.diag([3.0, 3, 3, 1])), refused),
        "half a head": ("half.nii", nifti(half, plain.affine), refused),
        "some NaN and infinite voxels": ("holes.nii", nifti(holed, plain.affine), CLASSIFIED),
        "negative voxel sizes": ("negative.nii", negative, CLASSIFIED),
        "left and right exchanged, header right": ("flipped.nii", mirrored.to_bytes(), CLASSIFIED),
        "axes swapped, header right": ("swapped.nii", turned.to_bytes(), CLASSIFIED),
        "markup in the name": ("<img src=x onerror=alert(1)>.nii", plain.to_bytes(), CLASSIFIED),
    }  # fmt: skip


def all_uploads(folder: Path) -> dict[str, tuple[str, bytes, str]]:
    """Every upload by what is wrong with it."""
    return damaged() | archives(folder) | arrays() | heads()


def sparse(folder: Path, header: bytes = b"") -> Path:
    """A file of 2 GiB that takes no room on the disk, too large to be uploaded."""
    path = folder / ("sparse_head.nii" if header else "sparse.nii")
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(2 * 2**30)
    return path


def vast_header() -> bytes:
    """A header of 2 GiB of voxels."""
    return nifti(volume(), dim=[3, 1024, 1024, 1024, 1, 1, 1, 1])[:HEADER] + struct.pack("<4x")
