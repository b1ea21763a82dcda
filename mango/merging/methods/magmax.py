"""Taking in each element the largest change that any model made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import ConfigDict, Field

from mango.config import Frozen
from mango.merging.registry import merge_method


class MagmaxParams(Frozen):
    """Parameters of ``magmax``."""

    model_config = ConfigDict(populate_by_name=True)

    lambda_: float = Field(1.0, alias="lambda", description="scale of the merged difference")


@merge_method("magmax", MagmaxParams, base="reference", elementwise=True)
def magmax(
    tensors: Sequence[torch.Tensor], *, base: torch.Tensor, lambda_: float = 1.0, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return the base plus, in each element, the difference of largest magnitude, computed in float64.

    Of two opposite differences of one magnitude the positive one is taken, so that the order of the models does not
    matter.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        lambda_: scale of the merged difference.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Marczak et al., "MagMax" (2024), arXiv:2407.06322, equation 2.
    """
    start = base.double()
    up, down = torch.zeros_like(start), torch.zeros_like(start)
    for tensor in tensors:
        change = tensor.double() - start
        up = torch.maximum(up, change)
        down = torch.minimum(down, change)
    # one of the two has the larger magnitude; the sum of both magnitudes only tells which
    merged = torch.where(up >= down.neg(), up, down)
    return start.add(merged, alpha=lambda_).to(dtype or base.dtype)
