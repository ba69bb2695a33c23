"""Title, warning, abstract and limitations, with the run's own numbers in them."""

from __future__ import annotations

from adlib.report.content import NETWORK, Study
from adlib.report.results import above_chance, accepted, warnings
from adlib.report.words import listed, percent, run_of, sentence_score, written

SMALL = 30  # test participants of a class below which its scores are hardly known


def title(study: Study) -> str:
    return f"Telling {listed(study.params.classes)} apart in T1w brain MRI with a ResNet50: study {study.params.study}"


def warning(study: Study) -> str:
    """The first line that a reader sees."""
    if study.simulated:
        return (
            "The heads of this study are simulated. Its results say nothing about patients. "
            "Research only, not a medical device."
        )
    return "Research only, not a medical device: no result of this study may guide the diagnosis or care of a person."


def abstract(study: Study) -> dict[str, str]:
    """A structured abstract."""
    return {
        "Question": f"How well does a ResNet50 tell {listed(study.params.classes)} apart from T1w MRI, when no "
        "participant is on both sides of a split, and does it do better than simpler classifiers on the same people?",
        "Methods": f"{len(study.manifest)} scans of {people(study)} {'simulated ' if study.simulated else ''}"
        f"participants ({protocol(study)}). The network was fitted on whole participants; controls and baselines were "
        "scored on the same test participants.",
        "Results": results(study),
        "Conclusion": conclusion(study),
    }


def people(study: Study) -> int:
    return study.manifest["participant_id"].nunique()


def tested(study: Study) -> int:
    """Test participants that the network's score counts."""
    entry = study.entry(NETWORK, "balanced_accuracy")
    return entry["n"] if entry else 0


def protocol(study: Study) -> str:
    p = study.params.splits
    return {
        "holdout": f"{percent(p.test_fraction)} held out for testing",
        "kfold": f"{p.folds}-fold cross-validation",
        "leave_one_site_out": "each site tested by the others",
        "external": "named sites tested by all others",
    }[p.protocol]


def results(study: Study) -> str:
    """The main scores in sentences."""
    accuracy, auc, two = (
        sentence_score(study.entry(NETWORK, *metric))
        for metric in (("balanced_accuracy", None), ("roc_auc", "macro"), ("roc_auc_binary", None))
    )
    negative, positive = (listed(study.params.evaluate.binary[side]) for side in ("negative", "positive"))
    said = [
        f"On {tested(study)} unseen participants the balanced accuracy was {accuracy}, where guessing has "
        f"{study.chance:.2f}; the macro ROC AUC was {auc}, and that of {positive} against {negative} was {two}."
    ]
    if name := best_baseline(study):
        entry = study.entry(f"{NETWORK} - {name}", "balanced_accuracy_difference")
        said.append(
            f"The best baseline, {run_of(name).title.lower()}, reached "
            f"{written(study.entry(name, 'balanced_accuracy'))}; the network less that baseline is {written(entry)}."
        )
    if ceiling := study.entry("bayes_ceiling", "balanced_accuracy"):
        said.append(
            f"The best possible classifier, which knows the truth of the simulation, reached {written(ceiling)}."
        )
    return " ".join(said)


def conclusion(study: Study) -> str:
    """What follows, by fixed rules: from the interval of the network and of its difference to the best baseline."""
    interval = (study.entry(NETWORK, "balanced_accuracy") or {}).get("ci95")
    if not interval or None in interval or interval[0] <= study.chance:
        return "The network was not shown to be better than guessing."
    name = best_baseline(study)
    entry = study.entry(f"{NETWORK} - {name}", "balanced_accuracy_difference") if name else None
    gap = (entry or {}).get("ci95")
    if not gap or None in gap:
        beside = "it was not compared with a baseline"
    elif gap[0] > 0:
        beside = "it was better than the best baseline without a network"
    elif gap[1] < 0:
        beside = "it was worse than the best baseline without a network"
    else:
        beside = "it was not shown to be better or worse than the best baseline without a network"
    whom = "simulated participants" if study.simulated else "participants like these"
    doubt = ""
    if failed := above_chance(study):
        doubt = f" Not all of that need come from the brain: {listed(failed).lower()} did not fall to chance."
    return f"On {whom} the network was better than guessing; {beside}.{doubt}"


def best_baseline(study: Study) -> str | None:
    """The baseline with the highest balanced accuracy."""
    found = {name: study.entry(name, "balanced_accuracy") for name in study.runs() if run_of(name).group == "baseline"}
    points = {name: entry["point"] for name, entry in found.items() if entry and entry["point"] is not None}
    return max(points, key=points.get) if points else None


def limitations(study: Study) -> list[str]:
    """What a reader must keep in mind, from what was done and found."""
    params = study.params
    said = []
    if study.simulated:
        said.append(
            "The heads are simulated from one average brain with one pattern of atrophy; there are no vascular "
            "lesions, no motion and no other diseases. Accuracy on them says nothing about accuracy on patients."
        )
    said.append(f"Scores rest on {tested(study)} test participants; the intervals say how little that is.")
    counts = study.splits[study.splits["split"] == "test"]["diagnosis"].value_counts()
    if few := [f"{name} ({counts.get(name, 0)})" for name in params.classes if counts.get(name, 0) < SMALL]:
        said.append(f"Fewer than {SMALL} test participants: {listed(few)}; scores of these classes are hardly known.")
    if params.splits.protocol == "holdout" and params.splits.repeats == 1:
        said.append("There is one random split: intervals cover who was tested, not who was trained on.")
    if params.train.members == 1:
        said.append("One network was trained per fold; how much a score depends on the seed was not measured here.")
    if params.splits.protocol != "external":
        said.append("No other cohort was tested.")
    if missing := sorted({"shuffled_labels", "background"} - set(study.runs())):
        said.append(f"Controls that were not run: {listed(run_of(name).title for name in missing)}.")
    if failed := above_chance(study):
        said.append(
            f"Controls that did not fall to chance: {listed(failed)}. Something beside the brain tells the class."
        )
    if study.metrics.get("subgroups"):
        said.append("Scores of groups of people are not corrected for their number.")
    else:
        said.append("Scores by age, sex, site or other groups of people were not taken.")
    if not study.simulated:
        said.append("Clinical labels are themselves uncertain; no pathology or biomarker confirmed them in this study.")
    return (
        said
        + [f"Warning of the audit, {text}" for text in warnings(study)]
        + [f"Accepted stop finding, {text}" for text in accepted(study)]
    )
