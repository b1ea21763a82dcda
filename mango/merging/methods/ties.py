"""Trim what changed little, elect a sign for each element, and average what agrees with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pydantic import ConfigDict, Field

from mango.config import Frozen
from mango.merging.registry import merge_method
from mango.tensors import Kept, keep_largest, num_kept
from mango.tensors.pieces import pieces

ROUNDING = 2.0**-50
"""A sum this small beside the sum of its magnitudes is rounding noise of float64, and elects no sign."""


class TiesParams(Frozen):
    """Parameters of ``ties``."""

    model_config = ConfigDict(populate_by_name=True)

    weight: float = Field(1.0, ge=0, description="of each model's difference")
    density: float = Field(1.0, gt=0, le=1, description="share of each model's difference that is kept, by magnitude")
    normalize: bool = Field(True, description="divide by the weights of the models that agree with the sign")
    lambda_: float = Field(1.0, alias="lambda", description="scale of the merged difference")


def _measure(
    tensors: Sequence[torch.Tensor], *, base: torch.Tensor, density: Sequence[float], **_: Any
) -> dict[str, tuple[Kept, ...]]:
    size = base.numel()
    return {
        "kept": tuple(
            keep_largest(_magnitudes(tensor, base), num_kept(share, size), size)
            for tensor, share in zip(tensors, density, strict=True)
        )
    }


def _magnitudes(tensor: torch.Tensor, base: torch.Tensor) -> Callable[[], Iterator[torch.Tensor]]:
    return lambda: ((part.double() - start.double()).abs_() for part, start in pieces((tensor, base)))


@merge_method(
    "ties",
    TiesParams,
    base="reference",
    per_model=("weight", "density"),
    required=("weight",),
    measure=_measure,
    elementwise=True,
)
def ties(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = True,
    lambda_: float = 1.0,
    kept: Sequence[Kept] | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus the disjoint mean of the trimmed differences from it, computed in float64.

    1. Trim: of each difference the ``density`` of largest magnitude is kept (at least one element; of equal ones
       the first), the rest becomes zero.
    2. Elect: the sign of each element is that of the weighted sum of the trimmed differences. Where it is zero no
       sign is elected, and the element stays as it is in the base.
    3. Disjoint mean: the weighted mean over the models whose trimmed difference has the elected sign; without
       ``normalize`` their weighted sum.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        weight: one weight for each, not negative.
        density: share of each that is kept, over 0 and up to 1.
        normalize: divide by the weights of the models that agree.
        lambda_: scale of the merged difference.
        kept: what trimming keeps of the whole tensors, when these are pieces; chosen here by default.
        first_position: flat position of the first element in the whole tensor.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Yadav et al., "TIES-Merging" (2023), arXiv:2306.01708, algorithm 1.
    """
    if kept is None:
        kept = _measure(tensors, base=base, density=density)["kept"]
    start = base.reshape(-1).double()
    changes = []
    total, magnitude = torch.zeros_like(start), torch.zeros_like(start)
    for tensor, w, chosen in zip(tensors, weight, kept, strict=True):
        change = tensor.reshape(-1).double() - start
        kept_here = chosen.mask(change.abs(), first_position)
        change.mul_(w).masked_fill_(kept_here.logical_not_(), 0.0)
        total.add_(change)
        magnitude.add_(change.abs())
        changes.append(change)
    elected = total.sign().masked_fill_(total.abs() <= magnitude.mul_(ROUNDING), 0.0)
    merged, divisor = torch.zeros_like(start), torch.zeros_like(start)
    for change, w in zip(changes, weight, strict=True):
        agreeing = change.mul_(elected).clamp_(min=0.0)  # its magnitude where it has the elected sign, else 0
        merged.add_(agreeing)
        if normalize:
            divisor.add_(agreeing > 0, alpha=w)
    if normalize:
        merged.div_(divisor.masked_fill_(divisor == 0, 1.0))
    return start.addcmul(merged, elected, value=lambda_).view(base.shape).to(dtype or base.dtype)
