"""The study's five steps: what each reads and writes, and whether its results still hold."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

from adlib.study.code_digest import ROOT, notebook_digests, package_versions
from adlib.study.params import StudyParams
from adlib.study.records import (
    FIGURES,
    LOST,
    StudyError,
    flat,
    read_json,
    read_table,
    write_json,
    write_table,
)
from adlib.study.tree import path_digest

SOURCE = "@source"  # the folder of the study's images, wherever the params say it is
WEIGHTS, GIVEN, SALT = "@train.weights_file", "@splits.table", "@splits.salt"  # files, where the params name them
_TRUTH = "source/truth/truth.tsv"  # only simulated cohorts have one
_SLICES = ("input.plane", "input.positions_mm", "input.channel_spacing_mm", "input.size")  # how they are cut
_DERIVATIVES = "derivatives"  # studies of 2-D slices have none
_SLICE_FILES = ("slices.npy", "slices.tsv")
_TRAINED = ("splits.tsv", "predictions.parquet", "model.safetensors")
HEAD_BYTES = 1.4 * 204 * 246 * 198  # of a simulated head at 1 mm, compressed; as those below, of the default study
BRAIN_BYTES, KEPT_BYTES = 0.58, {"head": 0.77, "tissues": 0.55}  # of a voxel: brain with its mask, and what may be kept
TEMPLATE_MM3 = 197 * 233 * 189
TRAINING_BYTES = 600 * 2**20  # weights, their mean, and two moments of the optimiser, of one training at a time
SPARE = 1.25  # noisier images are larger
GIB = 2**30


@dataclass(frozen=True)
class Step:
    """One notebook of the study.

    Attributes
    ----------
    name : str
        Name of the notebook without suffix; its first two digits begin the names of its figures.
    sections : tuple of str
        Params that its results depend on, such as ``evaluate`` or ``train.controls``.
    reads, writes, may_write : tuple of str
        Files and folders relative to the study's folder; `SOURCE` means the images. What it `may_write`
        depends on the kind of study.
    leaves : str
        File that is there as long as scans are to be tried again.
    """

    name: str
    sections: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    may_write: tuple[str, ...] = ()
    leaves: str = ""

    @property
    def number(self) -> str:
        """The two digits that its name begins with."""
        return self.name[:2]

    @property
    def notebook(self) -> str:
        """Path of its notebook, relative to the root of the repository."""
        return f"notebooks/{self.name}.ipynb"


STEPS = (
    Step(
        "01_data_audit",
        ("classes", "seed", "source", "sources", "audit"),
        (SOURCE,),
        ("listing.tsv", "manifest.tsv", "audit.tsv", "flow.tsv", "confounds.tsv"),
        ("source",),
    ),
    Step(
        "02_preprocessing",
        ("classes", "seed", "display", "source.kind", "preprocess", "derivatives", *_SLICES),
        ("manifest.tsv", SOURCE),
        ("features.tsv", *_SLICE_FILES),
        (_DERIVATIVES,),
        LOST,
    ),
    Step(
        "03_training_resnet50",
        ("classes", "seed", "preprocess", "input", "splits", "train"),
        ("manifest.tsv", "features.tsv", _DERIVATIVES, *_SLICE_FILES, WEIGHTS, GIVEN, SALT),
        (*_TRAINED, "balance.tsv", "training/record.json"),
        ("network.py", "splits_hashed.tsv"),
    ),
    Step(
        "04_evaluation",
        ("classes", "seed", "display", "input.pooling", "train.controls", "evaluate"),
        ("manifest.tsv", "audit.tsv", "features.tsv", _DERIVATIVES, *_SLICE_FILES, *_TRAINED, _TRUTH),
        ("metrics.json", "baselines.parquet", "attribution.npz", "attribution/sanity.json"),
        ("attribution",),
    ),
    Step(
        "05_interactive_classifier",
        ("classes", "display", "source.kind", "input", "evaluate.coverage", "classify"),
        ("manifest.tsv", "features.tsv", *_SLICE_FILES, *_TRAINED, "metrics.json"),
        (),
        ("examples.npz",),
    ),
)


@dataclass(frozen=True)
class StepState:
    """A step within one study: its key now, and the record of its last run.

    Attributes
    ----------
    step : Step
    params : StudyParams
    root : path
        Repository root, which holds ``notebooks/`` and ``adlib/``.
    """

    step: Step
    params: StudyParams
    root: Path = ROOT

    @property
    def record_path(self) -> Path:
        """Path of the record of its last run."""
        return self.params.folder / "steps" / f"{self.step.name}.json"

    def record(self) -> dict[str, Any] | None:
        """What the last run left, or None where there was none or its record cannot be read."""
        try:
            return read_json(self.record_path) if self.record_path.is_file() else None
        except StudyError:
            return None

    def key(self) -> dict[str, dict[str, Any]]:
        """All that the results depend on: code, params, inputs, packages, each by name.

        Raises
        ------
        StudyError
            If the notebook is missing or cannot be read.
        """
        cells, modules = notebook_digests(self.root / self.step.notebook, self.root)
        return {
            "code": {self.step.notebook: cells, **modules},
            "params": _sections(self.params, self.step.sections),
            "inputs": {name: path_digest(path) for name, path in self._reads().items()},
            "packages": package_versions(),
        }

    def why(self) -> str | None:
        """Reason to run the step, in words; None where its results hold."""
        record = self.record()
        if record is None:
            return "never run"
        if "finished" not in record:
            return "the last run did not finish"
        changes = _changes(record["key"], self.key()) + _damage(record["outputs"], self.outputs())
        if self.step.leaves and (self.params.folder / self.step.leaves).is_file():
            changes.append("scans that were lost are tried again")
        return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "") or None

    def missing_inputs(self) -> list[str]:
        """Files that an earlier step must write before this one can run."""
        optional = (_TRUTH, _DERIVATIVES, WEIGHTS, GIVEN, SALT)
        paths = {name: path for name, path in self._reads().items() if not name.startswith((SOURCE, *optional))}
        return [name for name, path in paths.items() if not path.exists()]

    def require_room(self) -> None:
        """Refuse the step if the disk has too little room for what it writes.

        Raises
        ------
        StudyError
            With the expected and the free space.
        """
        folder, writes = self.params.folder, (*self.step.writes, *self.step.may_write)
        sizes = {name: size for name, size in expected_bytes(self.params).items() if name in writes}
        needed = SPARE * sum(max(size - _size(folder / name), 0) for name, size in sizes.items())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise StudyError(
                f"{', '.join(sizes)} of this study need about {needed / GIB:.2f} GiB more, and {folder} has "
                f"{free / GIB:.2f} GiB left: make room, or choose another disk with --set exec.outputs=FOLDER"
            )

    def begin(self) -> None:
        """Forget the last results: mark the record as unfinished and drop the step's figures."""
        seconds = (self.record() or {}).get("seconds")
        write_json({"step": self.step.name, "seconds": seconds}, self.record_path)
        folder, prefix = self.params.folder / "figures", f"{self.step.number}_"
        for path in folder.glob(f"{prefix}*"):
            path.unlink()
        if (folder / "figures.tsv").is_file():
            table = read_table(folder / "figures.tsv", FIGURES)
            write_table(table[~table["name"].str.startswith(prefix)], folder / "figures.tsv", FIGURES)

    def finish(self, key: dict[str, dict[str, Any]], seconds: float) -> None:
        """Record the key of a run and the digests of its outputs.

        Parameters
        ----------
        key : dict of dict
            `key` as it was before the run.
        seconds : float
            Duration.

        Raises
        ------
        StudyError
            If a file that the step must write is missing, or one that it reads has changed since the beginning.
        """
        absent = [name for name in self.step.writes if not (self.params.folder / name).exists()]
        if absent:
            raise StudyError(f"{self.step.name} ran to its end but did not write {', '.join(absent)}")
        inputs = self.key()["inputs"]
        if changed := [name for name, value in inputs.items() if value != key["inputs"].get(name)]:
            raise StudyError(
                f"{', '.join(changed)} changed while {self.step.name} was at work, so its results may be of neither; "
                "let no other program write there, and run the same command again"
            )
        record = {
            "step": self.step.name,
            "key": key,
            "outputs": self.outputs(),
            "seconds": round(seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(record, self.record_path)

    def outputs(self) -> dict[str, str]:
        """Digest of every output that is there; an executed notebook counts as long as it is there."""
        folder = self.params.folder
        figures = sorted((folder / "figures").glob(f"{self.step.number}_*"))
        names = [*self.step.writes, *self.step.may_write, *(f"figures/{path.name}" for path in figures)]
        digests = {name: path_digest(folder / name) for name in names}
        executed = [f"notebooks/{self.step.name}.{suffix}" for suffix in ("ipynb", "html")]
        present = {name: "present" for name in executed if (folder / name).exists()}
        return {name: value for name, value in digests.items() if value is not None} | present

    def _reads(self) -> dict[str, Path]:
        """What the step reads in this study; the step that makes the images does not read them."""
        paths = {name: self._input(name) for name in self.step.reads if name != SOURCE}
        if SOURCE in self.step.reads:
            paths |= {f"{SOURCE} {name}".strip(): path for name, path in self._images().items()}
        return {name: path for name, path in paths.items() if path is not None}

    def _images(self) -> dict[str, Path]:
        """Folder of the images of each cohort."""
        made = None if "source" in self.step.may_write else self.params.folder / "source"
        folders = {name: getattr(source, "root", made and made / name) for name, source in self.params.cohorts.items()}
        return {name: path for name, path in folders.items() if path is not None}

    def _input(self, name: str) -> Path | None:
        return attrgetter(name[1:])(self.params) if name[0] == "@" else self.params.folder / name


def expected_bytes(params: StudyParams) -> dict[str, float]:
    """Expected disk use of a study, for the scans of its manifest or, before there is one, of a simulated cohort.

    Parameters
    ----------
    params : StudyParams

    Returns
    -------
    dict of str to float
        Bytes by file or folder; empty where the number of scans is unknown.
    """
    manifest, cut = params.folder / "manifest.tsv", params.input
    phantoms = [source for source in params.cohorts.values() if source.kind == "phantom"]
    heads = [
        source.participants_per_class * len(params.classes) * (1 + source.followup_fraction) for source in phantoms
    ]
    if manifest.is_file():
        scans = len(manifest.read_bytes().splitlines()) - 1
    elif params.simulated:
        scans = round(sum(heads))
    else:
        return {}
    sizes: dict[str, float] = {"model.safetensors": TRAINING_BYTES}
    if phantoms:
        sizes["source"] = sum(n * HEAD_BYTES / source.voxel_mm**3 for n, source in zip(heads, phantoms, strict=True))
    if not cut.flat:
        each = BRAIN_BYTES + sum(KEPT_BYTES[part] for part in set(params.derivatives.keep))
        sizes["derivatives"] = scans * each * TEMPLATE_MM3 / params.preprocess.resolution_mm**3
    items = 1 if cut.plane.startswith("three_planes") else len(cut.positions_mm)
    return sizes | {"slices.npy": scans * items * 3 * cut.size**2 * 2}


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _sections(params: StudyParams, names: tuple[str, ...]) -> dict[str, Any]:
    values = flat(params.model_dump(mode="json"))
    return {key: value for name in names for key, value in values.items() if f"{key}.".startswith(f"{name}.")}


def _changes(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[str]:
    changes = []
    for kind in now:
        for name in sorted(before.get(kind, {}) | now[kind]):
            old, new = before.get(kind, {}).get(name), now[kind].get(name)
            if old == new:
                continue
            if kind in ("params", "packages"):
                changes.append(f"{'params ' * (kind == 'params')}{name} changed from {old} to {new}")
            elif kind == "code" and not (old and new):
                changes.append(f"code of {name} is {'new' if new else 'gone'}")
            else:
                title = name.replace(SOURCE, "the images").replace("@", "the file of ")
                changes.append(f"{'code of ' * (kind == 'code')}{title} changed")
    return changes


def _damage(recorded: dict[str, str], present: dict[str, str]) -> list[str]:
    gone = [f"{name} is missing" for name in recorded if name not in present]
    edited = [f"{name} was edited" for name in recorded if present.get(name, recorded[name]) != recorded[name]]
    return gone + edited
