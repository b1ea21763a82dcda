"""Adding what each model learned since a common base."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import ConfigDict, Field

from mango.config import Frozen
from mango.errors import MergeError
from mango.merging.registry import merge_method


class TaskArithmeticParams(Frozen):
    """Parameters of ``task_arithmetic``."""

    model_config = ConfigDict(populate_by_name=True)

    weight: float = Field(1.0, description="of each model's difference; a negative one takes away what it learned")
    normalize: bool = Field(False, description="divide by the sum of the weights")
    lambda_: float = Field(1.0, alias="lambda", description="scale of the sum; 0.3 to 0.6 is usual for several models")


@merge_method(
    "task_arithmetic",
    TaskArithmeticParams,
    base="reference",
    per_model=("weight",),
    required=("weight",),
    elementwise=True,
)
def task_arithmetic(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Sequence[float],
    normalize: bool = False,
    lambda_: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus the scaled sum of the weighted differences from it, computed in float64.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        weight: one weight for each.
        normalize: divide the sum by the sum of the weights.
        lambda_: scale of the sum.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Raises:
        MergeError: the weights to divide by sum to zero.

    Source:
        Ilharco et al., "Editing Models with Task Arithmetic" (2023), arXiv:2212.04089, section 2.
    """
    total = math.fsum(weight) if normalize else 1.0
    if abs(total) <= 1e-12 * sum(map(abs, weight)):
        raise MergeError(
            f"task_arithmetic: the weights {list(weight)} sum to zero; change them, or set normalize: false"
        )
    start = base.double()
    change = torch.zeros_like(start)
    for tensor, w in zip(tensors, weight, strict=True):
        change.add_(tensor.double() - start, alpha=w)
    return start.add(change, alpha=lambda_ / total).to(dtype or base.dtype)
