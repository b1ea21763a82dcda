"""The names that a parameter file gives models, for commands whose documents use them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mango.checkpoints import ModelSource


def named_models(path: Path | None) -> dict[str, ModelSource]:
    """Return where the models of a YAML file's section ``models`` are, by name; none without a file.

    Raises:
        ConfigError: the section is missing or wrong.
    """
    from pydantic import create_model

    from mango.checkpoints import ModelSource as Source
    from mango.config import Document, Frozen, read_document, validate

    if path is None:
        return {}
    schema = create_model("Models", __base__=Frozen, models=(dict[str, Source], ...))
    whole = read_document(path)
    section = Document(whole.name, {key: value for key, value in whole.data.items() if key == "models"}, whole.lines)
    return dict(vars(validate(schema, section).value)["models"])
