"""Write the reference of params.yaml, the settings and the commands from their own schemas: ``make docs``."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mango.cli.app import COMMANDS
from mango.config import Settings
from stages.params import Params

_HEAD = """\
# Reference

Written by `make docs` from the schemas; do not edit. `mango config` shows the values in force and where each came from.
"""


def reference() -> str:
    """Return the reference as Markdown."""
    parts = [_HEAD, "## Parameters: params.yaml\n"]
    parts += _section(Params, "", top=True)
    parts += ["## Settings: the environment\n", "They change no result, so DVC need not see them.\n"]
    rows = [[f"`MANGO_{name.upper()}`", _default(f), f.description or ""] for name, f in Settings.model_fields.items()]
    parts.append(_table(["variable", "default", "meaning"], rows))
    parts += [
        "## Commands\n",
        _table(["command", "what it does"], [[f"`mango {n}`", c.summary] for n, c in COMMANDS.items()]),
    ]
    return "\n".join(parts)


def _section(model: type[BaseModel], path: str, *, top: bool = False) -> Iterator[str]:
    told = documented_fields(model)
    inner, rows = [], []
    for name, field in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        section = _model_of(field.annotation)
        if section is not None:
            inner.append((f"{key}.NAME" if _is_mapping(field.annotation) else key, section))
        if section is None or not _is_section(field):
            shown = f"{path}.{field.alias}" if field.alias and path else key
            rows.append([f"`{shown}`", f"`{_type(field)}`", _default(field), field.description or told.get(name, "")])
    if not top:
        yield f"### {path}\n"
        yield _summary(model) + "\n"
    if rows:
        yield _table(["key", "type", "default", "meaning"], rows)
    for key, section in inner:
        yield from _section(section, key)


def documented_fields(model: type[BaseModel]) -> dict[str, str]:
    """Return what a model's docstring says of each field under ``Args:`` or ``Attributes:``, on one line each."""
    text = inspect.getdoc(model) or ""
    found = re.search(r"^(?:Args|Attributes):\n((?: {4}.*\n?|\n)+)", text + "\n", re.MULTILINE)
    entries = re.split(r"^ {4}(\w+): ", found[1], flags=re.MULTILINE)[1:] if found else []
    return {
        name: " ".join(told.split()).replace("``", "`").rstrip(".")
        for name, told in zip(entries[::2], entries[1::2], strict=True)
    }


def _summary(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _is_mapping(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is dict


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((m for inner in get_args(annotation) if (m := _model_of(inner)) is not None), None)


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    text = re.sub(
        r"(?:typing\.)?Annotated\[((?:typing\.)?Literal\[[^\]]*\]), BeforeValidator\([^)]*\)\]", r"\1", text
    )  # it shows an address
    text = re.sub(r"Annotated\[([\w.\[\]]+), [^\]]*\]", r"\1", text)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+(\w)", r"\1", text).replace(" | ", " or ")
    limits = [str(part) for part in field.metadata if re.match(r"(Ge|Gt|Le|Lt)\(", str(part))]
    return ", ".join([text, *(_limit(part) for part in limits)])


def _limit(text: str) -> str:
    kind, value = re.fullmatch(r"(\w+)\(\w+=(.*)\)", text).groups()  # type: ignore[union-attr]  # matched above
    return {"Ge": "at least ", "Gt": "above ", "Le": "at most ", "Lt": "below "}[kind] + value


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return ""
    return f"`{json.dumps(value, default=lambda v: v.model_dump() if isinstance(v, BaseModel) else str(v))}`"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def main() -> None:
    """Write the reference to the path that is given."""
    from mango.checkpoints import write_file

    write_file(Path(sys.argv[1]), reference())


if __name__ == "__main__":
    main()
