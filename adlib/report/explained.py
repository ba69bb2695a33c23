"""What the records say of the attribution maps: how they were made, and which checks they passed."""

from __future__ import annotations

from typing import Any

from adlib.report.content import Study
from adlib.report.results import Table, table
from adlib.report.words import listed, sentence_score, written
from adlib.study.params import EvaluateParams

METHODS = {
    "integrated_gradients": "integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365)",
    "gradient_shap": "expected gradients (GradientShap; Lundberg & Lee 2017, arXiv:1705.07874)",
    "grad_cam": "Grad-CAM on the last stage (Selvaraju et al. 2017, doi:10.1109/ICCV.2017.74)",
    "occlusion": "occlusion (Zeiler & Fergus 2014, doi:10.1007/978-3-319-10590-1_53)",
}
CHECKS = {
    ("randomisation", "stem", "rank_correlation"): "Rank correlation with the maps of a random network",
    ("perturbation", "deletion", "area_gained_over_random"): "Deletion: area gained over random order, logit",
    ("perturbation", "insertion", "area_gained_over_random"): "Insertion: area gained over random order, logit",
    ("overlap_volume", "trained", "ratio_to_chance"): "Strongest pixels where disease changes volume, to chance",
    ("overlap_volume", "randomised", "ratio_to_chance"): "The same of a random network",
    ("overlap_volume", "edges", "ratio_to_chance"): "The same of the edges of the image",
    ("overlap_image", "trained", "ratio_to_chance"): "Strongest pixels where disease changes the image, to chance",
    ("overlap_image", "randomised", "ratio_to_chance"): "The same of a random network",
    ("overlap_image", "edges", "ratio_to_chance"): "The same of the edges of the image",
}


def method(params: EvaluateParams, classes: tuple[str, ...]) -> str:
    """How the maps were made and checked, in a sentence."""
    return (
        f"Evidence for {classes[-1]} was attributed to the pixels of up to {params.attribution_scans} test scans by "
        f"{METHODS[params.attribution]}; the maps were compared with those of networks made random layer by layer "
        "(Adebayo et al. 2018, arXiv:1810.03292), and pixels were blanked and shown in their order "
        "(Petsiuk et al. 2018, arXiv:1806.07421)."
    )


def checks(study: Study) -> Table:
    """What the checks of the maps found."""
    rows = [(title, written(entry)) for title, entry in _found(study)]
    caption = "Checks of the attribution maps, with 95 % intervals over participants; a ratio of 1 is chance."
    return table(caption, ("Check", "Value"), rows)


def answer(study: Study) -> str:
    """The maps and their checks as a checklist asks for them."""
    said = f"Mean attribution maps by {METHODS[study.params.evaluate.attribution]}, figures of notebook 04."
    found = [f"{title[0].lower()}{title[1:]} {sentence_score(entry)}" for title, entry in _found(study)]
    return f"{said} Checks: {listed(found)}." if found else f"{said} They were not checked."


def _found(study: Study) -> list[tuple[str, dict[str, Any]]]:
    entries = {(e["check"], e["of"], e["metric"]): e for e in study.sanity.get("entries", [])}
    return [(title, entries[name]) for name, title in CHECKS.items() if name in entries]
