"""Released models: 16-bit weights, a card with scores, reproducible scores, and nothing of a person."""

import json
import re
import shutil
from copy import deepcopy

import pytest
import torch
import yaml
from finished_study import make_finished
from huggingface_hub import PyTorchModelHubMixin

from adlib import release
from adlib.classify.model_store import RELEASED
from adlib.classify.nearest import read_examples
from adlib.phantom.cohort import draw_cohort, write_cohort
from adlib.study.exec_params import HERE
from adlib.study.params import load_params
from adlib.study.records import ANSWERS, MANIFEST, SPLITS, StudyError, read_json, read_table, write_json, write_table
from adlib.training import model_file
from adlib.training.cohort_reference import MOST_AXES
from adlib.training.model_file import Classifier, ModelCard
from adlib.training.network import ResNet50, read_state
from adlib.training.splits import make_splits

SMALL = (
    "source.participants_per_class=4", "source.voxel_mm=3.0", "preprocess.resolution_mm=3.0", "input.size=32",
    "source.followup_fraction=0", "splits.validation_fraction=0.4", "evaluate.bootstrap=100", "exec.workers=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study of twelve made people, four of them tested, with a network that was never trained."""
    params = make_finished(tmp_path_factory.mktemp("study"), "params/phantom.yaml", *SMALL)
    cohort = draw_cohort(params.source, params.classes, params.seed)
    splits = make_splits(cohort, params.splits, params.seed)
    tested = set(splits.query("split == 'test'")["participant_id"])
    root = write_cohort(params.source, params.classes, params.seed, params.folder / "source", pool=HERE, only=tested)
    paths = [next(iter(root.rglob(f"{scan}.nii.gz")), "") for scan in cohort["scan_id"]]
    manifest = cohort[["participant_id", "session_id", "scan_id", "diagnosis"]].assign(path=paths, sha256="s")
    write_table(manifest.astype({"path": str}), params.folder / "manifest.tsv", MANIFEST)
    write_table(splits, params.folder / "splits.tsv", SPLITS)
    torch.manual_seed(0)
    network, origin = ResNet50(3), "random initialisation"
    network.fc.weight.data *= 30
    card = ModelCard(
        params.study, params.classes, True, params.input, params.preprocess, 1.0, {}, origin, "s", "c", params.seed
    )
    model_file.save(Classifier(network.eval(), card), params.folder / "model.safetensors")
    return params


def test_committed_release_loads():
    params = load_params(RELEASED / "phantom" / "params.yaml")
    card = model_file.load(RELEASED / "phantom").card
    assert card.classes == params.classes and card.input == params.input and card.preprocess == params.preprocess
    assert len(read_examples(RELEASED / "phantom" / "model.safetensors").scan_id) > 200


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    place = tmp_path_factory.mktemp("released")
    release.release(study, place)
    return place


@pytest.mark.studies
def test_verify_reproduces_scores(folder):
    table = release.verify(folder)
    assert len(table) == len(release.INDEXED)
    assert set(table["n"]) == {4}
    assert table["difference"].abs().max() < 1e-9
    assert table["stored"].nunique() > 3


@pytest.mark.studies
def test_verify_simulates_some_and_keeps_stored_predictions_of_others(folder, tmp_path):
    assert release.verify(folder, 2)["difference"].abs().max() < 1e-9
    changed = shutil.copytree(folder, tmp_path / "changed")
    stored = read_table(changed / "answers.tsv", ANSWERS)
    columns = [name for name in stored if name.startswith("p_")]
    write_table(stored.assign(**{name: stored[other] for name, other in zip(columns, columns[::-1], strict=True)}),
                changed / "answers.tsv", ANSWERS)  # fmt: skip
    assert release.verify(changed, 2)["difference"].abs().max() > release.TOLERANCE


def test_verify_fails_on_other_scores(folder, tmp_path, monkeypatch, capsys):
    stored = read_json(folder / "scores.json")
    computed = deepcopy(stored["entries"])
    shutil.copy(folder / "params.yaml", tmp_path)
    for step in ("simulate_scans", "_predict_scans"):
        monkeypatch.setattr(release, step, lambda *arguments: None)
    monkeypatch.setattr(release, "_score_predictions", lambda *arguments: computed)
    for change, code in ((0.0, 0), (0.02, 1)):
        stored["entries"][0]["point"] += change
        write_json(stored, tmp_path / "scores.json")
        assert release.main(["--verify", "--model", str(tmp_path)]) == code
    assert "largest difference 0.0200" in capsys.readouterr().out


def test_card_has_scores_in_its_index_and_a_datasheet(folder):
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert body.strip().splitlines()[0].startswith("**Trained on simulated images.**")
    metrics = yaml.safe_load(front)["model-index"][0]["results"][0]["metrics"]
    scores = read_json(folder / "scores.json")["entries"]
    assert [metric["value"] for metric in metrics] == [round(score["point"], 4) for score in scores]
    assert "`datasheet.md`" in text and "simulated" in (folder / "datasheet.md").read_text()


def test_released_weights_are_16_bit(study, folder):
    whole, half = study.folder / "model.safetensors", folder / "model.safetensors"
    assert half.stat().st_size < 0.51 * whole.stat().st_size
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        first, second = (model_file.load(path).network(x) for path in (whole, folder))
    torch.testing.assert_close(second, first, atol=0.05, rtol=0.02)
    assert not torch.equal(first, second)


def test_hub_loads_the_same_network(folder):
    class Network(ResNet50, PyTorchModelHubMixin):
        pass

    network = Network.from_pretrained(folder).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x), model_file.load(folder).network(x))


def test_weights_beyond_16_bit_are_refused(study, tmp_path):
    classifier = model_file.load(study.folder / "model.safetensors")
    classifier.network.fc.weight.data[0, 0] = 1e6
    with pytest.raises(StudyError, match=r"fc\.weight.*too large for 16 bit"):
        model_file.save(classifier, tmp_path / "m.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_models_of_people_are_not_released(tmp_path):
    params = make_finished(tmp_path, "params/bids.yaml")
    with pytest.raises(StudyError, match="bids data, whose terms apply"):
        release.release(params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


of_people = pytest.mark.skipif(
    not (RELEASED / "oasis1").is_dir(), reason="python benchmarks/oasis1.py write makes models/oasis1 from OASIS-1"
)


@of_people
def test_model_of_people_holds_nothing_of_a_person():
    folder = RELEASED / "oasis1"
    assert {path.name for path in folder.iterdir()} == {"README.md", "model.safetensors"}
    tensors, metadata = read_state(folder / "model.safetensors")
    text = (folder / "README.md").read_text(encoding="utf-8") + metadata[model_file.FORMAT]
    assert not re.search(r"OAS[12]_?\d{4}|data:image", text)
    classifier = model_file.load(folder)
    others = {name: value.shape for name, value in tensors.items() if name not in classifier.network.state_dict()}
    assert set(others) == {f"reference.image.{part}" for part in model_file.STORED_PARTS}
    assert others["reference.image.axes"][0] == MOST_AXES
    people = sum(classifier.card.cohort["participants"].values())
    assert people >= 100 > 2 * max(len(value) for value in _lists(json.loads(metadata[model_file.FORMAT])))


def _lists(content):
    if isinstance(content, list):
        yield content
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _lists(part)


def test_verify_of_the_model_of_people_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.delenv("ADLIB_REALDATA", raising=False)
    assert release.main(["--verify", "--model", str(RELEASED / "oasis1")]) == 1
    assert "oasis1_coronal and imagenet_resnet50 in the folder that ADLIB_REALDATA names" in capsys.readouterr().err


@of_people
def test_card_of_the_model_of_people_says_whom_and_under_which_licence():
    text = (RELEASED / "oasis1" / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "cc-by-nc-4.0" and "P50 AG05681" in body
    first = body.strip().replace("\n", " ")
    assert first.startswith("**Trained on ") and "60 years or more" in first[:80] and "no medical device" in first[:250]
    card = model_file.load(RELEASED / "oasis1").card
    assert not card.simulated and card.refusal is None and card.cohort["min_age"] == 60
