"""What was done, in sentences made from the params and the weights file."""

from __future__ import annotations

from adlib.report import explained
from adlib.report.content import Study
from adlib.report.words import RUNS, counted, listed, percent
from adlib.study.params import StudyParams

SOURCES = {
    "phantom": "simulated T1w heads, made by deforming the MNI152 average brain by a severity of atrophy that depends "
    "on class and age, written as a BIDS dataset",
    "bids": "a BIDS dataset",
    "caps": "a CAPS folder after Clinica's t1-linear, already registered to MNI152",
    "adni": "the Alzheimer's Disease Neuroimaging Initiative (ADNI)",
    "oasis1": "OASIS-1 (Marcus et al. 2007, doi:10.1162/jocn.2007.19.9.1498)",
    "oasis2": "OASIS-2 (Marcus et al. 2010, doi:10.1162/jocn.2009.21407)",
    "oasis2_slices": "mid-slices of OASIS-2 (Marcus et al. 2010, doi:10.1162/jocn.2009.21407)",
    "oasis3": "OASIS-3",
    "oasis_vbm": "grey-matter maps of OASIS-1, as nilearn distributes them",
    "folders": "folders named by class",
    "dicom": "DICOM series",
}
EXTRACTION = {
    "template": "The brain was extracted by propagating the template's mask and refining it",
    "synthstrip": "The brain was extracted by SynthStrip",
    "hd-bet": "The brain was extracted by HD-BET",
}
REGISTRATION = {
    "affine": "registered to MNI152 with twelve degrees of freedom",
    "rigid": "registered to MNI152 in pose only, its size kept",
    "deformable": "registered to MNI152 and deformed to its shape",
}
NORMALISATION = {
    "brain_zscore": "Intensities were scaled to zero mean and unit variance inside the brain",
    "white_matter_peak": "Intensities were divided by the white-matter peak",
    "landmarks": "Intensities were mapped to landmarks (Nyúl) that were fitted on the training scans of each fold",
}
POOLING = {
    "mean": "the mean of their probabilities",
    "maximum": "the greatest evidence for each class",
    "vote": "their votes",
    "attention": "weights that the network learned with the class",
}
BALANCE = {
    "weights": "with class weights against unequal classes",
    "sampling": "with participants of each class drawn evenly",
    "none": "without regard to class sizes",
}
AUGMENT = {
    "none": "Slices were not varied.",
    "light": "Training slices were varied by small rotations, scalings and shifts, mirroring, gain and noise.",
    "mri": "Training slices were varied by small affine maps, mirroring, bias field, gamma, motion and ghosts.",
}


def methods(study: Study) -> dict[str, list[str]]:
    """Sentences by heading, in the order of the steps."""
    return {
        "Cohort and labels": cohort(study.params),
        "Preprocessing": preprocessing(study.params),
        "Input of the network": network_input(study.params),
        "Split": split(study.params),
        "Training": training(study),
        "Controls": controls(study.params),
        "Evaluation": evaluation(study.params),
    }


def cohort(params: StudyParams) -> list[str]:
    """Where scans and labels come from."""
    source = params.source
    said = [f"The scans are {SOURCES.get(source.kind, source.kind)}."]
    if source.kind == "phantom":
        means = listed(f"{m:g} ({name})" for name, m in zip(params.classes, source.severity_mean, strict=True))
        said.append(f"Mean severity at age 74 was {means}, with a standard deviation of {source.severity_sd:g}.")
    if label := getattr(source, "label", None):
        said.append(
            {
                "collection": "The label is the diagnostic group of the downloaded collection.",
                "baseline": "The label is the diagnosis of the first visit.",
                "visit": "The label is the diagnosis of the visit nearest the scan.",
            }.get(label, "")
        )
    if labels := getattr(source, "labels", None):
        said.append(f"Of the source's labels, {listed(f'{old} counts as {new}' for old, new in labels.items())}.")
    if ratings := getattr(source, "cdr_labels", None):
        said.append(
            f"Clinical Dementia Rating {listed(f'{old} counts as {new}' for old, new in ratings.items())}; "
            "it is a rating of severity, not a diagnosis."
        )
    said.append(
        "An audit looked for contradictory labels, copies, unknown participants, wrong sequences and metadata that "
        "tell the label, before anything was trained."
    )
    return [sentence for sentence in said if sentence]


def preprocessing(params: StudyParams) -> list[str]:
    """What was done to each scan."""
    if params.input.flat:
        return ["Ready-made 2-D slices were used; no volume was registered, corrected or segmented."]
    p, kind = params.preprocess, params.source.kind
    if kind == "oasis_vbm":
        return [f"The tissue maps were resampled to a grid of {p.resolution_mm:g} mm and measured, and nothing else."]
    registration = "kept as it was registered" if kind == "caps" else REGISTRATION[p.registration]
    bias = "corrected for the bias field by N4" if p.bias_correction else "not corrected for the bias field"
    return [
        f"Each scan was reoriented, {registration} on a grid of {p.resolution_mm:g} mm, and {bias}.",
        f"{EXTRACTION[p.brain_extraction]}; scans that came as extracted brains were recognised and kept as they were.",
        f"{NORMALISATION[p.normalise]}.",
        "Tissues were segmented and volumes measured in the person's own head; quality control compared each scan "
        "with fixed limits, and scans that failed were left out.",
        "Each scan was processed by itself"
        + (", but for the landmarks." if p.normalise == "landmarks" else "; nothing was fitted on the cohort."),
    ]


def network_input(params: StudyParams) -> list[str]:
    """What the network saw of a scan, and how slices became one answer."""
    p = params.input
    if p.plane == "images_2d":
        seen = f"Each 2-D image was one input of {p.size} by {p.size} pixels."
    elif p.plane == "three_planes_2d":
        seen = f"The ready-made slices of three planes were the channels of one input of {p.size} by {p.size} pixels."
    elif p.plane == "three_planes":
        seen = (
            f"An axial, a coronal and a sagittal slice at {listed(f'{x:g}' for x in p.positions_mm)} mm in MNI152 were "
            f"the channels of one input of {p.size} by {p.size} pixels."
        )
    else:
        seen = (
            f"The network saw {counted(len(p.positions_mm), f'{p.plane} slice')} of each scan, at "
            f"{listed(f'{x:g}' for x in p.positions_mm)} mm in MNI152, {p.size} by {p.size} pixels, each with its "
            f"neighbours at {p.channel_spacing_mm:g} mm as channels."
        )
    return [seen, f"From several slices the scan's answer was {POOLING[p.pooling]}."]


def split(params: StudyParams) -> list[str]:
    """Who was trained on and who was tested."""
    p = params.splits
    said = {
        "holdout": f"{percent(p.test_fraction)} of the participants were held out for testing",
        "kfold": f"Participants were tested by {p.folds}-fold cross-validation",
        "leave_one_site_out": "Each site was tested by a network trained on the others",
        "external": f"The participants of {counted(len(p.test_sites), 'named site')} were tested by a network trained "
        "on all others",
    }[p.protocol]
    if p.repeats > 1 and p.protocol in ("holdout", "kfold"):
        said += f", {p.repeats} times with other random splits"
    sentences = [f"{said}; all scans of a participant stand on one side of every split."]
    if p.protocol in ("holdout", "kfold"):
        sentences.append(f"The split is random within classes{' and by site' if p.balance_sites else ''}.")
    return [
        *sentences,
        f"{percent(p.validation_fraction)} of the remaining participants drew the validation curve and calibrated the "
        "probabilities.",
    ]


def training(study: Study) -> list[str]:
    """How the network was fitted."""
    params, p = study.params, study.params.train
    origin = str(study.card.get("weights_origin", "unknown")).split(" in ")[0]
    rate = f"a peak rate of {p.learning_rate:g} and a weight decay of {p.weight_decay:g}"
    said = [
        f"ResNet50 (He et al. 2016, doi:10.1109/CVPR.2016.90) began from {origin if '/' not in origin else 'a file'}"
        + (f", with {counted(p.frozen_stages, 'stage')} frozen." if p.frozen_stages else "."),
        f"It was trained for {'up to ' if p.patience else ''}{p.epochs} epochs in batches of {p.batch_size} slices by "
        f"AdamW on a one-cycle schedule with {rate}, on cross-entropy with label "
        f"smoothing {p.label_smoothing:g}, {BALANCE[p.balance]}.",
        AUGMENT[p.augment],
        _last_epoch(params),
    ]
    if p.auxiliary_weight:
        said.append(
            f"While trained it also learned to tell age and volumes of the training participants (weight "
            f"{p.auxiliary_weight:g}); a prediction needs none of them."
        )
    options = {
        f"dropout of {p.dropout:g}": p.dropout,
        f"mixup with a = {p.mixup:g}": p.mixup,
        f"a moving average of the weights with decay {p.average:g}": p.average,
        f"{p.members} networks per fold whose answers were averaged": p.members > 1,
        f"{listed(p.covariates)} told to the last layer": p.covariates,
    }
    if used := [name for name, on in options.items() if on]:
        said.append(f"Also used: {listed(used)}.")
    return said


def _last_epoch(params: StudyParams) -> str:
    if params.train.patience:
        return (
            "Training stopped early on the balanced accuracy of validation participants "
            f"(patience {params.train.patience} epochs) and took the best epoch."
        )
    return "The last epoch was used; no score chose it."


def controls(params: StudyParams) -> list[str]:
    """What was trained again with one thing changed."""
    if not params.train.controls:
        return ["No control training was done."]
    said = [f"{RUNS[name].title}: {RUNS[name].meaning}." for name in params.train.controls]
    return ["The training was repeated with one thing changed.", *said]


def evaluation(params: StudyParams) -> list[str]:
    """How scores and intervals were made."""
    p = params.evaluate
    negative, positive = (listed(p.binary[side]) for side in ("negative", "positive"))
    return [
        "Probabilities were calibrated by a temperature and class biases fitted on validation participants.",
        f"Scores are of test participants; 95 % intervals are percentiles of {p.bootstrap} bootstrap resamples of "
        "participants.",
        f"The two-class view sets {positive} against {negative}.",
        "Baselines without a network were fitted and tested on the same participants; differences are paired on the "
        "same resamples, and McNemar's test compares the decisions.",
        explained.method(p, params.classes),
    ]
