"""GGUF files on the Hub, told by their headers: range requests read these, and no weight is downloaded."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mango.checkpoints.durable import write_file
from mango.checkpoints.failures import writing
from mango.checkpoints.sources import ModelSource, admit_hub, hub_errors
from mango.errors import CheckpointError

_FIRST_BYTES = 1 << 22
_MOST_BYTES = 1 << 28
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by the number of its type, as the GGUF specification gives them."""


def fetch_gguf_head(source: ModelSource, cache: Path) -> Path:
    """Return a file with the header of a GGUF file on the Hub, as long as that file, with nothing in its other places.

    Args:
        source: id of the repository, with ``gguf_file``.
        cache: where the file is kept, by name and by what the Hub says that tells its content.

    Raises:
        CheckpointError: the Hub does not have the file, or cannot be reached, or it is no GGUF file.
        UnsafeFileError: the policy does not let the repository in.
    """
    admit_hub(source)
    name = f"{source.source}: {source.gguf_file}"
    data, size, tag = _fetch(source, 0, _FIRST_BYTES)
    where = hashlib.sha256(f"{source.source} {source.gguf_file} {source.revision} {tag}".encode()).hexdigest()
    file = cache / "gguf" / f"head-{where}.gguf"
    if tag and file.is_file() and file.stat().st_size == size:
        return file
    if data[:4] != b"GGUF":
        raise CheckpointError(f"{name}: does not start as a GGUF file does")
    while (end := header_end(data)) is None:
        if len(data) >= min(size, _MOST_BYTES):
            raise CheckpointError(f"{name}: its header does not end within {len(data)} bytes; the file is damaged")
        more, _, its_tag = _fetch(source, len(data), min(2 * len(data), size, _MOST_BYTES))
        if not more or its_tag != tag:
            raise CheckpointError(f"{name}: changed, or ended early, while its header was read; try again")
        data += more
    with writing(file):
        write_file(file, data[:end])
        os.truncate(file, size)
    return file


def _fetch(source: ModelSource, start: int, end: int) -> tuple[bytes, int, str]:
    """Return bytes of the file, its size, and the tag of its content; large files are answered by another server."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, though its list of names is not
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    url = hf_hub_url(source.source, str(source.gguf_file), revision=source.revision)
    with hub_errors(source):
        answer: Any = get_session().get(url, headers={**build_hf_headers(), "Range": f"bytes={start}-{end - 1}"})
        hf_raise_for_status(answer)
    size = answer.headers.get("Content-Range", "").rpartition("/")[2] or str(start + len(answer.content))
    return bytes(answer.content), int(size), answer.headers.get("ETag", "")


def header_end(data: bytes) -> int | None:
    """Return where the header of a GGUF file ends, or None where it goes on behind what is given.

    Args:
        data: the beginning of the file.

    Raises:
        CheckpointError: a type is not known.
    """
    position = 4  # behind the magic number

    def take(form: str) -> Any:
        nonlocal position
        (value,) = struct.unpack_from(form, data, position)
        position += struct.calcsize(form)
        return value

    def skip_string() -> None:
        nonlocal position
        length = take("<Q")
        position += length

    def skip_value(kind: int) -> None:
        nonlocal position
        if kind == _STRING:
            skip_string()
        elif kind == _ARRAY:
            inner, count = take("<I"), take("<Q")
            if inner in _SIZES:
                position += count * _SIZES[inner]
            else:
                _repeat(count, lambda: skip_value(inner))
        elif kind in _SIZES:
            position += _SIZES[kind]
        else:
            raise CheckpointError(f"the header of a GGUF file has a value of type {kind}, which is not known")

    def skip_field() -> None:
        skip_string()
        skip_value(take("<I"))

    def skip_tensor() -> None:
        nonlocal position
        skip_string()
        num_dimensions = take("<I")
        position += 8 * num_dimensions
        take("<I")
        take("<Q")

    try:
        take("<I")
        num_tensors, num_fields = take("<Q"), take("<Q")
        _repeat(num_fields, skip_field)
        _repeat(num_tensors, skip_tensor)
    except struct.error:
        return None
    return position if position <= len(data) else None


def _repeat(count: int, step: Callable[[], None]) -> None:
    for _ in range(count):
        step()
