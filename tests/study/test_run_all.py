"""The command as users see it: exit codes, what runs and why, failures, interruption, resume, check."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from throwaway import CELLS, alive, run, soon, start, write_notebook

import run_all
from adlib.study.execution import strip_outputs, write_html

RESULTS = ("manifest.tsv", "features.tsv", "metrics.json", "figures/01_cohort.png", "figures/03_scores.png")


def outputs(project):
    return {name: (project / "outputs" / "tiny" / name).read_bytes() for name in RESULTS}


def ran(process):
    return re.findall(r"(\w+)  done in", process.stdout)


def wait_for(path):
    assert soon(path.exists, seconds=60)


def children(pid):
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in listing.stdout.split()]


def gone(pids):
    return soon(lambda: not any(map(alive, pids)), seconds=15)


def test_a_first_run_makes_everything(first_run):
    project, process = first_run
    folder = project / "outputs" / "tiny"
    assert process.returncode == 0, process.stderr
    assert ran(process) == list(CELLS)
    assert "01_data_audit  runs: never run (first time)" in process.stdout
    for name in CELLS:
        executed = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    assert sorted(path.name for path in (project / "figures").glob("*.png")) == ["01_cohort.png", "03_scores.png"]
    assert (project / "figures" / "metrics.json").read_bytes() == (folder / "metrics.json").read_bytes()


def test_the_html_needs_no_network(done):
    pages = list((done / "outputs" / "tiny" / "notebooks").glob("*.html"))
    assert len(pages) == 3
    for page in pages:
        assert not re.findall(r"""(?:src|href)=["']?https?:|import\(|@import|url\(["']?https?:""", page.read_text())


def test_published_provenance_holds_no_path(done):
    own = json.loads((done / "outputs" / "tiny" / "provenance.json").read_text())
    published = (done / "figures" / "provenance.json").read_text()
    assert own["packages"]["numpy"] and own["seed"] == 20 and set(own["seconds"]) == set(CELLS)
    assert own["params"]["exec"]["outputs"] == "outputs" and "exec" not in json.loads(published)["params"]
    assert str(done) not in published


def test_a_second_run_does_nothing_and_says_so(done):
    before = time.monotonic()
    process = run(done)
    assert process.returncode == 0 and ran(process) == []
    assert process.stdout.count("skipped: its code, params, inputs and outputs are unchanged") == 3
    assert time.monotonic() - before < 20


def test_dry_run_says_what_would_run_and_runs_nothing(done):
    before = outputs(done)
    process = run(done, "--dry-run", "--set", "preprocess.resolution_mm=2.0")
    assert "01_data_audit  skip" in process.stdout
    assert "02_preprocessing  run: params preprocess.resolution_mm changed from 1.0 to 2.0" in process.stdout
    assert "03_evaluation  run, unless 02_preprocessing writes the same again" in process.stdout
    assert outputs(done) == before and "resolution_mm: 1.0" in (done / "outputs/tiny/params.yaml").read_text()


def test_report_waits_for_all_steps(finished):
    page = finished / "outputs" / "tiny" / "report" / "index.html"
    assert page.is_file()
    page.unlink()
    write_notebook(finished / "notebooks" / "03_evaluation.ipynb", [*CELLS["03_evaluation"], "1 + 1"])
    early = run(finished, "--only", "01")
    assert early.returncode == 0 and "no new report: it waits for 03_evaluation" in early.stdout and not page.exists()
    whole = run(finished)
    assert whole.returncode == 0 and "report: outputs/tiny/report/index.html" in whole.stdout and page.is_file()


def drop_page(project):
    (project / "outputs" / "tiny" / "report" / "index.html").unlink()


def drop_figure_caption(project):
    table = project / "outputs" / "tiny" / "figures" / "figures.tsv"
    table.write_text(re.sub(r"\tc(?=\t|\n)", r"\tanother caption", table.read_text()))


def change_writer(project):
    module = project / "adlib" / "report" / "pages.py"
    module.write_text(module.read_text().replace('"made"', '"made anew"'))


def add_template(project):
    (project / "adlib" / "report" / "templates").mkdir()
    (project / "adlib" / "report" / "templates" / "index.html.j2").write_text("made")


@pytest.mark.parametrize("change", [None, drop_page, drop_figure_caption, change_writer, add_template])
def test_the_report_is_written_again_only_if_something_changed(finished, change):
    if change:
        change(finished)
    (line,) = [line for line in run(finished).stdout.splitlines() if line.startswith("report: ")]
    assert line.endswith("index.html, unchanged") == (change is None)
    assert (finished / "outputs" / "tiny" / "report" / "index.html").is_file()


def test_a_report_that_fails_is_told_plainly(finished):
    module = finished / "adlib" / "report" / "pages.py"
    module.write_text(
        "from adlib.study.records import StudyError\ndef write_report(params):\n    raise StudyError('no flow.tsv')\n"
    )
    process = run(finished)
    assert process.returncode == 1 and process.stderr == "the report was not written\nno flow.tsv\n"


def test_check_prints_a_verdict_and_sets_the_exit_code(done):
    reference = done / "figures" / "metrics.json"
    content = json.loads(reference.read_text())
    main = done / "figures" / "main_results.tsv"
    point = content["entries"][0]["point"]
    try:
        for mean, code in ((point + 0.01, 0), (point + 0.03, 1)):
            main.write_text(f"run\tlevel\tmetric\tclass\tmean\ttolerance\ntiny\tsubject\taccuracy\t\t{mean}\t0.02\n")
            process = run(done, "--check")
            assert process.returncode == code, process.stdout + process.stderr
            assert ("ANOTHER RESULT" in process.stdout) == bool(code)
        reference.write_text(json.dumps({**content, "study": "other"}))
        other = run(done, "--check")
        assert other.returncode == 3 and "is of study 'other', not 'tiny'" in other.stderr
        assert run(done, "--accept").returncode == 0
        assert json.loads(reference.read_text()) == content
    finally:
        reference.write_text(json.dumps(content))
        main.unlink()


def test_missing_metrics_are_named(project):
    (project / "figures").mkdir()
    process = run(project, "--check")
    assert process.returncode == 3 and "make one with run_all.py --accept" in process.stderr
    (project / "figures" / "metrics.json").write_text('{"study": "tiny", "entries": []}')
    process = run(project, "--check")
    assert process.returncode == 3 and "run the study, then --check" in process.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "train.epoch=3"], "did you mean 'epochs'"),
        (["--params", "params/none.yaml"], "does not exist"),
        (["--only", "07"], "there is no step '07'"),
        (["--forse"], "unrecognized arguments"),
        (["--params", "params/bids.yaml"], "source.root is ${BIDS_ROOT}, but BIDS_ROOT is not set"),
        (
            ["--set", "exec.outputs=${ADLIB_NOWHERE}/x"],
            "but ADLIB_NOWHERE is not set",
        ),
    ],
)
def test_what_cannot_be_run_exits_3(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        sys.exit(run_all.main([*arguments, "--dry-run"]))
    assert ended.value.code == 3 and words in capsys.readouterr().err


def test_only_a_later_step_without_its_inputs(project):
    process = run(project, "--only", "03")
    assert process.returncode == 1 and "reads features.tsv" in process.stderr


def test_failing_cell_is_named_and_next_run_resumes(finished):
    project = finished
    notebook = project / "notebooks" / "02_preprocessing.ipynb"
    write_notebook(notebook, [*CELLS["02_preprocessing"], "# a comment first\nbroken = 1 / 0"])
    process = run(project)
    assert process.returncode == 1 and ran(process) == []
    assert "02_preprocessing.ipynb failed in cell In [6]: broken = 1 / 0" in process.stderr
    assert "ZeroDivisionError: division by zero" in process.stderr
    assert "outputs/tiny/notebooks/02_preprocessing.ipynb" in process.stderr
    write_notebook(notebook, CELLS["02_preprocessing"])
    process = run(project)
    assert process.returncode == 0 and ran(process) == ["02_preprocessing"], "features.tsv is the same again"
    assert "02_preprocessing  runs: the last run did not finish" in process.stdout


@pytest.mark.parametrize(("error", "code"), [("StudyError", 1), ("AuditStop", 2)])
def test_study_error_is_shown_without_traceback(project, error, code):
    write_notebook(project / "notebooks" / "01_data_audit.ipynb", [f"raise {error}('no scans in the folder')"])
    process = run(project)
    assert process.returncode == code
    assert process.stderr == "[1/3] 01_data_audit stopped\nno scans in the folder\n"


def test_dead_kernel_names_its_cell(project):
    write_notebook(project / "notebooks" / "01_data_audit.ipynb", ["import os\nos.kill(os.getpid(), 9)"])
    process = run(project)
    assert process.returncode == 1 and "the kernel died in cell In [4]: import os" in process.stderr


@pytest.mark.parametrize("kind", [pytest.param(signal.SIGKILL, marks=pytest.mark.studies), signal.SIGINT])
def test_resume_after_kill_gives_the_same_results(done, finished, kind):
    project = finished
    for name in ("derivatives", "features.tsv", "metrics.json"):
        path = project / "outputs" / "tiny" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    process = start(project, SLOW="1")
    wait_for(project / "outputs" / "tiny" / "derivatives" / "1.txt")
    kernels = children(process.pid)
    refused = run(project) if kind == signal.SIGINT else None
    process.send_signal(kind)
    _, errors = process.communicate(timeout=20)
    assert kernels and gone(kernels)
    if refused:
        assert refused.returncode == 3 and "another run is active in outputs/tiny" in refused.stderr
        assert process.returncode == 130 and "run the same command again" in errors
    again = run(project)
    assert again.returncode == 0 and ran(again) == ["02_preprocessing", "03_evaluation"]
    assert outputs(project) == outputs(done)


def test_only_and_force(done):
    process = run(done, "--only", "01", "--force")
    assert process.returncode == 0 and ran(process) == ["01_data_audit"] and "runs: forced (about" in process.stdout


def test_a_rerun_step_publishes_no_stale_figure(finished):
    project = finished
    write_notebook(project / "notebooks" / "01_data_audit.ipynb", CELLS["01_data_audit"][:1])
    process = run(project)
    assert process.returncode == 0 and "01_data_audit  runs: code of" in process.stdout
    assert ran(process) == ["01_data_audit"], "the manifest is the same, so nothing after it runs"
    assert [path.name for path in (project / "figures").glob("*.png")] == ["03_scores.png"]


def test_a_reader_that_goes_away_does_not_stop_the_study(finished):
    (finished / "outputs" / "tiny" / "metrics.json").unlink()
    process = start(finished)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert (finished / "outputs" / "tiny" / "metrics.json").is_file()


def test_of_a_progress_bar_the_page_shows_only_the_end(tmp_path):
    bar = [nbformat.v4.new_output("stream", name="stderr", text=f"\rwork {n} of 3") for n in range(4)]
    cell = nbformat.v4.new_code_cell("1", outputs=bar)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "x.ipynb")
    page = write_html(tmp_path / "x.ipynb").read_text()
    assert "work 3 of 3" in page
    assert "work 2 of 3" not in page


@pytest.mark.parametrize(("path", "kept"), [("notebooks/01_data_audit.ipynb", False), ("outputs/mine.ipynb", True)])
def test_outputs_are_stripped_from_the_notebooks_of_the_study(path, kept):
    cells = [{"cell_type": "code", "outputs": ["picture"], "execution_count": 3}, {"cell_type": "markdown"}]
    strip_outputs({"type": "notebook", "content": {"cells": cells}}, path)
    assert (cells[0]["outputs"], cells[0]["execution_count"]) == ((["picture"], 3) if kept else ([], None))
    assert cells[1] == {"cell_type": "markdown"}
