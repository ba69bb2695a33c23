"""Every number of metrics.json follows from the predictions, and its interval holds the truth as often as it says."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from adlib.evaluation.evaluate import _entries, _two_scores
from adlib.study.params import load_params
from adlib.study.records import MANIFEST, read_table

CLASSES = ["CN", "MCI", "AD"]
COLUMNS = [f"p_{name}" for name in CLASSES]


def pooled(table, level, calibrate=True):
    """Truth and probabilities by averages of averages, from the stored columns alone."""
    table = table.copy()
    if calibrate:
        odds = table[COLUMNS].to_numpy() ** (1 / table["temperature"].to_numpy()[:, None])
        if "bias_CN" in table:
            odds = odds * np.exp(table[[f"bias_{name}" for name in CLASSES]].to_numpy())
        table[COLUMNS] = odds / odds.sum(1, keepdims=True)
    for keys in {"slice": [], "scan": ["scan_id"], "subject": ["scan_id", "participant_id"]}[level]:
        beside = ["truth", "participant_id", "fold", "split"]
        table = table.groupby(["fold", keys]).agg(dict.fromkeys(COLUMNS, "mean") | dict.fromkeys(beside, "first"))
        table = table.reset_index(drop=True)
    p = table[COLUMNS].to_numpy()
    return table["truth"].map(CLASSES.index).to_numpy(), p / p.sum(1, keepdims=True), table


def by_scikit_learn(y, p):
    """All scores of a table by name and class."""
    decided, one_hot = p.argmax(1), np.eye(3)[y]
    found = {
        ("accuracy", None): sk.accuracy_score(y, decided),
        ("balanced_accuracy", None): sk.balanced_accuracy_score(y, decided),
        ("kappa_linear", None): sk.cohen_kappa_score(y, decided, weights="linear"),
        ("matthews", None): sk.matthews_corrcoef(y, decided),
        ("roc_auc", "macro"): sk.roc_auc_score(y, p, multi_class="ovr", average="macro"),
        ("roc_auc_binary", None): sk.roc_auc_score(y > 0, p[:, 1:].sum(1)),
        ("log_loss", None): sk.log_loss(y, p),
        ("brier", None): 3 * sk.mean_squared_error(one_hot.ravel(), p.ravel()),
        ("calibration_error", None): calibration_error(y, p),
        ("ranked_probability", None): ranked_probability(y, p),
    }
    specificity = [sk.recall_score(y != k, decided != k) for k in range(3)]
    table = sk.precision_recall_fscore_support(y, decided, labels=[0, 1, 2], zero_division=0)[:3]
    for name, values in zip(("precision", "recall", "f1", "specificity"), (*table, specificity), strict=True):
        found |= {(name, "macro"): np.mean(values)} | {(name, c): values[k] for k, c in enumerate(CLASSES)}
    for k, name in enumerate(CLASSES):
        found["roc_auc", name] = sk.roc_auc_score(y == k, p[:, k])
        found["average_precision", name] = sk.average_precision_score(y == k, p[:, k])
    return found


def of_the_binary_view(y, p):
    """Scores of CN against MCI and AD by scikit-learn."""
    ill, risk = y > 0, p[:, 1:].sum(1)
    false, true, _ = sk.roc_curve(ill, risk, drop_intermediate=False)
    return calibration_lines(ill, risk) | {
        ("positive_predictive_value", None): sk.precision_score(ill, risk >= 0.5, zero_division=np.nan),
        ("negative_predictive_value", None): sk.precision_score(~ill, risk < 0.5, zero_division=np.nan),
        ("sensitivity_at_90_specificity", None): true[false <= 0.1 + 1e-12].max(),
    }


def calibration_lines(ill, risk, label=None):
    """Intercept at slope 1, by a root of the score equation, and slope by an unpenalised logistic regression."""
    logit = np.log(risk / (1 - risk))
    model = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky").fit(logit[:, None], ill)
    large = brentq(lambda a: (ill - 1 / (1 + np.exp(-a - logit))).sum(), -9, 9, xtol=1e-12)
    separated = sk.roc_auc_score(ill, risk) == 1  # by which the slope has no bound
    return {
        ("calibration_slope", label): np.nan if separated else model.coef_[0, 0],
        ("calibration_intercept", label): large,
    }


def ranked_probability(y, p):
    """By thresholds: the mean Brier score of being beyond each stage."""
    return float(np.mean([sk.brier_score_loss(y > k, p[:, k + 1 :].sum(1).clip(0, 1)) for k in range(2)]))


def calibration_error(y, p):
    frame = pd.DataFrame({"sure": p.max(1), "right": p.argmax(1) == y})
    bins = frame.groupby(pd.cut(frame["sure"], np.linspace(0, 1, 11), right=False), observed=True)
    return float((bins.size() * (bins["right"].mean() - bins["sure"].mean()).abs()).sum() / len(frame))


def one_mode(row):
    """Each value, or the smaller of the largest at or before it and the largest at or after it."""
    return [min(max(row[: k + 1]), max(row[k:])) for k in range(len(row))]


def sets(table, run):
    """Each tested participant's set by counting validation participants of the fold that conform no better."""
    truths, held, sizes = [], [], []
    for _, part in table[table["run"] == run].groupby("fold"):
        (y, p, _), (truth, tested, _) = (
            pooled(part[part["split"] == split], "subject") for split in ("validation", "test")
        )
        p, raised = (np.array([one_mode(row) for row in rows]) for rows in (p, tested))
        known = p[np.arange(len(y)), y]
        chosen = (1 + (known[:, None, None] <= raised + 1e-12).sum(0)) / (len(y) + 1) > 0.1 + 1e-12
        chosen[np.arange(len(tested)), tested.argmax(1)] = True
        truths += truth.tolist()
        held += chosen[np.arange(len(truth)), truth].tolist()
        sizes += chosen.sum(1).tolist()
    truths, held, sizes = map(np.array, (truths, held, sizes))
    groups = {None: truths >= 0} | {name: truths == k for k, name in enumerate(CLASSES)}
    values = {"coverage": held, "set_size": sizes}
    return {(metric, name): v[inside].mean() for metric, v in values.items() for name, inside in groups.items()}


def tolerance(name):
    """Iterative fits agree to 1e-6, all other scores to rounding."""
    return 1e-6 if name[0] in ("calibration_slope", "calibration_intercept") else 1e-12


def stored(metrics, run, level):
    chosen = [e for e in metrics["entries"] if e["run"] == run and e["level"] == level]
    return {(e["metric"], e["class"]): e for e in chosen}


@pytest.mark.parametrize("level", ["slice", "scan", "subject"])
@pytest.mark.parametrize("run", ["resnet50", "background"])
def test_every_score_of_a_network_follows_from_its_predictions(study, run, level):
    params, metrics = study
    table = pd.read_parquet(params.folder / "predictions.parquet").query("run == @run")
    y, p, _ = pooled(table.query("split == 'test'"), level)
    expected = by_scikit_learn(y, p)
    if level == "subject":
        y_raw, p_raw, _ = pooled(table.query("split == 'test'"), level, calibrate=False)
        expected["log_loss_uncalibrated", None] = sk.log_loss(y_raw, p_raw)
        expected["calibration_error_uncalibrated", None] = calibration_error(y_raw, p_raw)
        expected |= of_the_binary_view(y, p)
        expected |= sets(table, run)
    if level == "subject" and run == "resnet50":
        for k, name in enumerate(CLASSES):
            expected |= calibration_lines(y == k, p[:, k], name)
    found = stored(metrics, run, level)
    left = {k for k in found if k not in expected}
    assert left <= {("permutation_p", None)}, "a score has no reference here; add one"
    assert set(expected) <= set(found)
    for name, value in expected.items():
        assert found[name]["point"] == pytest.approx(value, abs=tolerance(name)), name
        assert found[name]["n"] == len(y)


def test_every_score_of_a_baseline_follows_from_its_predictions(study):
    params, metrics = study
    baselines = pd.read_parquet(params.folder / "baselines.parquet")
    runs = set(baselines["run"])
    assert {"age_sex", "brain_fraction"} <= runs
    for run in runs - {"majority"}:  # scikit-learn warns of scores of constants
        table = baselines[baselines["run"] == run]
        for level in ("scan", "subject"):
            expected = by_scikit_learn(*pooled(table.query("split == 'test'"), level)[:2])
            if level == "subject":
                y, p, _ = pooled(table.query("split == 'test'"), level)
                expected |= sets(table, run) | of_the_binary_view(y, p)
            found = stored(metrics, run, level)
            assert set(found) == set(expected)
            for name, value in expected.items():
                point = np.nan if found[name]["point"] is None else found[name]["point"]
                assert point == pytest.approx(value, abs=tolerance(name), nan_ok=True), (run, level, name)


def test_differences_subgroups_and_confusion_follow_from_the_predictions(study):
    params, metrics = study
    table = pd.read_parquet(params.folder / "predictions.parquet").query("run == 'resnet50' and split == 'test'")
    other = pd.read_parquet(params.folder / "baselines.parquet").query("run == 'brain_fraction' and split == 'test'")
    (y, p, people), (_, q, _) = pooled(table, "subject"), pooled(other, "subject")
    assert metrics["confusion"]["resnet50"] == sk.confusion_matrix(y, p.argmax(1)).tolist()
    mine, theirs = by_scikit_learn(y, p), by_scikit_learn(y, q)
    found = stored(metrics, "resnet50 - brain_fraction", "subject")
    for name in ("balanced_accuracy", "roc_auc_binary"):
        value = mine[name, None] - theirs[name, None]
        assert found[f"{name}_difference", None]["point"] == pytest.approx(value, abs=1e-12)
    manifest = read_table(params.folder / "manifest.tsv", MANIFEST).drop_duplicates("participant_id")
    sex = people["participant_id"].map(manifest.set_index("participant_id")["sex"]).to_numpy()
    groups = {(e["group"], e["metric"]): e for e in metrics["subgroups"]}
    for name in ("F", "M"):
        expected = by_scikit_learn(y[sex == name], p[sex == name])
        for metric in ("balanced_accuracy", "roc_auc_binary"):
            entry = groups[f"sex {name}", metric]
            assert entry["point"] == pytest.approx(expected[metric, None], abs=1e-12)
            assert entry["n"] == (sex == name).sum()
            others = by_scikit_learn(y[sex != name], p[sex != name])[metric, None]
            gap = groups[f"sex {name}", f"{metric}_gap"]
            assert gap["point"] == pytest.approx(expected[metric, None] - others, abs=1e-12)
            assert gap["ci95"][0] < gap["point"] < gap["ci95"][1]


def test_intervals_are_those_of_samples_in_which_people_are_really_repeated(study):
    params, metrics = study
    table = pd.read_parquet(params.folder / "predictions.parquet").query("run == 'resnet50' and split == 'test'")
    y, p, slices = pooled(table, "slice")  # many of which are tied
    names, member = np.unique(slices["participant_id"], return_inverse=True)
    shares, resamples = np.full(len(names), 1 / len(names)), params.evaluate.bootstrap
    draws = np.random.default_rng(params.seed).multinomial(len(names), shares, resamples)
    found = [by_scikit_learn(*(np.repeat(values, times[member], axis=0) for values in (y, p))) for times in draws]
    entries = stored(metrics, "resnet50", "slice")
    for name in found[0]:
        expected = np.percentile([one[name] for one in found], [2.5, 97.5])
        assert entries[name]["ci95"] == pytest.approx(expected, abs=1e-9), name


def test_intervals_over_participants_hold_the_truth_and_intervals_over_scans_do_not():
    """500 cohorts of 150 people with four scans that are alike (intraclass correlation 0.8); the truth is exact."""
    params = load_params("params/phantom.yaml", ("classes=[CN, AD]", "source.severity_mean=[0.1, 1.0]",
                                                 "evaluate.bootstrap=300"))  # fmt: skip
    apart = 1.5
    truth = {"balanced_accuracy": norm.cdf(apart / 2), "roc_auc_binary": norm.cdf(apart / np.sqrt(2))}
    rng, y = np.random.default_rng(8), np.repeat(np.arange(150) % 2, 4)
    people = np.repeat([f"sub-{k:03d}" for k in range(150)], 4)
    hits = {(metric, how): 0 for metric in truth for how in ("participants", "scans")}
    for _ in range(500):
        own = np.repeat(rng.normal(0, np.sqrt(0.8), 150), 4) + rng.normal(0, np.sqrt(0.2), 600)
        p = 1 / (1 + np.exp(-apart * (own + apart * (y - 0.5))))
        scans = pd.DataFrame({"truth": np.where(y, "AD", "CN"), "p_CN": 1 - p, "p_AD": p})
        for how, names in (("participants", people), ("scans", [f"{k:04d}" for k in range(600)])):
            for entry in _entries(_two_scores, scans.assign(participant_id=names), "resnet50", "scan", params):
                low, high = entry["ci95"]
                hits[entry["metric"], how] += low <= truth[entry["metric"]] <= high
    for metric in truth:
        assert 0.93 <= hits[metric, "participants"] / 500 <= 0.97, hits
        assert hits[metric, "scans"] / 500 < 0.8, hits
