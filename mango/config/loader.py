"""The one loader: defaults < YAML < environment < command line, every problem reported at once."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from mango.config.base import ContradictionError, Frozen
from mango.config.document import Document, Key, read_document
from mango.config.explain import contradictions, describe
from mango.config.overrides import Override, read_overrides
from mango.errors import ConfigError

F = TypeVar("F", bound=Frozen)


@dataclass(frozen=True)
class Loaded(Generic[F]):
    """A configuration and where each part of it came from."""

    value: F
    document: Document
    overrides: tuple[Override, ...]

    def origin(self, key: str) -> str:
        """Return where a dotted key's value came from: ``"params.yaml:14"``, ``"--set router.k"``, ``"default"``."""
        return _origin(_parts(key), self.document, self.overrides, default="default")

    def rows(self) -> list[tuple[str, Any, str]]:
        """Return (dotted key, value, origin) of every parameter, in the schema's order."""
        data = self.value.model_dump(mode="json", by_alias=True)
        return [(key, value, self.origin(key)) for key, value in _leaves(data, "")]


def load(
    schema: type[F], path: Path, *, environ: Mapping[str, str] | None = None, overrides: Sequence[str] = ()
) -> Loaded[F]:
    """Load a configuration file into its schema.

    Args:
        schema: the root model.
        path: YAML file.
        environ: where ``MANGO_PARAM__section__key`` is looked up; the process's environment by default.
        overrides: command-line assignments, ``"router.type=topk"``.

    Returns:
        The validated parameters with the origin of each.

    Raises:
        ConfigError: one line for each problem: place, key, the value found and what is wrong with it.
    """
    document = read_document(path)
    applied = tuple(read_overrides(os.environ if environ is None else environ, overrides))
    return validate(schema, document, applied)


def validate(schema: type[F], document: Document, overrides: Sequence[Override] = ()) -> Loaded[F]:
    """Validate a document with overrides applied; see `load`.

    Raises:
        ConfigError: one line for each problem.
    """
    overrides = tuple(overrides)
    data, problems = _apply(document.data, overrides)
    data_given = copy.deepcopy(data)
    wrong: list[Key] = []
    while True:
        try:
            value = schema.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            found = list(_problems(error, schema, data_given, wrong))
            problems += found
            removed = [_remove(data, key) for key, _ in found]
            wrong += [key for key, _ in found] + removed
            if any(removed):
                continue  # without the wrong values, what else is wrong?
        break
    if problems:
        lines = dict.fromkeys(_line(key, message, document, overrides) for key, message in problems)
        raise ConfigError("\n".join(sorted(lines, key=_by_line)))
    return Loaded(value, document, overrides)


def _apply(base: dict[str, Any], overrides: Sequence[Override]) -> tuple[dict[str, Any], list[tuple[Key, str]]]:
    data, problems = copy.deepcopy(base), []
    for override in overrides:
        section: Any = data
        for depth, part in enumerate(override.key[:-1]):
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                above = ".".join(map(str, override.key[: depth + 1]))
                problems.append((override.key, f"{above} is no section: set {above} as a whole"))
                break
        else:
            section[override.key[-1]] = override.value
    return data, problems


def _problems(
    error: ValidationError, schema: type[BaseModel], data: dict[str, Any], wrong: Sequence[Key]
) -> Iterator[tuple[Key, str]]:
    for item in error.errors(include_url=False):
        loc = tuple(item["loc"])
        key = _present(loc, data, leaf_missing=item["type"] == "missing")
        contradiction: ContradictionError | None = contradictions(item)
        if contradiction is None:
            if not any(_related(key, other) for other in wrong):
                yield key, describe(item, schema)
            continue
        for problem in contradiction.problems:
            rests_on = [(*key, *_parts(k)) for k in (problem.key, *problem.depends)]
            if not any(_related(k, other) for k in rests_on for other in wrong):
                yield rests_on[0], problem.message


def _present(loc: Key, data: Any, *, leaf_missing: bool) -> Key:
    """Drop what pydantic adds to a path (union tags, ``[key]``) and the data does not have."""
    kept: list[str | int] = []
    for i, part in enumerate(loc):
        inside = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if inside:
            data = data[part]
            kept.append(part)
        elif leaf_missing and i == len(loc) - 1:
            kept.append(part)
    return tuple(kept)


def _remove(data: dict[str, Any], key: Key) -> Key:
    """Remove a value, or the nearest section around it that can be removed, and return what was."""
    for length in range(len(key), 0, -1):
        section: Any = data
        for part in key[: length - 1]:
            section = section[part] if _has(section, (part,)) else None
        if isinstance(section, dict) and key[length - 1] in section:
            del section[key[length - 1]]
            return key[:length]
    return ()


def _related(a: Key, b: Key) -> bool:
    short = min(len(a), len(b))
    return short > 0 and a[:short] == b[:short]


def _origin(key: Key, document: Document, overrides: Sequence[Override], *, default: str) -> str:
    for override in reversed(overrides):
        if key[: len(override.key)] == override.key:
            return override.origin
    line = document.lines.get(key)
    return f"{document.name}:{line}" if line and _has(document.data, key) else default


def _line(key: Key, message: str, document: Document, overrides: Sequence[Override]) -> str:
    where = document.name
    for length in range(len(key), 0, -1):  # a missing or defaulted key: blame the nearest thing that was written
        where = _origin(key[:length], document, overrides, default="")
        if where:
            break
    else:
        where = document.name
    dotted = ".".join(map(str, key))
    name = f" {dotted}:" if dotted and not where.endswith((f" {dotted}", "__".join(map(str, key)))) else ":"
    return f"{where}{name} {message}"


def _by_line(text: str) -> tuple[str, int, str]:
    where = text.split(" ", 1)[0]
    name, _, line = where.rpartition(":")
    return (name, int(line), text) if line.isdigit() else (where, 0, text)


def _has(data: Any, key: Key) -> bool:
    return _present(key, data, leaf_missing=False) == key


def _parts(key: str) -> Key:
    return tuple(int(p) if p.isdigit() else p for p in key.split("."))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
