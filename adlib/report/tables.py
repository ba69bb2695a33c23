"""Tables of a report, and how it writes runs, metrics, scores and numbers."""

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import pandas as pd

from adlib.evaluation.evaluate import LEAK, SHARED
from adlib.report.content import Study, read_yaml
from adlib.report.privacy import may_show, shows
from adlib.study.metrics import CHANCE, KEY, MEMBER, NETWORK, NOT_MEASURED, format_score, member_spread, run_of, tidy
from adlib.study.params import StudyParams
from adlib.study.records import StudyError, clock

UNKNOWN = "unknown"
MAIN = (("balanced_accuracy", ""), ("roc_auc", "macro"), ("roc_auc_binary", ""), ("brier", ""))
DIFFERENCES = ("balanced_accuracy_difference", "roc_auc_binary_difference", "mcnemar_p")
OVERALL = (
    "accuracy", "balanced_accuracy", "f1", "roc_auc", "roc_auc_binary", "sensitivity_at_90_specificity",
    "positive_predictive_value", "negative_predictive_value", "kappa_linear", "matthews", "log_loss", "brier",
    "ranked_probability", "calibration_error", "calibration_slope", "calibration_intercept", "share_of_bayes_ceiling",
    "permutation_p",
)  # fmt: skip
BY_CLASS = ("recall", "specificity", "precision", "roc_auc", "average_precision")
LEVELS = {
    "slice": "Slices",
    "scan": "Scans",
    "subject": "Participants",
    "first_session": "Participants, first session alone",
}
GROUPS = ("network", "control", "baseline", "ceiling", "other")
PRIVATE = ("exec", "root", "table", "tables", "data_dir")  # params that hold places on a machine
TITLES = read_yaml("titles")
TEXTS = read_yaml("tables")


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    Attributes
    ----------
    caption : str
    header : tuple of str
    rows : tuple of tuple of str
        The first cell of each row is its title.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table(caption: str, header: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A `Table` of text.

    Parameters
    ----------
    caption : str
    header : iterable of str
    rows : iterable of iterable
        Cells are converted to text.

    Returns
    -------
    Table
    """
    return Table(caption, tuple(header), tuple(tuple(str(cell) for cell in row) for row in rows))


def titled(name: str, rows: Iterable[Iterable[object]], more: Iterable[str] = (), **values: object) -> Table:
    """The table of that name, with its caption and header from ``templates/tables.yaml``.

    Parameters
    ----------
    name : str
    rows : iterable of iterable
        Cells are converted to text.
    more : iterable of str
        Further columns.
    **values
        Of the caption.

    Returns
    -------
    Table
    """
    text = TEXTS[name]
    return table(text["caption"].format(**values), (*text["header"], *more), rows)


def runs(study: Study) -> Table:
    """The main scores of every run, network first.

    Parameters
    ----------
    study : Study
    """
    single = [name for name in study.runs() if not name.startswith(MEMBER)]
    names = sorted(single, key=lambda name: GROUPS.index(run_of(name).group))
    rows = [(run_of(name).title, run_of(name).group, *_written(study, MAIN, run=name)) for name in names]
    return titled("runs", rows, (metric_title(metric) for metric, _ in MAIN), chance=study.chance)


def members(study: Study) -> Table:
    """How much the networks of the ensemble differ, beside the choice of tested participants.

    Parameters
    ----------
    study : Study
        With ``train.members`` above 1.
    """
    spread = member_spread(study.scores, ("balanced_accuracy", "roc_auc", "roc_auc_binary", "log_loss"))
    spread = spread[spread["class"].isin(("", "macro"))].set_index("metric")
    numbers = spread[["ensemble", "mean", "lowest", "highest", "sd", "test_sd"]].itertuples()
    return titled("members", ((metric_title(name), *map("{:.3f}".format, values)) for name, *values in numbers))


def released(entries: list[dict[str, Any]]) -> Table:
    """Scores of the weights of a release, from entries as those of ``metrics.json``.

    Parameters
    ----------
    entries : list of dict
        By participant.
    """
    scores = [row for _, row in tidy(entries, KEY).iterrows()]
    return titled("released", ((metric_title(s["metric"], s["class"]), s["n"], written(s)) for s in scores))


def at_a_glance(study: Study) -> dict[str, str]:
    """The main facts of the first screen: participants, the network's scores, and what they compare with.

    Parameters
    ----------
    study : Study

    Returns
    -------
    dict of str to str
        By title.
    """
    best = best_baseline(study)
    facts = {
        "Test participants": f"{study.tested} of {study.participants}",
        f"Balanced accuracy (chance {study.chance:.2f})": written(study.score("balanced_accuracy")),
        "ROC AUC, two classes": written(study.score("roc_auc_binary")),
    }
    if best:
        score = study.score("balanced_accuracy", run=best)
        facts["Best baseline, balanced accuracy"] = f"{written(score)}, {run_of(best).title.lower()}"
    accepted_or_warned = (study.audit["severity"] != "info").sum()
    return facts | {"Warnings and stops of the audit": str(accepted_or_warned)}


def controls(study: Study) -> Table:
    """Expected and observed result of each control.

    Parameters
    ----------
    study : Study
    """
    scores = _accuracies(study, "control").items()
    rows = [(run_of(name).title, run_of(name).meaning, written(s), _observed(study, name, s)) for name, s in scores]
    return titled("controls", rows)


def _accuracies(study: Study, group: str) -> dict[str, pd.Series | None]:
    names = [name for name in study.runs() if run_of(name).group == group]
    return {name: study.score("balanced_accuracy", run=name) for name in names}


def above_chance(study: Study) -> list[str]:
    """Titles of the controls that must fall to chance and did not.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
    """
    scores = {name: s for name, s in _accuracies(study, "control").items() if CHANCE in run_of(name).meaning}
    return [run_of(name).title for name, s in scores.items() if bounded(s) and s["low"] > study.chance]


def best_baseline(study: Study) -> str | None:
    """The baseline with the highest balanced accuracy.

    Parameters
    ----------
    study : Study

    Returns
    -------
    str or None
        Name of the run; None without a scored baseline.
    """
    scores = _accuracies(study, "baseline")
    points = {name: score["point"] for name, score in scores.items() if score is not None and pd.notna(score["point"])}
    return max(points, key=points.__getitem__) if points else None


def _observed(study: Study, name: str, score: pd.Series | None) -> str:
    if not bounded(score):
        return "no interval, no conclusion"
    if run_of(name).title in above_chance(study):
        return f"not as expected: the interval lies above chance ({study.chance:.2f})"
    if CHANCE in run_of(name).meaning:
        where = "in" if score["high"] >= study.chance else "above"
        return f"as expected: chance ({study.chance:.2f}) is {where} the interval"
    if name == LEAK:
        shared = study.score("balanced_accuracy_difference", run=f"{NETWORK} - {LEAK}", level=SHARED["subject"])
        if shared is None:
            return "no participant is tested by both splits"
        return f"network less leak {written(shared)} on the {shared['n']:.0f} participants that both test"
    network = study.score("balanced_accuracy")
    if network is None or pd.isna(network["point"]):
        return "not comparable"
    return f"{score['point'] - network['point']:+.2f} relative to the network"


def differences(study: Study) -> Table:
    """Paired differences of the network to every other run.

    Parameters
    ----------
    study : Study
    """
    prefix = f"{NETWORK} - "
    names = [name for name in study.scores["run"].unique() if name.startswith(prefix)]
    metrics = [(metric, "") for metric in DIFFERENCES]
    rows = [(run_of(name.removeprefix(prefix)).title, *_written(study, metrics, run=name)) for name in names]
    return titled("differences", rows)


def overall(study: Study) -> Table:
    """All overall scores of the network.

    Parameters
    ----------
    study : Study
    """
    scores = {metric: study.score(metric, "macro") for metric in OVERALL}
    scores = {name: study.score(name) if score is None else score for name, score in scores.items()}
    rows = [(metric_title(metric), written(score)) for metric, score in scores.items() if score is not None]
    return titled("overall", rows)


def by_class(study: Study) -> Table:
    """The network's scores of each class.

    Parameters
    ----------
    study : Study
    """
    rows = [(name, *_written(study, [(metric, name) for metric in BY_CLASS])) for name in study.params.classes]
    return titled("by_class", rows, map(metric_title, BY_CLASS))


def by_level(study: Study) -> Table:
    """The network's scores of slices, scans and participants.

    Parameters
    ----------
    study : Study
    """
    scores = {level: study.score("balanced_accuracy", level=level) for level in LEVELS}
    counts = {level: score["n"] for level, score in scores.items() if score is not None}
    rows = [(LEVELS[level], n, *_written(study, MAIN, level=level)) for level, n in counts.items()]
    return titled("by_level", rows, (metric_title(metric) for metric, _ in MAIN))


def subgroups(study: Study) -> Table:
    """The network's scores in subgroups of participants, where the study has them.

    Parameters
    ----------
    study : Study
    """
    scores = study.scores[study.scores["group"] != ""]
    scores = scores.assign(text=[written(row) for row in scores.itertuples()])
    metrics = list(scores["metric"].unique())
    rows = []
    for (group, n), own in scores.groupby(["group", "n"], sort=False):
        texts = own.set_index("metric")["text"]
        rows.append((study.ids.redact(group), n, *(texts.get(metric, NOT_MEASURED) for metric in metrics)))
    small = len(study.metrics.get("small_groups", []))
    return titled("subgroups", rows, map(metric_title, metrics), small=small)


def attribution_scores(study: Study) -> dict[str, pd.Series]:
    """Scores of the checks of the attribution maps, by title.

    Parameters
    ----------
    study : Study

    Returns
    -------
    dict of str to Series
    """
    rows = {(row["check"], row["of"], row["metric"]): row for _, row in study.sanity.iterrows()}
    random = {metric: row for (check, _, metric), row in rows.items() if check == "randomisation"}  # the last stage
    rows |= {("randomisation", "all layers", metric): row for metric, row in random.items()}
    return {title: rows[*name] for title, name in TITLES["attribution_checks"].items() if tuple(name) in rows}


def attribution_checks(study: Study) -> Table:
    """Results of the checks of the attribution maps.

    Parameters
    ----------
    study : Study
    """
    scores = attribution_scores(study).items()
    return titled("attribution_checks", ((title, written(score)) for title, score in scores))


def confusion(study: Study) -> Table:
    """Participants by true and predicted class of the network.

    Parameters
    ----------
    study : Study
    """
    classes, matrix = study.params.classes, study.metrics["confusion"].get(NETWORK, [])
    rows = [
        (name, *(f"{count}\u00a0({percent(round(count / max(sum(row), 1), 2))})" for count in row))
        for name, row in zip(classes, matrix, strict=False)
    ]
    return titled("confusion", rows, (f"predicted {name}" for name in classes))


def cohort(study: Study) -> Table:
    """Participants, scans, age and sex by class; participants count by the label of their first scan.

    Parameters
    ----------
    study : Study
    """
    rows = []
    people = study.manifest.sort_values("session_id").drop_duplicates("participant_id")
    for name in (*study.params.classes, "all"):
        own, scans = (t if name == "all" else t[t["diagnosis"] == name] for t in (people, study.manifest))
        age, sex = own["age"].dropna(), own["sex"].dropna().str.upper()
        mean = f"{age.mean():.1f} ({age.std(ddof=0):.1f})" if len(age) else UNKNOWN
        women = percent(round(sex.str.startswith("F").mean(), 2)) if len(sex) else UNKNOWN
        rows.append((name, len(own), len(scans), mean, women))
    return titled("cohort", rows)


def split(study: Study) -> Table:
    """Participants by class and part of the split.

    Parameters
    ----------
    study : Study
    """
    counts = pd.crosstab(study.splits["split"], study.splits["diagnosis"])
    counts = counts.reindex(columns=list(study.params.classes), fill_value=0)
    names = [name for name in ("train", "validation", "test") if name in counts.index]
    folds = study.splits["fold"].nunique()
    over = "" if folds == 1 else f", summed over {folds} folds"
    rows = [(name, *counts.loc[name], counts.loc[name].sum()) for name in names]
    return titled("split", rows, (*study.params.classes, "All"), over=over)


def flow(study: Study) -> Table:
    """Scans and participants left after each exclusion.

    Parameters
    ----------
    study : Study
    """
    rows = [tuple(row) for row in study.flow.itertuples(index=False)]
    passed = study.features[study.features["qc_verdict"] != "fail"]
    rows.append(("passed quality control", len(passed), passed["participant_id"].nunique()))
    return titled("flow", rows)


def excluded(study: Study) -> Table:
    """Scans that quality control excluded, counted by their first reason.

    Parameters
    ----------
    study : Study
    """
    failed = study.features[study.features["qc_verdict"] == "fail"]
    reasons = Counter(_reason(study.ids.redact(str(text).split("; ")[0])) for text in failed["qc_reasons"])
    return titled("excluded", reasons.most_common())


def _reason(text: str) -> str:
    name, is_value, _ = text.partition(" is ")
    return name if is_value and " " not in name else "could not be processed"


def audit(study: Study) -> Table:
    """Findings with their decisions; only audit.tsv names the scans.

    Parameters
    ----------
    study : Study
    """
    whole = {*study.params.classes, "all", "all participants", "all scans"}
    of = study.audit["subject"]
    found = study.audit.assign(subject=of.where(of.isin(whole), "not named here"))
    rows = found[["check", "severity", "subject", "value", "limit", "decision"]].astype(str).map(study.ids.redact)
    return titled("audit", rows.to_numpy())


def findings(study: Study, column: str, value: str) -> list[str]:
    """Findings of the audit whose `column` is `value`, in words.

    Parameters
    ----------
    study : Study
    column : str
        Of ``audit.tsv``.
    value : str

    Returns
    -------
    list of str
    """
    rows = study.audit[study.audit[column] == value].itertuples()
    return [study.ids.redact(f"{row.check}: {row.value}. {row.meaning}") for row in rows]


def accepted(study: Study) -> list[str]:
    """Stop findings that the params accept, in words.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
    """
    return findings(study, "decision", "accepted by params")


def acquisition(study: Study) -> dict[str, str]:
    """Facts about the scans as a whole.

    Parameters
    ----------
    study : Study

    Returns
    -------
    dict of str to str
        By title.
    """
    scans = study.manifest
    years = pd.to_datetime(scans["acquisition_date"], errors="coerce").dt.year.dropna().astype(int)
    return {
        "Sites": str(scans["site"].nunique() or UNKNOWN),
        "Manufacturers": listed(sorted(set(scans["manufacturer"].dropna().astype(str))) or [UNKNOWN]),
        "Field strengths, T": listed(sorted(set(scans["field_strength_T"].dropna().astype(str))) or [UNKNOWN]),
        "Acquired": f"{years.min()} to {years.max()}" if len(years) else UNKNOWN,
        "Participants with several scans": str(int((scans["participant_id"].value_counts() > 1).sum())),
    }


def figures(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Figures that the report may hold, numbered and inlined, by the title of the notebook that drew them.

    Parameters
    ----------
    study : Study

    Returns
    -------
    dict of str to list of dict
        For each figure: name, caption, image (PNG, base64) and number.

    Raises
    ------
    StudyError
        If the register names a figure that is not there.
    """
    by_notebook: dict[str, list[dict[str, Any]]] = {}
    allowed = [row for row in study.figures.itertuples() if may_show(row.name, study.simulated, row.shows)]
    for number, row in enumerate(allowed, 1):
        path = study.params.folder / "figures" / f"{row.name}.png"
        try:
            image = base64.b64encode(path.read_bytes()).decode("ascii")
        except OSError:
            raise StudyError(f"figures.tsv registers {path}, which does not exist; run {row.notebook} again") from None
        caption = study.ids.redact(row.caption)
        entry = {"name": row.name, "caption": caption[:1].upper() + caption[1:], "image": image, "number": number}
        by_notebook.setdefault(step_title(row.notebook), []).append(entry)
    return by_notebook


def figures_left_out(study: Study) -> list[str]:
    """Names of the figures that show more than the cohort as a whole, with what they show.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of str
    """
    rows = [row for row in study.figures.itertuples() if not may_show(row.name, study.simulated, row.shows)]
    return [f"{row.name} ({shows(row.name, row.shows)})" for row in rows]


def provenance(study: Study) -> dict[str, str]:
    """Times, code, machine and seed of the run.

    Parameters
    ----------
    study : Study

    Returns
    -------
    dict of str to str
        By title.
    """
    record = study.provenance
    dirty = ", with uncommitted changes" if record.get("git_dirty") else ""
    seconds = record.get("seconds", {}).items()
    return {
        "Started": moment(record.get("started")),
        "Finished": moment(record.get("finished")),
        "Code": f"git {record.get('git_sha') or 'not under git'}{dirty}",
        "Python": record.get("python", UNKNOWN),
        "Machine": record.get("platform", UNKNOWN),
        "Device": record.get("device", UNKNOWN),
        "Seed": str(record.get("seed", UNKNOWN)),
        "Duration by step": ", ".join(f"{step_title(s)} {UNKNOWN if t is None else clock(t)}" for s, t in seconds),
    }


def packages(study: Study) -> Table:
    """Installed versions of the direct dependencies.

    Parameters
    ----------
    study : Study
    """
    return titled("packages", sorted(study.provenance.get("packages", {}).items(), key=str))


def public_params(params: StudyParams) -> dict[str, Any]:
    """Params without paths of a machine and names of sites.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    dict
    """
    content = params.model_dump(mode="json", exclude={"exec"})
    content["source"] = {name: value for name, value in content["source"].items() if name not in PRIVATE}
    kind, _, path = str(content["train"]["weights"]).partition(":")
    content["train"]["weights"] = f"{kind}:FILE" if path else kind
    files = {name: value and "FILE" for name, value in content["splits"].items() if name in ("table", "salt")}
    content["splits"] |= {"test_sites": len(content["splits"]["test_sites"]), **files}
    return content


def metric_title(name: str, label: str = "") -> str:
    """A metric in words, with its class.

    Parameters
    ----------
    name : str
        As in ``metrics.json``.
    label : str
        Class, or ``macro``.

    Returns
    -------
    str
    """
    title = TITLES["metrics"].get(name, name.replace("_", " ").capitalize())
    return f"{title}, {label}" if label else title


def bounded(score: pd.Series | None) -> TypeGuard[pd.Series]:
    """Whether a score exists and has an interval.

    Parameters
    ----------
    score : Series or None
        With point, low and high.
    """
    return score is not None and bool(pd.notna(score[["point", "low", "high"]]).all())


def written(score: pd.Series | None, digits: int = 2) -> str:
    """A score as `format_score` writes it, without a line break inside its interval.

    Parameters
    ----------
    score : Series or None
    digits : int
        After the decimal point.

    Returns
    -------
    str
    """
    return format_score(score, digits).replace(", ", ",\u00a0")


def in_words(score: pd.Series | None) -> str:
    """A score in a sentence: ``0.61 (95 % interval 0.53 to 0.69)``.

    Parameters
    ----------
    score : Series or None

    Returns
    -------
    str
    """
    if not bounded(score):
        return written(score)
    return f"{score['point']:.2f} (95 % interval {score['low']:.2f} to {score['high']:.2f})"


def counted(number: int, thing: str) -> str:
    """A number of things: ``1 slice``, ``3 slices``.

    Parameters
    ----------
    number : int
    thing : str
        Singular.

    Returns
    -------
    str
    """
    return f"{number} {thing}" + ("" if number == 1 else "s")


def listed(items: Iterable[object]) -> str:
    """Items as a list in a sentence: ``CN, MCI and AD``.

    Parameters
    ----------
    items : iterable

    Returns
    -------
    str
    """
    *rest, last = [str(item) for item in items] or ["none"]
    return f"{', '.join(rest)} and {last}" if rest else last


def percent(share: float) -> str:
    """A share in percent with three significant digits: ``12.5 %``.

    Parameters
    ----------
    share : float
        0 to 1.

    Returns
    -------
    str
    """
    return f"{100 * share:.3g}\u00a0%"


def moment(text: str | None) -> str:
    """A time stamp: ``2026-01-31 18:05 UTC``.

    Parameters
    ----------
    text : str or None
        ISO 8601, UTC.

    Returns
    -------
    str
    """
    return f"{text[:10]} {text[11:16]} UTC" if text and text.endswith("+00:00") else text or "at an unknown time"


def step_title(name: str) -> str:
    """A step's name for a heading: ``01 Data audit``.

    Parameters
    ----------
    name : str
        As in ``01_data_audit``.

    Returns
    -------
    str
    """
    number, _, rest = name.partition("_")
    return f"{number} {rest.replace('_', ' ').capitalize().replace('resnet', 'ResNet')}"


def _written(study: Study, metrics: Sequence[tuple[str, str]], **where: str) -> list[str]:
    return [written(study.score(metric, label, **where)) for metric, label in metrics]
