"""Simulated scans as DICOM: one MR series of single-frame files, for trying the readers."""

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from adlib.study.records import atomic_path

PATIENT = "Simulated^Head"


def write_series(
    volume: np.ndarray, affine: np.ndarray, folder: Path, description: str, *, number: int = 1, echo_ms: float = 3.0
) -> Path:
    """Write a volume as one MR series whose slices run along its third axis.

    Parameters
    ----------
    volume : (X, Y, Z) array
        Intensities that 16-bit integers can hold.
    affine : (4, 4) array
        Voxel indices to world, RAS mm; DICOM positions are LPS (PS3.3, C.7.6.2).
    folder : path
    description : str
        Series description.
    number : int
        Series number.
    echo_ms : float
        Echo time, ms.

    Returns
    -------
    path
        The folder.
    """
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    edges = np.linalg.norm(lps[:3, :3], axis=0)
    cosines = np.concatenate([lps[:3, 0] / edges[0], lps[:3, 1] / edges[1]])
    study, series = (generate_uid(entropy_srcs=[str(folder.parent), part]) for part in ("study", f"series {number}"))
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(volume.shape[2]):
        file = _file(study, series, index, number)
        file.SeriesDescription, file.EchoTime, file.SliceThickness = description, echo_ms, float(edges[2])
        file.ImagePositionPatient = [float(v) for v in lps[:3] @ [0, 0, index, 1]]
        file.ImageOrientationPatient = [round(float(v), 8) for v in cosines]
        file.PixelSpacing = [float(edges[1]), float(edges[0])]
        pixels = np.ascontiguousarray(np.asarray(volume[:, :, index]).T.astype(np.int16))
        file.Rows, file.Columns, file.PixelData = *pixels.shape, pixels.tobytes()
        with atomic_path(folder / f"{number:02d}-{index + 1:04d}.dcm") as temporary:
            file.save_as(temporary, enforce_file_format=True)
    return folder


def _file(study: str, series: str, index: int, number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(index)])
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = study, series, study
    file.Modality, file.PatientName, file.PatientID = "MR", PATIENT, "simulated"
    file.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    file.SeriesNumber, file.InstanceNumber, file.AcquisitionNumber = number, index + 1, 1
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
    return file
