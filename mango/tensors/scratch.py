"""Buffers for float64 work on pieces that a thread keeps and uses again.

Torch asks the system for aligned memory for every result. Blocks that came back fit the next request seldom, so that
several times what is in use stays with the process; and memory that is new must be cleared page by page.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import torch

from mango.tensors.pieces import wide_piece_elements


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffers: list[torch.Tensor] = []


_KEPT = _Kept()


class Scratch:
    """A block whose float64 buffers come back to this thread at its end; nothing in them may leave it."""

    def __enter__(self) -> Self:
        self._kept = _KEPT.buffers
        self._taken: list[torch.Tensor] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept += self._taken

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a contiguous float64 buffer of a tensor's shape and device, with whatever was in it."""
        size, most = tensor.numel(), wide_piece_elements()
        if size > most or not tensor.is_cpu:
            return torch.empty(tensor.shape, dtype=torch.float64, device=tensor.device)
        whole = self._kept.pop() if self._kept else torch.empty(most, dtype=torch.float64)
        self._taken.append(whole)
        flat = whole if size == most else whole[:size]
        return flat if tensor.dim() == 1 else flat.view(tensor.shape)

    def double(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor's values in a buffer, as float64; the tensor itself is left alone."""
        return self.like(tensor).copy_(tensor)

    def fill(self, buffer: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """Put a tensor's values into a buffer."""
        return buffer.copy_(tensor)
