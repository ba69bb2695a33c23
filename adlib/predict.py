"""Classify scans from the command line: ``python -m adlib.predict FILE``."""

import argparse
import json
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Classify the files of a command line; files that cannot be read do not stop the others.

    Parameters
    ----------
    arguments : list of str, optional
        Default: `sys.argv`.

    Returns
    -------
    int
        Exit code: 1 if a file could not be read.
    """
    parser = argparse.ArgumentParser(prog="python -m adlib.predict", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".nii[.gz], .mgz, folder or zip of DICOM")
    parser.add_argument(
        "--study", type=Path, help="params file of the model's study, such as params/phantom.yaml for simulated heads"
    )
    parser.add_argument(
        "--model", type=Path, help="weights file; default: that of --study, else models/oasis1, if it exists"
    )
    parser.add_argument("--age", type=float, help="in years; for percentiles of volumes and covariates")
    parser.add_argument("--sex", choices=("F", "M"), help="for percentiles of volumes and covariates")
    parser.add_argument("--out", type=Path, help="folder of the summary figures; default: outputs/predictions")
    options = parser.parse_args(arguments)
    from adlib.classify.model_store import find_models
    from adlib.classify.prediction import predict_files
    from adlib.study.params import load_params
    from adlib.study.records import StudyError

    given = {"age": options.age, "sex": {"F": 1.0, "M": 0.0}.get(options.sex)}
    person = {name: value for name, value in given.items() if value is not None}
    try:
        params = load_params(options.study or "params/phantom.yaml")
        model = options.model or (None if options.study else next(iter(find_models(params).values())))
        folder = options.out or params.exec.outputs / "predictions"
        records = predict_files(options.files, params, model, folder, person)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path, record in zip(options.files, records, strict=True):
        if "error" in record:
            print(f"error: {path}: {record['error']}", file=sys.stderr)
        else:
            print(json.dumps(record, indent=2, allow_nan=False))
    return int(any("error" in record for record in records))


if __name__ == "__main__":
    sys.exit(main())
