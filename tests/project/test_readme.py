"""The README holds the scores of the published metrics; `python tests/project/test_readme.py` writes them."""

import re
from pathlib import Path

from adlib.study.metrics import metric_table, read_metrics, run_of

README = Path(__file__).parents[2] / "README.md"
BOUNDS = re.compile(r"(<!-- results: begin -->\n).*?(<!-- results: end -->)", re.S)
COLUMNS = {"balanced_accuracy": "balanced accuracy", "roc_auc": "ROC AUC, mean of classes", "roc_auc_binary": "ROC AUC"}

LEFT_OUT = ("majority", "brain_fraction", "quality")


def results_table() -> str:
    """Markdown table of the published scores of participants."""
    table = metric_table(read_metrics(README.parent / "figures"), "subject", tuple(COLUMNS))
    lines = [f"| run | {' | '.join(COLUMNS.values())} |", "|---|---|---|---|"]
    names = [name for name in table.index if run_of(name).group not in ("other", "member") and name not in LEFT_OUT]
    order = sorted(names, key=lambda name: ("network", "control", "baseline", "ceiling").index(run_of(name).group))
    lines += [f"| {run_of(name).label} | {' | '.join(table.loc[name])} |" for name in order]
    return "\n".join(lines) + "\n"


def test_results_are_the_published_ones():
    assert BOUNDS.search(README.read_text(encoding="utf-8"))[0].splitlines()[1:-1] == results_table().splitlines()


def test_readme_is_short_and_names_what_is_there():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make (\w+)", text)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for file in set(re.findall(r"\]\((?!http|#)([^)]+)\)", text)):
        assert (README.parent / file).exists(), file


if __name__ == "__main__":
    old = README.read_text(encoding="utf-8")
    README.write_text(BOUNDS.sub(lambda match: match[1] + results_table() + match[2], old), encoding="utf-8")
