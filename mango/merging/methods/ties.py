"""Trim what changed little, elect a sign for each element, and average what agrees with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from mango.merging.methods.consensus import SparseParams, add_changes
from mango.merging.methods.trimming import Trim, measure_trims, trimmed
from mango.merging.registry import merge_method
from mango.tensors.kernels import can_fuse
from mango.tensors.scratch import Scratch


class TiesParams(SparseParams):
    """Parameters of ``ties``."""

    normalize: bool = Field(True, description="divide by the weights of the models that agree with the sign")
    rescale: bool = Field(False, description="scale what is kept of a difference to the sum of magnitudes of all of it")


def _measure(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    density: Sequence[float],
    rescale: bool = False,
    **_: object,
) -> dict[str, tuple[Trim, ...]]:
    return {"trims": measure_trims(tensors, base, density=density, gamma=None, rescale=rescale)}


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
    rescale: bool = False,
    lambda_: float = 1.0,
    trims: Sequence[Trim] | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus the disjoint mean of the trimmed differences from it, computed in float64.

    1. Trim: of each difference the ``density`` of largest magnitude is kept (rounded down, but at least one element
       of any; of equal ones the first), the rest becomes zero.
    2. Elect: the sign of each element is that of the weighted sum of the trimmed differences. Where it is zero no
       sign is elected, and the element stays as it is in the base.
    3. Disjoint mean: the weighted mean over the models whose weighted trimmed difference has the elected sign;
       without ``normalize`` their weighted sum.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        weight: one weight for each.
        density: share of each that is kept, 0 to 1.
        normalize: divide by the weights of the models that agree.
        rescale: scale what is kept of each so that the sum of its magnitudes is that of the untrimmed difference.
        lambda_: scale of the merged difference.
        trims: what trimming keeps of the whole tensors, when these are pieces; chosen here by default.
        first_position: flat position of the first element in the whole tensor.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Source:
        Yadav et al., "TIES-Merging" (2023), arXiv:2306.01708, algorithm 1.
    """
    if trims is None:
        trims = _measure(tensors, base=base, density=density, rescale=rescale)["trims"]
    if can_fuse(base, *tensors):
        from mango.tensors.electing_kernel import add_elected

        flat = [tensor.reshape(-1) for tensor in (base, *tensors)]
        how = [trim.as_change(w, first_position, base.numel()) for trim, w in zip(trims, weight, strict=True)]
        kind = dtype or base.dtype
        merged = add_elected(flat[0], flat[1:], how, normalize=normalize, lambda_=lambda_, dtype=kind)
        return merged.view(base.shape)
    with Scratch() as buffers:
        start = buffers.double(base.reshape(-1))
        return add_changes(
            start,
            trimmed(tensors, start, trims, first_position, buffers),
            weight=weight,
            method="ties",
            elect=True,
            normalize=normalize,
            lambda_=lambda_,
            dtype=dtype or base.dtype,
        ).view(base.shape)
