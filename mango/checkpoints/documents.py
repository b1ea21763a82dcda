"""JSON files of a model folder, read within bounds: size, number of values, depth, and no key twice."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mango.checkpoints.failures import reading
from mango.errors import CheckpointError, UnsafeFileError


@dataclass(frozen=True)
class Bounds:
    """What a JSON file may hold at most.

    Attributes:
        num_bytes: its size.
        values: strings, numbers, lists and objects in it; an upper estimate is taken from its brackets and commas.
        depth: lists and objects inside each other.
        number: the largest whole number.
        constants: whether ``NaN`` and ``Infinity``, which are no JSON, may stand in it as Python writes them.
    """

    num_bytes: int
    values: int
    depth: int = 32
    number: int = 2**63
    constants: bool = False


SMALL = Bounds(4 << 20, 400_000)
"""Of every document that no other bounds are made for."""


@contextmanager
def open_plain(path: Path) -> Iterator[BinaryIO]:
    """Open a plain file for reading, and never wait for a pipe.

    Raises:
        CheckpointError: it cannot be read.
        UnsafeFileError: it is a pipe, socket, device or folder.
    """
    with reading(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UnsafeFileError(f"{path}: is no plain file; replace it by one")
            yield file


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a plain file of at most ``limit`` bytes.

    Raises:
        CheckpointError: it cannot be read.
        UnsafeFileError: it is larger, or no plain file.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UnsafeFileError(f"{path}: {size} bytes; at most {limit} are read")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnsafeFileError(f"{path}: grew while it was read; at most {limit} bytes are read")
    return content


def read_head(path: Path, num_bytes: int) -> bytes:
    """Return the first bytes of a plain file.

    Raises:
        CheckpointError: it cannot be read.
        UnsafeFileError: it is no plain file.
    """
    with open_plain(path) as file:
        return file.read(num_bytes)


def read_json(path: Path, bounds: Bounds = SMALL) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        CheckpointError: the file is missing, malformed, or holds no object.
        UnsafeFileError: it is larger, deeper or fuller than its bounds, or an object in it has a key twice.
    """
    return parse_json(read_bytes(path, bounds.num_bytes), str(path), bounds)


def parse_json(text: bytes, where: str, bounds: Bounds = SMALL) -> dict[str, Any]:
    """Return the object that JSON text holds; see `read_json`.

    Raises:
        CheckpointError: the text is malformed, or holds no object.
        UnsafeFileError: it is larger, deeper or fuller than its bounds, or an object in it has a key twice.
    """
    if len(text) > bounds.num_bytes:
        raise UnsafeFileError(f"{where}: {len(text)} bytes; at most {bounds.num_bytes} are read")
    # Each value but the first of a list or object stands behind a comma, so nothing larger than this is ever built.
    most = 1 + sum(text.count(sign) for sign in (b"[", b"{", b",", b":"))
    if most > 2 * bounds.values:
        raise UnsafeFileError(f"{where}: holds up to {most} keys and values; at most {2 * bounds.values} are read")
    try:
        document = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=lambda pairs: _unique(where, pairs),
            parse_constant=None if bounds.constants else lambda word: _refuse_constant(where, word),
            parse_int=lambda digits: _whole(where, digits, bounds.number),
        )
    except RecursionError as error:
        raise UnsafeFileError(f"{where}: lists and objects lie more than {bounds.depth} deep") from error
    except ValueError as error:
        raise CheckpointError(f"{where}: is no JSON ({error}); copy or download it again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{where}: is no JSON object but a {type(document).__name__}")
    if _deeper(document, bounds.depth):
        raise UnsafeFileError(f"{where}: lists and objects lie more than {bounds.depth} deep")
    return document


def _unique(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UnsafeFileError(f"{where}: has {shown(twice)} twice; the file was made to mislead or is damaged")
    return result


def _refuse_constant(where: str, word: str) -> Any:
    raise CheckpointError(f"{where}: holds {word}, which is no JSON")


def _whole(where: str, digits: str, limit: int) -> int:
    if len(digits) > 400 or not -limit <= (number := int(digits)) <= limit:
        raise UnsafeFileError(f"{where}: holds the number {digits[:24]}...; at most {limit} is read")
    return number


def _deeper(document: Any, depth: int) -> bool:
    level = [document]
    for _ in range(depth + 1):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def shown(text: object) -> str:
    """Return how a message shows a name that a file gives: quoted, escaped and short."""
    quoted = ascii(text) if isinstance(text, str) else ascii(str(text))
    return quoted if len(quoted) <= 80 else f"{quoted[:76]}...'"
