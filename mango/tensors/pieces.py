"""Going through large tensors a piece at a time, so that float64 work needs little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

PIECE_ELEMENTS = 2**17
"""Elements of a piece: 1 MiB as float64, so that the few of one computation stay in the cache."""


def pieces(tensors: Sequence[torch.Tensor], size: int = PIECE_ELEMENTS) -> Iterator[list[torch.Tensor]]:
    """Yield the flattened tensors in step, ``size`` elements at a time, each in its own type.

    Args:
        tensors: tensors of one shape.
        size: elements of a piece; the last one is smaller.

    Yields:
        One flat piece of each tensor, in their order.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), size):
        yield [tensor[start : start + size] for tensor in flat]
