"""A pretrained ResNet50 taught inside OASIS-2's own folds: dementia by participant, from the image alone.

    python benchmarks/oasis2_trained.py --weights FILE [--params params/oasis2_slices.yaml] [--repeats 5]

`FILE` is the ``pretrained.safetensors`` of ``python -m adlib.pretrain``. For each fold the study's own loop trains a
network, from those weights, on the three mid-slices of the training participants, with their age, brain share and
intracranial volume told beside the class in training only; it then answers for the fold's other participants, by the
mean over their sessions and mirror images. There is one recipe, set beforehand, and nothing to choose. Five folds by
participant, `repeats` times; answers are averaged over the repetitions as those of an ensemble, and also scored for
each. Exit code 1 where the area under the ROC curve misses its goal.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from oasis2 import GOAL, People, gather, listed, shown, test_folds
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adlib import scores
from adlib.device import make_fabric
from adlib.fit import fit
from adlib.folds import Fold
from adlib.keys import code_digest
from adlib.model import slice_outputs, softmax
from adlib.params import StudyParams, load_params
from adlib.pretrain.planes import PLANES
from adlib.pretrain.slices import MIRRORED, network_input, read_slices
from adlib.records import digest, file_digest
from adlib.sources.oasis_tables import ACKNOWLEDGEMENT

RECIPE = {"epochs": 15, "learning_rate": 0.0003, "dropout": 0.5, "average": 0.95, "auxiliary_weight": 1.0}
TOLD = ["age", "nbv", "icv_ml"]
FOLDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--params", default="params/oasis2_slices.yaml")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="edge of the images, pixels")
    parser.add_argument("--cache", type=Path, default=Path("outputs/oasis2_trained"))
    args = parser.parse_args()
    sets = {"weights": f"path:{args.weights}", "controls": "[]"} | RECIPE
    params = load_params(args.params, (f"input.size={args.size}", *(f"train.{k}={v}" for k, v in sets.items())))
    visits = listed(params, args.cache)
    people = gather(visits)
    x = network_input(np.stack([read_slices(path) for path in visits["path"]]), args.size).numpy().astype(np.float16)
    told, rival = (np.zeros((args.repeats, len(people.ids))) for _ in range(2))
    for number, tested in enumerate(test_folds(visits, people, params, args.repeats)):
        repeat = number // FOLDS
        answers = taught(number, visits, x, people.ids[tested], params, args)
        told[repeat, tested] = [answers[people.sessions[k]].mean() for k in np.flatnonzero(tested)]
        rival[repeat, tested] = without_image(people, tested)
    weights = scores.cluster_weights(np.arange(len(people.ids)), params.evaluate.bootstrap, params.seed)
    shown("one network for each participant", told, people, weights)
    reached = shown(f"mean of {args.repeats} networks", told.mean(0)[None], people, weights)
    shown("age, sex, nWBV, eTIV (no image)", rival, people, weights)
    print(ACKNOWLEDGEMENT)
    print(f"goal: AUC above {GOAL:.2f} from the image alone; reached {reached:.3f}, {args.repeats} x {FOLDS} networks")
    return int(reached <= GOAL)


def taught(
    number: int, visits: pd.DataFrame, x: np.ndarray, tested: np.ndarray, params: StudyParams, args: argparse.Namespace
) -> np.ndarray:
    """Evidence of dementia (n,) in all sessions by a network that was not trained on `tested` participants."""
    out = visits["participant_id"].isin(tested).to_numpy()
    table = visits.assign(split=np.where(out, "validation", "train"), slice=0)
    train = table[table["split"] == "train"]
    beside = ((table[TOLD] - train[TOLD].mean()) / train[TOLD].std()).to_numpy(np.float32)
    targets = table["diagnosis"].map({name: k for k, name in enumerate(params.classes)}).to_numpy()
    fold = Fold("oasis2", number, x, table, targets, beside)
    known = [code_digest("adlib.fit"), file_digest(args.weights), params.model_dump(mode="json"), table.to_csv()]
    key = digest(known)
    network, _ = fit(fold, params, args.cache / key[:16], key, make_fabric(params))
    flipped = x.copy()
    for plane in MIRRORED:
        flipped[:, PLANES.index(plane)] = flipped[:, PLANES.index(plane), :, ::-1]
    return np.mean([1 - softmax(slice_outputs(network, view))[:, 0] for view in (x, flipped)], axis=0)


def without_image(people: People, tested: np.ndarray) -> np.ndarray:
    """Logistic regression on age, sex, published brain share and intracranial volume, learnt on the others."""
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(people.covariates[~tested], people.demented[~tested])
    return model.decision_function(people.covariates[tested])


if __name__ == "__main__":
    sys.exit(main())
