"""Averaging models element by element."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from mango.config import Frozen
from mango.merging.methods.weights import weight_total
from mango.merging.registry import Shares, merge_method
from mango.tensors.sums import weighted_sum


class LinearParams(Frozen):
    """Parameters of ``linear``."""

    weight: float = Field(1.0, description="of each model; may be negative")
    normalize: bool = Field(True, description="divide by the sum of the weights")


def _shares(*, weight: Sequence[float], normalize: bool = True) -> Shares:
    return Shares(tuple(weight), weight_total("linear", weight) if normalize else 1.0)


@merge_method(
    "linear", LinearParams, base="none", per_model=("weight",), required=("weight",), shares=_shares, elementwise=True
)
def linear(
    tensors: Sequence[torch.Tensor],
    *,
    weight: Sequence[float],
    normalize: bool = True,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the weighted sum or mean of tensors, computed in float64.

    Args:
        tensors: floating point tensors of one shape.
        weight: one weight for each.
        normalize: divide by the sum of the weights.
        dtype: type of the result; that of the first tensor by default.

    Returns:
        A tensor of that shape, rounded once.

    Raises:
        MergeError: the weights to divide by sum to zero.

    Source:
        Wortsman et al., "Model soups" (2022), arXiv:2203.05482, section 2.
    """
    shares = _shares(weight=weight, normalize=normalize)
    return weighted_sum(tensors, shares.coefficients, dtype or tensors[0].dtype, divisor=shares.divisor)
