"""One model's tensors as they are, or scaled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from mango.config import Frozen
from mango.merging.registry import Shares, merge_method


class PassthroughParams(Frozen):
    """Parameters of ``passthrough``."""

    scale: float | None = Field(None, description="what the tensors are multiplied with")


def _shares(*, scale: Sequence[float | None]) -> Shares:
    return Shares(tuple(1.0 if factor is None else factor for factor in scale))


@merge_method(
    "passthrough",
    PassthroughParams,
    base="none",
    per_model=("scale",),
    num_models=1,
    shares=_shares,
    elementwise=True,
)
def passthrough(
    tensors: Sequence[torch.Tensor], *, scale: Sequence[float | None] = (None,), dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return the one tensor, times its scale if it has one, computed in float64.

    Args:
        tensors: one floating point tensor.
        scale: its scale, or None.
        dtype: type of the result; that of the tensor by default.

    Returns:
        A tensor of that shape, rounded once; a copy bit for bit where neither scale nor type changes it.

    Source:
        Kim et al., "SOLAR 10.7B" (2023), arXiv:2312.15166, section 2, for stacking blocks so.
    """
    (tensor,), (factor,) = tensors, scale
    if factor is None:
        return tensor.to(dtype or tensor.dtype, copy=True)
    return (tensor.double() * factor).to(dtype or tensor.dtype)
