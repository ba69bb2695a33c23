from pathlib import Path

import pytest

from adlib.study.exec_params import Pool
from adlib.study.params import dump_params, load_params, open_study, validate_params
from adlib.study.records import StudyError


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.epohcs=3", "train.epohcs: unknown key; did you mean 'epochs'"),
        ("trian.epochs=3", "did you mean 'train'"),
        ("source.severty_sd=1", "did you mean 'severity_sd'"),
        ("train.learning_rate=1e-3", "should be a valid number"),
        ("train.epochs=0", "greater than or equal to 1"),
        ("classes=[CN, CN]", "classes repeat"),
        ("classes=[CN, AD]", "severity_mean has 4 values for 2 classes"),
        ("evaluate.binary={negative: [CN], positive: [XX]}", "'XX'"),
        ("evaluate.attribution=lime", "'integrated_gradients', 'gradient_shap', 'grad_cam' or 'occlusion'"),
        ("epochs", "--set takes key=value"),
        ("study.name=x", "is a value, not a section"),
        ("exec.scheduler=10.0.0.1:8786", "expected tcp://host:port or tls://host:port"),
        ("exec.scheduler=http://head:8786", "expected tcp://host:port or tls://host:port"),
        ("exec.memory_mb=100", "a worker alone takes up to 256 MiB"),
        ("exec.retries=-1", "greater than or equal to 0"),
        ("exec.jobqueue.kind=lsf", "'slurm' or 'pbs'"),
        ("exec.jobqueue.walltime=1:00:00", "exec.jobqueue.walltime: Input should be a valid string (got 3600)"),
        ("exec.jobqueue.qeue=long", "did you mean 'queue'"),
        ("exec={scheduler: 'tcp://head:8786', jobqueue: {kind: slurm}}", "name two places to work"),
        ("exec={scheduler: 'tcp://head:8786', memory_mb: 4000}", "start `dask worker` with --memory-limit"),
        ("derivatives={keep: [tissues]}", "add head to derivatives.keep"),
        ("derivatives.keep=[mask]", "derivatives.keep.0"),
        ("source.kind=nifti", "does not match any of the expected tags"),
    ],
)
def test_wrong_params_are_refused_with_what_to_do(setting, words):
    with pytest.raises(StudyError) as error:
        load_params("params/phantom.yaml", (setting,))
    assert words in str(error.value)


def test_choice_of_workers_is_handed_on_whole():
    chosen = {"workers": 3, "scan_timeout_s": 60, "memory_mb": 2000, "retries": 0, "trainings": 2, "publish": True}
    pool = load_params("params/phantom.yaml", tuple(f"exec.{name}={value}" for name, value in chosen.items())).pool
    assert pool == Pool(**chosen) and not pool.elsewhere
    for setting in ("exec.scheduler=tls://head-1.lab:8786", "exec.jobqueue.kind=pbs"):
        assert load_params("params/phantom.yaml", (setting,)).pool.elsewhere


def test_a_missing_file_names_those_that_exist():
    with pytest.raises(StudyError, match=r"smoke\.yaml"):
        load_params("params/absent.yaml")


def test_dumped_params_load_as_the_same_study(tmp_path):
    params = load_params("params/oasis2_slices.yaml")
    path = tmp_path / "p.yaml"
    path.write_text(dump_params(params))
    assert load_params(path) == params


def test_the_environment_is_read_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_DATA", "/data/here")
    path = tmp_path / "p.yaml"
    path.write_text("study: x\nsource: {kind: bids, root: '${MY_DATA}/bids'}\n")
    assert str(load_params(path).source.root) == "/data/here/bids"


def test_open_study_from_the_notebooks_folder(tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params" / "p.yaml").write_text("study: x\nsource: {kind: phantom}\n")
    monkeypatch.chdir(tmp_path / "notebooks")
    assert open_study("params/p.yaml").study == "x"


def test_open_study_with_settings():
    settings = {"train.epochs": 3, "train.controls": ("shuffled_labels",), "exec.outputs": Path("here"), "seed": 1}
    params = open_study("params/phantom.yaml", **settings)
    texts = ("train.epochs=3", "train.controls=[shuffled_labels]", "exec.outputs=here", "seed=1")
    assert params == load_params("params/phantom.yaml", texts)
    with pytest.raises(StudyError, match=r"train\.epohcs: unknown key; did you mean 'epochs'"):
        open_study("params/phantom.yaml", **{"train.epohcs": 3})
    with pytest.raises(StudyError, match=r"valid integer"):
        open_study("params/phantom.yaml", **{"train.epochs": "three"})


def test_every_fault_is_named_at_once():
    with pytest.raises(StudyError) as error:
        validate_params({"study": "X Y", "source": {"kind": "phantom"}, "seed": -1}, "here")
    assert "study:" in str(error.value)
    assert "seed:" in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("study: &a [*a]\n", "alias"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n", "alias"),
        ("[" * 500 + "]" * 500, "nested too deep"),
        ("study: 2020-13-45\n", "month"),
        ("study: 0x_\n", "invalid literal"),
        ("2020-01-02: x\n", "key that is not a word"),
        ("study: [x\n", "not readable yaml"),
    ],
)
def test_hostile_yaml_is_refused_in_words(tmp_path, text, words):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(StudyError, match=words):
        load_params(path)
