"""Adding what each model learned since a common base."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from mango.merging.methods.consensus import ChangeParams
from mango.merging.methods.weights import change_total
from mango.merging.registry import Shares, merge_method
from mango.tensors.sums import weighted_sum


class TaskArithmeticParams(ChangeParams):
    """Parameters of ``task_arithmetic``."""

    normalize: bool = Field(False, description="divide by the sum of the weights")
    lambda_: float = Field(1.0, alias="lambda", description="scale of the sum; 0.3 to 0.6 is usual for several models")


def _shares(*, weight: Sequence[float], normalize: bool = False, lambda_: float = 1.0) -> Shares:
    scale = lambda_ / (change_total("task_arithmetic", weight) if normalize else 1.0)
    own = [w * scale for w in weight]
    return Shares((1.0 - sum(own), *own))


@merge_method(
    "task_arithmetic",
    TaskArithmeticParams,
    base="reference",
    per_model=("weight",),
    required=("weight",),
    shares=_shares,
    elementwise=True,
    without_effect=("density", "rescale"),
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
    shares = _shares(weight=weight, normalize=normalize, lambda_=lambda_)
    return weighted_sum([base, *tensors], shares.coefficients, dtype or base.dtype)
