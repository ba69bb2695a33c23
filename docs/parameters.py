"""Write `docs/parameters.md`, the table of all params: `python docs/parameters.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adlib.study.params import StudyParams
from adlib.study.source_params import KINDS, Section

HEAD = """# Parameters

Keys of the files in `params/`, of `run_all.py --set KEY=VALUE` and of `open_study(params_file, **{"KEY": value})`.
This page is generated: `python docs/parameters.py`.
"""
COLUMNS = "| key | type | default | description |\n|---|---|---|---|\n"
TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "path": "path"}


def params_page() -> str:
    """The markdown of the page: one table for each section of the params."""
    pages = [HEAD]
    for prefix, title, model in _sections():
        schemas = {name: schema for name, schema in _properties(model).items() if not _is_section(model, name)}
        rows = [_row(f"{prefix}.{name}".lstrip("."), schema) for name, schema in schemas.items()]
        summary = (model.__doc__ or "").strip().splitlines()[0]
        pages.append(f"\n## {title}\n\n{summary}\n\n{COLUMNS}{''.join(rows)}")
    return "".join(pages)


def _sections(prefix: str = "", model: type[Section] = StudyParams) -> Iterator[tuple[str, str, type[Section]]]:
    yield prefix, prefix or "study", model
    for name, field in model.model_fields.items():
        if name == "source":
            yield from ((name, f"source: {kind}", source) for kind, source in KINDS.items())
        elif _is_section(model, name):
            yield from _sections(f"{prefix}.{name}".lstrip("."), field.annotation)


def _is_section(model: type[Section], name: str) -> bool:
    kind = model.model_fields[name].annotation
    return name == "source" or (isinstance(kind, type) and issubclass(kind, Section))


def _properties(model: type[Section]) -> dict[str, dict[str, Any]]:
    return model.model_json_schema()["properties"]


def _row(key: str, schema: dict[str, Any]) -> str:
    default = f"`{_value(schema['default'])}`" if "default" in schema else "required"
    description = " ".join(schema.get("description", "Kind of the source.").split())
    cells = [f"`{key}`", _type(schema), default, description]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |\n"


def _type(schema: dict[str, Any]) -> str:
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" if value else "empty" for value in values)
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"] if part["type"] != "null")
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    if schema["type"] == "object":
        values = schema["additionalProperties"]
        return f"mapping of text to {'a source' if 'discriminator' in values else _type(values)}"
    return TYPES[schema.get("format", schema["type"])]


def _value(value: Any) -> str:
    """The value as yaml has it; an empty one as a word."""
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    if value is None or value == "":
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(params_page(), encoding="utf-8")
