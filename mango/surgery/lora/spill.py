"""Tensors put aside on disk until all of their shapes are known, so that few of them are in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from mango.checkpoints import TensorSpec, saving
from mango.tensors import dtype_name


class Spill:
    """A folder of tensors inside of one that is being written; it is gone when the context ends.

    Args:
        folder: where to make it; the same disk as the result, so that a full one is found here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / ".spilled"
        self._specs: dict[str, TensorSpec] = {}

    def __enter__(self) -> Spill:
        self._folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor; its memory can go."""
        path = self._path(len(self._specs))
        self._specs[name] = TensorSpec(name, dtype_name(tensor.dtype), tuple(tensor.shape))
        with saving(path):
            path.write_bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

    def specs(self) -> list[TensorSpec]:
        """Return what was put, in order."""
        return list(self._specs.values())

    def get(self, name: str) -> torch.Tensor:
        """Return a tensor, mapped from its file."""
        from mango.tensors import torch_dtype

        spec = self._specs[name]
        path = self._path(list(self._specs).index(name))
        dtype = torch_dtype(spec.dtype)
        flat = torch.from_file(str(path), shared=False, size=spec.num_elements, dtype=dtype)
        return flat.view(spec.shape)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.bin"
