"""The angle between two tensors, seen as vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mango.tensors.arrays import Array, widened
from mango.tensors.pieces import PIECE_ELEMENTS, piece_elements


@dataclass(frozen=True)
class Angle:
    """How two vectors lie to each other.

    Attributes:
        radians: the angle between them, 0 to pi; 0 when one of them is zero or has no elements.
        first_norm: Euclidean length of the first.
        second_norm: Euclidean length of the second.
    """

    radians: float
    first_norm: float
    second_norm: float


def measure_angle(
    first: torch.Tensor | Array, second: torch.Tensor | Array, base: torch.Tensor | Array | None = None
) -> Angle:
    """Return the angle between two tensors of one shape, or arrays, exact to about 1e-13 at every angle.

    The arc cosine of the scalar product is wrong by up to 1e-8 near 0 and pi; this takes the half-angle form
    ``2 atan2(|u - v|, |u + v|)`` of the unit vectors u and v instead. Of vectors a and b with lengths p and q it needs
    one pass: ``|u - v|² = (|a - b|² - (p - q)²) / pq`` and ``|u + v|² = ((p + q)² - |a - b|²) / pq``; where one of
    these differences cancels out, a second pass sums the unit vectors themselves.

    Args:
        first: a floating point tensor of any shape, or a flat array of a type that
            :data:`mango.tensors.arrays.ARRAY_TYPES` has.
        second: one of the same shape.
        base: where the vectors begin, of the same shape; the origin by default.

    Returns:
        The angle and the two lengths. A NaN among the elements makes all three NaN.

    Source:
        W. Kahan, "How Futile are Mindless Assessments of Roundoff in Floating-Point Computation?" (2006), section 12.
    """
    together = [_flat(part) for part in ([first, second] if base is None else [first, second, base])]
    squares = [0.0, 0.0, 0.0]
    for a, b in _pairs(together):
        difference = a - b
        for i, part in enumerate((a, b, difference)):
            squares[i] += _dot(part, part)
    first_norm, second_norm = (math.sqrt(square) if square >= 0 else math.nan for square in squares[:2])
    if first_norm == 0.0 or second_norm == 0.0:
        return Angle(0.0, first_norm, second_norm)
    apart = squares[2] - (first_norm - second_norm) ** 2
    joined = (first_norm + second_norm) ** 2 - squares[2]
    if min(apart, joined) < squares[2] / 16:
        apart, joined = _measured_again(together, first_norm, second_norm)
    if math.isnan(apart) or math.isnan(joined):
        return Angle(math.nan, math.nan, math.nan)
    return Angle(2 * math.atan2(math.sqrt(max(0.0, apart)), math.sqrt(max(0.0, joined))), first_norm, second_norm)


def _measured_again(together: Sequence[Any], first_norm: float, second_norm: float) -> tuple[float, float]:
    """Return the squared lengths of the difference and of the sum of two unit vectors."""
    apart = joined = 0.0
    for a, b in _pairs(together):
        u, v = a / first_norm, b / second_norm
        difference, total = u - v, u + v
        apart += _dot(difference, difference)
        joined += _dot(total, total)
    return apart, joined


def _flat(part: torch.Tensor | Array) -> Any:
    """Return an array of what lies in the main memory, without copying it, and a flat tensor of other devices."""
    if isinstance(part, np.ndarray):
        return part
    flat = part.detach().reshape(-1)
    if not flat.is_cpu:
        return flat
    return flat.contiguous().view(torch.int16).numpy().view(np.uint16) if flat.dtype == torch.bfloat16 else flat.numpy()


def _pairs(together: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield two flat vectors piece by piece in float64, as arrays where they are arrays, else as tensors."""
    size = len(together[0])
    of_arrays = isinstance(together[0], np.ndarray)
    step = PIECE_ELEMENTS if of_arrays else piece_elements(together[0])
    for start in range(0, size, step):
        wide = [
            widened(part[start : start + step]) if of_arrays else part[start : start + step].double()
            for part in together
        ]
        yield (wide[0], wide[1]) if len(wide) == 2 else (wide[0] - wide[2], wide[1] - wide[2])


def _dot(first: Any, second: Any) -> float:
    # einsum adds up in one order, whatever the number of threads of the library for linear algebra
    return float(np.einsum("i,i->", first, second) if isinstance(first, np.ndarray) else torch.dot(first, second))


def angles_along(first: torch.Tensor, second: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the angles between the vectors that two tensors hold along one dimension.

    Args:
        first: float64 of any shape with at least one dimension.
        second: float64 of the same shape.
        dim: the dimension along which the vectors lie.

    Returns:
        float64 radians, of the same shape with ``dim`` of size 1. A zero vector is orthogonal to every other.
    """
    norms = [torch.linalg.vector_norm(tensor, dim=dim, keepdim=True) for tensor in (first, second)]
    u, v = (
        tensor / torch.where(norm == 0, torch.ones_like(norm), norm)
        for tensor, norm in zip((first, second), norms, strict=True)
    )
    apart, joined = (torch.linalg.vector_norm(x, dim=dim, keepdim=True) for x in (u - v, u + v))
    radians = 2 * torch.atan2(apart, joined)
    return torch.where((norms[0] == 0) | (norms[1] == 0), torch.full_like(radians, math.pi / 2), radians)
