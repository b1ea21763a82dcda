"""The header of a safetensors file, checked before anything trusts it."""

from __future__ import annotations

import gc
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mango.checkpoints.documents import Bounds, open_plain, parse_json, shown
from mango.checkpoints.magic import refuse_other
from mango.checkpoints.names import check_tensor_name
from mango.errors import CheckpointError, IntegrityError, UnsafeFileError
from mango.tensors import ITEM_BYTES, item_bytes

MAX_HEADER_BYTES = 32 * 2**20
MAX_TENSORS = 250_000
MAX_RANK = 16
_BOUNDS = Bounds(MAX_HEADER_BYTES, 8 * MAX_TENSORS, depth=3)


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        name: its name in the checkpoint.
        dtype: the safetensors name of its element type, such as ``"BF16"``.
        shape: its extents.
        file: the safetensors file.
        start: offset of its first byte in the file.
        end: offset behind its last byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read and check the header of one safetensors file.

    Returns:
        The tensors by name, in the order of their bytes.

    Raises:
        CheckpointError: the file cannot be read, or holds an element type that Mango does not read.
        IntegrityError: the file is truncated, malformed, or its ranges overlap, leave holes or end elsewhere.
        UnsafeFileError: the file is of another kind, the header is larger than any real one, or a name is empty,
            repeated, unprintable or a path.
    """
    with open_plain(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(512)
        refuse_other(file, head, "safetensors")
        if len(head) < 8:
            raise IntegrityError(f"{file}: {size} bytes is no safetensors file; copy or download it again")
        (length,) = struct.unpack("<Q", head[:8])
        if length > MAX_HEADER_BYTES:
            raise UnsafeFileError(f"{file}: header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
        text = head[8 : 8 + length] + stream.read(max(0, length - len(head) + 8))
    if len(text) < length:
        raise IntegrityError(f"{file}: truncated inside its header ({size} bytes); copy or download it again")
    with _collecting_later():
        return _tensors(file, text, length, size)


def _tensors(file: Path, text: bytes, length: int, size: int) -> dict[str, TensorInfo]:
    try:
        document = parse_json(text, f"{file}: header", _BOUNDS)
    except UnsafeFileError:
        raise
    except CheckpointError as error:
        raise IntegrityError(str(error)) from error
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise IntegrityError(f"{file}: the header's __metadata__ is no mapping of names to text")
    if len(document) > MAX_TENSORS:
        raise UnsafeFileError(f"{file}: {len(document)} tensors; at most {MAX_TENSORS} are read")
    infos = [_tensor(file, name, entry, 8 + length) for name, entry in document.items()]
    infos.sort(key=lambda info: (info.start, info.end))
    _check_ranges(file, infos, 8 + length, size)
    return {info.name: info for info in infos}


@contextmanager
def _collecting_later() -> Iterator[None]:
    """Look for no garbage meanwhile: of hundreds of thousands of objects that all stay, each look costs more."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _tensor(file: Path, name: str, entry: Any, base: int) -> TensorInfo:
    check_tensor_name(name, file)
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{file}: the header entry of {name!r} is malformed") from error
    numbers = (*shape, start, end)
    if len(shape) > MAX_RANK or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise IntegrityError(
            f"{file}: {name!r} has a shape or range that is no list of natural numbers, at most {MAX_RANK} of them"
        )
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{file}: {name!r} has element type {shown(dtype)}; known: {', '.join(ITEM_BYTES)}")
    if end - start != math.prod(shape) * item_bytes(dtype):
        raise IntegrityError(f"{file}: {name!r} is {dtype} {list(shape)} but its range holds {end - start} bytes")
    return TensorInfo(name, dtype, shape, file, base + start, base + end)


def _check_ranges(file: Path, infos: list[TensorInfo], base: int, size: int) -> None:
    position = base
    for info in infos:
        if info.start != position:
            kind = "overlaps the tensor before it" if info.start < position else "leaves a hole before it"
            raise IntegrityError(f"{file}: {info.name!r} {kind}; the file is damaged or was made to mislead")
        position = info.end
    if size != position:
        kind = "truncated" if size < position else "too long"
        raise IntegrityError(
            f"{file}: {kind}: {size} bytes, the header says {position}; copy or download the file again"
        )
