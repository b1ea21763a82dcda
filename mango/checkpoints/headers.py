"""The header of a safetensors file, checked before anything trusts it."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mango.checkpoints.failures import reading
from mango.errors import CheckpointError, IntegrityError, UnsafeFileError
from mango.tensors import DTYPES, item_bytes

MAX_HEADER_BYTES = 32 * 2**20
MAX_TENSORS = 250_000


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
        UnsafeFileError: the header is larger than any real one, or a name is empty, repeated or unprintable.
    """
    with reading(file), file.open("rb") as stream:
        size = file.stat().st_size
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise IntegrityError(f"{file}: {size} bytes is no safetensors file; copy or download it again")
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER_BYTES:
            raise UnsafeFileError(f"{file}: header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
        text = stream.read(length)
    if len(text) < length:
        raise IntegrityError(f"{file}: truncated inside its header ({size} bytes); copy or download it again")
    try:
        document = json.loads(text, object_pairs_hook=lambda pairs: _unique(file, pairs))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{file}: the header is no JSON ({error}); copy or download it again") from error
    if not isinstance(document, dict):
        raise IntegrityError(f"{file}: the header is no JSON object")
    document.pop("__metadata__", None)
    if len(document) > MAX_TENSORS:
        raise UnsafeFileError(f"{file}: {len(document)} tensors; at most {MAX_TENSORS} are read")
    infos = [_tensor(file, name, entry, 8 + length) for name, entry in document.items()]
    infos.sort(key=lambda info: (info.start, info.end))
    _check_ranges(file, infos, 8 + length, size)
    return {info.name: info for info in infos}


def _unique(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise UnsafeFileError(f"{file}: the header has {key!r} twice; the file was made to mislead or is damaged")
        result[key] = value
    return result


def _tensor(file: Path, name: str, entry: Any, base: int) -> TensorInfo:
    if not name or not name.isprintable():
        raise UnsafeFileError(f"{file}: tensor name {name!r} is empty or unprintable")
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{file}: the header entry of {name!r} is malformed") from error
    numbers = (*shape, start, end)
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in numbers):
        raise IntegrityError(f"{file}: {name!r} has a shape or range that is no list of natural numbers")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{file}: {name!r} has element type {dtype!r}; known: {', '.join(DTYPES)}")
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
