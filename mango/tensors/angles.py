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


def measure_angle(first: torch.Tensor, second: torch.Tensor) -> Angle:
    """Return the angle between two tensors of one shape, exact to about 1e-15 at every angle.

    The arc cosine of the scalar product is wrong by up to 1e-8 near 0 and pi; this takes the half-angle form
    ``2 atan2(|u - v|, |u + v|)`` of the unit vectors u and v instead.

    Args:
        first: a floating point tensor of any shape.
        second: one of the same shape.

    Returns:
        The angle and the two lengths. A NaN among the elements makes all three NaN.

    Source:
        W. Kahan, "How Futile are Mindless Assessments of Roundoff in Floating-Point Computation?" (2006), section 12.
    """
    lengths = [0.0, 0.0]
    for piece in pieces((first, second)):
        for i, part in enumerate(piece):
            lengths[i] += float(part.double().square().sum())
    first_norm, second_norm = (math.sqrt(length) if length >= 0 else math.nan for length in lengths)
    if first_norm == 0.0 or second_norm == 0.0:
        return Angle(0.0, first_norm, second_norm)
    apart = together = 0.0
    for a, b in pieces((first, second)):
        u, v = a.double() / first_norm, b.double() / second_norm
        apart += float((u - v).square().sum())
        together += float((u + v).square().sum())
    if math.isnan(apart) or math.isnan(together):
        return Angle(math.nan, math.nan, math.nan)
    return Angle(2 * math.atan2(math.sqrt(apart), math.sqrt(together)), first_norm, second_norm)
