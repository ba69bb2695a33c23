"""Table of all settings of a study: ``python -m adlib.study.params_table > docs/parameters.md``."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from adlib.study.params import StudyParams
from adlib.study.source_params import KINDS, Section

_HEAD = """# Parameters

Keys of the files in `params/`, of `run_all.py --set KEY=VALUE` and of `open_study(params_file, **{"KEY": value})`.
This page is generated: `python -m adlib.study.params_table > docs/parameters.md`.
"""
_COLUMNS = "| key | type | default | description |\n|---|---|---|---|\n"


def params_page() -> str:
    """Markdown page with a table for each section of `StudyParams`."""
    pages = [_HEAD]
    for prefix, model in _sections("", StudyParams):
        title = f"{prefix}: {get_args(model.model_fields['kind'].annotation)[0]}" if prefix == "source" else prefix
        summary = (model.__doc__ or "").strip().splitlines()[0]
        rows = [_row(prefix, name, field) for name, field in model.model_fields.items() if not _is_section(field)]
        pages.append(f"\n## {title or 'study'}\n\n{summary}\n\n{_COLUMNS}{''.join(rows)}")
    return "".join(pages)


def _sections(prefix: str, model: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    yield prefix, model
    for name, field in model.model_fields.items():
        if name == "source":
            yield from ((name, kind) for kind in KINDS.values())
        elif _is_section(field):
            section: Any = field.annotation
            yield from _sections(f"{prefix}.{name}" if prefix else name, section)


def _is_section(field: FieldInfo) -> bool:
    kind = field.annotation
    return any(isinstance(part, type) and issubclass(part, Section) for part in (kind, *get_args(kind)))


def _row(prefix: str, name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"`{_value(field.default)}`"
    description = field.description or ("Kind of the source." if name == "kind" else "")
    cells = [f"`{prefix}.{name}`" if prefix else f"`{name}`", _type(field.annotation), default, description]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |\n"


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" if value else "empty" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in arguments if part is not type(None))
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "Path": "path"}.get(
        annotation.__name__, annotation.__name__
    )


def _value(value: Any) -> str:
    """A default as yaml writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    if value is None or value == "":
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(params_page(), end="")
