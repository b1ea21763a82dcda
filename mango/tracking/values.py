"""Turns nested parameters into the flat text that a run stores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import TypeVar

from pydantic import BaseModel

from mango.errors import RegistryError
from mango.redaction import redact, redact_tree

_LONGEST_NAME = 250
T = TypeVar("T")


def flatten(params: Mapping[str, object] | BaseModel, prefix: str = "") -> dict[str, str]:
    """Return nested parameters under dotted names, as text, with secrets redacted.

    Args:
        params: nested mappings or pydantic models; lists and other leaves become JSON, text stays as it is.
        prefix: what to put before every name.

    Returns:
        name to text, in the order of ``params``.
    """
    flat: dict[str, str] = {}
    items = params.model_dump(mode="json") if isinstance(params, BaseModel) else params
    for key, value in items.items():
        name = f"{prefix}{key}"
        if isinstance(value, BaseModel) or (isinstance(value, Mapping) and value):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = redact(name, _text(value))
    return flat


def numbers(data: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Return the finite numbers of nested data under dotted names; text, nulls and lists are left out."""
    found: dict[str, float] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            found.update(numbers(value, f"{prefix}{key}."))
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}{key}"] = float(value)
    return found


def check_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics as floats.

    Raises:
        RegistryError: a value is no number. NaN and infinity are numbers here: a training that diverged is logged.
    """
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RegistryError(f"metric {name!r}: found {value!r} ({type(value).__name__}), wanted a number")
    return {_check_name(name): float(value) for name, value in metrics.items()}


def chunks(items: list[T], size: int) -> list[list[T]]:
    """Return ``items`` cut into lists of at most ``size``."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def _check_name(name: str) -> str:
    if not name or len(name) > _LONGEST_NAME:
        raise RegistryError(f"metric name of {len(name)} characters: wanted 1 to {_LONGEST_NAME}")
    return name


def _text(value: object) -> str:
    if isinstance(value, str | PurePath):
        return str(value)
    return json.dumps(redact_tree(value), default=str, sort_keys=isinstance(value, Mapping))
