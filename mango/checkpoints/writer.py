"""Writing weights one tensor at a time: the headers first, then the bytes at their offsets."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mango.checkpoints.durable import write_file
from mango.checkpoints.failures import writing
from mango.checkpoints.hashing import Digests, Hasher
from mango.checkpoints.reader import INDEX_NAME, SINGLE_NAME
from mango.checkpoints.room import check_room
from mango.checkpoints.sealing import CHUNK_BYTES, THREADS_FROM_BYTES, remember_hashes, start_writing
from mango.errors import CheckpointError
from mango.tensors import ITEM_BYTES, item_bytes

if TYPE_CHECKING:
    import torch

DEFAULT_SHARD_BYTES = 2 * 10**9
"""Small enough that the files of a large model are hashed side by side: the SHA-256 of one file takes one thread."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is to be written.

    Attributes:
        name: its name in the checkpoint.
        dtype: the safetensors name of its element type, such as ``"BF16"``.
        shape: its extents.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The size of its data in bytes."""
        return self.num_elements * item_bytes(self.dtype)


Produce: TypeAlias = "Callable[[str], torch.Tensor | Iterable[torch.Tensor]]"
"""Returns a tensor by name, whole or as consecutive pieces of its flattened elements."""


def write_tensors(
    folder: Path | str,
    specs: Sequence[TensorSpec],
    produce: Produce,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write a checkpoint's weights with no more than one produced tensor, or one piece of it, in memory.

    Room for all of it is asked for, and the space for each file reserved, before anything is computed, so a full disk
    is found at once. Use it inside :func:`mango.checkpoints.replace_folder`, which keeps an older version intact and
    makes the files durable; their hashes, which it wants, are computed here while the bytes are written.

    Args:
        folder: an existing folder.
        specs: what is to be written. A tensor larger than a shard has a shard of its own.
        produce: called once for each name; returns the tensor on the CPU in its type and shape, or an iterable of
            flat pieces of it, in order.
        max_shard_bytes: a shard's data does not exceed it; more than one shard means an index beside them.
        metadata: entries for the files' metadata; ``format: pt`` is always there.

    Returns:
        The files written.

    Raises:
        CheckpointError: a spec is repeated or of an unknown type, a produced tensor is not as its spec says, or the
            files cannot be written.
    """
    folder = Path(folder)
    check_specs(folder, specs)
    shards = split_shards(specs, max_shard_bytes)
    check_room(folder, sum(spec.num_bytes for spec in specs))
    files = [folder / name for name in shard_names(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        with writing(file):
            _write_shard(file, shard, produce, {"format": "pt", **(metadata or {})})
    if len(shards) > 1:
        write_file(folder / INDEX_NAME, index_text(shards))
        files.append(folder / INDEX_NAME)
    return files


def shard_names(count: int) -> list[str]:
    """Return the names of a checkpoint's weight files."""
    if count == 1:
        return [SINGLE_NAME]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def index_text(shards: Sequence[Sequence[TensorSpec]]) -> str:
    """Return the index that stands beside several weight files."""
    names = shard_names(len(shards))
    weight_map = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
    total = {"total_size": sum(spec.num_bytes for shard in shards for spec in shard)}
    return json.dumps({"metadata": total, "weight_map": weight_map}, indent=1, sort_keys=True) + "\n"


def check_specs(folder: Path, specs: Sequence[TensorSpec]) -> None:
    """Refuse tensors that cannot be written.

    Raises:
        CheckpointError: a name is repeated or cannot be one, or a type is unknown.
    """
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            raise CheckpointError(f"{folder}: tensor {spec.name!r} is to be written twice")
        if not spec.name or not spec.name.isprintable() or spec.name == "__metadata__":
            raise CheckpointError(f"{folder}: {spec.name!r} cannot be the name of a tensor")
        if spec.dtype not in ITEM_BYTES:
            raise CheckpointError(f"{folder}: {spec.name!r} has type {spec.dtype!r}; known: {', '.join(ITEM_BYTES)}")
        seen.add(spec.name)


def split_shards(specs: Sequence[TensorSpec], max_shard_bytes: int) -> list[list[TensorSpec]]:
    """Return the tensors of each weight file, in the order of their bytes."""
    shards: list[list[TensorSpec]] = [[]]
    room = max_shard_bytes
    for spec in specs:
        if spec.num_bytes > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(spec)
        room -= spec.num_bytes
    # The widest types come first, so that every tensor is aligned and can be mapped in place.
    return [sorted(shard, key=lambda spec: -item_bytes(spec.dtype)) for shard in shards]


def shard_header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes in front of the tensors of a weight file."""
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for spec in specs:
        end = position + spec.num_bytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_shard(file: Path, specs: Sequence[TensorSpec], produce: Produce, metadata: Mapping[str, str]) -> None:
    import torch

    from mango.tensors import torch_dtype

    header = shard_header(specs, metadata)
    size = len(header) + sum(spec.num_bytes for spec in specs)
    with file.open("wb", buffering=0) as stream, ThreadPoolExecutor(1) as pool:
        os.posix_fallocate(stream.fileno(), 0, size)
        hashed = _HashedFile(stream, pool)
        hashed.write(memoryview(header))
        for spec in specs:
            produced = produce(spec.name)
            if isinstance(produced, torch.Tensor):
                if tuple(produced.shape) != spec.shape:
                    raise CheckpointError(
                        f"{file}: {spec.name!r} was produced as {list(produced.shape)}, not {list(spec.shape)}"
                    )
                produced = (produced,)
            written = 0
            for piece in produced:
                if piece.dtype != torch_dtype(spec.dtype) or piece.device.type != "cpu":
                    found = f"{piece.dtype} on {piece.device}"
                    raise CheckpointError(f"{file}: {spec.name!r} was produced as {found}, not {spec.dtype} on cpu")
                written += piece.numel()
                if written > spec.num_elements:
                    break
                if piece.numel():
                    hashed.write(_as_bytes(piece))
            if written != spec.num_elements:
                raise CheckpointError(
                    f"{file}: {spec.name!r} was produced with {written} elements or more, not {spec.num_elements}"
                )
    remember_hashes(file, hashed.digests())


class _HashedFile:
    """Writes to a file and hashes what it writes at the same time, on another core; keeps no bytes.

    Args:
        stream: the file, unbuffered.
        pool: of one thread, which hashes.
    """

    def __init__(self, stream: FileIO, pool: ThreadPoolExecutor) -> None:
        self._stream = stream
        self._pool = pool
        self._hasher = Hasher()
        self._position = 0
        self._begun = 0

    def write(self, data: memoryview) -> None:
        """Write and hash all of ``data``; the disk begins as soon as there is enough for it."""
        if len(data) < THREADS_FROM_BYTES:  # sooner done than a thread has begun
            self._write(data)
            self._hasher.update(data)
            return
        hashed = self._pool.submit(self._hasher.update, data)
        try:
            self._write(data)
        finally:
            hashed.result()

    def _write(self, data: memoryview) -> None:
        start = 0
        while start < len(data):
            done = self._stream.write(data[start : start + CHUNK_BYTES])
            start += done
            self._position += done
            if self._position - self._begun >= CHUNK_BYTES:
                start_writing(self._stream.fileno(), self._begun, self._position - self._begun)
                self._begun = self._position

    def digests(self) -> Digests:
        """Return the hashes of everything written."""
        return self._hasher.digests()


def _as_bytes(piece: torch.Tensor) -> memoryview:
    import torch

    flat = piece.detach().contiguous().view(-1).view(torch.uint8)
    return flat.numpy().data
