"""Averaging models element by element, weighted by how much each model depends on the element."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from mango.config import Frozen
from mango.merging.methods.weights import weight_total
from mango.merging.registry import merge_method


class FisherParams(Frozen):
    """Parameters of ``fisher``."""

    weight: float = Field(1.0, ge=0, description="of each model, beside its Fisher information")


@merge_method(
    "fisher", FisherParams, base="none", per_model=("weight",), elementwise=True, statistics="fishers", min_models=1
)
def fisher(
    tensors: Sequence[torch.Tensor],
    *,
    fishers: Sequence[torch.Tensor | None],
    weight: Sequence[float],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return ``sum_i w_i F_i x_i / sum_i w_i F_i``, computed in float64.

    Where no model depends on an element, so that all weights are zero, and where Fisher information is not known for
    every model, the weighted mean is taken.

    Args:
        tensors: floating point tensors of one shape.
        fishers: for each, the diagonal of its Fisher information, not negative, of the same shape; or None.
        weight: one weight for each, not negative.
        dtype: type of the result; that of the first tensor by default.

    Returns:
        A tensor of that shape, rounded once.

    Raises:
        MergeError: the weights sum to zero.

    Source:
        Matena and Raffel, "Merging Models with Fisher-Weighted Averaging" (2021), arXiv:2111.09832, equation 4.
    """
    total = weight_total("fisher", weight)
    shares = [w / total for w in weight]
    known = [matrix for matrix in fishers if matrix is not None]
    mean, merged = (torch.zeros(tensors[0].shape, dtype=torch.float64, device=tensors[0].device) for _ in range(2))
    divisor = torch.zeros_like(mean)
    complete = len(known) == len(tensors)
    for i, (tensor, share) in enumerate(zip(tensors, shares, strict=True)):
        wide = tensor.double()
        mean.add_(wide, alpha=share)
        if complete:
            importance = known[i].double().mul(share)
            merged.addcmul_(importance, wide)
            divisor.add_(importance)
    if not complete:
        return mean.to(dtype or tensors[0].dtype)
    unknown = divisor == 0
    merged.div_(divisor.masked_fill_(unknown, 1.0))
    return torch.where(unknown, mean, merged).to(dtype or tensors[0].dtype)
