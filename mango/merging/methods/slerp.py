"""Going from one model to another along the arc between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from mango.config import Frozen
from mango.merging.registry import Shares, merge_method
from mango.tensors import Angle, measure_angle
from mango.tensors.arrays import Array
from mango.tensors.sums import weighted_sum

COLINEAR_RADIANS = 1e-4
"""Two tensors whose angle is this close to 0 or pi are colinear."""


class SlerpParams(Frozen):
    """Parameters of ``slerp``."""

    t: float = Field(0.5, ge=0, le=1, description="how far to go: 0 is the base model, 1 the other")


def arc_shares(radians: float, t: float) -> tuple[float, float]:
    """Return the coefficients of two vectors in their spherical interpolation.

    Args:
        radians: the angle between them.
        t: how far to go from the first to the second.

    Returns:
        ``sin((1 - t) w) / sin(w)`` and ``sin(t w) / sin(w)``; ``1 - t`` and ``t`` where w is within 1e-4 of 0 or pi,
        where the arc is too short to matter or not defined.
    """
    if min(radians, math.pi - radians) < COLINEAR_RADIANS:
        return 1 - t, t
    return math.sin((1 - t) * radians) / math.sin(radians), math.sin(t * radians) / math.sin(radians)


def _measure(tensors: Sequence[torch.Tensor | Array], **_: Any) -> dict[str, Angle]:
    return {"angle": measure_angle(tensors[0], tensors[1])}


def _shares(*, t: float, angle: Angle) -> Shares:
    return Shares(arc_shares(angle.radians, t))


@merge_method(
    "slerp",
    SlerpParams,
    base="start",
    required=("t",),
    num_models=2,
    measure=_measure,
    shares=_shares,
    elementwise=True,
)
def slerp(
    tensors: Sequence[torch.Tensor],
    *,
    t: float,
    angle: Angle | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the spherical interpolation between two tensors, computed in float64.

    With the angle w between them: ``sin((1 - t) w) / sin(w) * a + sin(t w) / sin(w) * b``. It is a part of the
    method that colinear tensors, whose arc is not defined or too short to matter, are interpolated linearly:
    ``(1 - t) * a + t * b`` where w is within 1e-4 of 0 or pi, or one of them is zero.

    Args:
        tensors: two floating point tensors of one shape, a and b.
        t: 0 gives a, 1 gives b.
        angle: the angle between the whole tensors, when these are pieces; measured here by default.
        first_position: where the piece begins; every element is treated alike, so that nothing depends on it.
        dtype: type of the result; that of the first tensor by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Shoemake, "Animating rotation with quaternion curves" (1985), section 3.3.
    """
    shares = _shares(t=t, angle=angle or measure_angle(tensors[0], tensors[1]))
    return weighted_sum(tensors, shares.coefficients, dtype or tensors[0].dtype)
