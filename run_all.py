"""Run the study: execute the five notebooks in order, each only if something that it depends on changed.

    python run_all.py                                   the default study, params/phantom.yaml
    python run_all.py --params params/smoke.yaml        another study
    python run_all.py --set train.epochs=3              one parameter changed
    python run_all.py --dry-run                         what would run, and why
    python run_all.py --from 03                         leave 01 and 02 as they are
    python run_all.py --only 04 --force                 one step, whether or not it is up to date
    python run_all.py --check                           compare the results with the committed reference
    python run_all.py --compare outputs/a outputs/b     two finished studies side by side

Results go to outputs/<study>/, the report to outputs/<study>/report/ once all five steps are up to date. Stop it at any
time: the next run goes on from there.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from adlib.study import reference, report_state
from adlib.study.lock import locked
from adlib.study.params import StudyParams, dump_params, load_params
from adlib.study.records import StudyError, clear_unfinished, clock, read_json, write_json, write_text
from adlib.study.source_params import check_source, check_variables
from adlib.study.steps import STEPS, Step, StepState

ROOT = Path(__file__).resolve().parent
OK, FAILED, AUDIT_STOP, UNUSABLE, TERMINATED, INTERRUPTED = 0, 1, 2, 3, 143, 130
EXIT_CODES = """exit codes:
  0    done, or nothing to do; with --check, the results are those of the reference
  1    a step or the report failed; with --check, the results are others
  2    the data audit stopped the study
  3    the command, the params, or the state of the study's folder does not allow a run
  130  interrupted (Ctrl-C); run the same command again to go on
"""
DEFAULT_PARAMS = "params/phantom.yaml"
HEARTBEAT_SECONDS = 30.0
CLEAR = "\r\x1b[K"  # of the line of a terminal
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Console:
    """Progress in plain lines or, on a terminal, with a live line; a closed output is no error."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()

    def say(self, text: str) -> None:
        self._write(f"{CLEAR if self.live else ''}{text}\n")

    def _write(self, text: str) -> None:
        try:
            print(text, end="", flush=True)
        except BrokenPipeError:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - stands in for stdout until the end

    @contextmanager
    def waiting(self, step: Step, expected: float | None, doing: Callable[[], str]) -> Iterator[None]:
        """Print at intervals how long a step has been running, and the last line of its progress bar."""
        done, start = threading.Event(), time.monotonic()
        of_about = f" of about {clock(expected)}" if expected else ""

        def beat() -> None:
            while not done.wait(1.0 if self.live else HEARTBEAT_SECONDS):
                line = f"      {step.name}  {clock(time.monotonic() - start)}{of_about}  {doing()[:90]}".rstrip()
                if self.live:
                    self._write(CLEAR + line[: shutil.get_terminal_size().columns - 1])
                else:
                    self.say(line)

        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            done.set()
            if self.live:
                self._write(CLEAR)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    params_file = Path(options.params).absolute() if options.params else DEFAULT_PARAMS
    sides = [Path(folder).absolute() for folder in options.compare or ()]
    os.chdir(ROOT)
    console = Console()
    try:
        params = load_params(params_file, tuple(options.set))
        steps = _selected(options)
        if not (sides or options.check or options.accept):
            for name, source in params.cohorts.items():
                check_source(source, f"sources.{name}" if name else "source")
            check_variables(params.exec, "exec")
        if options.dry_run:
            return dry_run(params, steps, options.force, console)
        if sides:
            return compare(*sides, params, console)
        if options.check:
            return check(params, console)
        if options.accept:
            reference.accept(params, ROOT)
            console.say(f"figures/metrics.json and figures/provenance.json are now those of {params.study}")
            return OK
        with locked(params.folder):
            return run(params, steps, options.force, console)
    except StudyError as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        print(
            f"{error}: the study's folder must be on a disk that can be written and has room (exec.outputs); what is "
            "finished is kept, run the same command again",
            file=sys.stderr,
        )
        return UNUSABLE
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on from here", file=sys.stderr)
        return INTERRUPTED


def run(params: StudyParams, steps: tuple[Step, ...], force: bool, console: Console) -> int:
    """Execute the steps that need it, then write provenance, publish the figures and write the report."""
    started, start = _now(), time.monotonic()
    clear_unfinished(params.folder)
    write_text(dump_params(params), params.folder / "params.yaml")
    ran = 0
    for step in steps:
        state = StepState(step, params, ROOT)
        title = f"[{STEPS.index(step) + 1}/{len(STEPS)}] {step.name}"
        reason = "forced" if force else state.why()
        if reason is None:
            console.say(f"{title}  skipped: its code, params, inputs and outputs are unchanged")
            continue
        try:
            _run_step(state, title, reason, console)
        except StudyError as error:
            print(f"{title} stopped\n{error}", file=sys.stderr)
            return AUDIT_STOP if getattr(error, "kind", "") == "AuditStop" else FAILED
        ran += 1
    if ran or not (params.folder / "provenance.json").exists():
        history = reference.provenance(params, ROOT, started=started, finished=_now())
        write_json(history, params.folder / "provenance.json")
    if params.exec.publish and (params.folder / "figures" / "figures.tsv").is_file():
        console.say(f"published {reference.publish(params, ROOT)} figures in figures/")
    done = _report(params, steps, console)
    console.say(f"{ran} of {len(steps)} steps ran in {clock(time.monotonic() - start)}; results: {params.folder}")
    return OK if done else FAILED


def _report(params: StudyParams, steps: tuple[Step, ...], console: Console) -> bool:
    """Write the report of a study whose steps are all up to date; those just run or skipped are. False if it failed."""
    others = [step for step in STEPS if step not in steps]
    if pending := [step.name for step in others if StepState(step, params, ROOT).why() is not None]:
        console.say(f"no new report: it waits for {', '.join(pending)}")
        return True
    if report_state.is_written(params, ROOT):
        console.say(f"report: {params.folder / report_state.PAGE}, unchanged")
        return True
    from adlib.report.pages import write_report  # takes seconds to import

    try:
        console.say(f"report: {write_report(params)}")
        report_state.mark_written(params, ROOT)
    except StudyError as error:
        print(f"the report was not written\n{error}", file=sys.stderr)
        return False
    return True


def dry_run(params: StudyParams, steps: tuple[Step, ...], force: bool, console: Console) -> int:
    """Print what would run, and why, without running it."""
    pending: dict[str, str] = {}
    for step in steps:
        reason = "forced" if force else StepState(step, params, ROOT).why()
        waits = sorted({pending[name] for name in step.reads if name in pending})
        if reason or waits:
            pending |= dict.fromkeys([*step.writes, *step.may_write], step.name)
        if reason:
            console.say(f"{step.name}  run: {reason}")
        elif waits:
            console.say(f"{step.name}  run, unless {' and '.join(waits)} writes the same again")
        else:
            console.say(f"{step.name}  skip: its code, params, inputs and outputs are unchanged")
    return OK


def compare(first: Path, second: Path, params: StudyParams, console: Console) -> int:
    """Print the main scores of two finished studies side by side, and write a page with all that differs."""
    from adlib.report.compare import compare as compare_studies

    page, table = compare_studies(first, second, params.exec.outputs)
    console.say(table)
    console.say(f"all scores, params and packages: {page}")
    return OK


def check(params: StudyParams, console: Console) -> int:
    """Compare this study with the committed reference."""
    from adlib.training.recipe import record_differences, training_record

    try:
        edited = record_differences(training_record(params.folder), params)
        verdict = reference.compare(params, ROOT, tuple(edited))
    except StudyError as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    console.say("\n".join(verdict.lines))
    console.say(f"the results are {'those' if verdict.same else 'NOT those'} of the reference")
    return OK if verdict.same else FAILED


def _run_step(state: StepState, title: str, reason: str, console: Console) -> None:
    if missing := state.missing_inputs():
        raise StudyError(
            f"{state.step.name} reads {', '.join(missing)} in {state.params.folder}, not there yet; "
            "run the earlier steps first (leave out --from and --only)"
        )
    from adlib.study import execution  # takes seconds to import, which a run that skips all steps need not spend

    state.require_room()
    folder, expected, progress = state.params.folder, _expected(state), execution.LastLine(console.say)
    console.say(f"{title}  runs: {reason} ({f'about {clock(expected)}' if expected else 'first time'})")
    start, key = time.monotonic(), state.key()
    state.begin()
    executed = folder / "notebooks" / f"{state.step.name}.ipynb"
    with console.waiting(state.step, expected, lambda: progress.text):
        execution.execute(Path(state.step.notebook), executed, folder / "params.yaml", ROOT, progress)
    state.finish(key, time.monotonic() - start)
    console.say(f"{title}  done in {clock(time.monotonic() - start)}")


def _expected(state: StepState) -> float | None:
    """Seconds that the step took last time here or, failing that, in the published run of the same study."""
    if seconds := (state.record() or {}).get("seconds"):
        return seconds
    published = ROOT / reference.PUBLISHED / "provenance.json"
    history = read_json(published) if published.is_file() else {}
    return history["seconds"].get(state.step.name) if history.get("study") == state.params.study else None


def _selected(options: argparse.Namespace) -> tuple[Step, ...]:
    first = STEPS.index(_step(options.start)) if options.start else 0
    wanted = [_step(name) for name in options.only] or STEPS
    return tuple(step for step in STEPS[first:] if step in wanted)


def _step(text: str) -> Step:
    for step in STEPS:
        if text == step.name or (text.isdigit() and int(text) == int(step.number)):
            return step
    raise StudyError(f"there is no step {text!r}; the steps are {', '.join(step.name for step in STEPS)}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UNUSABLE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "run_all.py", description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", metavar="FILE", help=f"the study's yaml ({DEFAULT_PARAMS})")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a parameter; repeatable"
    )
    parser.add_argument("--from", dest="start", metavar="STEP", help="begin with this step: 03 or its name")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="only this step; repeatable")
    parser.add_argument("--force", action="store_true", help="run the chosen steps whether or not they are up to date")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and why")
    parser.add_argument("--check", action="store_true", help="compare the results with those in figures/")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="compare two finished studies, such as outputs/a outputs/b"
    )
    parser.add_argument("--accept", action="store_true", help="make this study's metrics the reference in figures/")
    return parser


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _terminate(*_: object) -> NoReturn:
    raise SystemExit(TERMINATED)


def start() -> int:
    """Run as a program: SIGTERM ends the kernel too."""
    signal.signal(signal.SIGTERM, _terminate)
    return main()


if __name__ == "__main__":
    sys.exit(start())
