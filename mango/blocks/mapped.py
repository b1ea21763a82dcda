"""Tensors mapped from byte ranges of files, and their hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mango.blocks.manifest import StoredTensor
from mango.errors import CheckpointError, IntegrityError

if TYPE_CHECKING:
    import torch

_CHUNK_BYTES = 1 << 24


def map_tensors(root: Path, tensors: Iterable[StoredTensor], *, owner: str) -> dict[str, torch.Tensor]:
    """Map tensors from their files; their bytes are read when they are used.

    Each call makes mappings of its own, private to this process: what a caller writes into a tensor reaches neither
    the file nor another caller.

    Args:
        root: folder that relative file names start from.
        tensors: where the tensors lie.
        owner: what they belong to, for messages (``"block 3 of 'code'"``).

    Returns:
        Tensors on the CPU by full name, in the order given.

    Raises:
        CheckpointError: a file is missing or cannot be mapped.
        IntegrityError: a file ends before the range that is wanted from it.
    """
    from mango.tensors import torch_dtype

    files: dict[str, torch.Tensor] = {}
    mapped: dict[str, torch.Tensor] = {}
    for stored in tensors:
        if stored.file not in files:
            files[stored.file] = _map(root / stored.file, owner)
        whole = files[stored.file]
        if stored.end > whole.numel():
            raise IntegrityError(
                f"{root / stored.file}: {owner} needs bytes up to {stored.end} for {stored.name!r}, but the file has "
                f"{whole.numel()}: it was truncated or replaced; restore it or run extract-blocks again"
            )
        dtype = torch_dtype(stored.dtype)
        raw = whole[stored.start : stored.end]
        if stored.start % dtype.itemsize:
            raw = raw.clone()  # torch cannot view unaligned bytes in place
        mapped[stored.name] = raw.view(dtype).view(stored.shape)
    return mapped


def _map(file: Path, owner: str) -> torch.Tensor:
    import torch

    try:
        size = file.stat().st_size
        if size == 0:
            return torch.empty(0, dtype=torch.uint8)
        return torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file}: missing, and {owner} lies in it; bring the model back or run extract-blocks again"
        ) from error
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{file}: {owner} lies in it, but it cannot be mapped: {error}") from error


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors: of their names, types, shapes and bytes, in the order of their names.

    Args:
        tensors: contiguous tensors on the CPU; their bytes are read in pieces.

    Returns:
        64 hexadecimal digits.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(header, separators=(",", ":")).encode() + b"\n")
        raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
        for piece in torch.split(raw, _CHUNK_BYTES):
            digest.update(piece.numpy().data)
    return digest.hexdigest()
