"""An untrained classifier and its prediction for a synthetic head."""

import nibabel as nib
import pytest
import torch
from bad_uploads import head

from adlib.classify.prediction import predict_image
from adlib.study.params import InputParams, PreprocessParams
from adlib.training.model_file import Classifier, ModelCard
from adlib.training.network import ResNet50

CLASSES = ("CN", "MCI", "LMCI", "AD")


@pytest.fixture(scope="session")
def classifier():
    """A ResNet50 with random weights."""
    torch.manual_seed(3)
    network = ResNet50(len(CLASSES))
    volumes = {
        "icv_ml": {name: [1450.0, 130.0] for name in CLASSES},
        "ventricles_ml": {name: [20.0 + 10 * i, 9.0] for i, name in enumerate(CLASSES)},
    }
    card = ModelCard(
        study="phantom", classes=CLASSES, simulated=True, input=InputParams(size=64),
        preprocess=PreprocessParams(resolution_mm=3.0), temperature=1.3,
        cohort={"participants": dict.fromkeys(CLASSES, 5), "volumes": volumes},
        weights_origin="random initialisation", splits_sha256="0" * 64, code="0" * 64, seed=3,
    )  # fmt: skip
    return Classifier(network.eval(), card)


@pytest.fixture(scope="session")
def scan():
    """A head with an affine in single precision, as files have it."""
    return nib.Nifti1Image.from_bytes(head(2.5, codes="PSR").to_bytes())


@pytest.fixture(scope="session")
def prediction(classifier, scan):
    return predict_image(scan, "made", classifier, person={"age": 70.0, "sex": 1.0})
