"""How documents name models: ``path@revision+lora``, as one text or as a section of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mango.errors import MergeError

_KEYS = frozenset({"model", "base_model", "source", "tokenizer_source"})
"""Where documents name models."""


@dataclass(frozen=True)
class Reference:
    """A model as a document names it.

    Attributes:
        model: a name, a folder, a file or a Hub id.
        revision: branch, tag or commit of the Hub repository.
        lora: folder or Hub id of a LoRA adapter that is added to the model.
        lora_revision: the same for the adapter.
    """

    model: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    def __str__(self) -> str:
        """Return the text that documents use."""
        model = self.model if self.revision is None else f"{self.model}@{self.revision}"
        if self.lora is None:
            return model
        return f"{model}+{self.lora}" + ("" if self.lora_revision is None else f"@{self.lora_revision}")


def parse_reference(text: str, names: Mapping[str, Any] | None = None) -> Reference:
    """Return the parts of ``path@revision+lora@revision``.

    A text that is a known name or an existing path stands for itself, whatever characters are in it.

    Args:
        text: what the document says.
        names: names that are known.

    Returns:
        The parts.

    Raises:
        MergeError: there is more than one adapter, or a part is empty.
    """
    if _whole(text, names):
        return Reference(text)
    model, plus, lora = text.partition("+")
    if plus and _whole(lora, {}):
        adapter, adapter_revision = lora, None
    else:
        if "+" in lora:
            raise MergeError(f"{text!r} names more than one adapter: merge them one after the other, in nested recipes")
        adapter, adapter_revision = _split(lora, {})
    name, revision = _split(model, names)
    if not name or (plus and not adapter) or revision == "" or adapter_revision == "":
        raise MergeError(f"{text!r} is no model: wanted PATH, PATH@REVISION or PATH@REVISION+ADAPTER")
    return Reference(name, revision, adapter or None, adapter_revision)


def _whole(text: str, names: Mapping[str, Any] | None) -> bool:
    return text in (names or {}) or (bool(text) and Path(text).expanduser().exists())


def _split(text: str, names: Mapping[str, Any] | None) -> tuple[str, str | None]:
    if _whole(text, names) or "@" not in text:
        return text, None
    name, _, revision = text.rpartition("@")
    return name, revision


def plain_references(data: Any) -> Any:
    """Return a document's values with every model that is given as a section of its parts as one text.

    ``model: {model: {path: org/name, revision: main}, lora: {path: ...}}`` and ``model: {path: org/name}`` are forms
    that documents have.
    """
    if isinstance(data, Mapping):
        return {
            key: _text_of(value) if key in _KEYS and isinstance(value, Mapping) else plain_references(value)
            for key, value in data.items()
        }
    return [plain_references(value) for value in data] if isinstance(data, list | tuple) else data


def _text_of(value: Any) -> Any:
    if not isinstance(value, Mapping) or "merge_method" in value:
        return value
    if set(value) <= {"path", "revision"} and isinstance(value.get("path"), str):
        return _joined(value)
    if set(value) <= {"model", "lora", "override_architecture"} and value.get("override_architecture") is None:
        model, lora = value.get("model"), value.get("lora")
        model = model if isinstance(model, str) else _joined(model)
        lora = lora if isinstance(lora, str | None) else _joined(lora)
        if isinstance(model, str):
            return model if lora is None else f"{model}+{lora}"
    return plain_references(value)


def _joined(value: Any) -> Any:
    if not isinstance(value, Mapping) or not isinstance(value.get("path"), str):
        return value
    return value["path"] if value.get("revision") is None else f"{value['path']}@{value['revision']}"
