"""The names that a parameter file gives models, for commands whose documents use them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mango.checkpoints import ModelSource


def named_models(path: Path | None) -> dict[str, ModelSource]:
    """Return where the models of a YAML file's section ``models`` are, by name; none without a file.

    Raises:
        ConfigError: the section is missing or wrong.
    """
    from mango.checkpoints import ModelSource as Source

    return {} if path is None else dict(named_section(path, "models", dict[str, Source]))


def named_section(path: Path, name: str, kind: Any) -> Any:
    """Return one section of a YAML file, whatever the others hold.

    Args:
        path: the file.
        name: the section.
        kind: the type that its content must have.

    Raises:
        ConfigError: the section is missing or wrong.
    """
    from pydantic import create_model

    from mango.config import Document, Frozen, read_document, validate

    fields: Any = {name: (kind, ...)}
    schema = create_model(name.capitalize(), __base__=Frozen, **fields)
    whole = read_document(path)
    section = Document(whole.name, {key: value for key, value in whole.data.items() if key == name}, whole.lines)
    return vars(validate(schema, section).value)[name]
