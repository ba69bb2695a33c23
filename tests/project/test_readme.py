"""The README lists every parameter as the code has it. `python tests/test_readme.py` writes its table anew."""

import re
import sys
from pathlib import Path
from typing import get_args

from adlib.study.params import StudyParams
from adlib.study.source_params import Section, Source

README = Path(__file__).parents[2] / "README.md"
BOUNDS = re.compile(r"(<!-- parameters: begin -->\n).*?(<!-- parameters: end -->)", re.S)


def sections() -> list[tuple[str, type[Section]]]:
    """Name and model of each section, the study itself first and each kind of source apart."""
    found: list[tuple[str, type[Section]]] = [("", StudyParams)]
    for name, field in StudyParams.model_fields.items():
        if name == "source":
            found += [("source", kind) for kind in get_args(get_args(Source)[0])]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += [(name, field.annotation), *inner(name, field.annotation)]
    return found


def inner(prefix: str, model: type[Section]) -> list[tuple[str, type[Section]]]:
    """Sections inside a section."""
    kinds = {name: field.annotation for name, field in model.model_fields.items()}
    return [
        (f"{prefix}.{name}", kind)
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, Section)
    ]


def parameter_table() -> str:
    """Markdown table of every key, its default and its meaning."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for prefix, model in sections():
        kind = get_args(model.model_fields["kind"].annotation)[0] if prefix == "source" else ""
        for name, field in model.model_fields.items():
            if name == "source" or isinstance(field.default, Section):
                continue
            default = "required" if field.is_required() else f"`{written(field.default)}`"
            meaning = f"`{kind}`: this kind of source." if kind and name == "kind" else field.description or "Seed."
            meaning = meaning.replace("<", "&lt;").replace(">", "&gt;")
            lines.append(f"| `{prefix + '.' if prefix else ''}{name}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def written(value: object) -> str:
    """A default as one writes it in yaml."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_readme_lists_every_parameter_as_it_is():
    assert BOUNDS.search(README.read_text(encoding="utf-8"))[0].splitlines()[1:-1] == parameter_table().splitlines()


def test_readme_names_what_is_there():
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make (\w+)", text)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for file in set(re.findall(r"\]\((?!http|#)([^)]+)\)", text)):
        assert (README.parent / file).exists() or file.startswith("figures/"), file


if __name__ == "__main__":
    old = README.read_text(encoding="utf-8")
    README.write_text(BOUNDS.sub(lambda found: found[1] + parameter_table() + found[2], old), encoding="utf-8")
    sys.exit(0)
