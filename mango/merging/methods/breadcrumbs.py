"""Dropping of each difference what changed little and the few elements that changed most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from mango.merging.methods.consensus import SparseParams, add_changes
from mango.merging.methods.trimming import Trim, measure_trims, trimmed
from mango.merging.registry import merge_method
from mango.tensors.scratch import Scratch


class BreadcrumbsParams(SparseParams):
    """Parameters of ``breadcrumbs`` and ``breadcrumbs_ties``."""

    gamma: float = Field(0.01, ge=0, le=1, description="share of each difference's largest magnitudes that is dropped")
    normalize: bool = Field(False, description="divide by the sum of the weights")
    rescale: bool = Field(False, description="scale what is kept of a difference to the sum of magnitudes of all of it")


def _measure(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    density: Sequence[float],
    gamma: Sequence[float],
    rescale: bool = False,
    **_: object,
) -> dict[str, tuple[Trim, ...]]:
    return {"trims": measure_trims(tensors, base, density=density, gamma=gamma, rescale=rescale)}


@merge_method(
    "breadcrumbs",
    BreadcrumbsParams,
    base="reference",
    per_model=("weight", "density", "gamma"),
    required=("weight",),
    measure=_measure,
    elementwise=True,
)
def breadcrumbs(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    trims: Sequence[Trim] | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus the weighted sum of its masked differences, computed in float64.

    The share ``gamma`` of largest magnitudes is dropped, then all but the ``density`` of largest ones of what is
    left. Both are shares of all elements, rounded down; a density over 0 keeps at least one element, and where both
    do not fit, fewer outliers are dropped. Of equal magnitudes, the first in the tensor count as larger.

    Args:
        tensors: floating point tensors of one shape.
        base: what they were trained from, of the same shape.
        weight: one weight for each.
        density: share of each that is kept, 0 to 1.
        gamma: share of the largest magnitudes of each that is dropped.
        normalize: divide by the sum of the weights.
        rescale: scale what is kept of each so that the sum of its magnitudes is that of the whole difference.
        lambda_: scale of the sum.
        trims: what is kept of the whole tensors, when these are pieces; chosen here by default.
        first_position: flat position of the first element in the whole tensor.
        dtype: type of the result; that of the base by default.

    Returns:
        A tensor of that shape, rounded once.

    Raises:
        MergeError: the weights to divide by sum to zero.

    Source:
        Davari and Belilovsky, "Model Breadcrumbs" (2023), arXiv:2312.06795, section 3.
    """
    if trims is None:
        trims = _measure(tensors, base=base, density=density, gamma=gamma, rescale=rescale)["trims"]
    return _merge(
        tensors, base, trims, first_position, weight, "breadcrumbs", False, normalize, lambda_, dtype or base.dtype
    )


@merge_method(
    "breadcrumbs_ties",
    BreadcrumbsParams,
    base="reference",
    per_model=("weight", "density", "gamma"),
    required=("weight",),
    measure=_measure,
    elementwise=True,
)
def breadcrumbs_ties(
    tensors: Sequence[torch.Tensor],
    *,
    base: torch.Tensor,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    trims: Sequence[Trim] | None = None,
    first_position: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the base plus what the masked differences agree on: masks of Breadcrumbs, election of TIES.

    Args:
        tensors: as in `breadcrumbs`.
        base: as in `breadcrumbs`.
        weight: as in `breadcrumbs`.
        density: as in `breadcrumbs`.
        gamma: as in `breadcrumbs`.
        normalize: divide by the weights of the models that agree with the elected sign.
        rescale: as in `breadcrumbs`.
        lambda_: as in `breadcrumbs`.
        trims: as in `breadcrumbs`.
        first_position: as in `breadcrumbs`.
        dtype: as in `breadcrumbs`.

    Returns:
        A tensor of the shape of the base, rounded once.

    Source:
        arXiv:2312.06795, section 3, and arXiv:2306.01708, algorithm 1.
    """
    if trims is None:
        trims = _measure(tensors, base=base, density=density, gamma=gamma, rescale=rescale)["trims"]
    return _merge(
        tensors, base, trims, first_position, weight, "breadcrumbs_ties", True, normalize, lambda_, dtype or base.dtype
    )


def _merge(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    trims: Sequence[Trim],
    first_position: int,
    weight: Sequence[float],
    method: str,
    elect: bool,
    normalize: bool,
    lambda_: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    with Scratch() as buffers:
        start = buffers.double(base.reshape(-1))
        return add_changes(
            start,
            trimmed(tensors, start, trims, first_position, buffers),
            weight=weight,
            method=method,
            elect=elect,
            normalize=normalize,
            lambda_=lambda_,
            dtype=dtype,
        ).view(base.shape)
