"""Weighted sums of tensors, and the scalar products that say how tensors lie to each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mango.tensors.pieces import pieces
from mango.tensors.scratch import Scratch


def weighted_sum(
    tensors: Sequence[torch.Tensor],
    coefficients: Sequence[float | torch.Tensor],
    dtype: torch.dtype,
    *,
    divisor: float = 1.0,
) -> torch.Tensor:
    """Return the sum of tensors, each times its coefficient, computed in float64 and rounded once.

    Args:
        tensors: floating point tensors of one shape.
        coefficients: one for each: a number, or a float64 tensor that broadcasts to the shape.
        dtype: type of the result.
        divisor: what the sum is divided by at the end.

    Returns:
        A tensor of that shape. A tensor whose coefficient is 0 counts too, so that a NaN in it shows. Products are
        rounded before they are added, and not fused with the sum, so that every device returns the same bits, as does
        :func:`mango.tensors.arrays.sum_arrays`.
    """
    if not tensors:
        raise AssertionError("a sum of no tensors has no shape")
    with Scratch() as buffers:
        result, wide = buffers.like(tensors[0]), None
        for tensor, coefficient in zip(tensors, coefficients, strict=True):
            if wide is None:
                wide = buffers.like(tensor)
                result.copy_(tensor).mul_(coefficient)
            elif isinstance(coefficient, torch.Tensor):
                result.addcmul_(wide.copy_(tensor), coefficient)
            else:
                result.add_(wide.copy_(tensor).mul_(coefficient))
        if divisor != 1.0:
            result.div_(divisor)
        return result.to(dtype, copy=True)


def scalar_products(tensors: Sequence[torch.Tensor], base: torch.Tensor | None = None) -> torch.Tensor:
    """Return the scalar products of tensors, or of their differences from a base, seen as vectors.

    Args:
        tensors: n floating point tensors of one shape.
        base: what is subtracted from each, of the same shape; nothing by default.

    Returns:
        float64 of shape [n, n] on the CPU, gone through piece by piece.
    """
    products = torch.zeros(len(tensors), len(tensors), dtype=torch.float64)
    for parts in pieces(tensors if base is None else [*tensors, base]):
        start = None if base is None else parts.pop().double()
        rows = [part.double() if start is None else part.double() - start for part in parts]
        for i, row in enumerate(rows):
            for j in range(i + 1):
                products[i, j] += float(torch.dot(row, rows[j]))
    return products.tril() + products.tril(-1).T


def row_products(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the scalar products of the rows of two float64 matrices, float64 of shape [rows]."""
    return torch.einsum("rc,rc->r", first, second)
