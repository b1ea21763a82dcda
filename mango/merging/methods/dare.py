"""Dropping elements of each difference at random, and scaling up what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from mango.merging.methods.consensus import Chance, SparseParams, add_changes
from mango.merging.registry import merge_method
from mango.tensors.arrays import Array
from mango.tensors.work import work_on


class DareParams(SparseParams):
    """Parameters of ``dare_linear`` and ``dare_ties``."""

    density: float = Field(1.0, ge=0, le=1, description="probability with which each element of a difference is kept")
    normalize: bool = Field(False, description="divide by the sum of the weights")
    rescale: bool = Field(True, description="divide what is kept by the probability, so that the mean is unchanged")


@merge_method(
    "dare_linear",
    DareParams,
    base="reference",
    per_model=("weight", "density"),
    required=("weight",),
    elementwise=True,
    random=True,
    on_arrays=True,
)
def dare_linear(
    tensors: Sequence[torch.Tensor | Array],
    *,
    base: torch.Tensor | Array,
    weight: Sequence[float],
    density: Sequence[float],
    seeds: Sequence[int] | None = None,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    first_position: int = 0,
    dtype: torch.dtype | str | None = None,
) -> Any:
    """Return the base plus the weighted sum of randomly thinned differences from it, computed in float64.

    Each element of a difference is kept with the probability ``density`` and divided by it, so that its expectation
    is the element. Whether it is kept is a function of the model's seed and the element's position alone.

    Args:
        tensors: floating point tensors of one shape, or flat arrays of stored elements.
        base: what they were trained from, of the same shape.
        weight: one weight for each.
        density: probability of keeping an element of each, 0 to 1.
        seeds: one for each, by default 0, 1, ...; tensors of equal seeds keep the same elements.
        normalize: divide by the sum of the weights.
        rescale: divide what is kept by its probability.
        lambda_: scale of the sum.
        first_position: flat position of the first element in the whole tensor, when these are pieces.
        dtype: type of the result, that of the base by default; of arrays, its safetensors name.

    Returns:
        A tensor or an array of that shape, rounded once.

    Raises:
        MergeError: the weights to divide by sum to zero.

    Source:
        Yu et al., "Language Models are Super Mario" (2023), arXiv:2311.03099, section 3.2.
    """
    return _merged(
        tensors,
        base,
        density,
        seeds,
        first_position,
        weight=weight,
        method="dare_linear",
        elect=False,
        normalize=normalize,
        lambda_=lambda_,
        dtype=dtype or base.dtype,
        scales=_scales(density, rescale),
    )


@merge_method(
    "dare_ties",
    DareParams,
    base="reference",
    per_model=("weight", "density"),
    required=("weight",),
    elementwise=True,
    random=True,
    on_arrays=True,
)
def dare_ties(
    tensors: Sequence[torch.Tensor | Array],
    *,
    base: torch.Tensor | Array,
    weight: Sequence[float],
    density: Sequence[float],
    seeds: Sequence[int] | None = None,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    first_position: int = 0,
    dtype: torch.dtype | str | None = None,
) -> Any:
    """Return the base plus what randomly thinned differences agree on: thinning of DARE, election of TIES.

    Args:
        tensors: as in `dare_linear`.
        base: as in `dare_linear`.
        weight: as in `dare_linear`.
        density: as in `dare_linear`.
        seeds: as in `dare_linear`.
        normalize: divide by the weights of the models that agree with the elected sign.
        rescale: as in `dare_linear`.
        lambda_: as in `dare_linear`.
        first_position: as in `dare_linear`.
        dtype: as in `dare_linear`.

    Returns:
        A tensor of the shape of the base, rounded once.

    Source:
        arXiv:2311.03099, section 3.2, and arXiv:2306.01708, algorithm 1.
    """
    return _merged(
        tensors,
        base,
        density,
        seeds,
        first_position,
        weight=weight,
        method="dare_ties",
        elect=True,
        normalize=normalize,
        lambda_=lambda_,
        dtype=dtype or base.dtype,
        scales=_scales(density, rescale),
    )


def _merged(
    tensors: Sequence[torch.Tensor | Array],
    base: torch.Tensor | Array,
    density: Sequence[float],
    seeds: Sequence[int] | None,
    first_position: int,
    **options: Any,
) -> Any:
    chances = [
        Chance(seed, first_position, share) for seed, share in zip(seeds or range(len(tensors)), density, strict=True)
    ]
    with work_on(base) as work:
        start, change = work.double(base), work.like(base)
        changes = (work.subtract(work.fill(change, tensor), start, out=change) for tensor in tensors)
        return add_changes(start, changes, chances=chances, **options)


def _scales(density: Sequence[float], rescale: bool) -> list[float]:
    return [1 / share if rescale and share > 0 else 1.0 for share in density]
