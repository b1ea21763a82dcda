"""A merge document in a few words: its method, its models and its parameters, for tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from mango.merging.document import MergeDocument, key_of
from mango.merging.registry import MERGERS
from mango.merging.settings import HINTS

_MOST_ENTRIES = 3


@dataclass(frozen=True)
class Summary:
    """What a document says.

    Attributes:
        method: its merge method, or several joined by commas.
        models: the models that are merged, a base that they are compared with left out.
        parameters: what they are merged with.
    """

    method: str
    models: tuple[str, ...]
    parameters: str


def summarise(document: MergeDocument) -> Summary:
    """Return a document in a few words."""
    methods = dict.fromkeys(name for level in document.levels() for name in level.methods)
    base = None if document.base_model is None else key_of(document.base_model)
    compared = all(MERGERS[name].base in ("reference", "optional") for name in methods)
    parameters: dict[str, dict[str, Any]] = {}
    models: dict[str, None] = {}
    for _, group in document.groups():
        for entry in group if isinstance(group, tuple) else group.sources:
            key = key_of(entry.model)
            if key != base or not compared:
                models[_short(key)] = None
            for name, value in entry.parameters.items():
                parameters.setdefault(name, {})[_short(key)] = value
    words = []
    for name, by_model in parameters.items():
        shown = {model: _setting(value) for model, value in by_model.items()}
        if len(set(shown.values())) == 1 and len(shown) == len(models):
            words.append(f"{name} {next(iter(shown.values()))}")
        else:
            words.append(f"{name} {', '.join(f'{model} {text}' for model, text in shown.items())}")
    words += [f"{name} {_setting(value)}" for name, value in document.parameters.items() if name not in HINTS]
    if base is not None:
        words.append(f"base {_short(base)}")
    return Summary(", ".join(methods), tuple(models), "; ".join(words))


def _short(key: str) -> str:
    return PurePath(key).name or key


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return _setting([value])
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        if len(value) > _MOST_ENTRIES:
            numbers = [float(n) for entry in value for n in _numbers(entry.get("value"))]
            return f"from {min(numbers):.3g} to {max(numbers):.3g} by layer" if numbers else "by layer"
        parts = []
        for entry in value:
            place = entry.get("filter")
            parts.append(f"{_setting(entry.get('value'))}" + ("" if place in (None, "*") else f" for {place}"))
        return " or ".join(parts)
    if isinstance(value, list):
        return f"[{', '.join(_setting(part) for part in value)}] over the depth"
    return str(value)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []
