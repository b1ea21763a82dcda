"""Parameters as documents give them: numbers, gradients over the blocks, and filters on tensor names."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from mango.config import Problem, near
from mango.config.explain import describe

Scalar = bool | int | float | str

HINTS = frozenset({"int8_mask"})
"""Parameters of mergekit's documents that tell it how to save memory: read, and noted to change nothing here."""


def check_parameters(
    given: Mapping[str, Any], schemas: Sequence[type[BaseModel]], at: str, ignored: Collection[str] = ()
) -> Iterator[Problem]:
    """Find what is wrong with the parameters of one level of a document.

    Args:
        given: parameters by name; each a scalar, a gradient (a list of numbers over the depth of the model), or
            filter entries (a section, or a list of sections, of ``filter`` and ``value``).
        schemas: the parameter models of the methods that may read them; every number of a gradient must be within
            the bounds of all that know the name.
        at: dotted path of the level in the document.
        ignored: names that are read and change nothing; they take truth values.

    Yields:
        A problem for each unknown name, wrong form, and value out of bounds.
    """
    by_schema = [{field.alias or name: name for name, field in schema.model_fields.items()} for schema in schemas]
    known = set(ignored).union(*by_schema)
    for name, setting in given.items():
        if name not in known:
            listed = ", ".join(sorted(known)) or "nothing"
            yield Problem(f"{at}.{name}", f"unknown parameter{near(name, known) or '.'} Known here: {listed}")
            continue
        knowing = [schema for schema, names in zip(schemas, by_schema, strict=True) if name in names]
        for where, value in _leaves(setting, f"{at}.{name}"):
            if isinstance(value, Problem):
                yield value
            elif knowing:
                for schema in knowing:
                    yield from _check_value(name, value, schema, where)
            elif not isinstance(value, bool) and value not in (0, 1):
                yield Problem(where, f"{value!r}: wanted a valid boolean")


def _leaves(setting: Any, at: str) -> Iterator[tuple[str, Any]]:
    """Yield every single value of a setting with its path, or a problem with its form."""
    if isinstance(setting, list):
        if not setting:
            yield at, Problem(at, "is an empty list: give numbers for a gradient, or filter entries")
        elif any(isinstance(entry, dict) for entry in setting):
            for i, entry in enumerate(setting):
                yield from _entry_leaves(entry, f"{at}.{i}")
            if all(isinstance(entry, dict) and entry.get("filter") not in (None, "*") for entry in setting[:-1]):
                return
            yield at, Problem(at, "an entry without filter takes every tensor: put it last, or give it a filter")
        else:
            yield from ((f"{at}.{i}", value) for i, value in enumerate(setting))
    elif isinstance(setting, dict):
        yield from _entry_leaves(setting, at)
    else:
        yield at, setting


def _entry_leaves(entry: Any, at: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(entry, dict):
        yield at, Problem(at, f"{entry!r} stands beside filter entries: write it as 'value: {entry!r}'")
        return
    for key in entry:
        if key not in ("filter", "value"):
            hint = near(key, ("filter", "value")) or "."
            yield at, Problem(f"{at}.{key}", f"unknown key{hint} Known here: filter, value")
    if "filter" in entry and not (entry["filter"] is None or (isinstance(entry["filter"], str) and entry["filter"])):
        yield (
            at,
            Problem(f"{at}.filter", f"{entry['filter']!r} is no text: give a part of tensor names, or '*' for all"),
        )
    if "value" not in entry:
        yield at, Problem(at, "has no value: write 'value: NUMBER' or a gradient")
    elif isinstance(entry["value"], dict) or (isinstance(entry["value"], list) and _has_sections(entry["value"])):
        yield at, Problem(f"{at}.value", "is a section: a number or a list of numbers was wanted")
    else:
        yield from _leaves(entry["value"], f"{at}.value")


def _has_sections(values: list[Any]) -> bool:
    return any(isinstance(value, dict | list) for value in values)


def _check_value(name: str, value: Any, params: type[BaseModel], at: str) -> Iterator[Problem]:
    if isinstance(value, int | float) and value in (0, 1) and _is_switch(name, params):
        return  # documents write switches as 0 and 1, too
    try:
        params.model_validate({name: value}, strict=True)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            if item["loc"][:1] == (name,):
                yield Problem(at, describe(item, params))


def _is_switch(name: str, params: type[BaseModel]) -> bool:
    return any(field.annotation is bool for key, field in params.model_fields.items() if name == (field.alias or key))


def evaluate(setting: Any, depth: float, name: str) -> Any:
    """Return the value that a setting has for one tensor, or None where no filter entry takes it.

    Args:
        setting: a scalar, a gradient, or filter entries.
        depth: where the tensor's block is in its slice, from 0 for the first to 1 for the last.
        name: the tensor's name, for filters.

    Returns:
        The scalar. A gradient's numbers stand at equal distances over the depth, linearly interpolated between.
    """
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if isinstance(setting[0], dict):
        for entry in setting:
            pattern = entry.get("filter")
            if pattern in (None, "*") or pattern in name:
                return evaluate(entry["value"], depth, name)
        return None
    return _interpolate(setting, depth)


def _interpolate(values: Sequence[Scalar], depth: float) -> Scalar:
    if any(isinstance(value, bool | str) for value in values):
        return values[int(depth * (len(values) - 1))]  # nothing lies between two of them: the one before counts
    place = depth * (len(values) - 1)
    below = min(math.floor(place), len(values) - 1)
    above = min(below + 1, len(values) - 1)
    share = place - below
    return (1 - share) * float(values[below]) + share * float(values[above])
