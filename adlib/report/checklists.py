"""Two reporting guidelines, answered from the run's own records."""

from __future__ import annotations

from adlib.report import explained, results, text
from adlib.report.checklist_items import ALWAYS, CLAIM, TRIPOD_AI, Items
from adlib.report.content import NETWORK, Study
from adlib.report.methods import methods
from adlib.report.page import render
from adlib.report.words import counted, listed, metric_title, run_of, sentence_score

NOT_DONE = "Not done"
NOT_APPLICABLE = "Not applicable"
PAGE = "index.html"


def claim(study: Study) -> str:
    """The CLAIM checklist as Markdown."""
    return render(
        "checklist.md.j2",
        warning=text.warning(study),
        title="CLAIM: Checklist for Artificial Intelligence in Medical Imaging",
        about="Mongan et al. 2020, doi:10.1148/ryai.2020200029, with what its 2024 update adds, "
        "doi:10.1148/ryai.240300. Numbers are those of 2020; additions of 2024 are marked so. Item names are ours; "
        "the guideline has the full text.",
        items=_answered(CLAIM, study),
    )


def tripod_ai(study: Study) -> str:
    """The TRIPOD+AI checklist as Markdown."""
    return render(
        "checklist.md.j2",
        warning=text.warning(study),
        title="TRIPOD+AI",
        about="Collins et al. 2024, doi:10.1136/bmj-2023-078378. Item names are ours; the guideline has the full text.",
        items=_answered(TRIPOD_AI, study),
    )


def _answered(items: Items, study: Study) -> Items:
    said = answers(study)
    return tuple((number, name, said[key]) for number, name, key in items)


def answers(study: Study) -> dict[str, str]:
    """What the records say to the questions that both guidelines ask."""
    said = {name: " ".join(sentences) for name, sentences in methods(study).items()}
    unknown = "participants-unknown" in set(study.audit["check"])
    about = _about_data(study) | _about_model(study) | _about_results(study) | _about_openness(study)
    return (
        ALWAYS
        | about
        | {
            "title": f'"{text.title(study)}".',
            "use": "Research on methods; no clinical role. " + text.warning(study),
            "aim": text.abstract(study)["Question"],
            "goal": "Development and internal evaluation of a classifier, and comparison with simpler ones.",
            "source": said["Cohort and labels"],
            "eligible": f"{PAGE}, Cohort, flow: scans with a label among {listed(study.params.classes)} that are T1w "
            "and passed quality control.",
            "preprocessing": said["Preprocessing"],
            "input": said["Input of the network"],
            "labels": said["Cohort and labels"],
            "split": said["Split"],
            "training": said["Training"],
            "measures": f"{listed(map(metric_title, ('balanced_accuracy', 'roc_auc')))}, and others in metrics.json.",
            "uncertainty": said["Evaluation"],
            "built": f"{about['model']} {said['Training']}",
            "with_subgroups": f"{about['performance']} Subgroups: {about['subgroups']}",
            "level": ALWAYS["level"]
            + (" Who is shown is not known here, so groups stand in for people." if unknown else ""),
            "interpretation": text.conclusion(study),
        }
    )


def _about_data(study: Study) -> dict[str, str]:
    facts = dict(results.acquisition(study))
    made = f"{NOT_APPLICABLE}: the heads are simulated."
    by_source = f"{NOT_DONE}: see the publications of the source."
    lacking = listed(f"{column} in {int(study.manifest[column].isna().sum())}" for column in ("age", "sex", "site"))
    return {
        "agreement": made if study.simulated else f"{NOT_DONE}.",
        "design": made if study.simulated else "Retrospective: the data were collected by others.",
        "deidentified": made if study.simulated else "Names in headers are not kept; published pages are aggregate.",
        "missing": f"Scans that lack a value: {lacking} of {len(study.manifest)}. "
        "The network needs the image, and takes the mean of a covariate that it is told; baselines take the median.",
        "why_labels": made if study.simulated else by_source,
        "annotators": made if study.simulated else by_source,
        "blinding": made if study.simulated else by_source,
        "treatments": made if study.simulated else by_source,
        "setting": made if study.simulated else f"Sites: {facts['Sites']}. {by_source}",
        "dates": made if study.simulated else f"Scans acquired {facts['Acquired']}.",
        "size": f"{text.people(study)} participants, all that the source has; no sample size was computed.",
        "acquisition": f"Sites: {facts['Sites']}; manufacturers: {facts['Manufacturers']}; field strengths in "
        f"tesla: {facts['Field strengths, T']}.",
        "ethics": made if study.simulated else f"{NOT_DONE}: the approval is that of the source; state it.",
        "flow": f"{PAGE}, Cohort, flow.",
        "demographics": f"{PAGE}, Cohort: age and sex by class; by part of the split, class sizes only.",
        "imbalance": f"train.balance = {study.params.train.balance}; balanced accuracy is the main score.",
    }


def _about_model(study: Study) -> dict[str, str]:
    params, packages = study.params, study.history.get("packages", {})
    named = listed(f"{name} {packages[name]}" for name in ("torch", "torchvision", "SimpleITK") if name in packages)
    origin = str(study.card.get("weights_origin", "unknown")).split(" in ")[0]
    members = params.train.members
    return {
        "model": "ResNet50 (He et al. 2016, doi:10.1109/CVPR.2016.90), one output per class.",
        "software": f"Python {study.history.get('python', 'unknown')}; {named}; all others in {PAGE}, Provenance.",
        "start": f"{origin if '/' not in origin else 'Weights of a file'}.",
        "choice": methods(study)["Training"][3],
        "ensemble": f"{members} networks per fold, averaged." if members > 1 else "None: one network per fold.",
        "output": f"Probabilities of {listed(params.classes)}; the decision is the most probable.",
        "same": "Both come from the same source, with the same labels and predictors, unless sites were held apart: "
        f"splits.protocol = {params.splits.protocol}.",
    }


def _about_results(study: Study) -> dict[str, str]:
    controls = [run_of(name).title for name in study.runs() if run_of(name).group == "control"]
    external = study.params.splits.protocol == "external"
    by_group = f"{PAGE}, Results, groups." if study.metrics.get("subgroups") else f"{NOT_DONE}."
    by_site = study.params.splits.protocol in ("external", "leave_one_site_out")
    drawn = set(study.figures["name"])
    failed = int((study.features["qc_verdict"] == "fail").sum())
    return {
        "controls": f"Controls: {listed(controls)}. {PAGE}, Results." if controls else f"{NOT_DONE}.",
        "explained": explained.answer(study) if "04_attribution" in drawn else f"{NOT_DONE}.",
        "external": "The named sites were tested by a network of all others." if external else f"{NOT_DONE}.",
        "clusters": "Sites were tested by networks that never saw them." if by_site else f"{NOT_DONE}.",
        "performance": text.results(study),
        "accuracy": f"Balanced accuracy {sentence_score(study.entry(NETWORK, 'balanced_accuracy'))}; by class in "
        f"{PAGE}, Results.",
        "failures": f"{counted(failed, 'scan')} failed quality control; the confusion table shows wrong decisions. "
        "Single cases are not discussed.",
        "practice": "None: " + text.warning(study),
        "subgroups": by_group,
        "fairness": f"{NOT_APPLICABLE}: the heads are simulated." if study.simulated else by_group,
    }


def _about_openness(study: Study) -> dict[str, str]:
    sha = study.history.get("git_sha") or "not under git"
    data = (
        "The cohort is made again by the code from params and seed."
        if study.simulated
        else "The data are to be had from their distributor under its terms; they are not part of this project."
    )
    return {
        "registration": f"{NOT_DONE}: the study was not registered.",
        "protocol": f"The params, in {PAGE}, Provenance; no protocol was published beforehand.",
        "funding": f"{NOT_DONE}: the records of a run do not state it.",
        "code": f"Open, BSD 3-Clause; this run: git {sha}.",
        "data": data,
        "sharing": f"Code: open, BSD 3-Clause, git {sha}. Data: {data}",
    }
