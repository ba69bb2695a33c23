"""Score a finished model on a labelled cohort: ``python -m adlib.evaluate --model MODEL --params FILE``."""

import argparse
import sys
from pathlib import Path

SHOWN = ("balanced_accuracy", "roc_auc", "roc_auc_binary", "log_loss", "calibration_error")


def main(arguments: list[str] | None = None) -> int:
    """Score a model on the people of a study whose steps 01 and 02 are up to date.

    Parameters
    ----------
    arguments : list of str, optional
        Default: `sys.argv`.

    Returns
    -------
    int
        Exit code: 1 if the model cannot be scored on these people.
    """
    parser = argparse.ArgumentParser(prog="python -m adlib.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model.safetensors, or a folder with it")
    parser.add_argument("--params", type=Path, required=True, help="of the study with the cohort to score")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a parameter; repeatable"
    )
    parser.add_argument(
        "--held-out", action="store_true", help="score the test participants of the study that the model was trained in"
    )
    options = parser.parse_args(arguments)
    from adlib.evaluation.finished_model import score_model
    from adlib.study.metrics import metric_table, metrics_table
    from adlib.study.params import load_params
    from adlib.study.records import StudyError

    try:
        params = load_params(options.params, tuple(options.set))
        metrics = score_model(options.model, params, held_out=options.held_out)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for level in ("subject", "scan"):
        print(f"by {level}:\n{metric_table(metrics_table(metrics), level, SHOWN).to_string(index=False)}")
    print(f"all scores: {params.folder / 'scored' / metrics['model']['study'] / 'metrics.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
