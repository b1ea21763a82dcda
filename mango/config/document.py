"""Read a YAML document into plain values that remember their lines."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mango.errors import ConfigError

Key = tuple[str | int, ...]
"""Path of a value: section names and list positions."""

MAX_BYTES = 1 << 17
"""A parser that remembers lines takes about a second for so many."""
MAX_VALUES = 20_000
"""Bound on values after aliases are followed: a few lines of nested aliases can stand for billions."""


MAX_DEPTH = 64
"""Bound on brackets inside each other: the parser looks through all that are open at every token."""


@dataclass
class Document:
    """A YAML mapping as plain ``dict``, ``list`` and scalars, with the line of every key.

    Args:
        name: how messages call the document: its path as the caller gave it.
        data: the values.
        lines: line, counted from 1, of each key and list item.
    """

    name: str
    data: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)


def read_document(path: Path) -> Document:
    """Read a YAML file: YAML 1.2, so ``1e-4`` is a number; a key given twice is an error.

    Args:
        path: the file; an empty one is an empty mapping.

    Returns:
        The document.

    Raises:
        ConfigError: the file is missing, too large, not UTF-8, not YAML, or not a mapping.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): give the path of a YAML file") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: has {len(raw)} bytes, more than the {MAX_BYTES} that a configuration may have")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8: save the file as UTF-8") from error
    return parse_document(text, str(path))


def parse_document(text: str, name: str) -> Document:
    """Parse YAML text; see `read_document`.

    Raises:
        ConfigError: the text is not YAML or not a mapping.
    """
    tree = _parse(text, name)
    if tree is None:
        return Document(name, {})
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: holds a {_kind(tree)}, wanted a mapping of sections to parameters")
    lines: dict[Key, int] = {}
    data = _plain(tree, (), name, lines, iter(range(MAX_VALUES)))
    return Document(name, data, lines)


def parse_value(text: str, name: str) -> Any:
    """Parse one value as it would be read from YAML, for an override on the command line.

    Raises:
        ConfigError: the text is not a YAML value.
    """
    return _plain(_parse(text, name), (), name, {}, iter(range(MAX_VALUES)))


def _parse(text: str, name: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    reader = YAML(typ="rt")
    reader.Scanner = _bounded_scanner()
    try:
        return reader.load(text)
    except DuplicateKeyError as error:
        where = f"{name}:{error.problem_mark.line + 1}" if error.problem_mark else name
        problem = str(error.problem).split(" with value")[0].replace("found duplicate key", "key")
        raise ConfigError(f"{where} {problem} is given twice in one section: keep one of them") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{where} is not YAML: {error.problem or error.context}") from error
    except YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: sections and lists lie too deep inside each other") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # what ruamel.yaml raises at a scalar that its type cannot hold, such as the date 2026-99-99
        raise ConfigError(f"{name} is not YAML: {type(error).__name__}: {str(error)[:200]}") from error


@cache
def _bounded_scanner() -> type[Any]:
    from ruamel.yaml.scanner import RoundTripScanner, ScannerError

    class BoundedScanner(RoundTripScanner):
        """A scanner that refuses brackets inside each other beyond the bound."""

        def fetch_flow_collection_start(self, *given: Any, **named: Any) -> None:
            """Open a bracket."""
            if len(self.flow_context) >= MAX_DEPTH:
                problem = f"more than {MAX_DEPTH} brackets lie inside each other"
                raise ScannerError(None, None, problem, self.reader.get_mark())
            super().fetch_flow_collection_start(*given, **named)

    return BoundedScanner


def _plain(value: Any, key: Key, name: str, lines: dict[Key, int], budget: Iterator[int]) -> Any:
    if next(budget, None) is None:
        raise ConfigError(f"{name}: stands for more than {MAX_VALUES} values once its aliases are followed")
    tag = getattr(getattr(value, "tag", None), "value", None)
    if tag is not None:
        raise ConfigError(f"{name}: {'.'.join(map(str, key)) or 'it'} has the YAML tag {tag}: leave the tag out")
    if isinstance(value, dict):
        _note_lines(value, key, lines)
        plain = {}
        for name_in_section, inner in value.items():
            if not isinstance(name_in_section, str):
                where = lines.get((*key, name_in_section))
                at = f"{name}:{where}" if where else name
                raise ConfigError(f"{at} the key {name_in_section!r} is a {_kind(name_in_section)}: put it in quotes")
            plain[str(name_in_section)] = _plain(inner, (*key, str(name_in_section)), name, lines, budget)
        return plain
    if isinstance(value, list | set | tuple):
        _note_lines(value, key, lines)
        return [_plain(inner, (*key, i), name, lines, budget) for i, inner in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if type(value).__name__ == "ScalarBoolean":  # an int to isinstance: ruamel's form of a truth value with an anchor
        return bool(value)
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)  # drops the round-trip subclass that remembers quotes and notation
    if isinstance(value, datetime.date):
        return value.isoformat()
    found = f"{'.'.join(map(str, key)) or 'it'} is a YAML {type(value).__name__}"
    raise ConfigError(f"{name}: {found}; wanted text, a number, a truth value, a list or a section")


def _note_lines(value: Any, key: Key, lines: dict[Key, int]) -> None:
    marks = getattr(getattr(value, "lc", None), "data", None) or {}
    for inner, mark in marks.items():
        lines[(*key, inner)] = mark[0] + 1


def _kind(value: object) -> str:
    kinds = {dict: "section", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return next((word for kind, word in kinds.items() if isinstance(value, kind)), type(value).__name__)
