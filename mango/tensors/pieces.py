"""Going through large tensors a piece at a time, so that float64 work needs little memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache

import torch

PIECE_ELEMENTS = 2**16
"""Elements of a piece on a CPU: half a MiB as float64, so that the few of one computation stay in the cache."""

DEVICE_PIECE_ELEMENTS = 2**24
"""Most elements of a piece on an accelerator, where starting an operation costs as much as thousands of elements."""


@cache
def wide_piece_elements() -> int:
    """Return how many elements a piece on the CPU has where results do not depend on it, at least two ordinary ones.

    On many processors it has more: threads take turns at the interpreter between the operations on a piece, and the
    more they are, the more there must be to do in between.
    """
    return PIECE_ELEMENTS * min(16, max(2, len(os.sched_getaffinity(0)) // 2))


@cache
def device_piece_elements(device: torch.device) -> int:
    """Return how many elements a piece on an accelerator has: each thread needs about ten float64 buffers of that size.

    Args:
        device: the accelerator.
    """
    if device.type != "cuda":
        return DEVICE_PIECE_ELEMENTS
    memory = int(torch.cuda.get_device_properties(device).total_memory)
    return min(DEVICE_PIECE_ELEMENTS, max(1 << 20, 1 << (memory.bit_length() - 13)))


def piece_elements(tensor: torch.Tensor) -> int:
    """Return how many elements a piece of this tensor has, which depends on its device."""
    return PIECE_ELEMENTS if tensor.device.type == "cpu" else device_piece_elements(tensor.device)


def pieces(tensors: Sequence[torch.Tensor], size: int | None = None) -> Iterator[list[torch.Tensor]]:
    """Yield the flattened tensors in step, ``size`` elements at a time, each in its own type.

    Args:
        tensors: tensors of one shape.
        size: elements of a piece; the last one is smaller. By default what suits their device.

    Yields:
        One flat piece of each tensor, in their order.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    step = size or piece_elements(flat[0])
    for start in range(0, flat[0].numel(), step):
        yield [tensor[start : start + step] for tensor in flat]


def row_pieces(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield matrices in step, as many whole rows at a time as make a piece, but at least one.

    Args:
        tensors: matrices of one shape.

    Yields:
        Some rows of each matrix, in their order.
    """
    rows, columns = tensors[0].shape
    step = max(1, piece_elements(tensors[0]) // max(1, columns))
    for start in range(0, rows, step):
        yield [tensor[start : start + step] for tensor in tensors]


def last_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as a matrix whose rows are its vectors along the last dimension; a scalar is one row of one."""
    if tensor.dim() == 0:
        return tensor.reshape(1, 1)
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.numel() else tensor.reshape(0, max(1, tensor.shape[-1]))
