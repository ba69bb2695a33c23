"""The report matches the records, contains no ids, needs no network, and is written whole or not at all."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import get_args

import nbformat
import pytest
import yaml
from finished_study import FIGURE_NAMES, make_finished

from adlib.report.content import changed_cells
from adlib.report.pages import CRATE, write_report
from adlib.report.text import read_yaml
from adlib.study.metrics import RUNS
from adlib.study.params import Control, InputParams, PreprocessParams, StudyParams, TrainParams
from adlib.study.records import (
    LISTING,
    MANIFEST,
    StudyError,
    file_digest,
    read_json,
    read_table,
    write_json,
    write_text,
)
from adlib.study.steps import STEPS
from adlib.training.recipe import RECORD

ROOT = Path(__file__).parents[2]
COHORTS = {"phantom": "params/phantom.yaml", "people": "params/oasis2_slices.yaml"}
FILES = (
    "claim.md", "datasheet.md", "index.html", "model-card.md", "stard-ai.md", "tables.schema.json", "tripod-ai.md",
)  # fmt: skip


@pytest.fixture(scope="module", params=COHORTS)
def study(request, tmp_path_factory):
    params = make_finished(tmp_path_factory.mktemp(request.param), COHORTS[request.param])
    write_report(params)
    return params


@pytest.fixture
def made(tmp_path):
    return make_finished(tmp_path)


def texts(params):
    return {path.name: path.read_text(encoding="utf-8") for path in sorted((params.folder / "report").iterdir())}


class Page(HTMLParser):
    """Tags in order with their attributes, and all words."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_files_contain_no_id_and_no_path(study):
    assert tuple(texts(study)) == FILES
    tables = read_table(study.folder / "manifest.tsv", MANIFEST), read_table(study.folder / "listing.tsv", LISTING)
    for name, text in texts(study).items():
        for table in tables:
            for column in ("participant_id", "scan_id", "path"):
                assert not [value for value in table[column] if value in text], (name, column)
        assert "/secret" not in text and str(study.exec.outputs) not in text, name


def test_only_cohort_figures_of_people_are_included(study):
    page = Page(texts(study)["index.html"])
    simulated = study.source.kind == "phantom"
    shown = {attributes["id"] for attributes in page.all("figure")}
    assert shown == set(FIGURE_NAMES if simulated else ("01_cohort", "04_attribution", "04_forest", "04_stated"))
    assert ("02_mosaic (scans), 02_volumes (points), 05_example_1 (not stated)" in page.words) != simulated
    assert ('figures.save(..., shows="cohort")' in page.words) != simulated


def test_page_needs_no_network_and_no_script(study):
    text = texts(study)["index.html"]
    page = Page(text)
    assert not page.all("script") and not page.all("link") and "@import" not in text
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:|//)|url\(""", text)
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in page.all("img"))


def test_page_has_ordered_headings_and_descriptions(study):
    page = Page(texts(study)["index.html"])
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1 and all(after - before <= 1 for before, after in pairwise(levels))
    assert all(len(attributes["alt"]) > 5 for attributes in page.all("img"))
    assert all("scope" in attributes for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for link in (attributes["href"] for attributes in page.all("a")):
        assert link[1:] in targets if link[0] == "#" else (study.folder / "report" / link).is_file(), link
    assert len({one["id"] for _, one in page.tags if "id" in one}) == sum("id" in one for _, one in page.tags)


def test_warning_is_first_line_of_every_file(study):
    for name, text in texts(study).items():
        if name.endswith(".json"):
            continue
        if name == "index.html":
            words = Page(text[text.index("<header>") :]).words.strip()
        else:
            words = text.split("\n---\n", 1)[-1].strip().splitlines()[0]
        expected = "simulated" if study.source.kind == "phantom" else "Research only"
        assert expected in words[:60], name
    if study.source.kind == "phantom":
        card = texts(study)["model-card.md"].split("\n---\n", 1)[1].strip()
        assert card.startswith("**Trained on simulated images.**")


def test_numbers_match_the_records(study):
    page = Page(texts(study)["index.html"])
    assert "balanced accuracy was 0.60 (95 % interval 0.55 to 0.65), with chance at 0.33" in page.words
    best = "volumes, reached 0.50 [0.45,\u00a00.55]; the difference of the network to that baseline is 0.10 [0.06,"
    assert best in page.words
    assert "the network was better than chance; it was better than the best baseline" in page.words
    assert "need come from the brain: background only did not fall to chance" in page.words
    assert "differs from the params file" not in page.words
    assert "as expected: chance (0.33) is in the interval" in page.words
    assert "not as expected: the interval lies above chance (0.33)" in page.words
    assert "sex F150.55 [0.45,\u00a00.65]" in page.words and "corrected for multiple comparisons" in page.words
    assert "Manufacturersunknown" in page.words
    assert "0.012" in page.words and "4\u00a0(80\u00a0%)" in page.words
    assert "git 0123abc, with uncommitted" in page.words
    assert "given-split-leaks: 2 people, one scan too. Leaks." in page.words
    assert "<head> & answer" in page.words or study.source.kind != "phantom"


def test_attribution_method_and_checks_are_described(study):
    found = texts(study)
    page = Page(found["index.html"])
    assert "Evidence for AD was attributed to the pixels of up to 40 test scans by expected gradients" in page.words
    assert "Deletion: area gained over random order, logit0.71 [0.61,\u00a00.81]" in page.words
    row = next(row for row in found["claim.md"].splitlines() if row.startswith("| 31 |"))
    assert "expected gradients" in row and "random network 0.02 (95 % interval -0.08 to 0.12)" in row


def test_unchecked_attribution_is_described_as_such(made):
    (made.folder / "attribution" / "sanity.json").unlink()
    write_report(made)
    row = next(row for row in texts(made)["claim.md"].splitlines() if row.startswith("| 31 |"))
    assert row.endswith("They were not checked. |")


def test_model_card_index_holds_the_scores(study):
    front, rest = texts(study)["model-card.md"].removeprefix("---\n").split("\n---\n", 1)
    content = yaml.safe_load(front)
    result = content["model-index"][0]["results"][0]
    found = {metric["type"]: metric for metric in result["metrics"]}
    assert found["balanced_accuracy"]["value"] == 0.6 and found["balanced_accuracy"]["args"]["ci95"] == [0.55, 0.65]
    assert content["license"] == ("bsd-3-clause" if study.source.kind == "phantom" else "other")
    assert "Training participants: 10 CN, 10 MCI and 10 AD" in rest and "and age" in rest
    assert ("python -m adlib.predict" in rest) == (study.source.kind == "phantom")


@pytest.mark.parametrize(
    ("name", "dois", "numbers"),
    [
        ("claim", ("10.1148/ryai.2020200029", "10.1148/ryai.240300"), range(1, 43)),
        ("tripod-ai", ("10.1136/bmj-2023-078378",), range(1, 28)),
        ("stard-ai", ("10.1038/s41591-025-03953-8", "10.1136/bmj.h5527"), range(1, 41)),
    ],
)
def test_checklist_answers_every_item(study, name, dois, numbers):
    text, items = texts(study)[f"{name}.md"], read_yaml(name)["items"]
    rows = [row.split(" | ") for row in text.splitlines() if row.startswith("| ")][1:]
    assert [row[0].strip("| ") for row in rows] == [number for number, _, _ in items]
    assert all(len(row) == 3 and len(row[2].strip("| ")) > 3 for row in rows)
    assert all(doi in text for doi in dois) and "Not done" in text
    assert {int(re.match(r"\d+", number)[0]) for number, _, _ in items} - {2024} == set(numbers)


def test_no_answer_of_the_checklists_is_unused():
    template = (ROOT / "adlib/report/templates/checklist-answers.j2").read_text()
    used = {key for name in ("claim", "tripod-ai", "stard-ai") for _, _, key in read_yaml(name)["items"]}
    assert set(re.findall(r"(?m)^## (.+)$", template)) == used


def test_every_choice_of_the_params_has_words():
    models = {
        PreprocessParams: ("registration", "brain_extraction", "normalise"),
        InputParams: ("pooling",),
        TrainParams: ("balance", "augment"),
    }
    words = read_yaml("choices")
    for model, names in models.items():
        for name in names:
            assert set(get_args(model.model_fields[name].annotation)) == set(words[name]), name
    kinds = get_args(get_args(StudyParams.model_fields["source"].annotation)[0] or ())
    sources = kinds or get_args(StudyParams.model_fields["source"].annotation)
    assert {get_args(kind.model_fields["kind"].annotation)[0] for kind in sources} == set(words["source"])
    assert set(get_args(Control)) == {name for name, run in RUNS.items() if run.group == "control"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("splits.protocol=kfold", "splits.repeats=2"), "5-fold cross-validation, repeated 2 times"),
        (("splits.protocol=external", "splits.test_sites=[north]"), "The participants of 1 named site were tested"),
        (("train.patience=3",), "stopped early"),
        (("splits.protocol=given", "splits.table=/secret/t.csv"), "as in a split that was given"),
        (("splits.groups=[family]",), "and of participants linked by family, are on the same"),
        (
            ("splits.protocol=leave_out", "train.members=1"),
            "are on the same side of every split. 12\u00a0% of the remaining",
        ),
        (("audit.min_age=60",), "Scans of people younger than 60 years were excluded"),
        (("input.plane=coronal_2d",), "The input was 3 coronal slices of each scan"),
        (("input.plane=three_planes",), "An axial, a coronal and a sagittal slice"),
        (("train.members=3", "train.covariates=[age, sex]"), "3 networks per fold and age and sex concatenated"),
        (("preprocess.registration=rigid", "preprocess.bias_correction=false"), "not corrected for the bias field"),
        (("train.weights=path:/secret/weights.pt",), "path:FILE"),
    ],
)
def test_methods_follow_the_params(tmp_path, settings, words):
    text = Page(write_report(make_finished(tmp_path, COHORTS["phantom"], *settings)).read_text()).words
    assert words in text and "/secret" not in text


def test_texts_state_what_was_trained(made):
    record = read_json(made.folder / RECORD)
    record["train"]["epochs"] = 1
    record["loss"] = {"name": "__main__:focal_loss", "source": "def focal_loss(...): ...", "sha256": "f0"}
    write_json(record, made.folder / RECORD)
    write_report(made)
    for name, text in texts(made).items():
        if name not in ("datasheet.md", "tables.schema.json"):
            assert "trained for 1 epoch in" in text and "on the loss function focal_loss (notebook 03)" in text, name
            assert f"train.epochs is 1 instead of {made.train.epochs}" in text, name
            assert "loss is focal_loss (notebook 03) instead of cross_entropy" in text, name


def test_edited_cells_of_notebooks_are_named(made):
    executed = made.folder / "notebooks"
    for step in STEPS:
        notebook = nbformat.read(ROOT / step.notebook, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        if step.number == "03":
            code[2].source += "\nparams"
        tagged = nbformat.v4.new_code_cell("params_file = 1", metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(0, tagged)
        write_text(nbformat.writes(notebook), executed / f"{step.name}.ipynb")
    assert changed_cells(executed, "no-commit") == {"03_training_resnet50": "cell 3"}


def test_what_the_params_state_stands_in_checklists_and_datasheet(tmp_path):
    stated = {"ethics": "Board 7", "funding": "Grant 8", "conflicts": "None at all", "registration": "Registry 9"}
    settings = [f"about.{name}={value}" for name, value in stated.items()]
    params = make_finished(tmp_path, COHORTS["people"], *settings, "about.data_access=On request")
    write_report(params)
    found = texts(params)
    assert all(value in found["stard-ai.md"] for value in stated.values())
    assert all("On request" in found[name] for name in ("claim.md", "tripod-ai.md", "stard-ai.md", "datasheet.md"))


def test_nothing_is_said_of_the_data_of_a_lab(tmp_path, monkeypatch):
    monkeypatch.setenv("BIDS_ROOT", str(tmp_path))
    params = make_finished(tmp_path, "params/bids.yaml")
    write_report(params)
    for name, text in texts(params).items():
        for claim in (
            "collected by others",
            "distributor",
            "publications of the source",
            "pathology or biomarker confirmed",
        ):
            assert claim not in text, name


def test_controls_are_claimed_only_where_they_were_scored(made):
    assert "baselines and controls were scored" in Page(write_report(made).read_text()).words
    metrics = read_json(made.folder / "metrics.json")
    metrics["entries"] = [e for e in metrics["entries"] if e["run"] not in ("shuffled_labels", "background")]
    write_json(metrics, made.folder / "metrics.json")
    words = Page(write_report(made).read_text()).words
    assert "baselines were scored" in words and "No control training was done" in words
    assert "The training was repeated" not in words


def test_the_first_screen_has_conclusion_main_facts_and_contents(study):
    text = texts(study)["index.html"]
    first = Page(text[: text.index("<main")])
    assert "the network was better than chance" in first.words and "Test participants15 of 60" in first.words
    linked = {link["href"] for link in first.all("a")}
    figures = [attributes["id"] for attributes in Page(text).all("figure")]
    assert f"#{figures[0]}" in linked and "#results" in linked


def test_the_crate_lists_files_that_exist_with_their_digests(study):
    content = read_json(study.folder / CRATE)
    items = {item["@id"]: item for item in content["@graph"]}
    assert items[CRATE]["about"] == {"@id": "./"} and content["@context"].startswith("https://w3id.org/ro/crate/")
    files = [part["@id"] for part in items["./"]["hasPart"]]
    assert {"metrics.json", "splits.tsv", "report/index.html"} <= set(files)
    for name in files:
        assert (study.folder / name).is_file() and items[name]["encodingFormat"], name
        assert items[name].get("sha256", file_digest(study.folder / name)) == file_digest(study.folder / name)
    references = re.findall(r'\{"@id": "([^"]+)"\}', json.dumps(content["@graph"]))
    assert {name for name in references if not name.startswith("http")} <= set(items)


def test_second_writing_changes_nothing(made):
    write_report(made)
    before = {path: path.stat().st_mtime_ns for path in (made.folder / "report").iterdir()}
    write_report(made)
    assert {path: path.stat().st_mtime_ns for path in (made.folder / "report").iterdir()} == before


JSON = ("metrics.json", "attribution/sanity.json", "provenance.json")


@pytest.mark.parametrize("name", [*JSON, "manifest.tsv", "flow.tsv", "model.safetensors", "figures/04_forest.png"])
def test_broken_record_is_named_and_old_report_stays(made, name):
    page = write_report(made)
    before = page.read_bytes()
    (made.folder / name).write_text("broken" if name != "flow.tsv" else "a\tb\n1\t2\n")
    if name.endswith(".png"):
        (made.folder / name).unlink()
    with pytest.raises(StudyError, match=re.escape(name)):
        write_report(made)
    assert page.read_bytes() == before and not list(page.parent.glob(".part*"))
