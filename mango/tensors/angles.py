"""The angle between two tensors, seen as vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mango.tensors.pieces import pieces


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


def measure_angle(first: torch.Tensor, second: torch.Tensor, base: torch.Tensor | None = None) -> Angle:
    """Return the angle between two tensors of one shape, exact to about 1e-15 at every angle.

    The arc cosine of the scalar product is wrong by up to 1e-8 near 0 and pi; this takes the half-angle form
    ``2 atan2(|u - v|, |u + v|)`` of the unit vectors u and v instead.

    Args:
        first: a floating point tensor of any shape.
        second: one of the same shape.
        base: where the vectors begin, of the same shape; the origin by default.

    Returns:
        The angle and the two lengths. A NaN among the elements makes all three NaN.

    Source:
        W. Kahan, "How Futile are Mindless Assessments of Roundoff in Floating-Point Computation?" (2006), section 12.
    """
    together = [first, second] if base is None else [first, second, base]
    lengths = [0.0, 0.0]
    for parts in pieces(together):
        for i, part in enumerate(_from_base(parts)):
            lengths[i] += float(torch.dot(part, part))
    first_norm, second_norm = (math.sqrt(length) if length >= 0 else math.nan for length in lengths)
    if first_norm == 0.0 or second_norm == 0.0:
        return Angle(0.0, first_norm, second_norm)
    apart = joined = 0.0
    for parts in pieces(together):
        a, b = _from_base(parts)
        u, v = a / first_norm, b / second_norm
        difference = u - v
        total = u.add_(v)
        apart += float(torch.dot(difference, difference))
        joined += float(torch.dot(total, total))
    if math.isnan(apart) or math.isnan(joined):
        return Angle(math.nan, math.nan, math.nan)
    return Angle(2 * math.atan2(math.sqrt(apart), math.sqrt(joined)), first_norm, second_norm)


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


def _from_base(parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = parts[0].double(), parts[1].double()
    if len(parts) == 2:
        return first, second
    start = parts[2].double()
    return first - start, second - start
