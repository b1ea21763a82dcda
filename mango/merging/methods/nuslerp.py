"""Going between two models, or two differences from a base, by weights, as whole tensors or vector by vector."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field

from mango.config import Frozen
from mango.merging.methods.slerp import COLINEAR_RADIANS, arc_shares
from mango.merging.registry import merge_method
from mango.tensors.angles import angles_along, measure_angle
from mango.tensors.pieces import last_rows, row_pieces
from mango.tensors.spread import Spread
from mango.tensors.sums import weighted_sum


class NuslerpParams(Frozen):
    """Parameters of ``nuslerp``."""

    weight: float = Field(1.0, description="of each of the two models; only their ratio counts")
    nuslerp_flatten: bool = Field(True, description="take a tensor as one vector, not as many")
    nuslerp_row_wise: bool = Field(
        False, description="unless flattened: vectors lie along the first dimension instead of the last"
    )


def _measure(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor | None,
    weight: Sequence[float],
    nuslerp_flatten: bool,
    nuslerp_row_wise: bool,
) -> dict[str, tuple[Spread, ...]]:
    first, second = tensors
    total = math.fsum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    if nuslerp_flatten or first.dim() < 2:
        angle = measure_angle(first, second, base)
        orthogonal = first.numel() and (angle.first_norm == 0 or angle.second_norm == 0)
        pair = arc_shares(math.pi / 2 if orthogonal else angle.radians, t)
        return {"shares": tuple(Spread(torch.tensor([share], dtype=torch.float64), 1) for share in pair)}
    if nuslerp_row_wise:
        start = 0.0 if base is None else base.double()
        radians = angles_along(first.double() - start, second.double() - start, 0).reshape(-1)
        repeat = 1
    else:
        matrices = [last_rows(tensor) for tensor in (first, second, *([] if base is None else [base]))]
        found = [torch.empty(0, dtype=torch.float64, device=first.device)]
        for a, b, *c in row_pieces(matrices):
            begin = c[0].double() if c else 0.0
            found.append(angles_along(a.double() - begin, b.double() - begin, 1).reshape(-1))
        radians, repeat = torch.cat(found), first.shape[-1]
    colinear = torch.minimum(radians, math.pi - radians) < COLINEAR_RADIANS
    safe = torch.where(colinear, torch.full_like(radians, math.pi / 2), radians)
    shares = (
        torch.where(colinear, torch.full_like(safe, part), torch.sin(part * safe) / torch.sin(safe))
        for part in (1 - t, t)
    )
    return {"shares": tuple(Spread(share, repeat) for share in shares)}


@merge_method(
    "nuslerp",
    NuslerpParams,
    base="optional",
    per_model=("weight",),
    required=("weight",),
    num_models=2,
    measure=_measure,
    elementwise=True,
)
def nuslerp(
    tensors: Sequence[torch.Tensor],
    *,
    weight: Sequence[float],
    base: torch.Tensor | None = None,
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
    shares: tuple[Spread, ...] | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the spherical interpolation between two tensors at ``t = w2 / (w1 + w2)``, computed in float64.

    With a base, the differences from it are interpolated and the result is added to it. A zero vector is taken as
    orthogonal to the other; vectors within 1e-4 of parallel or opposite are interpolated linearly. Weights that sum
    to zero mean the middle.

    Args:
        tensors: two floating point tensors of one shape.
        weight: one weight for each.
        base: where the vectors begin, of the same shape; the origin by default.
        nuslerp_flatten: take each tensor as one vector.
        nuslerp_row_wise: otherwise, whether vectors lie along the first dimension; they lie along the last if not.
        shares: coefficients for the whole tensors, when these are pieces; measured here by default.
        first_position: flat position of the first element in the whole tensor.
        dtype: type of the result; that of the base or the first tensor by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Shoemake, "Animating rotation with quaternion curves" (1985), section 3.3, for each vector.
    """
    if shares is None:
        shares = _measure(
            tensors, base=base, weight=weight, nuslerp_flatten=nuslerp_flatten, nuslerp_row_wise=nuslerp_row_wise
        )["shares"]
    flat = [tensor.reshape(-1) for tensor in (*tensors, *([] if base is None else [base]))]
    coefficients = [share.at(first_position, len(flat[0])).to(flat[0].device) for share in shares]
    if base is not None:
        coefficients.append(1.0 - coefficients[0] - coefficients[1])
    lead = tensors[0] if base is None else base
    return weighted_sum(flat, coefficients, dtype or lead.dtype).view(lead.shape)
