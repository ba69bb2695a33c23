"""A ResNet50 taught on slices of OASIS-1 and tested on OASIS-2: dementia by participant, from the image alone.

    python benchmarks/oasis1.py --weights FILE --images FOLDER [--params params/oasis2_slices.yaml] [--networks 3]

`FOLDER` holds the popular image set of OASIS-1 as a zip and ``subjects.csv``, which says whose each image is; `FILE` is
the ``pretrained.safetensors`` of ``python -m adlib.pretrain``. Both releases stem from one study and share people, who
are found by sex, age and intracranial volume and left out of the training; ``--keep-shared`` leaves them in, to show
what that leak adds. Nothing is fitted on OASIS-2 and nothing chosen there: the networks, each trained by the study's
own loop on its own part of the participants, are averaged. Exit code 1 where the area under the ROC curve misses its
goal.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from oasis2 import GOAL, gather, listed
from PIL import Image
from sklearn.model_selection import StratifiedKFold
from torch import nn

from adlib import scores
from adlib.device import make_fabric
from adlib.fit import fit
from adlib.folds import Fold
from adlib.keys import code_digest
from adlib.model import slice_outputs, softmax
from adlib.params import StudyParams, load_params
from adlib.pretrain.planes import PLANES, SIZE
from adlib.pretrain.slices import network_input, read_slices
from adlib.records import StudyError, digest, file_digest
from adlib.sources.oasis_tables import ACKNOWLEDGEMENT, read_oasis_table
from adlib.volume import fit_square

CANVAS_MM = 192  # edge of the slices of both releases here; pixels of the image set are 1 mm
DARK = 8  # grey levels that compression leaves in the background
EVERY = 2  # slices, of the 32 of a head
TOLD = ["age", "nbv"]
COLUMNS = {"subject": "participant_id", "M/F": "sex", "Age": "age", "eTIV": "icv_ml", "nWBV": "nbv", "CDR": "cdr"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--params", default="params/oasis2_slices.yaml")
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--size", type=int, default=64, help="edge of the images, pixels")
    parser.add_argument("--keep-shared", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path("outputs/oasis1"))
    args = parser.parse_args()
    params = load_params(args.params, settings(args))
    visits = listed(params, args.cache)
    images = labelled_images(args.images, params.classes)
    shared = shared_people(images, Path(params.source.root))
    print(f"{images[shared]['participant_id'].nunique()} of {images['participant_id'].nunique()} people are in both")
    images = images if args.keep_shared else images[~shared].reset_index(drop=True)
    x = three_channels(read_images(args.images, images["path"]), args.size)
    seen = three_channels(np.stack([read_slices(path)[PLANES.index("axial")] for path in visits["path"]]), args.size)
    inside, outside = taught(images, x, seen, params, args)
    report("OASIS-1, people not trained on", demented(images), by_person(inside, images), params)
    people = gather(visits)
    told = np.array([outside[rows].mean() for rows in people.sessions])
    reached = report("OASIS-2", people.demented, told, params)
    print(ACKNOWLEDGEMENT)
    print(f"goal: AUC above {GOAL:.2f} from the image alone; reached {reached:.3f}")
    return int(reached <= GOAL)


def settings(args: argparse.Namespace) -> tuple[str, ...]:
    train = {"weights": f"path:{args.weights}", "epochs": args.epochs, "controls": "[]"}
    return (f"input.size={args.size}", *(f"train.{name}={value}" for name, value in train.items()))


def labelled_images(folder: Path, classes: tuple[str, ...]) -> pd.DataFrame:
    """Every other image of the people whose age is known, with their class by Clinical Dementia Rating."""
    table = pd.read_csv(folder / "subjects.csv").rename(columns=COLUMNS)
    table = table[table["age"].notna()].sort_values(["participant_id", "path"], ignore_index=True)
    table = table[table.groupby("participant_id").cumcount() % EVERY == 0].reset_index(drop=True)
    return table.assign(diagnosis=np.array(classes)[np.digitize(table["cdr"], [0.5, 1.0])])


def shared_people(images: pd.DataFrame, root: Path) -> np.ndarray:
    """Which images (n,) bool are of somebody whose sex, age and intracranial volume a visit of OASIS-2 has too."""
    visits = read_oasis_table(root, "*longitudinal*.csv", "mriid")[["mf", "age", "etiv"]]
    known = set(visits.itertuples(index=False, name=None))
    return np.array([facts in known for facts in images[["sex", "age", "icv_ml"]].itertuples(index=False, name=None)])


def read_images(folder: Path, paths: pd.Series) -> np.ndarray:
    """Axial slices (n, SIZE, SIZE) float32, background 0, from the folder's zip."""
    (packed,) = folder.glob("*.zip")
    with zipfile.ZipFile(packed) as members:
        slices = [np.asarray(Image.open(io.BytesIO(members.read(path))), np.float32) for path in paths]
    if shapes := {one.shape for one in slices} - {(208, 176)}:
        raise StudyError(f"{packed} holds images of {shapes}; 208 rows of 176 pixels were expected")
    return np.stack([reduced_by_area(np.clip(one - DARK, 0, None)) for one in slices])


def reduced_by_area(image: np.ndarray) -> np.ndarray:
    square = torch.from_numpy(fit_square(image, CANVAS_MM))
    return nn.functional.interpolate(square[None, None], size=SIZE, mode="area")[0, 0].numpy()


def three_channels(slices: np.ndarray, size: int) -> np.ndarray:
    """One slice as all three channels, normalised as in pretraining, (n, 3, size, size) float16."""
    return network_input(slices[:, None], size).repeat(1, 3, 1, 1).numpy().astype(np.float16)


def taught(
    images: pd.DataFrame, x: np.ndarray, seen: np.ndarray, params: StudyParams, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """Evidence of dementia in the images, each by the network that was not trained on its person, and in those seen."""
    labels, inside, outside = demented(images), np.zeros(len(images)), np.zeros(len(seen))
    cutter = StratifiedKFold(args.networks, shuffle=True, random_state=params.seed)
    for number, (_, held) in enumerate(cutter.split(labels, labels)):
        out = images["participant_id"].isin(labels.index[held]).to_numpy()
        fold = as_fold(number, images.assign(split=np.where(out, "validation", "train")), x, params.classes)
        key = digest(
            [code_digest("adlib.fit"), file_digest(args.weights), params.model_dump(mode="json"), fold.table.to_csv()]
        )
        network, _ = fit(fold, params, args.cache / key[:16], key, make_fabric(params))
        inside[out], outside = evidence(network, x[out]), outside + evidence(network, seen) / args.networks
    return inside, outside


def as_fold(number: int, table: pd.DataFrame, x: np.ndarray, classes: tuple[str, ...]) -> Fold:
    train = table[table["split"] == "train"]
    told = (table[TOLD] - train[TOLD].mean()) / train[TOLD].std()
    names = {
        "session_id": "ses-01",
        "scan_id": table["participant_id"],
        "slice": table.groupby("participant_id").cumcount(),
    }
    targets = table["diagnosis"].map({name: k for k, name in enumerate(classes)}).to_numpy()
    return Fold("oasis1", number, x, table.assign(**names), targets, told.to_numpy(np.float32))


def evidence(network: nn.Module, x: np.ndarray) -> np.ndarray:
    """Probability of any dementia (n,), as the mean over each image and its mirror image."""
    return np.mean([1 - softmax(slice_outputs(network, view))[:, 0] for view in (x, x[..., ::-1])], axis=0)


def demented(images: pd.DataFrame) -> pd.Series:
    return images.groupby("participant_id")["cdr"].first() > 0


def by_person(values: np.ndarray, images: pd.DataFrame) -> np.ndarray:
    return pd.Series(values).groupby(images["participant_id"]).mean().to_numpy()


def report(name: str, truth: pd.Series | np.ndarray, told: np.ndarray, params: StudyParams) -> float:
    """Print the area under the ROC curve with its interval over participants, and give it back."""
    truth = np.asarray(truth)
    weights = scores.cluster_weights(np.arange(len(truth)), params.evaluate.bootstrap, params.seed)
    found = scores.roc_auc(truth, told, weights)
    low, high = np.nanpercentile(found[1:], [2.5, 97.5])
    print(f"{name}: {len(truth)} participants, AUC {found[0]:.3f}, 95 % interval {low:.3f} to {high:.3f}", flush=True)
    return float(found[0])


if __name__ == "__main__":
    sys.exit(main())
