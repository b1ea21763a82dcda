"""Turn what pydantic found into one line a problem: where, what was found, what was wanted."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mango.config.base import ContradictionError, Problem
from mango.config.document import Key

_PLAIN = (
    ("Input should be an object", "wanted a section of KEY: VALUE"),
    ("Input should be a valid array", "wanted a list"),
    ("Input should be a valid", "wanted a valid"),
    ("Input should be", "must be"),
)
"""What pydantic says of JSON, in the words of a YAML file."""


def near(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known word nearest to ``word``, or nothing."""
    found = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def shown(value: Any) -> str:
    """Return a value as a message shows it, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def describe(error: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """Return what one pydantic error says, without its key.

    Args:
        error: an item of ``ValidationError.errors()``.
        schema: the model that was validated, for the names of known keys.
    """
    kind, found, message = error["type"], error["input"], error["msg"]
    if kind == "extra_forbidden":
        known = known_keys(schema, tuple(error["loc"][:-1]))
        return f"unknown key{near(str(error['loc'][-1]), known) or '.'} Known here: {', '.join(known) or 'nothing'}"
    if kind == "missing":
        return "is missing: give it a value"
    if kind in ("value_error", "assertion_error"):
        cause = error.get("ctx", {}).get("error")
        return str(cause) if cause is not None else message
    if kind in ("literal_error", "enum"):
        expected = error["ctx"]["expected"]
        words = expected.replace("'", "").replace(" or ", ", ").split(", ")
        return f"{shown(found)} is not {expected}{near(str(found), words)}"
    for technical, plain in _PLAIN:
        message = message.replace(technical, plain)
    return f"{shown(found)}: {message[:1].lower()}{message[1:]}"


def section_problems(schema: type[BaseModel], value: Any, key: str) -> list[Problem]:
    """Return what is wrong with a section whose model is known only at run time, as that of a registered part.

    Args:
        schema: the section's parameter model.
        value: what the section holds.
        key: dotted path of the section, relative to the model that asks.

    Returns:
        One problem for each wrong value; none if the section is right.
    """
    try:
        schema.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return [
            Problem(".".join(map(str, (key, *item["loc"]))), describe(item, schema))
            for item in error.errors(include_url=False)
        ]
    return []


def contradictions(error: Mapping[str, Any]) -> ContradictionError | None:
    """Return the contradiction behind a pydantic error, if it is one."""
    cause = error.get("ctx", {}).get("error")
    return cause if isinstance(cause, ContradictionError) else None


def known_keys(schema: type[BaseModel], loc: Key) -> list[str]:
    """Return the keys that the model at ``loc`` knows, sorted."""
    models = [schema]
    for part in loc:
        inner = [m for model in models for m in _models_in(_field(model, part))]
        models = inner or models  # a union's tag or a list position names no field: stay
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})


def _field(model: type[BaseModel], part: str | int) -> Any:
    return next((f.annotation for n, f in model.model_fields.items() if part in (n, f.alias)), None)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    if get_origin(annotation) in (Annotated, Union, types.UnionType, dict, list, tuple, Mapping, Callable):
        return [model for inner in get_args(annotation) for model in _models_in(inner)]
    return []
