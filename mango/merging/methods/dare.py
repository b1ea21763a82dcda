"""Dropping elements of each difference at random, and scaling up what is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field

from mango.merging.methods.consensus import SparseParams, add_changes
from mango.merging.registry import merge_method
from mango.tensors.masks import keep_only
from mango.tensors.randomness import keep_at_random
from mango.tensors.scratch import Scratch


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
)
def dare_linear(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Sequence[float],
    density: Sequence[float],
    seeds: Sequence[int] | None = None,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus the weighted sum of randomly thinned differences from it, computed in float64.

    Each element of a difference is kept with the probability ``density`` and divided by it, so that its expectation
    is the element. Whether it is kept is a function of the model's seed and the element's position alone.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        weight: one weight for each.
        density: probability of keeping an element of each, 0 to 1.
        seeds: one for each, by default 0, 1, ...; tensors of equal seeds keep the same elements.
        normalize: divide by the sum of the weights.
        rescale: divide what is kept by its probability.
        lambda_: scale of the sum.
        first_position: flat position of the first element in the whole tensor, when these are pieces.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Raises:
        MergeError: the weights to divide by sum to zero.

    Source:
        Yu et al., "Language Models are Super Mario" (2023), arXiv:2311.03099, section 3.2.
    """
    with Scratch() as buffers:
        start = buffers.double(base)
        return add_changes(
            start,
            _thinned(tensors, start, density, seeds, first_position, buffers),
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
)
def dare_ties(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Sequence[float],
    density: Sequence[float],
    seeds: Sequence[int] | None = None,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
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
    with Scratch() as buffers:
        start = buffers.double(base)
        return add_changes(
            start,
            _thinned(tensors, start, density, seeds, first_position, buffers),
            weight=weight,
            method="dare_ties",
            elect=True,
            normalize=normalize,
            lambda_=lambda_,
            dtype=dtype or base.dtype,
            scales=_scales(density, rescale),
        )


def _thinned(
    tensors: Sequence[torch.Tensor],
    start: torch.Tensor,
    density: Sequence[float],
    seeds: Sequence[int] | None,
    first_position: int,
    buffers: Scratch,
) -> Iterator[torch.Tensor]:
    change = buffers.like(start)
    for tensor, share, seed in zip(tensors, density, seeds or range(len(tensors)), strict=True):
        change.copy_(tensor).sub_(start)
        if share < 1:
            keep_only(
                change, keep_at_random(seed, first_position, change.numel(), share, change.device).view_as(change)
            )
        yield change


def _scales(density: Sequence[float], rescale: bool) -> list[float]:
    return [1 / share if rescale and share > 0 else 1.0 for share in density]
