"""DICOM in, one T1w volume out: this module checks headers and chooses the series, dcm2niix converts."""

import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

import dcm2niix
import nibabel as nib
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from adlib.sources.image_files import REFORMATTED, SLICES, sidecar_facts, unlike_timing
from adlib.sources.sequence import sequence_of
from adlib.study.conversion import raise_if_passing
from adlib.study.records import StudyError, TryAgain, read_json
from adlib.study.tree import walk

MAX_FILES = 20_000
MAX_BYTES = 4 * 2**30
_MAX_RATIO = 100  # unpacked to packed size of a whole zip; MR series reach about 10
_MIN_SLICES = 40
TIMEOUT_S = 300

_VOLUMES = (".nii", ".nii.gz", ".mgz", ".mgh")
_PACKED = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", *_VOLUMES)

_LEAST = (False, False, False, 0)  # rank
_NO_IMAGE = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4))
_GAP = "slice distance varies"
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
_MACHINE_CODES = {5: "it cannot read its input folder", 6: "its output folder is gone", 7: "it cannot write its output"}
_TAGS = ["SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "PatientID", "PatientName"]
_TAGS += ["PatientAge", "PatientSex", "Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames"]
_UNCOMPRESSED = (None, ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_SHOWN = 4  # files in a message
_PIXEL_TAG = {True: 8, False: 12}  # bytes before the pixels, by whether value representations are implicit


class Stopped(TryAgain):
    """The converter crashed or hung on these files: they are excluded and the run goes on."""


@dataclass(frozen=True)
class Series:
    """One converted series.

    Attributes
    ----------
    title : str
        Series number and description, for messages.
    image : nibabel.Nifti1Image
        The volume, in memory, with nothing but its affine in the header.
    fault : str
        Why it cannot be the T1w scan; empty where it can.
    rank : tuple
        Larger is more likely the T1w scan.
    about : dict
        The sidecar that dcm2niix wrote, identifying fields stripped, with the age and sex of the headers.
    """

    title: str
    image: nib.Nifti1Image
    fault: str
    rank: tuple[bool, bool, bool, int]
    about: dict[str, Any]


def read_dicom(path: Path) -> tuple[nib.Nifti1Image, tuple[str, ...], dict[str, Any]]:
    """Read the T1w volume of a folder or zip of DICOM files.

    Parameters
    ----------
    path : Path
        Folder or zip.

    Returns
    -------
    image : nibabel.Nifti1Image, (X, Y, Z)
    notes : tuple of str
        The series taken, and the reason against each other one.
    facts : dict
        Of the series taken, see `image_files.sidecar_facts`.

    Raises
    ------
    StudyError
        If the zip is unsafe, nothing is DICOM, or no series is one 3-D T1w scan.
    """
    taken, left = choose(list_series(path), path)
    note = f"{taken.title} taken" + ("" if taken.rank[0] else " as T1w, although its name does not say so")
    notes = (note, *(f"{one.title} left out: {reason}" for one, reason in left))
    return taken.image, notes, sidecar_facts(taken.about)


def list_series(path: Path) -> list[Series]:
    """Convert every series of a folder or zip of DICOM files, or of one file with all frames.

    Parameters
    ----------
    path : path
        Folder, zip or DICOM file.

    Returns
    -------
    list of Series

    Raises
    ------
    StudyError
        If the zip is unsafe, nothing is DICOM, or the images are of several people.
    Stopped
        If the conversion crashes or takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="adlib-") as folder:  # which only its owner can read
        unpacked, whole, converted = (Path(folder) / name for name in ("in", "whole", "out"))
        for made in (unpacked, whole, converted):
            made.mkdir()
        names = _files(path, unpacked)
        headers = read_headers(names)
        refuse_two_people(headers, path)
        cut = cut_short(headers)
        left = {header.path for header in headers if header.cut or header.series in cut}
        for number, file in enumerate(file for file in names if file not in left):
            (whole / f"{number:06d}").symlink_to(file)
        gapped = _run_dcm2niix(whole, converted, path)
        if not (cut or any(converted.glob("*.nii"))):
            raise StudyError(f"{path.name} holds no DICOM image series; {_hint(names.values())}")
        person = next((header.about for header in headers if header.about), {})
        volumes = [_describe(file, file.stem in gapped, person) for file in sorted(converted.glob("*.nii"))]
        return [*volumes, *(Series(title, _NO_IMAGE, fault, _LEAST, {}) for title, fault in cut.values())]


def _files(path: Path, unpacked: Path) -> dict[Path, str]:
    """The readable files of a folder, a zip or a single file, each once, with their names for messages."""
    if path.is_dir():
        return {found.path: found.inside for found in walk(path.resolve()) if not found.fault}
    return _unpack(path, unpacked) if path.suffix.lower() == ".zip" else {path.resolve(): path.name}


def _unpack(archive: Path, folder: Path) -> dict[Path, str]:
    """Unpack a zip into numbered files of an empty folder, so that no name inside it can point elsewhere.

    Returns
    -------
    dict of Path to str
        The names in the zip.

    Raises
    ------
    StudyError
        If it is no zip, is damaged or encrypted, holds too much, or holds links or names that leave the folder.
    TryAgain
        If the disk cannot be read or written.
    """
    try:
        with zipfile.ZipFile(archive) as contents:
            members = _unpacked([member for member in contents.infolist() if not member.filename.endswith("/")])
            if fault := next(_zip_faults(members), None):
                raise StudyError(f"{archive.name} {fault}")
            names = {folder / f"{number:06d}": member.filename for number, member in enumerate(members)}
            for path, member in zip(names, members, strict=True):
                with contents.open(member) as source, path.open("xb") as target:
                    shutil.copyfileobj(source, target, 2**20)
            return names
    except StudyError:
        raise
    except Exception as error:  # zipfile meets arbitrary bytes here and raises whatever its parsers raise
        raise_if_passing(error, archive)
        raise StudyError(f"{archive.name} is not a readable zip ({error}); pack the DICOM folder again") from None


def _unpacked(members: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The members that are unpacked: beside loose files, archives, such as those of a CD's viewer, are left."""
    names = [member.filename.lower() for member in members]
    loose = [member for member, name in zip(members, names, strict=True) if not name.endswith(_PACKED)]
    return members if any(name.endswith(_VOLUMES) for name in names) else loose or members


def _zip_faults(members: list[zipfile.ZipInfo]) -> Iterator[str]:
    """Why a zip of these members is not unpacked."""
    packed = max(sum(member.compress_size for member in members), 1)
    unpacked = sum(member.file_size for member in members)
    if not members:
        yield "is an empty zip; a DICOM series is expected in it"
    if len(members) > MAX_FILES:
        yield f"holds {len(members)} files, at most {MAX_FILES} are read; send one series"
    if unpacked > MAX_BYTES:
        yield f"unpacks to {unpacked / 2**30:.1f} GiB, at most {MAX_BYTES / 2**30:.0f} are read; send one series"
    if unpacked > _MAX_RATIO * packed:
        yield f"unpacks to {unpacked / packed:.0f} times its size, DICOM does not; pack it again"
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or re.match("[A-Za-z]:", str(name)):
            yield f"holds the name {member.filename!r}, which leaves its folder; pack the series again"
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            yield f"holds {member.filename!r}, a link or device, no file; pack the files themselves"
        if member.filename.lower().endswith(_PACKED):
            yield f"holds {name.name!r}, no DICOM but an archive or a volume; unpack it and give that file"
        if member.flag_bits & 1:
            yield "is encrypted; unpack it and give the folder"


def _run_dcm2niix(incoming: Path, converted: Path, source: Path) -> set[str]:
    """Convert every series under `incoming` to `.nii` + `.json` in `converted`, identifying fields stripped.

    The home folder is set to a private one, so that no personal dcm2niix defaults change the result.

    Returns
    -------
    set of str
        File stems of the volumes whose slices are not evenly spaced: some are missing.

    Raises
    ------
    Stopped
        If the conversion crashed or took too long.
    TryAgain
        If it was killed, or could not use its folders.

    References
    ----------
    Li et al. 2016, doi:10.1016/j.jneumeth.2016.03.001.
    """
    command = [dcm2niix.bin, "-b", "y", "-ba", "y", "-c", "", "-z", "n", "-f", "%s_%e"]
    command += ["-o", str(converted), str(incoming)]
    try:
        home = os.environ | {"HOME": str(converted)}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, env=home)
    except subprocess.TimeoutExpired:
        raise Stopped(
            f"{source.name}: DICOM conversion took over {TIMEOUT_S} s; give only the T1w series, or a faster disk"
        ) from None
    _refuse_stopped(done.returncode, source)
    return _gapped(done.stdout)


def _refuse_stopped(code: int, source: Path) -> None:
    """Refuse the output of a dcm2niix that the machine stopped; its other codes are about files it could not convert.

    References
    ----------
    https://github.com/rordenlab/dcm2niix/blob/master/ERRORS.md
    """
    if -code in _CRASHES:
        raise Stopped(f"{source.name}: dcm2niix crashed ({signal.strsignal(-code)}); export the series again")
    if code < 0:
        raise TryAgain(
            f"{source}: dcm2niix was ended by signal {-code} ({signal.strsignal(-code)}), perhaps for lack of memory; "
            "run again, with fewer workers"
        )
    if code in _MACHINE_CODES:
        raise TryAgain(
            f"{source}: dcm2niix ended with code {code}, {_MACHINE_CODES[code]}; check the disk and run again"
        )


def _gapped(log: str) -> set[str]:
    blocks = re.split(r"^Convert \d+ DICOM as (.+) \(\d.*$", log, flags=re.M)  # warnings precede their line
    return {Path(name).name for log, name in zip(blocks[::2], blocks[1::2], strict=False) if _GAP in log}


def _hint(names: Iterable[str]) -> str:
    volumes = [name for name in names if name.lower().endswith(_VOLUMES)]
    return f"give the file {volumes[0]} itself" if volumes else "give the folder or zip of one T1w series"


def _describe(volume: Path, gapped: bool, person: dict[str, str]) -> Series:
    loaded = nib.load(volume)
    sidecar = volume.with_suffix(".json")
    about: dict[str, Any] = read_json(sidecar) | person if sidecar.is_file() else {}
    text = " ".join(str(about.get(key, "")) for key in ("SeriesDescription", "ProtocolName", "SequenceName")).strip()
    kinds = {str(kind).upper() for kind in about.get("ImageType", [])}
    image = nib.Nifti1Image(np.asarray(loaded.dataobj), loaded.affine)
    named = sequence_of(text)
    rank = (named.t1w, not named.agent, "ORIGINAL" in kinds, int(np.prod(image.shape)))
    title = f"series {about.get('SeriesNumber', '?')} '{about.get('SeriesDescription', 'without description')}'"
    fault = _fault(image.shape, about, text, kinds) or ("slices are missing; export it again" if gapped else "")
    return Series(title, image, fault, rank, about)


def _fault(shape: tuple[int, ...], about: dict[str, Any], text: str, kinds: set[str]) -> str:
    if not about:
        return "derived by the conversion"
    if about.get("Modality", "MR") != "MR":
        return f"modality {about['Modality']}, not MR"
    if len(shape) != 3:
        return f"{shape[3]} volumes, not one"
    if min(shape) < _MIN_SLICES:
        return f"{min(shape)} slices, a 3-D scan has at least {_MIN_SLICES}"
    if kinds & REFORMATTED:
        return f"image type {'/'.join(sorted(kinds & REFORMATTED))}, not the acquired volume"
    if by_timing := unlike_timing(sidecar_facts(about)):
        return f"{by_timing}, not T1w"
    if other := sequence_of(text).other:
        return f"named '{other}', not T1w"
    return ""


def choose(series: list[Series], source: Path) -> tuple[Series, list[tuple[Series, str]]]:
    """Choose the series that is most likely T1w, with the reason against each other one.

    Parameters
    ----------
    series : list of Series
    source : path
        For the error.

    Returns
    -------
    best : Series
    others : list of (Series, str)
        The other series, each with the reason.

    Raises
    ------
    StudyError
        If none can be T1w, or several could and none is named so.
    """
    usable = sorted((one for one in series if not one.fault), key=lambda one: one.rank, reverse=True)
    left = [(one, one.fault) for one in series if one.fault]
    if not usable:
        reasons = "; ".join(f"{one.title} left out: {one.fault}" for one in series)
        alone = source.is_file() and source.suffix.lower() != ".zip"
        remedy = "the folder that holds it and its other slices" if alone else "one T1w series"
        raise StudyError(f"{source.name} holds no 3-D T1w series: {reasons}; give {remedy}")
    best, *others = usable
    if others and not best.rank[0]:
        titles = ", ".join(one.title for one in usable)
        raise StudyError(f"{source.name}: none of {titles} is named as T1w; give the folder of the one that is")
    return best, [*((one, "less likely the T1w scan") for one in others), *left]


class Header(NamedTuple):
    """Facts of one image file.

    Attributes
    ----------
    path : Path
    name : str
        In messages.
    series : str
        Its unique id; empty where the file ends before it.
    title : str
        Series number and description, for messages.
    person : tuple of str
        PatientID and the letters and digits of PatientName.
    about : dict of str to str
        PatientAge and PatientSex, where the file has them.
    cut : bool
        Whether the file ends before its last pixel.
    """

    path: Path
    name: str
    series: str
    title: str
    person: tuple[str, str]
    about: dict[str, str]
    cut: bool


def read_headers(names: Mapping[Path, str]) -> list[Header]:
    """The headers of those files that are DICOM images.

    Parameters
    ----------
    names : mapping of Path to str
        Names of the files in messages.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are not as the standard has them
        found = [_header(path, name) for path, name in names.items()]
    return [header for header in found if header]


def _header(path: Path, name: str) -> Header | None:
    try:
        with path.open("rb") as stream:
            read = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS, force=True)
            left = path.stat().st_size - stream.tell() - _PIXEL_TAG[bool(read.original_encoding[0])]
        kind = read.get("SOPClassUID") or read.file_meta.get("MediaStorageSOPClassUID")
        if "Rows" not in read and "Image Storage" not in getattr(kind, "name", ""):
            return None if kind else _unread(path, name)
        texts = {tag: str(read.get(tag) or "").strip() for tag in _TAGS}
        title = f"series {texts['SeriesNumber'] or '?'} '{texts['SeriesDescription'] or 'without description'}'"
        person = texts["PatientID"], re.sub(r"\W|_", "", texts["PatientName"]).casefold()
        about = {tag: texts[tag] for tag in ("PatientAge", "PatientSex") if texts[tag]}
        return Header(path, name, texts["SeriesInstanceUID"], title, person, about, left < _pixel_bytes(read))
    except Exception:  # pydicom meets arbitrary bytes here and raises whatever its parsers raise
        return _unread(path, name)


def _unread(path: Path, name: str) -> Header | None:
    """A file that ends within its header, by its name."""
    kept = name.lower().endswith(SLICES) and not PurePath(name).name.startswith(".")
    return Header(path, name, "", name, ("", ""), {}, True) if kept else None


def _pixel_bytes(read: pydicom.Dataset) -> int:
    """Least number of bytes of the pixels; 0 where they are compressed, and for files that hold no image."""
    image = "Image" in getattr(read.get("SOPClassUID"), "name", "Image")
    if not image or read.file_meta.get("TransferSyntaxUID") not in _UNCOMPRESSED:
        return 0
    pixels = int(read.get("Rows", 1)) * int(read.get("Columns", 1)) * int(read.get("NumberOfFrames") or 1)
    return pixels * int(read.get("SamplesPerPixel", 1)) * int(read.get("BitsAllocated", 8)) // 8


def refuse_two_people(headers: Iterable[Header], source: Path) -> None:
    """Refuse images of several people.

    Parameters
    ----------
    headers : iterable of Header
    source : path
        For the error.

    Raises
    ------
    StudyError
        With a file of each person.
    """
    for part in (0, 1):
        first = {header.person[part]: header.name for header in reversed([*headers]) if header.person[part]}
        if len(first) > 1:
            raise StudyError(
                f"{source.name} holds images of {len(first)} people, by PatientID or PatientName, such as "
                f"{', '.join(sorted(first.values())[:_SHOWN])}; give a folder for each person"
            )


def cut_short(headers: Iterable[Header]) -> dict[str, tuple[str, str]]:
    """Title and fault of each series with files that are cut short, by its id.

    A file that ends before the id of its series counts for each series in its folder.

    Parameters
    ----------
    headers : iterable of Header
    """
    titles = {header.series: header.title for header in reversed([*headers])}
    in_folder: dict[PurePath, set[str]] = defaultdict(set)
    cut: dict[str, list[str]] = defaultdict(list)
    for header in headers:
        in_folder[PurePath(header.name).parent].add(header.series)
    for header in headers:
        others = in_folder[PurePath(header.name).parent] - {""} or {""}
        for series in ({header.series} if header.series else others) if header.cut else ():
            cut[series].append(header.name)
    fault = "{} of its files are cut short or damaged ({}); copy them again"
    return {one: (titles[one], fault.format(len(names), ", ".join(names[:_SHOWN]))) for one, names in cut.items()}
