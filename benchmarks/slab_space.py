"""Measure where OASIS-1's coronal slab lies in MNI152, on the images in the folder that ADLIB_REALDATA names.

    python benchmarks/slab_space.py

Affines of twelve degrees of freedom that maximise a correlation are fitted twice: of the mean slab to the template, and
of the slices of each person in ``oasis1_manual`` to the same person's preprocessed brain. The table compares them with
`adlib.training.slabs.ATLAS_TO_MNI`; the last lines are the mean over people under 60 and over 60, averaged, which that
constant is.
"""

import os
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage, optimize

from adlib.imaging.atlas import template
from adlib.preprocess.pipeline import preprocess_image
from adlib.sources.reading import list_source
from adlib.study.exec_params import HERE
from adlib.study.params import PreprocessParams
from adlib.study.source_params import OasisSlicesSource
from adlib.training.slabs import ATLAS_TO_MNI, FIRST, SHAPE, cut_slab, read_slab

ELDERLY = 60
BLUR_MM = 2.0  # of the template, as of the mean of many people
CENTRE = (np.array(SHAPE) - 1) / 2 + [0, FIRST, 0]
START = np.c_[np.diag([-1.04, 1.04, 1.04]), [0.0, -26.0, 13.0]]  # (3, 4): matrix, and where the centre lies
UNITS = np.c_[np.full((3, 3), 0.02), np.ones(3)]
IN_PLANE = np.array([[1, 0, 1, 1], [0, 0, 0, 1], [1, 0, 1, 1]], dtype=bool)


def placed(fit: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """MNI152 mm (3, n) of voxels (3, n) of the atlas."""
    return fit[:, :3] @ (voxels - CENTRE[:, None]) + fit[:, 3:]


def fitted(slab: np.ndarray, volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, float]:
    """Affine (3, 4) by greatest correlation around the brain, first in the plane, then whole; and the correlation."""
    around = ndimage.binary_dilation(slab > 0, iterations=4)[::2, :, ::2]
    values = slab[::2, :, ::2][around]
    voxels = np.argwhere(around).T * [[2], [1], [2]] + [[0], [FIRST], [0]]
    onto, fit = np.linalg.inv(affine), START
    for free in (IN_PLANE, np.ones_like(IN_PLANE)):

        def moved(steps: np.ndarray, fit: np.ndarray = fit, free: np.ndarray = free) -> np.ndarray:
            change = np.zeros_like(START)
            change[free] = steps
            return fit + change * UNITS

        def cost(steps: np.ndarray, moved=moved) -> float:
            where = nib.affines.apply_affine(onto, placed(moved(steps), voxels).T).T
            return -np.corrcoef(values, ndimage.map_coordinates(volume, where, order=1))[0, 1]

        found = optimize.minimize(cost, np.zeros(free.sum()), method="Powell", options={"xtol": 0.01, "ftol": 1e-6})
        fit = moved(found.x)
    return fit, -found.fun


def main() -> None:
    """Fit, compare and print."""
    root = Path(os.environ["ADLIB_REALDATA"])
    with tempfile.TemporaryDirectory() as folder:
        source = OasisSlicesSource(kind="oasis_slices", root=root / "oasis1_coronal")
        listed = list_source(source, Path(folder), pool=HERE)
        slabs = {name: read_slab(path) for name, path in zip(listed["scan_id"], listed["path"], strict=True)}
    base, mean = template(1.0), np.mean(list(slabs.values()), axis=0)
    constant = np.c_[ATLAS_TO_MNI[:3, :3], nib.affines.apply_affine(ATLAS_TO_MNI, CENTRE)]

    def compared(name: str, age: int | None, slab: np.ndarray, volume: np.ndarray, cut: np.ndarray) -> dict:
        fit, best = fitted(slab, volume, base.affine)
        voxels = np.argwhere(slab > 0.2).T + np.array([[0], [FIRST], [0]])
        away = np.linalg.norm(placed(fit, voxels) - placed(constant, voxels), axis=0)
        whole = np.corrcoef(cut.ravel(), slab.ravel())[0, 1]
        return {"scan": name, "age": age, "rms_mm": np.sqrt(np.mean(away**2)), "r": whole, "r_fitted": best, "fit": fit}

    blurred = ndimage.gaussian_filter(base.t1, BLUR_MM)
    rows = [compared("mean of all slabs", None, mean, blurred, cut_slab(blurred, base.affine, "template"))]
    for person in pd.read_csv(root / "oasis1_manual" / "participants.csv").itertuples():
        image = nib.load(root / "oasis1_manual" / f"{person.scan}_SS.nii.gz")
        done = preprocess_image(image, PreprocessParams(normalise="white_matter_peak"), str(person.scan))
        slab, cut = slabs[f"{person.subject}_MR1"], cut_slab(done.t1w, done.affine, str(person.scan))
        rows.append(compared(str(person.scan), person.age, slab, done.t1w, cut) | {"subject": person.subject})
    table = pd.DataFrame(rows)
    print(table.drop(columns=["fit", "subject"]).round(3).to_string(index=False))
    people = table.dropna(subset="age").drop_duplicates("subject").groupby(table["age"] >= ELDERLY)["fit"]
    fit = np.mean([np.mean(list(fits), axis=0) for _, fits in people], axis=0)
    print(np.c_[fit[:, :3], fit[:, 3] - fit[:, :3] @ CENTRE].round(4))


if __name__ == "__main__":
    main()
