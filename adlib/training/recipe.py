"""The parts of a training, each a callable that can be replaced, and the record of a training."""

import ast
import importlib
import linecache
import os
import runpy
import symtable
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from adlib.study.code_digest import code_digest
from adlib.study.metrics import NETWORK
from adlib.study.params import StudyParams
from adlib.study.records import StudyError, digest, file_digest, flat, read_json, write_text
from adlib.training.augmentation import augment_slices
from adlib.training.folds import Augment, Fold
from adlib.training.network import ResNet50

PACKAGE = "adlib."
RECORD = Path("training") / "record.json"
NETWORK_FILE = "network.py"
SECTIONS = ("train", "input", "preprocess", "splits")

Schedule: TypeAlias = torch.optim.lr_scheduler.LRScheduler
BuildNetwork = Callable[[int, int, float], nn.Module]
Loss = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None", StudyParams], torch.Tensor]
Optimizer = Callable[[list[nn.Parameter], StudyParams, int], "tuple[torch.optim.Optimizer, Schedule]"]


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, params: StudyParams
) -> torch.Tensor:
    """Cross-entropy with class weights and label smoothing.

    Parameters
    ----------
    logits : (B, K) float32
    targets : (B,) int64
    weights : (K,) float32, optional
        Of the classes, where ``train.balance`` is ``weights``.
    params : StudyParams

    Returns
    -------
    () float32
        Mean over the batch.
    """
    return nn.functional.cross_entropy(logits, targets, weights, label_smoothing=params.train.label_smoothing)


def ordinal(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, params: StudyParams
) -> torch.Tensor:
    """Cross-entropy of the cumulative probabilities, so that an error by two classes costs more than by one.

    Parameters
    ----------
    logits, targets, weights, params
        As of `cross_entropy`; the order of ``classes`` is that of the stages.

    Returns
    -------
    () float32
        Mean over the batch and over the K - 1 bounds between classes.

    References
    ----------
    Tödter & Ahrens 2012, doi:10.1175/MWR-D-11-00266.1 (ranked ignorance score, a proper score).
    """
    classes, smoothing = logits.shape[1], params.train.label_smoothing
    truth = nn.functional.one_hot(targets, classes).to(logits.dtype) * (1 - smoothing) + smoothing / classes
    below = truth.cumsum(1)[:, :-1]  # (B, K - 1), probability of at most each class
    at_most = logits.logcumsumexp(1)[:, :-1]
    above = logits.flip(1).logcumsumexp(1).flip(1)[:, 1:]
    each = nn.functional.binary_cross_entropy_with_logits(at_most - above, below, reduction="none").mean(1)
    each_weight = torch.ones_like(each) if weights is None else weights[targets]
    return (each * each_weight).sum() / each_weight.sum()


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "ordinal": ordinal}


def class_weights(fold: Fold, classes: int) -> torch.Tensor:
    """Inverse class frequencies of the training slices.

    Parameters
    ----------
    fold : Fold
    classes : int

    Returns
    -------
    (K,) float32
    """
    counts = np.bincount(fold.targets[fold.rows("train")], minlength=classes)
    return torch.from_numpy(counts.sum() / (classes * np.maximum(counts, 1))).float()


def adamw_one_cycle(
    parameters: list[nn.Parameter], params: StudyParams, steps: int
) -> tuple[torch.optim.Optimizer, Schedule]:
    """AdamW whose learning rate follows one cycle.

    Parameters
    ----------
    parameters : list of nn.Parameter
    params : StudyParams
        ``train.learning_rate``, ``weight_decay`` and ``warmup`` count.
    steps : int
        Of the whole training.

    Returns
    -------
    optimizer : torch.optim.AdamW
    schedule : torch.optim.lr_scheduler.OneCycleLR

    References
    ----------
    Loshchilov & Hutter 2019, arXiv:1711.05101 (AdamW); Smith & Topin 2019, arXiv:1708.07120 (one cycle).
    """
    settings = params.train
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(steps, 8), pct_start=settings.warmup
    )
    return optimizer, schedule


@dataclass(frozen=True)
class Recipe:
    """The parts of a training that a researcher changes.

    Attributes
    ----------
    build_network : callable
        ``(outputs, covariates, dropout)`` to a network as `adlib.training.network.ImageNetwork` describes it.
    loss : callable
        ``(logits, targets, weights, params)`` to a number, see `cross_entropy`.
    optimizer : callable
        ``(parameters, params, steps)`` to an optimizer and a schedule that is stepped after each step.
    augment : callable
        ``(slices, generator, params)`` to slices (B, 3, H, W); all chance comes from the generator.
    """

    build_network: BuildNetwork = ResNet50
    loss: Loss = cross_entropy
    optimizer: Optimizer = adamw_one_cycle
    augment: Augment = augment_slices

    def parts(self) -> dict[str, Callable[..., Any]]:
        """Each part by its name."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def changed(self) -> dict[str, Callable[..., Any]]:
        """Parts that are not the package's own."""
        return {name: part for name, part in self.parts().items() if not _name(part).startswith(PACKAGE)}

    def code(self) -> list[Any]:
        """Names and code of all parts, for the key of a training."""
        sources = {name: _code(part) for name, part in self.changed().items()}
        return [
            {name: _name(part) for name, part in self.parts().items()},
            sources,
            code_digest(f"{PACKAGE}training.runs"),
        ]


def _name(function: Callable[..., Any]) -> str:
    if not hasattr(function, "__qualname__"):
        raise StudyError(f"{function!r} has no name; write it with def or class, so that the record can name it")
    return f"{function.__module__}:{function.__qualname__}"


def importable_name(function: Callable[..., Any]) -> str | None:
    """Name by which a function or class can be imported.

    Parameters
    ----------
    function : callable

    Returns
    -------
    str or None
        ``module:name``; None for a callable of a notebook.
    """
    if function.__module__ in (None, "__main__") or "." in function.__qualname__:
        return None
    try:
        same = getattr(importlib.import_module(function.__module__), function.__qualname__, None)
    except ImportError:
        return None
    return _name(function) if same is function else None


def _code(function: Callable[..., Any]) -> str:
    """Digest of the code of a callable: of its whole module or, for one of a notebook, of all that it needs."""
    if importable_name(function):
        path = getattr(importlib.import_module(function.__module__), "__file__", None)
        return file_digest(Path(path)) if path else _name(function)
    return digest(written_source(function))


def written_source(function: Callable[..., Any]) -> str:
    """Python source of a module that defines a callable of a notebook, with the imports, functions and values it uses.

    Parameters
    ----------
    function : callable

    Returns
    -------
    str
        An import alone where the callable can be imported.

    Raises
    ------
    StudyError
        If it has no source, or uses something that cannot be written as source, such as a table.
    """
    pieces: dict[str, str] = {}
    _collect(function.__qualname__, function, function, pieces)
    imports = sorted(piece for piece in pieces.values() if piece.startswith(("import ", "from ")))
    return "\n\n".join(["\n".join(imports), *(piece for piece in pieces.values() if piece not in imports)]) + "\n"


def _collect(name: str, value: Any, user: Callable[..., Any], pieces: dict[str, str]) -> None:
    """Add the source that defines a name which a callable uses, after that of all it uses itself."""
    if isinstance(value, ModuleType):
        pieces[name] = f"import {value.__name__} as {name}"
    elif not hasattr(value, "__qualname__"):
        pieces[name] = f"{name} = {_literal(name, value, user)}"
    elif importable := importable_name(value):
        module, _, attribute = importable.partition(":")
        pieces[name] = f"from {module} import {attribute}" + (f" as {name}" if name != attribute else "")
    else:
        source, space = _definition(value)
        pieces[name] = ""  # so that a function that calls itself ends
        for other in sorted(_globals_used(symtable.symtable(source, "notebook", "exec"))):
            if other not in pieces and other in space:
                _collect(other, space[other], value, pieces)
        del pieces[name]
        pieces[name] = source


def _literal(name: str, value: Any, function: Callable[..., Any]) -> str:
    with suppress(ValueError, SyntaxError, TypeError):
        if ast.literal_eval(repr(value)) == value:
            return repr(value)
    raise StudyError(
        f"{function.__qualname__} uses {name!r} of the notebook, a {type(value).__name__}, which cannot be stored with "
        "the model; pass plain numbers, or put the function into a module and import it"
    )


def _globals_used(table: symtable.SymbolTable) -> Iterator[str]:
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (symbol.is_global() or (top and not symbol.is_assigned())):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _globals_used(child)


def _definition(function: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """Source of a function or class as it is written, and the names around it."""
    candidates = vars(function).values() if isinstance(function, type) else [function]
    inner = next((value for value in candidates if hasattr(value, "__code__")), None)
    if inner is not None:
        text = "".join(linecache.getlines(inner.__code__.co_filename))
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == function.__qualname__:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                return "\n".join(text.splitlines()[first - 1 : node.end_lineno]), inner.__globals__
    raise StudyError(
        f"{_name(function)} has no source to store with the model; write it with def or class in a cell, "
        "or put it into a module and import it"
    )


def describe(recipe: Recipe, network: nn.Module, origin: str, params: StudyParams) -> dict[str, Any]:
    """Parts and settings of a training, for the model file and for ``training/record.json``.

    Parameters
    ----------
    recipe : Recipe
    network : nn.Module
        The trained one.
    origin : str
        Where its first weights came from.
    params : StudyParams

    Returns
    -------
    dict
        For ``network``, ``loss``, ``optimizer`` and ``augment`` the ``name`` and, where it is not the package's own,
        its ``source`` and ``sha256``; ``network`` also has its ``title`` and number of ``parameters``; ``weights``,
        the origin of the first weights; ``classes`` and ``seed``; every setting of `SECTIONS`.
    """
    parts = _part_names(recipe)
    for name, part in recipe.changed().items():
        source = written_source(part)
        parts[name.removeprefix("build_")] |= {"source": source, "sha256": digest(source)}
    parameters = sum(value.numel() for value in network.parameters())
    parts["network"] |= {"title": type(network).__name__, "parameters": parameters}
    return {**parts, "weights": origin, **_settings(params)}


def _part_names(recipe: Recipe) -> dict[str, dict[str, Any]]:
    return {name.removeprefix("build_"): {"name": _name(part)} for name, part in recipe.parts().items()}


def _settings(params: StudyParams) -> dict[str, Any]:
    settings = {name: getattr(params, name).model_dump(mode="json") for name in SECTIONS}
    kind, colon, path = params.train.weights.partition(":")
    if colon:
        settings["train"]["weights"] = f"{kind}:{Path(path).name}"  # without the folder of this computer
    return settings | {"classes": list(params.classes), "seed": params.training_seed}


def training_record(folder: Path) -> dict[str, Any]:
    """The record of a training, ``training/record.json``; empty where nothing was trained.

    Parameters
    ----------
    folder : path
        Of the study.

    Returns
    -------
    dict
        See `describe`; also ``runs``, the epochs of each fold by run.
    """
    path = Path(folder) / RECORD
    return read_json(path) if path.is_file() else {}


def record_differences(record: dict[str, Any], params: StudyParams) -> dict[str, tuple[Any, Any]]:
    """Where a training differs from the params file and the package's own recipe.

    Parameters
    ----------
    record : dict
        From `training_record`.
    params : StudyParams

    Returns
    -------
    dict of str to (params value, trained value)
        By setting, such as ``train.epochs``, or part, such as ``loss``; empty without differences or record.
    """
    if not record:
        return {}
    stated = _settings(params) | _part_names(Recipe(loss=LOSSES[params.train.loss]))
    stated["train"]["controls"] = sorted(params.train.controls)
    before, after = flat(stated), flat(record)
    runs = record.get("runs", record["train"]["controls"])
    after["train.controls"] = sorted(run for run in runs if run != NETWORK)
    return {
        name.removesuffix(".name"): (before[name], after.get(name))
        for name in before
        if before[name] != after.get(name)
    }


def write_network(recipe: Recipe, folder: Path) -> None:
    """Write ``network.py``, from which a study's own model is loaded, if its network is not the package's own.

    Parameters
    ----------
    recipe : Recipe
    folder : path
        Of the study; an older ``network.py`` is removed where the network is the package's own.

    Raises
    ------
    StudyError
        If the network has no source that can be stored.
    """
    path = folder / NETWORK_FILE
    if "build_network" not in recipe.changed():
        path.unlink(missing_ok=True)
        return
    write_text(_file_text(written_source(recipe.build_network)), path)


def _file_text(source: str) -> str:
    return f'"""The network of this study, written by its training; imported when its model is loaded."""\n\n{source}'


def read_network(path: Path, stated: dict[str, Any]) -> BuildNetwork:
    """The callable that makes the network of a study's own model, from ``network.py`` next to the weights.

    Parameters
    ----------
    path : path
        ``network.py``. Its code is run.
    stated : dict
        ``network`` of the model file's record.

    Returns
    -------
    callable
        See `Recipe.build_network`.

    Raises
    ------
    StudyError
        If the file is missing, is not the one that the training wrote, or belongs to another user.
    """
    name = stated["name"].rpartition(":")[2]
    if not path.is_file() or path.read_text(encoding="utf-8") != _file_text(stated["source"]):
        raise StudyError(f"{path} is not the file that the training of {name} wrote; run step 03 again")
    if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
        raise StudyError(f"{path} belongs to another user, so its code is not run; give load(..., build_network=...)")
    return runpy.run_path(str(path))[name]
